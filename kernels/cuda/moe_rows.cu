// Rows between tokens and experts, with the formulas of mt_backend.h.
//
// Bytes that cannot be avoided, e = bytes of an element, R = N k: gather (N + R) C e, combine (R + N) C e, combine's backward
// (N + 2 R) C e. A token's row is read once per choice; its k reads are near each other in time only by chance, so gather and
// backward move up to (R - N) C e more where the tokens exceed the second-level cache.
//
// Determinism: combine adds a token's choices in order; the product of two rows is added by one warp, lane by lane, then over lanes.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

template <typename T>
struct Rows {
  const int32_t *position, *source;  // (N, k), (N k)
  const float* weights;              // (N, k) or null
  T *tokens, *sorted;                // (N, C), (N k, C)
  T* sorted_gradient;                // (N k, C)
  float* weight_gradient;            // (N, k)
  int64_t rows, columns;             // N, C
  int top_k, accumulate;
};

constexpr int kGatherItems = 4;  // packs of a thread

template <typename T, int N>
__global__ void __launch_bounds__(kStreamThreads) GatherRowsKernel(Rows<T> a) {
  const int64_t sorted_rows = a.rows * a.top_k;
  ForEachPiece<kGatherItems>(
      sorted_rows, static_cast<uint32_t>(a.columns / N), [&](const RowItem(&items)[kGatherItems]) {
        Pack<T, N> packs[kGatherItems] = {};
#pragma unroll
        for (int i = 0; i < kGatherItems; ++i) {
          if (items[i].row >= sorted_rows) continue;
          const int32_t choice = a.source[items[i].row];
          if (choice >= 0) {
            packs[i] = LoadPack<N>(a.tokens + int64_t{choice / a.top_k} * a.columns +
                                   int64_t{items[i].item} * N);
          }
        }
#pragma unroll
        for (int i = 0; i < kGatherItems; ++i) {
          if (items[i].row < sorted_rows)
            StorePack(a.sorted + items[i].row * a.columns + int64_t{items[i].item} * N, packs[i]);
        }
      });
}

constexpr int kCombineItems = 2, kTogether = 4;  // packs of a thread, choices on their way together

template <typename T, int N>
__global__ void __launch_bounds__(kStreamThreads) CombineRowsKernel(Rows<T> a) {
  ForEachPiece<kCombineItems>(
      a.rows, static_cast<uint32_t>(a.columns / N), [&](const RowItem(&items)[kCombineItems]) {
        float sums[kCombineItems][N] = {};
#pragma unroll
        for (int i = 0; i < kCombineItems; ++i) {
          if (a.accumulate == 0 || items[i].row >= a.rows) continue;
          const Pack<T, N> before =
              LoadPack<N>(a.tokens + items[i].row * a.columns + int64_t{items[i].item} * N);
#pragma unroll
          for (int n = 0; n < N; ++n) sums[i][n] = ToFloat(before.at[n]);
        }
        for (int first = 0; first < a.top_k; first += kTogether) {
          Pack<T, N> packs[kCombineItems][kTogether] = {};
          float weights[kCombineItems][kTogether] = {};
#pragma unroll
          for (int i = 0; i < kCombineItems; ++i) {
#pragma unroll
            for (int j = 0; j < kTogether; ++j) {
              if (items[i].row >= a.rows || first + j >= a.top_k) continue;
              const int64_t choice = items[i].row * a.top_k + first + j;
              const int32_t place = a.position[choice];
              if (place < 0) continue;
              weights[i][j] = a.weights != nullptr ? a.weights[choice] : 1.0f;
              packs[i][j] =
                  LoadPack<N>(a.sorted + int64_t{place} * a.columns + int64_t{items[i].item} * N);
            }
          }
#pragma unroll
          for (int i = 0; i < kCombineItems; ++i) {
#pragma unroll
            for (int j = 0; j < kTogether; ++j) {  // zeros where there is no choice
#pragma unroll
              for (int n = 0; n < N; ++n) sums[i][n] += weights[i][j] * ToFloat(packs[i][j].at[n]);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kCombineItems; ++i) {
          if (items[i].row >= a.rows) continue;
          Pack<T, N> result;
#pragma unroll
          for (int n = 0; n < N; ++n) result.at[n] = FromFloat<T>(sums[i][n]);
          StorePack(a.tokens + items[i].row * a.columns + int64_t{items[i].item} * N, result);
        }
      });
}

constexpr int kBackwardWarps = 8, kBackwardThreads = kBackwardWarps * kWarpThreads;
constexpr int kBackwardPacks = 4;  // of a lane, on their way together

// gradient = weight * token, for a row of `packs` packs; returns this lane's part of <token, sorted>. Every lane stores where it
// alone has loaded before: gradient may lie over sorted.
template <typename T, int N>
__device__ __forceinline__ float CombineBackwardRow(const T* token, const T* sorted, T* gradient,
                                                    float weight, int64_t packs) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  float sum = 0;
  for (int64_t first = lane; first < packs; first += kBackwardPacks * kWarpThreads) {
    Pack<T, N> of_token[kBackwardPacks] = {}, of_sorted[kBackwardPacks] = {};
#pragma unroll
    for (int i = 0; i < kBackwardPacks; ++i) {
      const int64_t p = first + i * kWarpThreads;
      if (p >= packs) continue;
      of_token[i] = LoadPack<N>(token + p * N);
      of_sorted[i] = LoadPack<N>(sorted + p * N);
    }
#pragma unroll
    for (int i = 0; i < kBackwardPacks; ++i) {
      const int64_t p = first + i * kWarpThreads;
      if (p >= packs) continue;
      Pack<T, N> result;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float x = ToFloat(of_token[i].at[n]);
        sum += x * ToFloat(of_sorted[i].at[n]);
        result.at[n] = FromFloat<T>(weight * x);
      }
      StorePack(gradient + p * N, result);
    }
  }
  return sum;
}

