#include "worker/model/head.h"

#include <algorithm>

namespace mt {
namespace {

// Loss and gradient of `rows` rows from `first` on; x: all rows after the norm.
absl::Status LossChunk(ModelContext& context, const HeadWeights& weights, const void* x,
                       const int32_t* targets, const LossOptions& loss, const HeadTensors& t,
                       int64_t first, int64_t rows) {
  const RankShape& s = context.shape;
  const int64_t mine = context.tensor_rank() * rows;
  const void* chunk = context.At(const_cast<void*>(x), first * s.hidden);
  MT_RETURN_IF_ERROR(context.Product(chunk, weights.head, t.logits, rows, s.hidden, s.vocab_rows));
  mt_cross_entropy_args cross_entropy = {.dtype = context.dtype,
                                         .rows = rows,
                                         .columns = s.vocab_rows,
                                         .valid_columns = s.vocab_valid,
                                         .row_stride = s.vocab_rows,
                                         .vocab_start = s.vocab_start,
                                         .logits = t.logits,
                                         .targets = targets + first,
                                         .maximum = context.StatisticAt(t.maximum, mine),
                                         .sum = context.StatisticAt(t.sum_exp, mine),
                                         .target_logit = context.StatisticAt(t.target_logit, mine),
                                         .lse = t.lse,
                                         .loss_scale = loss.scale,
                                         .z_loss = loss.z_loss,
                                         .loss_scale_pointer = loss.scale_pointer};
  MT_RETURN_IF_ERROR(context.Run<MT_OP_CROSS_ENTROPY_STATISTICS>(cross_entropy));
  for (void* statistics : {t.maximum, t.sum_exp, t.target_logit}) {
    MT_RETURN_IF_ERROR(context.GatherStatistics(statistics, rows));
  }
  MT_RETURN_IF_ERROR(
      context.Run<MT_OP_CROSS_ENTROPY_COMBINE>({.dtype = context.dtype,
                                                .rows = rows,
                                                .world = context.tensor_size(),
                                                .maximum = t.maximum,
                                                .sum = t.sum_exp,
                                                .target_logit = t.target_logit,
                                                .targets = targets + first,
                                                .lse = t.lse,
                                                .row_loss = context.StatisticAt(t.row_loss, first),
                                                .z_loss = loss.z_loss}));
  if (!loss.gradient) return absl::OkStatus();
  MT_RETURN_IF_ERROR(context.Run<MT_OP_CROSS_ENTROPY_GRADIENT>(cross_entropy));
  MT_RETURN_IF_ERROR(context.ProductInputGradient(t.logits, weights.head,
                                                  context.At(t.norm_gradient, first * s.hidden),
                                                  rows, s.hidden, s.vocab_rows));
  return context.ProductWeightGradient(t.logits, chunk, weights.head_gradient, rows, s.hidden,
                                       s.vocab_rows,
                                       context.first_micro_batch && !loss.adds && first == 0);
}

}  // namespace

absl::Status HeadForward(ModelContext& context, const HeadWeights& weights, const void* delta,
                         const void* residual, const int32_t* targets, const LossOptions& loss,
                         const HeadTensors& t) {
  const RankShape& s = context.shape;
  MT_RETURN_IF_ERROR(NormForward(context, weights.norm,
                                 {.x = delta, .residual = residual, .sum = t.sum}, t.norm,
                                 /*amax=*/nullptr));
  MT_ASSIGN_OR_RETURN(const void* x, context.GatherRows(t.norm.output, t.gathered_input));
  for (int64_t first = 0; first < s.rows; first += s.loss_chunk) {
    const int64_t rows = std::min(s.loss_chunk, s.rows - first);
    MT_RETURN_IF_ERROR(LossChunk(context, weights, x, targets, loss, t, first, rows));
  }
  return absl::OkStatus();
}

absl::Status HeadLogits(ModelContext& context, const HeadWeights& weights, const void* delta,
                        const void* residual, int64_t row, const HeadTensors& t) {
  const RankShape& s = context.shape;
  MT_RETURN_IF_ERROR(NormForward(context, weights.norm,
                                 {.x = delta, .residual = residual, .sum = t.sum}, t.norm,
                                 /*amax=*/nullptr));
  return context.Product(context.At(t.norm.output, row * s.hidden), weights.head, t.logits, 1,
                         s.hidden, s.vocab_rows);
}

absl::Status HeadBackward(ModelContext& context, const HeadWeights& weights, const HeadTensors& t,
                          const void* also, void* stream_gradient, float* stream_gradient_amax) {
  MT_ASSIGN_OR_RETURN(void* norm_gradient, context.SumToStream(t.norm_gradient));
  if (also != nullptr) {
    MT_RETURN_IF_ERROR(
        context.Run<MT_OP_ADD>({.dtype = context.dtype,
                                .a = norm_gradient,
                                .b = also,
                                .destination = norm_gradient,
                                .count = context.shape.stream_rows * context.shape.hidden}));
  }
  return NormBackward(context, weights.norm, t.sum, t.norm,
                      {.output = norm_gradient, .input = stream_gradient}, stream_gradient_amax);
}

}  // namespace mt
