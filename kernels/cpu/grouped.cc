// One product per expert. Float32: the tiles of all experts at once, so that a few rows each keep all threads busy. Bfloat16: one
// expert after the other, so that only one expert's matrix is widened at a time.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/grouped.cc"
#include "hwy/foreach_target.h"
// After foreach_target:
#include <algorithm>

#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"

#ifndef MT_KERNELS_CPU_GROUPED_ONCE
#define MT_KERNELS_CPU_GROUPED_ONCE
namespace mt::cpu {
constexpr int64_t kSumColumns = 128;  // of one block
}  // namespace mt::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace mt::cpu::HWY_NAMESPACE {

// result (columns) += the sums over rows: 64 rows at a time in float32, those in float64.
template <typename T>
void SumColumnsOf(const T* data, int64_t rows, int64_t stride, int64_t columns, float* result) {
  double total[kSumColumns] = {};
  for (int64_t first = 0; first < rows; first += 64) {
    float sum[kSumColumns] = {};
    for (int64_t r = first; r < std::min(rows, first + 64); ++r) {
      const T* row = data + r * stride;
      ForEach(0, columns, [&](auto d, int64_t c) HWY_ATTR {
        hn::StoreU(hn::Add(hn::LoadU(d, sum + c), Read(d, row + c)), d, sum + c);
      });
    }
    for (int64_t c = 0; c < columns; ++c) total[c] += static_cast<double>(sum[c]);
  }
  for (int64_t c = 0; c < columns; ++c) result[c] += static_cast<float>(total[c]);
}

