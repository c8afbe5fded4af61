#include "worker/model/decoder_block.h"

#include "common/spec/model_traits.h"

namespace mt {
namespace {

// ---- the attention that the model has

absl::StatusOr<void*> MixForward(ModelContext& context, const BlockWeights& w,
                                 const BlockActivations& a, const BlockScratch& scratch) {
  const void* x = a.first_norm.output;
  return IsMla(context.model)
             ? MlaForward(context, w.mla, x, a.mla, scratch.mla)
             : AttentionForward(context, w.attention, x, a.attention, scratch.attention);
}

absl::StatusOr<void*> MixBackwardInput(ModelContext& context, const BlockWeights& w, const void* dy,
                                       const BlockActivations& a, const BlockScratch& scratch) {
  return IsMla(context.model)
             ? MlaBackwardInput(context, w.mla, dy, a.mla, scratch.mla)
             : AttentionBackwardInput(context, w.attention, dy, a.attention, scratch.attention);
}

absl::Status MixBackwardWeight(ModelContext& context, const BlockWeights& w, const void* dy,
                               const BlockActivations& a, const BlockScratch& scratch) {
  const void* x = a.first_norm.output;
  return IsMla(context.model)
             ? MlaBackwardWeight(context, w.mla, x, dy, a.mla, scratch.mla)
             : AttentionBackwardWeight(context, w.attention, x, dy, a.attention, scratch.attention);
}

// norm1, attention, norm2: up to what the feed-forward reads.
absl::Status FirstHalf(ModelContext& context, const BlockWeights& w, const BlockInput& input,
                       const BlockActivations& a, const BlockScratch& scratch) {
  const NormInput first =
      input.delta == nullptr
          ? NormInput{.x = a.input}
          : NormInput{.x = input.delta, .residual = input.residual, .sum = a.input};
  MT_RETURN_IF_ERROR(
      NormForward(context, w.first_norm, first, a.first_norm, a.attention_amax.input));
  MT_ASSIGN_OR_RETURN(void* delta, MixForward(context, w, a, scratch));
  return NormForward(context, w.second_norm, {.x = delta, .residual = a.input, .sum = a.middle},
                     a.second_norm, a.feed_forward_amax.input);
}

// scratch.gradient (of the block's output) -> scratch.middle_gradient (of `middle`).
absl::Status SecondHalfBackward(ModelContext& context, const BlockWeights& w,
                                const BlockActivations& a, const BlockScratch& scratch) {
  const bool moe = IsMoe(context.model, w.layer);
  MT_ASSIGN_OR_RETURN(void* dx,
                      moe ? MoeBackwardInput(context, w.moe, scratch.gradient, a.moe, scratch.moe)
                          : FeedForwardBackwardInput(context, w.feed_forward, scratch.gradient,
                                                     a.feed_forward, scratch.feed_forward));
  MT_RETURN_IF_ERROR(
      NormBackward(context, w.second_norm, a.middle, a.second_norm,
                   {.output = dx, .residual = scratch.gradient, .input = scratch.middle_gradient},
                   a.attention_amax.output_gradient));
  if (moe) {
    return MoeBackwardWeight(context, w.moe, a.second_norm.output, scratch.gradient, a.moe,
                             scratch.moe);
  }
  return FeedForwardBackwardWeight(context, w.feed_forward, a.second_norm.output, scratch.gradient,
                                   a.feed_forward, scratch.feed_forward);
}

// scratch.middle_gradient -> scratch.gradient (of `input`).
absl::Status FirstHalfBackward(ModelContext& context, const BlockWeights& w,
                               const BlockActivations& a, const BlockScratch& scratch) {
  MT_ASSIGN_OR_RETURN(void* dx, MixBackwardInput(context, w, scratch.middle_gradient, a, scratch));
  MT_RETURN_IF_ERROR(
      NormBackward(context, w.first_norm, a.input, a.first_norm,
                   {.output = dx, .residual = scratch.middle_gradient, .input = scratch.gradient},
                   a.input_gradient_amax));
  return MixBackwardWeight(context, w, scratch.middle_gradient, a, scratch);
}

}  // namespace

absl::StatusOr<void*> BlockForward(ModelContext& context, const BlockWeights& weights,
                                   const BlockInput& input, const BlockActivations& activations,
                                   const BlockScratch& scratch) {
  MT_RETURN_IF_ERROR(FirstHalf(context, weights, input, activations, scratch));
  if (IsMoe(context.model, weights.layer)) {
    return MoeForward(context, weights.moe, activations.second_norm.output, activations.moe,
                      scratch.moe);
  }
  return FeedForwardForward(context, weights.feed_forward, activations.second_norm.output,
                            activations.feed_forward, scratch.feed_forward);
}

absl::Status BlockRecompute(ModelContext& context, const BlockWeights& weights,
                            const BlockActivations& activations, const BlockScratch& scratch) {
  MT_RETURN_IF_ERROR(FirstHalf(context, weights, {}, activations, scratch));
  if (IsMoe(context.model, weights.layer)) {
    return MoeRecompute(context, weights.moe, activations.second_norm.output, activations.moe,
                        scratch.moe);
  }
  return FeedForwardRecompute(context, weights.feed_forward, activations.second_norm.output,
                              activations.feed_forward, scratch.feed_forward);
}

absl::Status BlockBackward(ModelContext& context, const BlockWeights& weights,
                           const BlockActivations& activations, const BlockScratch& scratch) {
  MT_RETURN_IF_ERROR(SecondHalfBackward(context, weights, activations, scratch));
  return FirstHalfBackward(context, weights, activations, scratch);
}

}  // namespace mt
