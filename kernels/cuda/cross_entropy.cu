// Cross entropy over vocabulary-parallel logits, with the formulas of mt_backend.h: each rank's statistics by one pass that keeps
// a running maximum and rescales its sum when the maximum grows (Milakov & Gimelshein 2018, arXiv 1805.02867), their combination
// in rank order, the gradient in place.
//
// Bytes that cannot be avoided for R rows of V logits of e bytes: statistics R V e, gradient 2 R V e; the rest is a few floats a
// row.
// Deterministic: which thread has which logit depends on V and the row's address modulo 16 alone; threads are added in a fixed
// tree, ranks in rank order.
//
// A row may begin at any element: single elements up to a 16-byte boundary, packs, single elements again (SplitAt).
#include <limits>

#include "kernels/cuda/exponential.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

constexpr int kRowThreads = 256;
constexpr int kInFlight = 4;  // packs of a thread
constexpr float kLowest = -std::numeric_limits<float>::infinity();

template <typename T>
struct CrossEntropy {
  T* logits;  // (rows, row_stride)
  const int32_t* targets;
  float *maximum, *sum, *target_logit;
  const float* lse;
  int64_t rows, columns, valid_columns, row_stride, vocab_start;
  double loss_scale;
  const double* loss_scale_pointer;  // or null
  float z_loss;
};

// sum of exp(logit - maximum) over the logits seen so far. A NaN is never the maximum but makes the sum NaN.
struct RunningSum {
  float maximum = kLowest, sum = 0;
};

// Adds `count` logits, of which the compiler knows how many.
template <typename T, int kCount>
__device__ __forceinline__ void AddLogits(RunningSum& running, const float (&logits)[kCount]) {
  float maximum = running.maximum;
#pragma unroll
  for (int k = 0; k < kCount; ++k) maximum = fmaxf(maximum, logits[k]);
  // Nothing but -infinity so far: exponentials of 0 differences would count them.
  const float shift = maximum == kLowest ? 0.0f : maximum;
  float sum = running.sum * Exp<T>(running.maximum - shift);
#pragma unroll
  for (int k = 0; k < kCount; ++k) sum += Exp<T>(logits[k] - shift);
  running = {maximum, sum};
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads) StatisticsKernel(CrossEntropy<T> a) {
  constexpr int N = kPackElements<T>;
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const T* logits = a.logits + row * a.row_stride;
    const SplitRow split = SplitAt(reinterpret_cast<uintptr_t>(logits), a.valid_columns, sizeof(T));
    RunningSum running;
    if (thread < split.head) {
      const float one[1] = {ToFloat(logits[thread])};
      AddLogits<T>(running, one);
    }
    const T* packs = logits + split.head;
    if (thread < split.tail) {
      const float one[1] = {ToFloat(packs[split.packs * N + thread])};
      AddLogits<T>(running, one);
    }
    int64_t p = thread;
    for (; p + (kInFlight - 1) * kRowThreads < split.packs; p += kInFlight * kRowThreads) {
      Pack<T, N> loaded[kInFlight];
      float values[kInFlight * N];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i)
        loaded[i] = LoadPack<N>(packs + (p + i * kRowThreads) * N);
#pragma unroll
      for (int i = 0; i < kInFlight * N; ++i) values[i] = ToFloat(loaded[i / N].at[i % N]);
      AddLogits<T>(running, values);
    }
    for (; p < split.packs; p += kRowThreads) {
      const Pack<T, N> loaded = LoadPack<N>(packs + p * N);
      float values[N];
#pragma unroll
      for (int k = 0; k < N; ++k) values[k] = ToFloat(loaded.at[k]);
      AddLogits<T>(running, values);
    }
    const float maximum = BlockReduce<kRowThreads>(running.maximum, kLowest, Maximum{});
    const float shift = maximum == kLowest ? 0.0f : maximum;
    const float sum = BlockReduce<kRowThreads>(running.sum * Exp<T>(running.maximum - shift));
    if (thread == 0) {
      const int64_t target = a.targets[row], column = target - a.vocab_start;
      const bool here = target >= 0 && column >= 0 && column < a.valid_columns;
      a.maximum[row] = maximum;
      a.sum[row] = sum;
      a.target_logit[row] = here ? ToFloat(logits[column]) : 0.0f;
    }
  }
}

// A thread per row. Few numbers and a difference of large ones: float64.
__global__ void __launch_bounds__(kStreamThreads)
    CombineKernel(const float* maxima, const float* sums,
                  const float* target_logits /* (world, rows) */, const int32_t* targets,
                  float* lse, float* row_loss, int64_t rows, int64_t world, double z_loss) {
  const int64_t step = int64_t{gridDim.x} * kStreamThreads;
  for (int64_t i = int64_t{blockIdx.x} * kStreamThreads + threadIdx.x; i < rows; i += step) {
    float maximum = kLowest;
    for (int64_t r = 0; r < world; ++r) maximum = fmaxf(maximum, maxima[r * rows + i]);
    double sum = 0, target_logit = 0;
    for (int64_t r = 0; r < world; ++r) {
      const float rank_sum = sums[r * rows + i];
      // A rank whose columns are all padding has the sum 0 and the maximum -infinity. A NaN is not 0.
      if (rank_sum != 0) sum += rank_sum * exp(static_cast<double>(maxima[r * rows + i]) - maximum);
      target_logit += target_logits[r * rows + i];
    }
    const double all = maximum + log(sum);
    lse[i] = static_cast<float>(all);
    row_loss[i] =
        targets[i] < 0 ? 0.0f : static_cast<float>(all - target_logit + z_loss * all * all);
  }
}