// A warp takes sorted row i, and choice i if that was dropped.
template <typename T, int N>
__global__ void __launch_bounds__(kBackwardThreads) CombineBackwardKernel(Rows<T> a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads,
            warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int64_t sorted_rows = a.rows * a.top_k, packs = a.columns / N;
  for (int64_t i = int64_t{blockIdx.x} * kBackwardWarps + warp; i < sorted_rows;
       i += int64_t{gridDim.x} * kBackwardWarps) {
    if (lane == 0 && a.position[i] < 0) a.weight_gradient[i] = 0;
    const int32_t choice = a.source[i];
    T* const gradient = a.sorted_gradient + i * a.columns;
    if (choice < 0) {
      for (int64_t p = lane; p < packs; p += kWarpThreads)
        StorePack(gradient + p * N, Pack<T, N>{});
      continue;
    }
    const float sum = WarpReduce(
        CombineBackwardRow<T, N>(a.tokens + int64_t{choice / a.top_k} * a.columns,
                                 a.sorted + i * a.columns, gradient, a.weights[choice], packs));
    if (lane == 0) a.weight_gradient[choice] = sum;
  }
}

template <typename T>
Rows<T> RowsOf(const mt_moe_rows_args& args) {
  Rows<T> a = {};
  a.position = args.position;
  a.source = args.source;
  a.weights = static_cast<const float*>(args.weights);
  a.tokens = static_cast<T*>(args.tokens);
  a.sorted = static_cast<T*>(args.sorted);
  a.sorted_gradient = static_cast<T*>(args.sorted_gradient);
  a.weight_gradient = static_cast<float*>(args.weight_gradient);
  a.rows = args.rows;
  a.columns = args.columns;
  a.top_k = static_cast<int>(args.top_k);
  a.accumulate = args.accumulate;
  return a;
}

// Launches `wide` if every row is whole packs at 16-byte boundaries, else `single` for single elements, over `rows` rows; a block
// takes `items` packs, or one row per warp if that is 0.
template <typename T, typename Kernel>
int32_t LaunchRows(int32_t operation, const Rows<T>& a, int64_t rows, int items, Kernel* wide,
                   Kernel* single, const Launch& launch) {
  if (rows == 0) return MT_OK;
  if (a.columns > kMostItems) {
    return host::Fail(MT_ERROR_UNSUPPORTED, operation, "columns = %lld is more than 2^31 - 1",
                      static_cast<long long>(a.columns));
  }
  constexpr int N = kPackElements<T>;
  const bool whole = a.columns % N == 0 && IsAligned(a.tokens) && IsAligned(a.sorted) &&
                     IsAligned(a.sorted_gradient);
  const int64_t packs = rows * (whole ? a.columns / N : a.columns);
  const int64_t blocks = items == 0 ? DivideUp(rows, kBackwardWarps) : DivideUp(packs, items);
  static_assert(kStreamThreads == kBackwardThreads);
  MT_CUDA(MT_LAUNCH(whole ? wide : single, GridOf(blocks), kStreamThreads, 0, launch.stream, a));
  return MT_OK;
}

}  // namespace

int32_t MoeGather(const mt_moe_rows_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const Rows<T> a = RowsOf<T>(args);
    return LaunchRows(MT_OP_MOE_GATHER, a, a.rows * a.top_k, kStreamThreads * kGatherItems,
                      GatherRowsKernel<T, kPackElements<T>>, GatherRowsKernel<T, 1>, launch);
  });
}

int32_t MoeCombine(const mt_moe_rows_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const Rows<T> a = RowsOf<T>(args);
    return LaunchRows(MT_OP_MOE_COMBINE, a, a.rows, kStreamThreads * kCombineItems,
                      CombineRowsKernel<T, kPackElements<T>>, CombineRowsKernel<T, 1>, launch);
  });
}

int32_t MoeCombineBackward(const mt_moe_rows_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const Rows<T> a = RowsOf<T>(args);
    return LaunchRows(MT_OP_MOE_COMBINE_BACKWARD, a, a.rows * a.top_k, 0,
                      CombineBackwardKernel<T, kPackElements<T>>, CombineBackwardKernel<T, 1>,
                      launch);
  });
}

}  // namespace mt::cuda
