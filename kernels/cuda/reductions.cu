// Sums over flat memory, sums of columns, the largest magnitude and the factor that clips a gradient.
//
// Bytes that cannot be avoided: the data once. The partial sums in between are at most 8 KiB (SUM, SQUARED_SUM) and at most
// 512 tiles of 32 packs in float32 (COLUMN_SUM).
// Determinism: the number of blocks, the share of each thread and the tree that adds the shares depend on the sizes alone; AMAX
// is a maximum, which has no order.
#include "kernels/cuda/flat.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/types.h"

namespace mt::cuda {
namespace {

// ---- SUM and SQUARED_SUM: shares in float64, because a norm of 10^9 elements is asked for, and squares of floats overflow floats.

// One wave of float32 on 132 multiprocessors (H100, H200), 6 blocks of 40 registers on each. Part of the order of addition, so the
// same on every device.
constexpr int64_t kSumBlocks = 132 * 6;
constexpr int kSumInFlight = 4;

template <typename T>
__device__ __forceinline__ double ToDouble(T x) {
  return ToFloat(x);
}
template <>
__device__ __forceinline__ double ToDouble<double>(double x) {
  return x;
}

int64_t BlocksOfSum(const mt_squared_sum_args& args) {
  const int64_t pack = args.dtype == MT_BF16 ? kPackElements<bf16> : kPackElements<float>;
  const int64_t per_block = pack * kSumInFlight * kFlatThreads;
  return std::clamp<int64_t>((args.count + per_block - 1) / per_block, 1, kSumBlocks);
}

// output[block] = (accumulate ? output[block] : 0) + the sum of the block's share.
template <typename T, bool kSquared, bool kWhole>
__global__ void __launch_bounds__(kFlatThreads)
    SumKernel(const T* data, int64_t count, double* output, int accumulate) {
  double sum = 0;
  ForEachElement<kWhole, kSumInFlight>(data, count, [&](T element) {
    const double x = ToDouble(element);
    sum += kSquared ? x * x : x;
  });
  sum = BlockReduce<kFlatThreads>(sum);
  if (threadIdx.x == 0) output[blockIdx.x] = (accumulate ? output[blockIdx.x] : 0) + sum;
}

template <typename T, bool kSquared>
cudaError_t LaunchSum(const T* data, int64_t count, int64_t blocks, double* output, int accumulate,
                      cudaStream_t stream) {
  auto* kernel = IsAligned(data) ? SumKernel<T, kSquared, true> : SumKernel<T, kSquared, false>;
  return MT_LAUNCH(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kFlatThreads), 0, stream, data,
                   count, output, accumulate);
}

template <bool kSquared>
int32_t SumOf(const mt_squared_sum_args& args, const Launch& launch) {
  const int64_t blocks = BlocksOfSum(args);
  const bool once = blocks == 1;
  double* const partial = once ? args.result : static_cast<double*>(args.workspace);
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    return LaunchSum<decltype(type), kSquared>(static_cast<const decltype(type)*>(args.data),
                                               args.count, blocks, partial,
                                               once ? args.accumulate : 0, launch.stream);
  }));
  if (!once)
    MT_CUDA((
        LaunchSum<double, false>(partial, blocks, 1, args.result, args.accumulate, launch.stream)));
  return MT_OK;
}

// ---- COLUMN_SUM: a block adds its rows of 32 packs of columns, warp w rows w, w + 8, ...; then the warps' sums in order.

constexpr int kColumnWarps = 8, kColumnInFlight = 4;
constexpr int kColumnThreads = kColumnWarps * kWarpThreads;
constexpr int64_t kColumnBlocks = 512;

