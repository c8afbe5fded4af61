// The largest magnitude of what a kernel stored, without a second pass over it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/types.h"

namespace mt::cuda {

// Bits of |x| as a float32. Non-negative floats order as their bits do, and a NaN's bits are the largest of all: a maximum of
// integers is a maximum of magnitudes in which NaN wins, the same in any order.
__device__ __forceinline__ int MagnitudeBits(float x) { return __float_as_int(x) & 0x7fffffff; }
__device__ __forceinline__ int MagnitudeBits(bf16 x) { return (x.bits & 0x7fff) << 16; }

// *amax = max(*amax, the block's largest); all threads of the block call it, once per kernel. Most blocks find a larger value
// there and leave it: atomics on one address are served one after the other.
template <int Threads>
__device__ __forceinline__ void StoreAmax(float* amax, int bits) {
  const int most = BlockReduce<Threads>(bits, 0, Maximum{});
  if (threadIdx.x == 0 && most > __float_as_int(*static_cast<const volatile float*>(amax)))
    RaiseAmax(amax, __int_as_float(most));
}

// Blocks of a kernel that takes `pieces` of work one after the other, `resident` blocks on a multiprocessor: one for each piece, but
// with an amax no more than run at once, because each waits for what it reads there. A maximum has no order: no bit follows from this.
inline int64_t BlocksWithAmax(int64_t pieces, const float* amax, int resident,
                              const Launch& launch) {
  return amax == nullptr ? pieces : std::min(pieces, int64_t{launch.multiprocessors} * resident);
}

}  // namespace mt::cuda
