// The backward kernels of norm.h.
#pragma once

#include "kernels/cuda/norm.h"

namespace mt::cuda {

// What one thread reads of one row.
template <typename T, int kPacks>
struct NormRow {
  Pack<T, kPackElements<T>> sum[kPacks], gradient[kPacks], extra[kPacks];
  float mean = 0, rstd = 0;
};

template <bool kCentered, int kThreads, typename T, int kPacks>
__device__ __forceinline__ void LoadNormRow(const NormBackward<T>& a, int64_t row, int packs,
                                            int thread, NormRow<T, kPacks>& out) {
  const int64_t offset = row * a.columns;
  LoadRow<kThreads>(a.sum + offset, packs, thread, out.sum);
  LoadRow<kThreads>(a.output_gradient + offset, packs, thread, out.gradient);
  if (a.residual_gradient != nullptr)
    LoadRow<kThreads>(a.residual_gradient + offset, packs, thread, out.extra);
  out.rstd = a.rstd[row];
  if constexpr (kCentered) out.mean = a.mean[row];
}

// dx of one pack, with h = (s - mean) rstd and g = w dy: rstd * (g - mean_g - h * mean_gh) + extra.
template <typename T, int N>
__device__ __forceinline__ Pack<T, N> NormInputGradient(const Pack<T, N>& s, const Pack<T, N>& dy,
                                                        const Pack<T, N>& weight,
                                                        const Pack<T, N>& extra, bool has_extra,
                                                        float mean, float rstd, float mean_g,
                                                        float mean_gh, int& most) {
  Pack<T, N> dx;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const float h = (ToFloat(s.at[k]) - mean) * rstd;
    const float g = ToFloat(weight.at[k]) * ToFloat(dy.at[k]);
    const float gradient = rstd * (g - mean_g - h * mean_gh);
    dx.at[k] = FromFloat<T>(has_extra ? gradient + ToFloat(extra.at[k]) : gradient);
    most = max(most, MagnitudeBits(dx.at[k]));
  }
  return dx;
}

// Blocks of one multiprocessor, so that they get 64 registers a thread; those that need more without spilling get it: LayerNorm past
// 4096 columns, with two sums per column, where RMSNorm takes 1024 threads and has the next row on its way.
template <typename T, bool kCentered, int kThreads, int kElements>
inline constexpr int kNormBackwardBlocks =
    kElements > 8 ? 1 : (kCentered && sizeof(T) == 4 ? 768 : 1024) / kThreads;

// A block takes the rows blockIdx.x, blockIdx.x + gridDim.x, ...; where registers allow it, the next row is on its way while
// one is worked on. gridDim.x = PartialRows, a function of the sizes.
template <typename T, bool kCentered, int kThreads, int kElements>
__global__ void __launch_bounds__(kThreads, kNormBackwardBlocks<T, kCentered, kThreads, kElements>)
    NormBackwardRows(NormBackward<T> a) {
  constexpr int N = kPackElements<T>, kPacks = kElements / N;
  constexpr bool kAhead = kElements == 8 && sizeof(T) == 2 && !kCentered;
  const int thread = static_cast<int>(threadIdx.x);
  const int packs = static_cast<int>(a.columns) / N;
  const float inverse_columns = 1.0f / static_cast<float>(a.columns);
  const bool has_extra = a.residual_gradient != nullptr;
  int most = 0;
  float weight_sums[kPacks][N] = {}, bias_sums[kPacks][N] = {};
  Pack<T, N> weight[kPacks];
  LoadRow<kThreads>(a.weight, packs, thread, weight);
  NormRow<T, kPacks> next = {};
  if (kAhead && int64_t{blockIdx.x} < a.rows)
    LoadNormRow<kCentered, kThreads>(a, blockIdx.x, packs, thread, next);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    if constexpr (!kAhead) LoadNormRow<kCentered, kThreads>(a, row, packs, thread, next);
    const NormRow<T, kPacks> now = next;
    if (kAhead && row + gridDim.x < a.rows)
      LoadNormRow<kCentered, kThreads>(a, row + gridDim.x, packs, thread, next);
    float mean_g = 0, mean_gh = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
#pragma unroll
      for (int k = 0; k < N; ++k) {
        // Past the row's end dy is 0, and so are g and what is added to the sums.
        const float dy = ToFloat(now.gradient[p].at[k]), g = ToFloat(weight[p].at[k]) * dy;
        const float h = (ToFloat(now.sum[p].at[k]) - now.mean) * now.rstd;
        mean_gh += g * h;
        weight_sums[p][k] += dy * h;
        if constexpr (kCentered) {
          mean_g += g;
          bias_sums[p][k] += dy;
        }
      }
    }
    mean_gh = BlockReduce<kThreads>(mean_gh) * inverse_columns;
    if constexpr (kCentered) mean_g = BlockReduce<kThreads>(mean_g) * inverse_columns;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int index = p * kThreads + thread;
      if (index >= packs) continue;
      StorePack(a.input_gradient + row * a.columns + index * N,
                NormInputGradient(now.sum[p], now.gradient[p], weight[p], now.extra[p], has_extra,
                                  now.mean, now.rstd, mean_g, mean_gh, most));
    }
  }
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int index = p * kThreads + thread;
    if (index >= packs) continue;
    const int64_t at = int64_t{blockIdx.x} * a.columns + index * N;
    StoreFloats(a.weight_partials + at, weight_sums[p]);
    if constexpr (kCentered) StoreFloats(a.bias_partials + at, bias_sums[p]);
  }
  if (a.amax != nullptr) StoreAmax<kThreads>(a.amax, most);
}