struct Rows {
  int64_t tiles, splits, rows_per_split;
};
Rows SplitRows(const mt_column_sum_args& args) {
  const int64_t tile =
      int64_t{kWarpThreads} * (args.dtype == MT_BF16 ? kPackElements<bf16> : kPackElements<float>);
  const int64_t tiles = (args.columns + tile - 1) / tile;
  constexpr int64_t kLeastRows = kColumnWarps * kColumnInFlight;
  const int64_t most = std::max<int64_t>(1, (args.rows + kLeastRows - 1) / kLeastRows);
  const int64_t wanted = std::clamp<int64_t>(kColumnBlocks / std::max<int64_t>(tiles, 1), 1, most);
  const int64_t rows_per_split = std::max<int64_t>(1, (args.rows + wanted - 1) / wanted);
  return {tiles, std::max<int64_t>(1, (args.rows + rows_per_split - 1) / rows_per_split),
          rows_per_split};
}

// N elements from `column` on; zeros beyond the last column.
template <typename T, int N, bool kWhole>
__device__ __forceinline__ Pack<float, N> LoadColumns(const T* row, int64_t column,
                                                      int64_t columns) {
  Pack<float, N> values;
  if constexpr (kWhole) {
    const Pack<T, N> pack = LoadPack<true, T, N>(row + column);
#pragma unroll
    for (int j = 0; j < N; ++j) values.at[j] = ToFloat(pack.at[j]);
  } else {
#pragma unroll
    for (int j = 0; j < N; ++j)
      values.at[j] = column + j < columns ? ToFloat(row[column + j]) : 0.0f;
  }
  return values;
}

// sums[split, c] (or += if `accumulate`) = the sum of the split's rows; data (rows, columns).
template <typename T, int N, bool kWhole>
__global__ void __launch_bounds__(kColumnThreads)
    ColumnSumKernel(const T* data, int64_t rows, int64_t columns, int64_t row_stride,
                    int64_t rows_per_split, float* sums, int accumulate) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads,
            warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int64_t first_column = int64_t{blockIdx.x} * kWarpThreads * N;
  const int64_t column = first_column + lane * N;
  const int64_t first = blockIdx.y * rows_per_split;
  const int64_t last = first + rows_per_split < rows ? first + rows_per_split : rows;
  Pack<float, N> sum = {};
  const auto add = [&](const Pack<float, N>& values) {
#pragma unroll
    for (int j = 0; j < N; ++j) sum.at[j] += values.at[j];
  };
  if (column < columns) {
    int64_t r = first + warp;
    for (; r + (kColumnInFlight - 1) * kColumnWarps < last; r += kColumnInFlight * kColumnWarps) {
      Pack<float, N> values[kColumnInFlight];
#pragma unroll
      for (int u = 0; u < kColumnInFlight; ++u)
        values[u] =
            LoadColumns<T, N, kWhole>(data + (r + u * kColumnWarps) * row_stride, column, columns);
#pragma unroll
      for (int u = 0; u < kColumnInFlight; ++u) add(values[u]);
    }
    for (; r < last; r += kColumnWarps)
      add(LoadColumns<T, N, kWhole>(data + r * row_stride, column, columns));
  }
  __shared__ float partial[kColumnWarps][N][kWarpThreads];
#pragma unroll
  for (int j = 0; j < N; ++j) partial[warp][j][lane] = sum.at[j];
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < N * kWarpThreads; i += kColumnThreads) {
    const int64_t c = first_column + i;
    if (c >= columns) break;
    float* const result = sums + blockIdx.y * columns + c;
    float total = accumulate ? *result : 0.0f;
    for (int w = 0; w < kColumnWarps; ++w) total += partial[w][i % N][i / N];
    *result = total;
  }
}

template <typename T>
cudaError_t LaunchColumnSum(const mt_column_sum_args& args, const Rows& split, float* sums,
                            int accumulate, cudaStream_t stream) {
  constexpr int N = kPackElements<T>;
  const bool whole = IsAligned(args.data) && args.row_stride % N == 0 && args.columns % N == 0;
  auto* kernel = whole ? ColumnSumKernel<T, N, true> : ColumnSumKernel<T, N, false>;
  const dim3 grid(static_cast<unsigned>(split.tiles), static_cast<unsigned>(split.splits));
  return MT_LAUNCH(kernel, grid, dim3(kColumnThreads), 0, stream, static_cast<const T*>(args.data),
                   args.rows, args.columns, args.row_stride, split.rows_per_split, sums,
                   accumulate);
}

