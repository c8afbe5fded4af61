// Grouped products in float32 arithmetic, on any device: float32 data, and bfloat16 where the tensor cores' kernels cannot run
// (grouped_matmul_mma.cu). Which of the two runs is chosen here.
//
// FLOPs that cannot be avoided: 2 in out per used row in each mode.
#include "kernels/cuda/grouped_matmul.h"

#include "kernels/cuda/status.h"
#include "kernels/cuda/types.h"

namespace mt::cuda {
namespace {

constexpr int kTile = 64, kDepth = 16, kThreads = 256;
constexpr int kEach = 4;  // rows and columns of a thread: 16 x 16 threads

// op(A)'s element (row, depth) and op(B)'s (depth, column), of a group.
template <typename T, int kMode>
struct Operands {
  const T *a, *b;
  int64_t in, out;
  __device__ __forceinline__ float A(int64_t row, int64_t depth) const {
    if constexpr (kMode == MT_GROUPED_FORWARD) return ToFloat(a[row * in + depth]);
    if constexpr (kMode == MT_GROUPED_INPUT_GRADIENT) return ToFloat(a[row * out + depth]);
    return ToFloat(a[depth * out + row]);
  }
  __device__ __forceinline__ float B(int64_t depth, int64_t column) const {
    return ToFloat(kMode == MT_GROUPED_FORWARD ? b[column * in + depth] : b[depth * in + column]);
  }
};

template <typename T, int kMode>
__device__ __forceinline__ void StoreElement(const Grouped& p, const GroupedTile& tile, int row,
                                             int column, float value) {
  if constexpr (kMode == MT_GROUPED_WEIGHT_GRADIENT) {
    float* const d = static_cast<float*>(p.d) + tile.group * p.weight_stride +
                     static_cast<int64_t>(row) * p.columns + column;
    *d = p.beta != 0 ? *d + value : value;
  } else {
    if (kMode == MT_GROUPED_FORWARD && p.bias != nullptr)
      value += ToFloat(static_cast<const T*>(p.bias)[tile.group * p.bias_stride + column]);
    static_cast<T*>(p.d)[static_cast<int64_t>(row) * p.columns + column] = FromFloat<T>(value);
  }
}

template <typename T, int kMode>
__global__ void __launch_bounds__(kThreads) GroupedKernel(Grouped p) {
  alignas(16) __shared__ float a_tile[kDepth][kTile + 4];
  alignas(16) __shared__ float b_tile[kDepth][kTile + 4];
  MT_DYNAMIC_SHARED(int32_t, first);  // (E + 1)
  constexpr bool kWeights = kMode == MT_GROUPED_WEIGHT_GRADIENT;
  const int thread = static_cast<int>(threadIdx.x);
  const int x = thread % (kTile / kEach) * kEach, y = thread / (kTile / kEach) * kEach;
  if constexpr (!kWeights) CountRowTiles<kThreads>(p.offsets, p.groups, kTile, first);
  const GroupedTiles<kMode, kTile, kTile> tiles(p, first);
  for (int t = static_cast<int>(blockIdx.x); t < tiles.count(); t += static_cast<int>(gridDim.x)) {
    const GroupedTile tile = tiles.At(p, t);
    const Operands<T, kMode> operands = {
        static_cast<const T*>(p.a),
        static_cast<const T*>(p.b) + (kWeights ? 0 : tile.group * p.weight_stride),
        kMode == MT_GROUPED_FORWARD ? p.depth : p.columns,
        kMode == MT_GROUPED_FORWARD ? p.columns
        : kWeights                  ? p.d_rows
                                    : p.depth};
    float sums[kEach][kEach] = {};
    for (int depth = tile.depth_begin; depth < tile.depth_end; depth += kDepth) {
      // Neighbouring threads read neighbours in memory: along the depth where that is contiguous.
      for (int i = thread; i < kTile * kDepth; i += kThreads) {
        const int ad = kWeights ? i / kTile : i % kDepth, ar = kWeights ? i % kTile : i / kDepth;
        a_tile[ad][ar] = depth + ad < tile.depth_end && tile.row + ar < tile.row_end
                             ? operands.A(tile.row + ar, depth + ad)
                             : 0.0f;
        constexpr bool kAlong = kMode == MT_GROUPED_FORWARD;
        const int bd = kAlong ? i % kDepth : i / kTile, bc = kAlong ? i / kDepth : i % kTile;
        b_tile[bd][bc] = depth + bd < tile.depth_end && tile.column + bc < p.columns
                             ? operands.B(depth + bd, tile.column + bc)
                             : 0.0f;
      }
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const Pack<float, kEach> a = LoadPack<kEach>(&a_tile[d][y]),
                                 b = LoadPack<kEach>(&b_tile[d][x]);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
#pragma unroll
          for (int j = 0; j < kEach; ++j) sums[i][j] += a.at[i] * b.at[j];
        }
      }
      __syncthreads();  // before the next tiles
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        if (tile.row + y + i < tile.row_end && tile.column + x + j < p.columns)
          StoreElement<T, kMode>(p, tile, tile.row + y + i, tile.column + x + j, sums[i][j]);
      }
    }
  }
  if constexpr (!kWeights) {
    const int64_t end = static_cast<int64_t>(p.rows) * p.columns;
    for (int64_t i = static_cast<int64_t>(p.offsets[p.groups]) * p.columns +
                     int64_t{blockIdx.x} * kThreads + thread;
         i < end; i += int64_t{gridDim.x} * kThreads)
      static_cast<T*>(p.d)[i] = FromFloat<T>(0.0f);
  }
}

