// The kernels of RMSNorm and LayerNorm (mt_backend.h has the formulas and their sources): RMSNorm is LayerNorm without the mean
// and the bias, so kCentered chooses. s = x + residual is rounded to the data's type once and everything uses that value.
//
// Bytes that cannot be avoided, e = bytes of an element: forward 2 N C e, or 4 N C e with a residual (x and residual in, sum and
// output out); backward 3 N C e, or 4 N C e with a residual's gradient (s, dy, extra in, dx out). A row stays in registers
// between its reduction and its output, so nothing more is moved but partial sums of the weight's gradient (PartialRows).
//
// Deterministic: the order of every sum follows from the sizes. The weight's gradient is summed in two stages without atomics:
// block p adds the rows p, p + P, ..., then partial_rows.cu adds the P partial rows.
#pragma once

#include "kernels/cuda/amax.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/partial_rows.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {

template <typename T>
struct NormForward {
  const T *x, *residual;   // (N, C); residual may be null
  T* sum;                  // (N, C); may be null, x or residual
  const T *weight, *bias;  // (C); bias is LayerNorm's
  T* output;               // (N, C)
  float *mean, *rstd;      // (N); mean is LayerNorm's
  float* amax;
  float eps;
  int64_t rows, columns;
};

template <typename T>
struct NormBackward {
  const T* sum;     // (N, C)
  const T* weight;  // (C)
  const float *mean, *rstd;
  const T *output_gradient, *residual_gradient;  // (N, C); the second may be null
  T* input_gradient;                             // (N, C); may be either of them
  float *weight_partials, *bias_partials;        // (gridDim.x, C); the second is LayerNorm's
  float* amax;
  int64_t rows, columns;
};

// What the arguments of both norms have in common; Args is mt_rmsnorm_args or mt_layernorm_args.
template <typename T, typename Args>
NormForward<T> ForwardOf(const Args& args) {
  NormForward<T> a = {};
  a.x = static_cast<const T*>(args.x);
  a.residual = static_cast<const T*>(args.residual);
  a.sum = static_cast<T*>(args.sum);
  a.weight = static_cast<const T*>(args.weight);
  a.output = static_cast<T*>(args.output);
  a.rstd = static_cast<float*>(args.rstd);
  a.amax = args.amax;
  a.eps = static_cast<float>(args.eps);
  a.rows = args.rows;
  a.columns = args.columns;
  return a;
}
template <typename T, typename Args>
NormBackward<T> BackwardOf(const Args& args) {
  NormBackward<T> a = {};
  a.sum = static_cast<const T*>(args.sum);
  a.weight = static_cast<const T*>(args.weight);
  a.rstd = static_cast<const float*>(args.rstd);
  a.output_gradient = static_cast<const T*>(args.output_gradient);
  a.residual_gradient = static_cast<const T*>(args.residual_gradient);
  a.input_gradient = static_cast<T*>(args.input_gradient);
  a.amax = args.amax;
  a.rows = args.rows;
  a.columns = args.columns;
  return a;
}

// Threads of a block: teams of one warp share one.
template <int kThreads>
inline constexpr int kNormBlock = kThreads == 32 ? 128 : kThreads;

// Threads of one multiprocessor: as many as need no spilling. A row waits for its reduction, so others have to be on their way.
template <typename T, bool kCentered>
inline constexpr int kNormThreads = sizeof(T) == 2 && !kCentered  ? 1024
                                    : kCentered && sizeof(T) == 4 ? 512
                                                                  : 768;
template <typename T, bool kCentered, int kThreads>
inline constexpr int kNormBlocks = kNormThreads<T, kCentered> / kNormBlock<kThreads>;