// ---- AMAX and CLIP_FACTOR

template <typename T, bool kWhole>
__global__ void __launch_bounds__(kFlatThreads)
    AmaxKernel(const T* data, int64_t count, float* amax) {
  int largest = 0;  // a magnitude's bits
  ForEachElement<kWhole>(data, count, [&](T element) {
    const int bits = __float_as_int(ToFloat(element)) & 0x7fffffff;
    largest = largest > bits ? largest : bits;
  });
  largest = BlockReduce<kFlatThreads>(largest, 0, Maximum{});
  if (threadIdx.x == 0) RaiseAmax(amax, __int_as_float(largest));
}

__global__ void ClipFactorKernel(mt_clip_factor_args args) {
  const double squared_norm = *args.squared_norm;
  double factor = 1;
  if (!isfinite(squared_norm) || (args.loss != nullptr && !isfinite(*args.loss))) {
    factor = static_cast<double>(__int_as_float(0x7fc00000));
  } else if (args.limit > 0) {
    factor = args.limit / (sqrt(squared_norm) + 1e-6);
    if (factor > 1) factor = 1;
  }
  *args.factor = factor;
}

}  // namespace

int64_t SumWorkspace(const mt_squared_sum_args& args) {
  const int64_t blocks = BlocksOfSum(args);
  return blocks == 1 ? 0 : blocks * static_cast<int64_t>(sizeof(double));
}
int32_t Sum(const mt_squared_sum_args& args, const Launch& launch) {
  return SumOf<false>(args, launch);
}
int32_t SquaredSum(const mt_squared_sum_args& args, const Launch& launch) {
  return SumOf<true>(args, launch);
}

int64_t ColumnSumWorkspace(const mt_column_sum_args& args) {
  const Rows split = SplitRows(args);
  return split.splits == 1 ? 0 : split.splits * args.columns * static_cast<int64_t>(sizeof(float));
}

int32_t ColumnSum(const mt_column_sum_args& args, const Launch& launch) {
  if (args.rows == 0 || args.columns == 0) return MT_OK;
  const Rows split = SplitRows(args);
  const bool once = split.splits == 1;
  float* const result = static_cast<float*>(args.result);
  float* const sums = once ? result : static_cast<float*>(args.workspace);
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    return LaunchColumnSum<decltype(type)>(args, split, sums, once, launch.stream);
  }));
  if (once) return MT_OK;
  // The splits' sums are rows of a matrix in turn.
  auto* kernel = ColumnSumKernel<float, 1, true>;
  const auto tiles = static_cast<unsigned>((args.columns + kWarpThreads - 1) / kWarpThreads);
  MT_CUDA(MT_LAUNCH(kernel, dim3(tiles), dim3(kColumnThreads), 0, launch.stream, sums, split.splits,
                    args.columns, args.columns, split.splits, result, 1));
  return MT_OK;
}

int32_t Amax(const mt_amax_args& args, const Launch& launch) {
  if (args.count == 0) return MT_OK;
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const T* const data = static_cast<const T*>(args.data);
    auto* kernel = IsAligned(data) ? AmaxKernel<T, true> : AmaxKernel<T, false>;
    return MT_LAUNCH(kernel, dim3(FlatBlocks(args.count, 4 * kPackElements<T>, launch)),
                     dim3(kFlatThreads), 0, launch.stream, data, args.count, args.amax);
  }));
  return MT_OK;
}

int32_t ClipFactor(const mt_clip_factor_args& args, const Launch& launch) {
  MT_CUDA(MT_LAUNCH(ClipFactorKernel, dim3(1), dim3(1), 0, launch.stream, args));
  return MT_OK;
}

}  // namespace mt::cuda
