// Sums and maxima over the threads of a warp and of a block, in a fixed order: the same bits in every run.
#pragma once

#include "kernels/cuda/vendor/vendor.h"

namespace mt::cuda {

inline constexpr int kWarpThreads = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

struct Plus {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
// NaN wins: a maximum over data with a NaN is a NaN.
struct Maximum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

// Every lane gets the result. All 32 lanes take part.
template <typename T, typename Operation = Plus>
__device__ __forceinline__ T WarpReduce(T value, Operation operation = {}) {
  for (int lanes = kWarpThreads / 2; lanes > 0; lanes /= 2)
    value = operation(value, __shfl_xor_sync(kAllLanes, value, lanes, kWarpThreads));
  return value;
}

// Every thread gets the result. blockDim.x = Threads, a multiple of 32; all threads take part. `identity` is the operation's.
// May be called again at once: it begins and ends with a barrier where it needs one.
template <int Threads, typename T, typename Operation = Plus>
__device__ __forceinline__ T BlockReduce(T value, T identity = T{}, Operation operation = {}) {
  static_assert(Threads % kWarpThreads == 0 && Threads <= 1024);
  constexpr int kWarps = Threads / kWarpThreads;
  value = WarpReduce(value, operation);
  if constexpr (kWarps == 1) return value;
  __shared__ T partial[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads,
            warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  __syncthreads();  // a call before may still be read
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  return WarpReduce(lane < kWarps ? partial[lane] : identity, operation);
}

// *amax = max(*amax, |value|), by any number of threads; NaN wins. Magnitudes have the order of their bits, and NaN's are above
// infinity's; a maximum does not depend on the order in which it is taken.
__device__ __forceinline__ void RaiseAmax(float* amax, float value) {
  atomicMax(reinterpret_cast<int*>(amax), __float_as_int(value) & 0x7fffffff);
}

}  // namespace mt::cuda