// Rows that are too long for registers, or not aligned (N = 1). The partial sums come first, from a kernel of their own, because
// dx may be written over dy.
template <typename T, bool kCentered>
__global__ void __launch_bounds__(kStreamThreads)
    NormPartialSums(NormBackward<T> a, int64_t partial_rows) {
  const int64_t column_blocks = DivideUp(a.columns, kStreamThreads);
  for (int64_t block = blockIdx.x; block < column_blocks * partial_rows; block += gridDim.x) {
    const int64_t partial = block / column_blocks;
    const int64_t c = (block - partial * column_blocks) * kStreamThreads + threadIdx.x;
    if (c >= a.columns) continue;
    float weight_sum = 0, bias_sum = 0;
#pragma unroll 4
    for (int64_t row = partial; row < a.rows; row += partial_rows) {
      const float dy = ToFloat(a.output_gradient[row * a.columns + c]);
      const float mean = kCentered ? a.mean[row] : 0.0f;
      weight_sum += dy * ((ToFloat(a.sum[row * a.columns + c]) - mean) * a.rstd[row]);
      bias_sum += dy;
    }
    a.weight_partials[partial * a.columns + c] = weight_sum;
    if constexpr (kCentered) a.bias_partials[partial * a.columns + c] = bias_sum;
  }
}
template <typename T, bool kCentered, int N>
__global__ void __launch_bounds__(kStreamThreads, kNormBackwardLoopBlocks)
    NormBackwardLoop(NormBackward<T> a) {
  const int64_t thread = threadIdx.x, step = int64_t{kStreamThreads} * N;
  const float inverse_columns = 1.0f / static_cast<float>(a.columns);
  int most = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const int64_t offset = row * a.columns;
    const float rstd = a.rstd[row], mean = kCentered ? a.mean[row] : 0.0f;
    float mean_g = 0, mean_gh = 0;
    for (int64_t c = thread * N; c < a.columns; c += step) {
      const Pack<T, N> s = LoadPack<N>(a.sum + offset + c), weight = LoadPack<N>(a.weight + c);
      const Pack<T, N> dy = LoadPack<N>(a.output_gradient + offset + c);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float g = ToFloat(weight.at[k]) * ToFloat(dy.at[k]);
        mean_gh += g * ((ToFloat(s.at[k]) - mean) * rstd);
        mean_g += g;
      }
    }
    mean_gh = BlockReduce<kStreamThreads>(mean_gh) * inverse_columns;
    mean_g = kCentered ? BlockReduce<kStreamThreads>(mean_g) * inverse_columns : 0.0f;
    const bool has_extra = a.residual_gradient != nullptr;
    for (int64_t c = thread * N; c < a.columns; c += step) {
      Pack<T, N> extra{};
      if (has_extra) extra = LoadPack<N>(a.residual_gradient + offset + c);
      StorePack(
          a.input_gradient + offset + c,
          NormInputGradient(LoadPack<N>(a.sum + offset + c),
                            LoadPack<N>(a.output_gradient + offset + c), LoadPack<N>(a.weight + c),
                            extra, has_extra, mean, rstd, mean_g, mean_gh, most));
    }
  }
  if (a.amax != nullptr) StoreAmax<kStreamThreads>(a.amax, most);
}

// `a` has everything but the partial sums, which lie in the workspace: PartialRows rows for the weight, as many for the bias.
template <bool kCentered, typename T>
int32_t RunNormBackward(NormBackward<T> a, void* workspace, float* weight_gradient,
                        float* bias_gradient, const Launch& launch) {
  if (a.rows == 0) return MT_OK;
  constexpr int N = kPackElements<T>;
  const int64_t partial_rows = PartialRows(a.rows, a.columns);
  a.weight_partials = static_cast<float*>(workspace);
  a.bias_partials = a.weight_partials + partial_rows * a.columns;
  bool aligned = a.columns % N == 0;
  for (const void* pointer :
       {static_cast<const void*>(a.sum), static_cast<const void*>(a.weight),
        static_cast<const void*>(a.output_gradient), static_cast<const void*>(a.residual_gradient),
        static_cast<const void*>(a.input_gradient), static_cast<const void*>(workspace)})
    aligned = aligned && IsAligned(pointer);
  cudaError_t error = cudaSuccess;
  const bool held =
      aligned && WithBackwardShape<!kCentered>(a.columns, [&](auto shape) {
        constexpr int kThreads = decltype(shape)::threads;
        auto* kernel = NormBackwardRows<T, kCentered, kThreads, decltype(shape)::elements>;
        error = MT_LAUNCH(kernel, GridOf(partial_rows), kThreads, 0, launch.stream, a);
      });
  if (!held) {
    auto* sums = NormPartialSums<T, kCentered>;
    const int64_t blocks = partial_rows * DivideUp(a.columns, kStreamThreads);
    MT_CUDA(MT_LAUNCH(sums, GridOf(blocks), kStreamThreads, 0, launch.stream, a, partial_rows));
    auto* kernel = aligned ? NormBackwardLoop<T, kCentered, N> : NormBackwardLoop<T, kCentered, 1>;
    const int64_t all = BlocksWithAmax(a.rows, a.amax, kNormBackwardLoopBlocks, launch);
    error = MT_LAUNCH(kernel, GridOf(all), kStreamThreads, 0, launch.stream, a);
  }
  MT_CUDA(error);
  if (const int32_t code =
          AddPartialRows(a.weight_partials, partial_rows, a.columns, weight_gradient, launch);
      code != MT_OK || !kCentered)
    return code;
  return AddPartialRows(a.bias_partials, partial_rows, a.columns, bias_gradient, launch);
}

}  // namespace mt::cuda
