#include "worker/model/mtp.h"

#include "worker/model/embedding.h"

namespace mt {
namespace {

// One of the two halves of W_eh's columns: a matrix (C, C) with row stride 2C.
struct Half {
  const void* weight;
  void* gradient;
};
Half HalfOf(const ModelContext& context, const LinearLayer& projection, bool hidden) {
  const int64_t first = hidden ? context.shape.hidden : 0;
  return {.weight = static_cast<const char*>(projection.weight) + first * context.element_bytes(),
          .gradient = static_cast<char*>(projection.weight_gradient) +
                      first * BytesPerNumber(context.types.gradient)};
}

// y (S, C) (+)= x (S, C) W^T
absl::Status HalfForward(ModelContext& context, const Half& half, const void* x, void* y,
                         bool add) {
  const int64_t C = context.shape.hidden;
  return context.Run<MT_OP_MATMUL>({.dtype = context.dtype,
                                    .output_dtype = context.dtype,
                                    .transpose_b = 1,
                                    .m = context.shape.stream_rows,
                                    .n = C,
                                    .k = C,
                                    .a = x,
                                    .lda = C,
                                    .b = half.weight,
                                    .ldb = 2 * C,
                                    .d = y,
                                    .ldd = C,
                                    .alpha = 1,
                                    .beta = add ? 1.0 : 0.0});
}

// dx (S, C) = dy (S, C) W, and dW += dy^T x: W_eh is replicated, so its gradient is always added to.
absl::Status HalfBackward(ModelContext& context, const Half& half, const void* dy, const void* x,
                          void* dx) {
  const int64_t S = context.shape.stream_rows, C = context.shape.hidden;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_MATMUL>({.dtype = context.dtype,
                                                .output_dtype = context.dtype,
                                                .m = S,
                                                .n = C,
                                                .k = C,
                                                .a = dy,
                                                .lda = C,
                                                .b = half.weight,
                                                .ldb = 2 * C,
                                                .d = dx,
                                                .ldd = C,
                                                .alpha = 1}));
  return context.Run<MT_OP_MATMUL>({.dtype = context.dtype,
                                    .output_dtype = context.types.gradient,
                                    .transpose_a = 1,
                                    .m = C,
                                    .n = C,
                                    .k = S,
                                    .a = dy,
                                    .lda = C,
                                    .b = x,
                                    .ldb = C,
                                    .d = half.gradient,
                                    .ldd = 2 * C,
                                    .alpha = 1,
                                    .beta = 1});
}

}  // namespace

absl::Status MtpForward(ModelContext& context, const MtpWeights& w, const void* hidden,
                        const int32_t* next_tokens, const int32_t* targets, const LossOptions& loss,
                        const MtpActivations& a, const MtpScratch& scratch) {
  MT_RETURN_IF_ERROR(EmbeddingForward(context, next_tokens, w.table,
                                      scratch.block.attention.part.delta, a.embedded));
  MT_RETURN_IF_ERROR(
      NormForward(context, w.embedding_norm, {.x = a.embedded}, a.embedding_norm, nullptr));
  MT_RETURN_IF_ERROR(NormForward(context, w.hidden_norm, {.x = hidden}, a.hidden_norm, nullptr));
  MT_RETURN_IF_ERROR(HalfForward(context, HalfOf(context, w.projection, /*hidden=*/false),
                                 a.embedding_norm.output, a.block.input, /*add=*/false));
  MT_RETURN_IF_ERROR(HalfForward(context, HalfOf(context, w.projection, /*hidden=*/true),
                                 a.hidden_norm.output, a.block.input, /*add=*/true));
  MT_ASSIGN_OR_RETURN(void* delta, BlockForward(context, w.block, {}, a.block, scratch.block));
  return HeadForward(context, w.head, delta, a.block.middle, targets, loss, a.head);
}

absl::Status MtpBackward(ModelContext& context, const MtpWeights& w, const void* hidden,
                         const int32_t* next_tokens, const MtpActivations& a,
                         const MtpScratch& scratch) {
  void* const gradient = scratch.block.gradient;
  MT_RETURN_IF_ERROR(HeadBackward(context, w.head, a.head, nullptr, gradient, nullptr));
  MT_RETURN_IF_ERROR(BlockBackward(context, w.block, a.block, scratch.block));
  MT_RETURN_IF_ERROR(HalfBackward(context, HalfOf(context, w.projection, /*hidden=*/false),
                                  gradient, a.embedding_norm.output, scratch.embedded_gradient));
  MT_RETURN_IF_ERROR(HalfBackward(context, HalfOf(context, w.projection, /*hidden=*/true), gradient,
                                  a.hidden_norm.output, scratch.hidden_gradient));
  // In place: a norm's input gradient may take the place of its output's.
  MT_RETURN_IF_ERROR(NormBackward(
      context, w.embedding_norm, a.embedded, a.embedding_norm,
      {.output = scratch.embedded_gradient, .input = scratch.embedded_gradient}, nullptr));
  MT_RETURN_IF_ERROR(
      NormBackward(context, w.hidden_norm, hidden, a.hidden_norm,
                   {.output = scratch.hidden_gradient, .input = scratch.hidden_gradient}, nullptr));
  return EmbeddingBackward(context, next_tokens, scratch.embedded_gradient,
                           scratch.block.attention.part.gathered_gradient, w.table_gradient);
}

}  // namespace mt