// Columns [column, column + kSumColumns) of one group.
void SumColumns(const mt_grouped_column_sum_args& args, int64_t group, int64_t column) {
  const int64_t first = args.offsets[group], rows = args.offsets[group + 1] - first,
                at = first * args.columns + column,
                width = std::min(kSumColumns, args.columns - column);
  float* result = static_cast<float*>(args.result) + group * args.result_group_stride + column;
  if (args.dtype == MT_BF16) {
    SumColumnsOf(static_cast<const Bf16*>(args.data) + at, rows, args.columns, width, result);
  } else {
    SumColumnsOf(static_cast<const float*>(args.data) + at, rows, args.columns, width, result);
  }
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <atomic>

#include "kernels/cpu/matmul_tiles.h"

namespace mt::cpu {
HWY_EXPORT(SumColumns);

namespace {

int64_t SizeOf(int32_t dtype) { return dtype == MT_BF16 ? 2 : 4; }

void* At(const void* data, int32_t dtype, int64_t element) {
  return const_cast<char*>(static_cast<const char*>(data)) + element * SizeOf(dtype);
}

// The product of rows [first, first + rows) with matrix `group`.
mt_matmul_args ProductOf(const mt_grouped_matmul_args& args, int64_t group, int64_t first,
                         int64_t rows) {
  const bool forward = args.mode == MT_GROUPED_FORWARD;
  const int32_t weight_type =
      args.mode == MT_GROUPED_WEIGHT_GRADIENT ? args.gradient_dtype : args.dtype;
  void* x = At(args.x, args.dtype, first * args.in);
  void* y = At(args.y, args.dtype, first * args.out);
  void* weight = At(args.weight, weight_type, group * args.weight_group_stride);
  mt_matmul_args product = {
      .struct_size = sizeof product, .dtype = args.dtype, .output_dtype = args.dtype, .alpha = 1};
  product.workspace = args.workspace;
  product.workspace_bytes = args.workspace_bytes;
  if (args.mode == MT_GROUPED_WEIGHT_GRADIENT) {  // W = y^T x
    product.output_dtype = weight_type;
    product.transpose_a = 1;
    product.m = args.out;
    product.n = args.in;
    product.k = rows;
    product.a = y;
    product.b = x;
    product.d = weight;
    product.beta = args.beta;
  } else {  // y = x W^T, x = y W
    product.transpose_b = forward;
    product.m = rows;
    product.n = forward ? args.out : args.in;
    product.k = forward ? args.in : args.out;
    product.a = forward ? x : y;
    product.b = weight;
    product.d = forward ? y : x;
    if (forward && args.bias != nullptr)
      product.bias = At(args.bias, args.dtype, group * args.bias_group_stride);
  }
  product.lda = forward ? args.in : args.out;
  product.ldb = args.in;
  product.ldd = forward ? args.out : args.in;
  return product;
}

mt_matmul_args ProductOf(const mt_grouped_matmul_args& args, int64_t group) {
  const int64_t first = args.offsets[group];
  return ProductOf(args, group, first, args.offsets[group + 1] - first);
}

int64_t Tiles(const mt_matmul_args& product) {
  if (product.m == 0 || product.n == 0) return 0;
  const Tiling tiling = TilingOf(product);
  return tiling.row_tiles * tiling.column_tiles;
}

int32_t RunGroups(const mt_grouped_matmul_args& args) {
  int64_t* first = static_cast<int64_t*>(args.workspace);  // (E + 1): tiles before each group
  first[0] = 0;
  for (int64_t e = 0; e < args.groups; ++e) first[e + 1] = first[e] + Tiles(ProductOf(args, e));
  std::atomic<int64_t> failed{-1};  // group
  std::atomic<int> failure{dnnl_success};
  ParallelBlocks(first[args.groups], [&](int64_t block) {
    const int64_t group = std::upper_bound(first, first + args.groups + 1, block) - first - 1;
    const mt_matmul_args product = ProductOf(args, group);
    const Operands operands = {.a = static_cast<const float*>(product.a),
                               .b = static_cast<const float*>(product.b),
                               .lda = product.lda,
                               .ldb = product.ldb,
                               .packed = nullptr,
                               .output = nullptr};
    const Tile tile(product, TilingOf(product), block - first[group]);
    if (const dnnl_status_t status = RunTile(product, operands, tile); status != dnnl_success) {
      failure = status;
      failed = group;
    }
  });
  if (failed < 0) return MT_OK;
  return ProductFailed(MT_OP_GROUPED_MATMUL, static_cast<dnnl_status_t>(failure.load()),
                       ProductOf(args, failed));
}

}  // namespace

int64_t GroupedMatmulWorkspace(const mt_grouped_matmul_args& args) {
  if (args.dtype == MT_F32) return 8 * (args.groups + 1);
  return MatmulWorkspace(ProductOf(args, 0, 0, args.rows));  // all rows may be one group's
}

int32_t GroupedMatmul(const mt_grouped_matmul_args& args) {
  if (args.dtype == MT_F32) {
    if (const int32_t code = RunGroups(args); code != MT_OK) return code;
  } else {
    for (int64_t e = 0; e < args.groups; ++e) {
      if (const int32_t code = Matmul(ProductOf(args, e)); code != MT_OK) return code;
    }
  }
  if (args.mode == MT_GROUPED_WEIGHT_GRADIENT) return MT_OK;
  const bool forward = args.mode == MT_GROUPED_FORWARD;
  const int64_t width = (forward ? args.out : args.in) * SizeOf(args.dtype),
                used = args.offsets[args.groups];
  char* rest = static_cast<char*>(forward ? args.y : args.x) + used * width;
  ParallelRanges(args.rows - used, width, [&](int64_t first, int64_t last) {
    std::fill(rest + first * width, rest + last * width, char{0});
  });
  return MT_OK;
}

void GroupedColumnSum(const mt_grouped_column_sum_args& args) {
  const int64_t pieces = CeilDivide(args.columns, kSumColumns);
  ParallelBlocks(args.groups * pieces, [&](int64_t block) {
    HWY_DYNAMIC_DISPATCH(SumColumns)(args, block / pieces, block % pieces * kSumColumns);
  });
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
