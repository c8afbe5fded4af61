#include "worker/model/linear.h"

namespace mt {
namespace {

// D (m, n) = A (m, k) B (n, k)^T of FP8 operands, with their scales.
struct Fp8Operand {
  mt_dtype dtype;
  const void* data;
  const float* scale;
};
absl::Status Fp8Product(ModelContext& context, const Fp8Operand& a, const Fp8Operand& b, void* d,
                        mt_dtype output, int64_t m, int64_t n, int64_t k, bool add,
                        const void* bias = nullptr) {
  return context.Run<MT_OP_MATMUL>({.dtype = a.dtype,
                                    .output_dtype = output,
                                    .transpose_b = 1,
                                    .m = m,
                                    .n = n,
                                    .k = k,
                                    .a = a.data,
                                    .lda = k,
                                    .b = b.data,
                                    .ldb = k,
                                    .d = d,
                                    .ldd = n,
                                    .alpha = 1,
                                    .beta = add ? 1.0 : 0.0,
                                    .b_dtype = b.dtype,
                                    .a_scale = a.scale,
                                    .b_scale = b.scale,
                                    .bias = bias});
}

// `source` (N, columns) -> output (N, columns) and transposed (columns, N), either may be null.
absl::Status Quantize(ModelContext& context, const void* source, int64_t columns, mt_dtype dtype,
                      const TensorScale& scale, void* output, void* transposed) {
  return context.Run<MT_OP_QUANTIZE>({.dtype = context.dtype,
                                      .output_dtype = dtype,
                                      .rows = context.shape.rows,
                                      .columns = columns,
                                      .source = source,
                                      .amax = scale.amax,
                                      .output = output,
                                      .transposed = transposed,
                                      .output_scale = scale.scale});
}

absl::Status BiasGradient(ModelContext& context, const LinearLayer& layer, const void* dy) {
  const bool another_rank_does =
      !layer.column_parallel && context.sequence_parallel() && context.tensor_rank() != 0;
  if (layer.bias == nullptr || another_rank_does) return absl::OkStatus();
  return context.Run<MT_OP_COLUMN_SUM>({.dtype = context.dtype,
                                        .gradient_dtype = context.types.gradient,
                                        .rows = context.shape.rows,
                                        .columns = layer.out,
                                        .row_stride = layer.out,
                                        .data = dy,
                                        .result = layer.bias_gradient});
}

}  // namespace

absl::Status LinearForward(ModelContext& context, const LinearLayer& layer, const void* x,
                           const LinearScales& scales, void* y) {
  const int64_t rows = context.shape.rows;
  const void* const bias =
      layer.column_parallel || context.tensor_rank() == 0 ? layer.bias : nullptr;
  if (!context.fp8()) return context.Product(x, layer.weight, y, rows, layer.in, layer.out, bias);
  MT_RETURN_IF_ERROR(context.ShareAmax(scales.input.amax, /*split=*/!layer.column_parallel));
  void* const x8 = context.fp8_scratch.rows;
  MT_RETURN_IF_ERROR(Quantize(context, x, layer.in, MT_F8_E4M3, scales.input, x8, nullptr));
  return Fp8Product(context, {MT_F8_E4M3, x8, scales.input.scale},
                    {MT_F8_E4M3, layer.weight8, layer.weight8_scale}, y, context.dtype, rows,
                    layer.out, layer.in, /*add=*/false, bias);
}

absl::Status LinearInputGradient(ModelContext& context, const LinearLayer& layer, const void* dy,
                                 const LinearScales& scales, void* dx) {
  const int64_t rows = context.shape.rows;
  if (!context.fp8())
    return context.ProductInputGradient(dy, layer.weight, dx, rows, layer.in, layer.out);
  MT_RETURN_IF_ERROR(
      context.ShareAmax(scales.output_gradient.amax, /*split=*/layer.column_parallel));
  void* const dy8 = context.fp8_scratch.rows;
  MT_RETURN_IF_ERROR(Quantize(context, dy, layer.out, MT_F8_E5M2, scales.output_gradient, dy8,
                              layer.output_gradient8_transposed));
  return Fp8Product(context, {MT_F8_E5M2, dy8, scales.output_gradient.scale},
                    {MT_F8_E4M3, layer.weight8_transposed, layer.weight8_scale}, dx, context.dtype,
                    rows, layer.in, layer.out, /*add=*/false);
}

absl::Status LinearWeightGradient(ModelContext& context, const LinearLayer& layer, const void* dy,
                                  const void* x, const LinearScales& scales) {
  const int64_t rows = context.shape.rows;
  const bool overwrite = context.first_micro_batch;
  MT_RETURN_IF_ERROR(BiasGradient(context, layer, dy));
  if (!context.fp8()) {
    return context.ProductWeightGradient(dy, x, layer.weight_gradient, rows, layer.in, layer.out,
                                         overwrite);
  }
  void* const x8 = context.fp8_scratch.columns;
  MT_RETURN_IF_ERROR(Quantize(context, x, layer.in, MT_F8_E4M3, scales.input, nullptr, x8));
  return Fp8Product(context,
                    {MT_F8_E5M2, layer.output_gradient8_transposed, scales.output_gradient.scale},
                    {MT_F8_E4M3, x8, scales.input.scale}, layer.weight_gradient,
                    context.types.gradient, layer.out, layer.in, rows, /*add=*/!overwrite);
}

}  // namespace mt