inline constexpr int kNormLoopBlocks = 4, kNormBackwardLoopBlocks = 3;

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> AddPacks(Pack<T, N> a, const Pack<T, N>& b) {
#pragma unroll
  for (int k = 0; k < N; ++k) a.at[k] = FromFloat<T>(ToFloat(a.at[k]) + ToFloat(b.at[k]));
  return a;
}
template <typename T, int N>
__device__ __forceinline__ float AddSquares(float sum, const Pack<T, N>& s, float mean) {
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const float centered = ToFloat(s.at[k]) - mean;
    sum += centered * centered;
  }
  return sum;
}
template <bool kCentered, typename T, int N>
__device__ __forceinline__ Pack<T, N> Normalize(const Pack<T, N>& s, float mean, float rstd,
                                                const Pack<T, N>& weight, const Pack<T, N>& bias,
                                                int& most) {
  Pack<T, N> output;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    float value = (ToFloat(s.at[k]) - mean) * rstd * ToFloat(weight.at[k]);
    if constexpr (kCentered) value += ToFloat(bias.at[k]);
    output.at[k] = FromFloat<T>(value);
    most = max(most, MagnitudeBits(output.at[k]));
  }
  return output;
}

// Aligned rows of up to kThreads * kElements columns: one read, one write.
template <typename T, bool kCentered, int kThreads, int kElements>
__global__ void __launch_bounds__(kNormBlock<kThreads>, kNormBlocks<T, kCentered, kThreads>)
    NormForwardRows(NormForward<T> a) {
  constexpr int N = kPackElements<T>, kPacks = kElements / N,
                kTeams = kNormBlock<kThreads> / kThreads;
  const int team = static_cast<int>(threadIdx.x) / kThreads;
  const int thread = static_cast<int>(threadIdx.x) % kThreads;
  const int packs = static_cast<int>(a.columns) / N;
  const float inverse_columns = 1.0f / static_cast<float>(a.columns);
  int most = 0;
  for (int64_t row = int64_t{blockIdx.x} * kTeams + team; row < a.rows;
       row += int64_t{gridDim.x} * kTeams) {
    const int64_t offset = row * a.columns;
    Pack<T, N> s[kPacks], weight[kPacks];
    LoadRow<kThreads>(a.x + offset, packs, thread, s);
    if (a.residual != nullptr) {
      Pack<T, N> residual[kPacks];
      LoadRow<kThreads>(a.residual + offset, packs, thread, residual);
#pragma unroll
      for (int p = 0; p < kPacks; ++p) s[p] = AddPacks(s[p], residual[p]);
    }
    LoadRow<kThreads>(a.weight, packs, thread, weight);
    float mean = 0;
    if constexpr (kCentered) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
#pragma unroll
        for (int k = 0; k < N; ++k) mean += ToFloat(s[p].at[k]);
      }
      mean = BlockReduce<kThreads>(mean) * inverse_columns;
    }
    float square = 0;
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (!kCentered || p * kThreads + thread < packs) square = AddSquares(square, s[p], mean);
    }
    const float rstd = rsqrtf(BlockReduce<kThreads>(square) * inverse_columns + a.eps);
    if (thread == 0) {
      a.rstd[row] = rstd;
      if constexpr (kCentered) a.mean[row] = mean;
    }
    Pack<T, N> bias[kPacks] = {};
    if constexpr (kCentered) LoadRow<kThreads>(a.bias, packs, thread, bias);
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int index = p * kThreads + thread;
      if (index >= packs) continue;
      if (a.sum != nullptr) StorePack(a.sum + offset + index * N, s[p]);
      StorePack(a.output + offset + index * N,
                Normalize<kCentered>(s[p], mean, rstd, weight[p], bias[p], most));
    }
  }
  if (a.amax != nullptr) StoreAmax<kNormBlock<kThreads>>(a.amax, most);
}

