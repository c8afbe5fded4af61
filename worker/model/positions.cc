#include "worker/model/positions.h"

namespace mt {
namespace {

mt_embedding_args PositionArguments(const ModelContext& context, const PositionWeights& weights,
                                    const int32_t* ids) {
  const RankShape& s = context.shape;
  const int64_t first = context.sequence_parallel() ? context.tensor_rank() * s.stream_rows : 0;
  return {.dtype = context.dtype,
          .gradient_dtype = context.types.gradient,
          .ids = ids + first,
          .rows = s.stream_rows,
          .columns = s.hidden,
          .vocab_rows = weights.positions,
          .table = weights.table};
}

}  // namespace

absl::Status PositionsForward(ModelContext& context, const PositionWeights& weights,
                              const int32_t* ids, void* scratch, void* stream) {
  mt_embedding_args rows = PositionArguments(context, weights, ids);
  rows.output = scratch;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_EMBEDDING_FORWARD>(rows));
  return context.Run<MT_OP_ADD>({.dtype = context.dtype,
                                 .a = stream,
                                 .b = scratch,
                                 .destination = stream,
                                 .count = rows.rows * rows.columns});
}

absl::Status PositionsBackward(ModelContext& context, const PositionWeights& weights,
                               const int32_t* ids, const void* gradient) {
  mt_embedding_args rows = PositionArguments(context, weights, ids);
  rows.output_gradient = gradient;
  rows.table_gradient = weights.table_gradient;
  return context.Run<MT_OP_EMBEDDING_BACKWARD>(rows);
}

}  // namespace mt
