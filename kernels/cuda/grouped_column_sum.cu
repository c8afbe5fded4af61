// The gradient of the experts' biases: sums of columns over each group's rows, with the formula of mt_backend.h.
//
// Bytes that cannot be avoided: the data once, and eight per sum.
// Determinism: a block has 32 packs of columns of a group, warp w the group's rows w, w + 8, ... in that order; then the warps are
// added in order. A group's sums depend on its own rows alone.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

constexpr int kWarps = 8, kThreads = kWarps * kWarpThreads, kRowsTogether = 8;

template <typename T>
struct ColumnSums {
  const int32_t* offsets;  // (E + 1)
  const T* data;           // (rows, C)
  float* result;
  int64_t groups, columns, stride;
};

template <typename T, int N>
__global__ void __launch_bounds__(kThreads) GroupedColumnSumKernel(ColumnSums<T> a) {
  __shared__ float partial[kWarps][N][kWarpThreads + 1];
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads,
            warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int64_t tiles = DivideUp(a.columns, kWarpThreads * N);
  for (int64_t block = blockIdx.x; block < a.groups * tiles; block += gridDim.x) {
    const int64_t group = block / tiles, first_column = (block - group * tiles) * kWarpThreads * N;
    const int64_t column = first_column + lane * N;
    const int32_t last = a.offsets[group + 1];
    float sums[N] = {};
    if (column < a.columns) {
      for (int64_t r = a.offsets[group] + warp; r < last; r += kRowsTogether * kWarps) {
        Pack<T, N> packs[kRowsTogether] = {};
#pragma unroll
        for (int i = 0; i < kRowsTogether; ++i) {
          if (r + i * kWarps < last)
            packs[i] = LoadPack<N>(a.data + (r + i * kWarps) * a.columns + column);
        }
#pragma unroll
        for (int i = 0; i < kRowsTogether; ++i) {
#pragma unroll
          for (int n = 0; n < N; ++n) sums[n] += ToFloat(packs[i].at[n]);  // zeros past the last
        }
      }
    }
#pragma unroll
    for (int n = 0; n < N; ++n) partial[warp][n][lane] = sums[n];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < N * kWarpThreads; i += kThreads) {
      if (first_column + i >= a.columns) break;
      float* const result = a.result + group * a.stride + first_column + i;
      float total = *result;
      for (int w = 0; w < kWarps; ++w) total += partial[w][i % N][i / N];
      *result = total;
    }
    __syncthreads();  // before the next piece's sums
  }
}

}  // namespace

int32_t GroupedColumnSum(const mt_grouped_column_sum_args& args, const Launch& launch) {
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int N = kPackElements<T>;
    const ColumnSums<T> a = {args.offsets,
                             static_cast<const T*>(args.data),
                             static_cast<float*>(args.result),
                             args.groups,
                             args.columns,
                             args.result_group_stride};
    const bool whole = a.columns % N == 0 && IsAligned(a.data);
    auto* kernel = whole ? GroupedColumnSumKernel<T, N> : GroupedColumnSumKernel<T, 1>;
    const int64_t tiles = DivideUp(a.columns, kWarpThreads * (whole ? N : 1));
    return MT_LAUNCH(kernel, GridOf(a.groups * tiles), kThreads, 0, launch.stream, a);
  }));
  return MT_OK;
}

}  // namespace mt::cuda
