// AdamW over a flat shard, in float32.
//
// Bytes that cannot be avoided, per element: read gradient, master, m, v (16), write master, m, v (12) and the working copy (2 in
// bfloat16, 4 in float32, 0 where it is the master): 30 in bfloat16 training.
// Determinism: no element depends on another.
#include <cmath>

#include "kernels/cuda/flat.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/status.h"
#include "kernels/cuda/types.h"

namespace mt::cuda {
namespace {

// What all elements share, computed in float64 on the host.
struct Coefficients {
  float decay;                   // lr * weight_decay
  float beta1, one_minus_beta1;  // 1 - beta in float64: in float32 it would lose most of its digits
  float beta2, one_minus_beta2;
  float step_size;                // lr / (1 - beta1^step)
  float inverse_root_correction;  // 1 / sqrt(1 - beta2^step)
  float eps;
};

Coefficients CoefficientsOf(const mt_adamw_args& args) {
  const double correction1 = 1 - std::pow(args.beta1, static_cast<double>(args.step));
  const double correction2 = 1 - std::pow(args.beta2, static_cast<double>(args.step));
  Coefficients c;
  c.decay = static_cast<float>(args.lr * args.weight_decay);
  c.beta1 = static_cast<float>(args.beta1);
  c.one_minus_beta1 = static_cast<float>(1 - args.beta1);
  c.beta2 = static_cast<float>(args.beta2);
  c.one_minus_beta2 = static_cast<float>(1 - args.beta2);
  c.step_size = static_cast<float>(args.lr / correction1);
  c.inverse_root_correction = static_cast<float>(1 / std::sqrt(correction2));
  c.eps = static_cast<float>(args.eps);
  return c;
}

template <typename T>
struct AdamWWork {
  T* parameter;
  float* master;
  const float* gradient;
  float* exp_avg;
  float* exp_avg_sq;
  float gradient_scale;
  Coefficients c;

  template <int N>
  struct Four {
    Pack<float, N> p, g, m, v;
  };
  template <int N>
  __device__ Four<N> Load(int64_t i) const {
    return {LoadPack<true, float, N>(master + i), LoadPack<true, float, N>(gradient + i),
            LoadPack<true, float, N>(exp_avg + i), LoadPack<true, float, N>(exp_avg_sq + i)};
  }
  template <int N>
  __device__ void Store(int64_t i, Four<N> x) const {
    Pack<T, N> copy;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const float g = x.g.at[j] * gradient_scale;
      const float m = c.beta1 * x.m.at[j] + c.one_minus_beta1 * g;
      const float v = c.beta2 * x.v.at[j] + c.one_minus_beta2 * g * g;
      float p = x.p.at[j];
      p -= c.decay * p;
      p -= c.step_size * m / (sqrtf(v) * c.inverse_root_correction + c.eps);
      x.m.at[j] = m;
      x.v.at[j] = v;
      x.p.at[j] = p;
      copy.at[j] = FromFloat<T>(p);
    }
    StorePack(exp_avg + i, x.m);
    StorePack(exp_avg_sq + i, x.v);
    StorePack(master + i, x.p);
    if (static_cast<const void*>(parameter) != static_cast<const void*>(master))
      StorePack(parameter + i, copy);
  }
};

// One pack of each of the four inputs is in flight per thread and round, two rounds at once.
template <typename T, int N>
__global__ void __launch_bounds__(kFlatThreads)
    AdamWKernel(AdamWWork<T> work, const double* scale, int64_t count) {
  if (scale != nullptr) {
    const double factor = *scale;
    if (!isfinite(factor)) return;
    work.gradient_scale *= static_cast<float>(factor);
  }
  FlatLoop<N, 2>(work, count);
}

struct Balance {
  float* bias;        // (count)
  const float* load;  // (count)
  float rate, target;
  int64_t count;
};

// One thread per expert: there are hundreds.
template <typename T>
__global__ void __launch_bounds__(kFlatThreads)
    BalanceKernel(Balance a, T* parameter, const double* scale) {
  if (scale != nullptr && !isfinite(*scale)) return;
  const int64_t step = int64_t{gridDim.x} * kFlatThreads;
  for (int64_t i = int64_t{blockIdx.x} * kFlatThreads + threadIdx.x; i < a.count; i += step) {
    const float lack = a.target - a.load[i];
    const float bias = a.bias[i] + (lack > 0 ? a.rate : lack < 0 ? -a.rate : 0.0f);
    a.bias[i] = bias;
    parameter[i] = FromFloat<T>(bias);  // may be the same memory
  }
}

}  // namespace

int32_t BalanceUpdate(const mt_balance_update_args& args, const Launch& launch) {
  if (args.count == 0) return MT_OK;
  const Balance a = {static_cast<float*>(args.bias), static_cast<const float*>(args.load),
                     static_cast<float>(args.rate), static_cast<float>(args.target), args.count};
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    auto* kernel = BalanceKernel<T>;
    return MT_LAUNCH(kernel, FlatBlocks(args.count, 1, launch), kFlatThreads, 0, launch.stream, a,
                     static_cast<T*>(args.parameter), args.gradient_scale_pointer);
  }));
  return MT_OK;
}

int32_t AdamW(const mt_adamw_args& args, const Launch& launch) {
  if (args.count == 0) return MT_OK;
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const AdamWWork<T> work = {static_cast<T*>(args.parameter),
                               static_cast<float*>(args.master),
                               static_cast<const float*>(args.gradient),
                               static_cast<float*>(args.exp_avg),
                               static_cast<float*>(args.exp_avg_sq),
                               static_cast<float>(args.gradient_scale),
                               CoefficientsOf(args)};
    constexpr int N = kPackElements<float>;
    const bool whole = IsAligned(args.parameter, N * sizeof(T)) && IsAligned(args.master) &&
                       IsAligned(args.gradient) && IsAligned(args.exp_avg) &&
                       IsAligned(args.exp_avg_sq);
    auto* kernel = whole ? AdamWKernel<T, N> : AdamWKernel<T, 1>;
    const unsigned blocks = FlatBlocks(args.count, (whole ? N : 1) * 2, launch);
    return MT_LAUNCH(kernel, dim3(blocks), dim3(kFlatThreads), 0, launch.stream, work,
                     args.gradient_scale_pointer, args.count);
  }));
  return MT_OK;
}

}  // namespace mt::cuda
