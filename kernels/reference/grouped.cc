// One matrix per expert: MATMUL and COLUMN_SUM for each group of rows.
#include <algorithm>

#include "kernels/reference/operations.h"

namespace mt::reference {
namespace {

template <typename Pointer>
Pointer* At(Pointer* data, int32_t dtype, int64_t element) {
  using Byte = std::conditional_t<std::is_const_v<Pointer>, const char, char>;
  const int64_t size = dtype == MT_F64 ? 8 : dtype == MT_BF16 ? 2 : 4;
  return data != nullptr ? static_cast<Byte*>(data) + element * size : nullptr;
}

}  // namespace

void GroupedMatmul(const mt_grouped_matmul_args& args) {
  const bool weights = args.mode == MT_GROUPED_WEIGHT_GRADIENT;
  const bool forward = args.mode == MT_GROUPED_FORWARD;
  const int32_t weight_type = weights ? args.gradient_dtype : args.dtype;
  for (int64_t e = 0; e < args.groups; ++e) {
    const int64_t first = args.offsets[e], rows = args.offsets[e + 1] - first;
    void* x = At(args.x, args.dtype, first * args.in);
    void* y = At(args.y, args.dtype, first * args.out);
    void* weight = At(args.weight, weight_type, e * args.weight_group_stride);
    mt_matmul_args product = {.struct_size = sizeof product,
                              .dtype = args.dtype,
                              .output_dtype = args.dtype,
                              .m = rows,
                              .n = args.in,
                              .k = args.out,
                              .a = y,
                              .lda = args.out,
                              .b = weight,
                              .ldb = args.in,
                              .d = x,
                              .ldd = args.in,
                              .alpha = 1};
    if (forward) {
      product.transpose_b = 1;
      std::swap(product.n, product.k);
      std::swap(product.lda, product.ldd);
      product.a = x;
      product.d = y;
      product.bias = At(args.bias, args.dtype, e * args.bias_group_stride);
    } else if (weights) {
      product.output_dtype = weight_type;
      product.transpose_a = 1;
      product.m = args.out;
      product.k = rows;
      product.b = x;
      product.d = weight;
      product.beta = args.beta;
    }
    Matmul(product);
  }
  if (weights) return;
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t width = forward ? args.out : args.in;
    T* written = static_cast<T*>(forward ? args.y : args.x);
    std::fill(written + args.offsets[args.groups] * width, written + args.rows * width, T{});
  });
}

void GroupedColumnSum(const mt_grouped_column_sum_args& args) {
  for (int64_t e = 0; e < args.groups; ++e) {
    const int64_t first = args.offsets[e];
    ColumnSum({.struct_size = sizeof(mt_column_sum_args),
               .dtype = args.dtype,
               .gradient_dtype = args.gradient_dtype,
               .rows = args.offsets[e + 1] - first,
               .columns = args.columns,
               .row_stride = args.columns,
               .data = At(args.data, args.dtype, first * args.columns),
               .result = At(args.result, args.gradient_dtype, e * args.result_group_stride),
               .workspace = args.workspace,
               .workspace_bytes = args.workspace_bytes});
  }
}

}  // namespace mt::reference