template <typename T>
int32_t PortableGroupedMatmul(const mt_grouped_matmul_args& args, const Launch& launch) {
  auto* kernel = args.mode == MT_GROUPED_FORWARD ? GroupedKernel<T, MT_GROUPED_FORWARD>
                 : args.mode == MT_GROUPED_INPUT_GRADIENT
                     ? GroupedKernel<T, MT_GROUPED_INPUT_GRADIENT>
                     : GroupedKernel<T, MT_GROUPED_WEIGHT_GRADIENT>;
  constexpr int64_t kResident = 4;  // blocks of a multiprocessor
  const Grouped p = GroupedOf(args);
  const int64_t blocks =
      std::min(MostTiles(p, args.mode, kTile, kTile), int64_t{launch.multiprocessors} * kResident);
  const size_t shared = static_cast<size_t>(p.groups + 1) * sizeof(int32_t);
  MT_CUDA(MT_LAUNCH(kernel, GridOf(blocks), kThreads, shared, launch.stream, p));
  return MT_OK;
}

bool UsesMma([[maybe_unused]] const mt_grouped_matmul_args& args) {
#if MT_HAS_MMA_GROUPED
  return MmaGroupedSupports(args);
#else
  return false;
#endif
}

}  // namespace

bool GroupedMatmulSupports(int32_t operation, const mt_grouped_matmul_args& args) {
  constexpr int kMultiple = 8;
  if (args.dtype == MT_BF16 && (args.in % kMultiple != 0 || args.out % kMultiple != 0)) {
    host::Fail(MT_ERROR_UNSUPPORTED, operation,
               "in = %lld and out = %lld have to be multiples of %d with bfloat16 data",
               static_cast<long long>(args.in), static_cast<long long>(args.out), kMultiple);
    return false;
  }
  // Tiles are counted in 32 bits, and so are rows and columns to the end of the last tile.
  constexpr int64_t kMost = INT32_MAX - 256;
  if (args.groups <= kMostGroups && std::max({args.rows, args.in, args.out}) <= kMost &&
      MostTiles(GroupedOf(args), args.mode, kTile, kTile) <= INT32_MAX / 2)
    return true;
  host::Fail(MT_ERROR_UNSUPPORTED, operation,
             "groups = %lld (at most %d), rows = %lld, in = %lld, out = %lld",
             static_cast<long long>(args.groups), kMostGroups, static_cast<long long>(args.rows),
             static_cast<long long>(args.in), static_cast<long long>(args.out));
  return false;
}

const char* GroupedMatmulName(const mt_grouped_matmul_args& args) {
  return UsesMma(args) ? "mt:grouped:mma" : "mt:grouped:portable";
}

int32_t GroupedMatmul(const mt_grouped_matmul_args& args, const Launch& launch) {
  if (args.rows == 0 && args.mode != MT_GROUPED_WEIGHT_GRADIENT) return MT_OK;
#if MT_HAS_MMA_GROUPED
  if (UsesMma(args) && MmaGroupedFits(args)) return MmaGroupedMatmul(args, launch);
#endif
  return WithType(args.dtype,
                  [&](auto type) { return PortableGroupedMatmul<decltype(type)>(args, launch); });
}

}  // namespace mt::cuda