// What a thread needs to know of its row to turn a logit into its gradient.
struct RowGradient {
  float lse, scale, loss_scale;  // scale = loss_scale (1 + 2 z_loss lse)
  int64_t target;                // column of the target, or none of the row's
};

template <typename T, int N>
__device__ __forceinline__ Pack<T, N> GradientOf(const Pack<T, N>& logits, int64_t column,
                                                 const RowGradient& row) {
  Pack<T, N> gradient;
  // Out of reach of k if the target is in another pack.
  const int64_t away = row.target - column;
  const int hit = away >= 0 && away < N ? static_cast<int>(away) : N;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    const float value = row.scale * Exp<T>(ToFloat(logits.at[k]) - row.lse);
    gradient.at[k] = FromFloat<T>(k == hit ? value - row.loss_scale : value);
  }
  return gradient;
}

template <typename T>
__device__ __forceinline__ void ZeroRow(T* data, int64_t count) {
  constexpr int N = kPackElements<T>;
  const SplitRow split = SplitAt(reinterpret_cast<uintptr_t>(data), count, sizeof(T));
  const int thread = static_cast<int>(threadIdx.x);
  const T zero = FromFloat<T>(0.0f);
  if (thread < split.head) data[thread] = zero;
  T* packs = data + split.head;
  if (thread < split.tail) packs[split.packs * N + thread] = zero;
  Pack<T, N> zeros;
#pragma unroll
  for (int k = 0; k < N; ++k) zeros.at[k] = zero;
  for (int64_t p = thread; p < split.packs; p += kRowThreads) StorePack(packs + p * N, zeros);
}

template <typename T>
__global__ void __launch_bounds__(kRowThreads) GradientKernel(CrossEntropy<T> a) {
  constexpr int N = kPackElements<T>;
  const int thread = static_cast<int>(threadIdx.x);
  const float loss_scale = static_cast<float>(
      a.loss_scale_pointer != nullptr ? a.loss_scale * *a.loss_scale_pointer : a.loss_scale);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    T* logits = a.logits + row * a.row_stride;
    const int64_t target = a.targets[row];
    if (target < 0) {
      ZeroRow(logits, a.columns);
      continue;
    }
    const float lse = a.lse[row];
    const RowGradient gradient = {lse, loss_scale * (1.0f + 2.0f * a.z_loss * lse), loss_scale,
                                  target - a.vocab_start};
    const SplitRow split = SplitAt(reinterpret_cast<uintptr_t>(logits), a.valid_columns, sizeof(T));
    const auto single = [&](int64_t column) {
      StorePack(logits + column, GradientOf(LoadPack<1>(logits + column), column, gradient));
    };
    if (thread < split.head) single(thread);
    if (thread < split.tail) single(split.head + split.packs * N + thread);
    T* packs = logits + split.head;
    int64_t p = thread;
    for (; p + (kInFlight - 1) * kRowThreads < split.packs; p += kInFlight * kRowThreads) {
      Pack<T, N> loaded[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i)
        loaded[i] = LoadPack<N>(packs + (p + i * kRowThreads) * N);
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        const int64_t at = (p + i * kRowThreads) * N;
        StorePack(packs + at, GradientOf(loaded[i], split.head + at, gradient));
      }
    }
    for (; p < split.packs; p += kRowThreads)
      StorePack(packs + p * N,
                GradientOf(LoadPack<N>(packs + p * N), split.head + p * N, gradient));
    ZeroRow(logits + a.valid_columns, a.columns - a.valid_columns);
  }
}

template <typename T>
CrossEntropy<T> ArgumentsOf(const mt_cross_entropy_args& args) {
  CrossEntropy<T> a = {};
  a.logits = static_cast<T*>(args.logits);
  a.targets = args.targets;
  a.maximum = static_cast<float*>(args.maximum);
  a.sum = static_cast<float*>(args.sum);
  a.target_logit = static_cast<float*>(args.target_logit);
  a.lse = static_cast<const float*>(args.lse);
  a.rows = args.rows;
  a.columns = args.columns;
  a.valid_columns = args.valid_columns;
  a.row_stride = args.row_stride;
  a.vocab_start = args.vocab_start;
  a.loss_scale = args.loss_scale;
  a.loss_scale_pointer = args.loss_scale_pointer;
  a.z_loss = static_cast<float>(args.z_loss);
  return a;
}

}  // namespace

int32_t CrossEntropyStatistics(const mt_cross_entropy_args& args, const Launch& launch) {
  if (args.rows == 0) return MT_OK;
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    return MT_LAUNCH(StatisticsKernel<T>, GridOf(args.rows), kRowThreads, 0, launch.stream,
                     ArgumentsOf<T>(args));
  }));
  return MT_OK;
}

int32_t CrossEntropyCombine(const mt_cross_entropy_combine_args& args, const Launch& launch) {
  if (args.rows == 0) return MT_OK;
  MT_CUDA(MT_LAUNCH(
      CombineKernel, GridOf(DivideUp(args.rows, kStreamThreads)), kStreamThreads, 0, launch.stream,
      static_cast<const float*>(args.maximum), static_cast<const float*>(args.sum),
      static_cast<const float*>(args.target_logit), args.targets, static_cast<float*>(args.lse),
      static_cast<float*>(args.row_loss), args.rows, args.world, args.z_loss));
  return MT_OK;
}

int32_t CrossEntropyGradient(const mt_cross_entropy_args& args, const Launch& launch) {
  if (args.rows == 0 || args.columns == 0) return MT_OK;
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    return MT_LAUNCH(GradientKernel<T>, GridOf(args.rows), kRowThreads, 0, launch.stream,
                     ArgumentsOf<T>(args));
  }));
  return MT_OK;
}

}  // namespace mt::cuda
