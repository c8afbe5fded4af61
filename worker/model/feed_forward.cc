#include "worker/model/feed_forward.h"

#include "common/spec/model_traits.h"

namespace mt {
namespace {

mt_swiglu_args SwigluArguments(const ModelContext& context, int64_t width,
                               const FeedForwardActivations& a) {
  return {.dtype = context.dtype,
          .rows = context.shape.rows,
          .columns = width,
          .gate_up = a.gate_up,
          .limit = context.model.swiglu_limit(),
          .alpha = context.model.swiglu_alpha(),
          .offset = context.model.swiglu_offset()};
}

mt_gelu_args GeluArguments(const ModelContext& context, int64_t width,
                           const FeedForwardActivations& a) {
  return {.dtype = context.dtype,
          .rows = context.shape.rows,
          .columns = width,
          .x = a.gate_up,
          .tanh_approximation = context.model.activation() == v1::ModelSpec::ACTIVATION_GELU_TANH};
}

// a.gate_up -> output (N, D), D = width.
absl::Status Activate(ModelContext& context, int64_t width, const FeedForwardActivations& a,
                      void* output, float* amax) {
  if (IsGated(context.model)) {
    mt_swiglu_args swiglu = SwigluArguments(context, width, a);
    swiglu.output = output;
    swiglu.amax = amax;
    return context.Run<MT_OP_SWIGLU_FORWARD>(swiglu);
  }
  mt_gelu_args gelu = GeluArguments(context, width, a);
  gelu.output = output;
  gelu.amax = amax;
  return context.Run<MT_OP_GELU_FORWARD>(gelu);
}

// scratch.activated_gradient -> a.gate_up, and scratch.activated_again.
absl::Status ActivateBackward(ModelContext& context, int64_t width, const FeedForwardActivations& a,
                              const FeedForwardScratch& scratch) {
  float* const amax = a.gate_up_scales.output_gradient.amax;
  if (IsGated(context.model)) {
    mt_swiglu_args swiglu = SwigluArguments(context, width, a);
    swiglu.output = scratch.activated_again;
    swiglu.output_gradient = scratch.activated_gradient;
    swiglu.gate_up_gradient = a.gate_up;
    swiglu.amax = amax;
    return context.Run<MT_OP_SWIGLU_BACKWARD>(swiglu);
  }
  MT_RETURN_IF_ERROR(Activate(context, width, a, scratch.activated_again, /*amax=*/nullptr));
  mt_gelu_args gelu = GeluArguments(context, width, a);
  gelu.output_gradient = scratch.activated_gradient;
  gelu.input_gradient = a.gate_up;
  gelu.amax = amax;
  return context.Run<MT_OP_GELU_BACKWARD>(gelu);
}

}  // namespace

absl::Status FeedForwardPartialRecompute(ModelContext& context, const FeedForwardWeights& w,
                                         const void* x, const FeedForwardActivations& a) {
  return LinearForward(context, w.gate_up, x, a.gate_up_scales, a.gate_up);
}

absl::Status FeedForwardPartial(ModelContext& context, const FeedForwardWeights& w, const void* x,
                                const FeedForwardActivations& a, const FeedForwardScratch& scratch,
                                void* partial) {
  MT_RETURN_IF_ERROR(FeedForwardPartialRecompute(context, w, x, a));
  MT_RETURN_IF_ERROR(Activate(context, w.down.in, a, scratch.activated, a.down_scales.input.amax));
  return LinearForward(context, w.down, scratch.activated, a.down_scales, partial);
}

// Leaves scratch.activated_again and, in a.gate_up, its gradient for the weights.
absl::Status FeedForwardPartialBackwardInput(ModelContext& context, const FeedForwardWeights& w,
                                             const void* dy, const FeedForwardActivations& a,
                                             const FeedForwardScratch& scratch, void* partial) {
  MT_RETURN_IF_ERROR(
      LinearInputGradient(context, w.down, dy, a.down_scales, scratch.activated_gradient));
  MT_RETURN_IF_ERROR(ActivateBackward(context, w.down.in, a, scratch));
  return LinearInputGradient(context, w.gate_up, a.gate_up, a.gate_up_scales, partial);
}

absl::Status FeedForwardPartialBackwardWeight(ModelContext& context, const FeedForwardWeights& w,
                                              const void* x, const void* dy,
                                              const FeedForwardActivations& a,
                                              const FeedForwardScratch& scratch) {
  MT_RETURN_IF_ERROR(
      LinearWeightGradient(context, w.down, dy, scratch.activated_again, a.down_scales));
  return LinearWeightGradient(context, w.gate_up, a.gate_up, x, a.gate_up_scales);
}

absl::StatusOr<void*> FeedForwardForward(ModelContext& context, const FeedForwardWeights& w,
                                         const void* x, const FeedForwardActivations& a,
                                         const FeedForwardScratch& scratch) {
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
  MT_RETURN_IF_ERROR(FeedForwardPartial(context, w, rows, a, scratch, scratch.part.delta));
  return context.SumToStream(scratch.part.delta);
}

absl::Status FeedForwardRecompute(ModelContext& context, const FeedForwardWeights& w, const void* x,
                                  const FeedForwardActivations& a,
                                  const FeedForwardScratch& scratch) {
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
  return FeedForwardPartialRecompute(context, w, rows, a);
}

absl::StatusOr<void*> FeedForwardBackwardInput(ModelContext& context, const FeedForwardWeights& w,
                                               const void* dy, const FeedForwardActivations& a,
                                               const FeedForwardScratch& scratch) {
  void* const partial = scratch.part.norm_gradient;
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(dy, scratch.part.gathered_gradient));
  MT_RETURN_IF_ERROR(FeedForwardPartialBackwardInput(context, w, rows, a, scratch, partial));
  return context.SumToStream(partial);
}

absl::Status FeedForwardBackwardWeight(ModelContext& context, const FeedForwardWeights& w,
                                       const void* x, const void* dy,
                                       const FeedForwardActivations& a,
                                       const FeedForwardScratch& scratch) {
  const void* output_gradient = context.GatheredRows(dy, scratch.part.gathered_gradient);
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
  return FeedForwardPartialBackwardWeight(context, w, rows, output_gradient, a, scratch);
}

}  // namespace mt
