#include "worker/model/embedding.h"

namespace mt {

absl::Status EmbeddingForward(ModelContext& context, const int32_t* ids, const void* table,
                              void* partial, void* stream) {
  const RankShape& s = context.shape;
  // One rank alone writes its result where it belongs.
  void* const output = context.tensor_size() == 1 ? stream : partial;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_EMBEDDING_FORWARD>({.dtype = context.dtype,
                                                           .gradient_dtype = context.types.gradient,
                                                           .ids = ids,
                                                           .rows = s.rows,
                                                           .columns = s.hidden,
                                                           .vocab_start = s.vocab_start,
                                                           .vocab_rows = s.vocab_rows,
                                                           .table = table,
                                                           .output = output}));
  if (output == stream) return absl::OkStatus();
  MT_ASSIGN_OR_RETURN(void* rows, context.SumToStream(partial));
  return context.Copy(rows, stream, s.stream_rows * s.hidden);
}

absl::Status EmbeddingBackward(ModelContext& context, const int32_t* ids, const void* gradient,
                               void* full, void* table_gradient) {
  const RankShape& s = context.shape;
  MT_ASSIGN_OR_RETURN(const void* all_rows, context.GatherRows(gradient, full));
  return context.Run<MT_OP_EMBEDDING_BACKWARD>({.dtype = context.dtype,
                                                .gradient_dtype = context.types.gradient,
                                                .ids = ids,
                                                .rows = s.rows,
                                                .columns = s.hidden,
                                                .vocab_start = s.vocab_start,
                                                .vocab_rows = s.vocab_rows,
                                                .output_gradient = all_rows,
                                                .table_gradient = table_gradient});
}

}  // namespace mt
