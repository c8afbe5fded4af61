#include "worker/model/feed_forward.h"

namespace mt {

absl::Status FeedForwardRecompute(ModelContext& context, const FeedForwardWeights& w, const void* x,
                                  const FeedForwardActivations& a,
                                  const FeedForwardScratch& scratch) {
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
  return LinearForward(context, w.gate_up, rows, a.gate_up_scales, a.gate_up);
}

absl::StatusOr<void*> FeedForwardForward(ModelContext& context, const FeedForwardWeights& w,
                                         const void* x, const FeedForwardActivations& a,
                                         const FeedForwardScratch& scratch) {
  const RankShape& s = context.shape;
  MT_RETURN_IF_ERROR(FeedForwardRecompute(context, w, x, a, scratch));
  MT_RETURN_IF_ERROR(context.Run<MT_OP_SWIGLU_FORWARD>({.dtype = context.dtype,
                                                        .rows = s.rows,
                                                        .columns = s.ffn,
                                                        .gate_up = a.gate_up,
                                                        .output = scratch.activated,
                                                        .amax = a.down_scales.input.amax}));
  MT_RETURN_IF_ERROR(
      LinearForward(context, w.down, scratch.activated, a.down_scales, scratch.part.delta));
  return context.SumToStream(scratch.part.delta);
}

// Leaves scratch.activated_again and, in a.gate_up, its gradient for the weights.
absl::StatusOr<void*> FeedForwardBackwardInput(ModelContext& context, const FeedForwardWeights& w,
                                               const void* dy, const FeedForwardActivations& a,
                                               const FeedForwardScratch& scratch) {
  const RankShape& s = context.shape;
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(dy, scratch.part.gathered_gradient));
  MT_RETURN_IF_ERROR(
      LinearInputGradient(context, w.down, rows, a.down_scales, scratch.activated_gradient));
  MT_RETURN_IF_ERROR(
      context.Run<MT_OP_SWIGLU_BACKWARD>({.dtype = context.dtype,
                                          .rows = s.rows,
                                          .columns = s.ffn,
                                          .gate_up = a.gate_up,
                                          .output = scratch.activated_again,
                                          .output_gradient = scratch.activated_gradient,
                                          .gate_up_gradient = a.gate_up,
                                          .amax = a.gate_up_scales.output_gradient.amax}));
  MT_RETURN_IF_ERROR(LinearInputGradient(context, w.gate_up, a.gate_up, a.gate_up_scales,
                                         scratch.part.norm_gradient));
  return context.SumToStream(scratch.part.norm_gradient);
}

absl::Status FeedForwardBackwardWeight(ModelContext& context, const FeedForwardWeights& w,
                                       const void* x, const void* dy,
                                       const FeedForwardActivations& a,
                                       const FeedForwardScratch& scratch) {
  MT_RETURN_IF_ERROR(LinearWeightGradient(context, w.down,
                                          context.GatheredRows(dy, scratch.part.gathered_gradient),
                                          scratch.activated_again, a.down_scales));
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
  return LinearWeightGradient(context, w.gate_up, a.gate_up, rows, a.gate_up_scales);
}

}  // namespace mt