// Rows that are too long for registers, or not aligned (N = 1): x and residual are read again for every reduction.
template <typename T, bool kCentered, int N>
__global__ void __launch_bounds__(kStreamThreads, kNormLoopBlocks)
    NormForwardLoop(NormForward<T> a) {
  const int64_t thread = threadIdx.x;
  const float inverse_columns = 1.0f / static_cast<float>(a.columns);
  int most = 0;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const int64_t offset = row * a.columns, step = int64_t{kStreamThreads} * N;
    // What this thread stored in `sum` only it reads again; sum may lie over x or residual.
    const auto load = [&](int64_t c, bool stored) {
      if (stored && a.sum != nullptr) return LoadPack<N>(a.sum + offset + c);
      const Pack<T, N> x = LoadPack<N>(a.x + offset + c);
      return a.residual != nullptr ? AddPacks(x, LoadPack<N>(a.residual + offset + c)) : x;
    };
    float mean = 0, square = 0;
#pragma unroll 2
    for (int64_t c = thread * N; c < a.columns; c += step) {
      const Pack<T, N> s = load(c, false);
      if (a.sum != nullptr) StorePack(a.sum + offset + c, s);
      if constexpr (kCentered) {
#pragma unroll
        for (int k = 0; k < N; ++k) mean += ToFloat(s.at[k]);
      } else {
        square = AddSquares(square, s, 0.0f);
      }
    }
    if constexpr (kCentered) {
      mean = BlockReduce<kStreamThreads>(mean) * inverse_columns;
#pragma unroll 2
      for (int64_t c = thread * N; c < a.columns; c += step)
        square = AddSquares(square, load(c, true), mean);
    }
    const float rstd = rsqrtf(BlockReduce<kStreamThreads>(square) * inverse_columns + a.eps);
    if (thread == 0) {
      a.rstd[row] = rstd;
      if constexpr (kCentered) a.mean[row] = mean;
    }
#pragma unroll 2
    for (int64_t c = thread * N; c < a.columns; c += step) {
      Pack<T, N> bias{};
      if constexpr (kCentered) bias = LoadPack<N>(a.bias + c);
      StorePack(a.output + offset + c, Normalize<kCentered>(load(c, true), mean, rstd,
                                                            LoadPack<N>(a.weight + c), bias, most));
    }
  }
  if (a.amax != nullptr) StoreAmax<kStreamThreads>(a.amax, most);
}

template <bool kCentered, typename T>
int32_t RunNormForward(const NormForward<T>& a, const Launch& launch) {
  if (a.rows == 0) return MT_OK;
  constexpr int N = kPackElements<T>;
  bool aligned = a.columns % N == 0;
  for (const void* pointer : {static_cast<const void*>(a.x), static_cast<const void*>(a.residual),
                              static_cast<const void*>(a.sum), static_cast<const void*>(a.weight),
                              static_cast<const void*>(a.bias), static_cast<const void*>(a.output)})
    aligned = aligned && IsAligned(pointer);
  cudaError_t error = cudaSuccess;
  const bool held =
      aligned && WithForwardShape(a.columns, [&](auto shape) {
        constexpr int kThreads = decltype(shape)::threads;
        constexpr int kBlock = kNormBlock<kThreads>;
        auto* kernel = NormForwardRows<T, kCentered, kThreads, decltype(shape)::elements>;
        const int64_t blocks = BlocksWithAmax(DivideUp(a.rows, kBlock / kThreads), a.amax,
                                              kNormBlocks<T, kCentered, kThreads>, launch);
        error = MT_LAUNCH(kernel, GridOf(blocks), kBlock, 0, launch.stream, a);
      });
  if (!held) {
    auto* kernel = aligned ? NormForwardLoop<T, kCentered, N> : NormForwardLoop<T, kCentered, 1>;
    const int64_t blocks = BlocksWithAmax(a.rows, a.amax, kNormLoopBlocks, launch);
    error = MT_LAUNCH(kernel, GridOf(blocks), kStreamThreads, 0, launch.stream, a);
  }
  MT_CUDA(error);
  return MT_OK;
}

}  // namespace mt::cuda
