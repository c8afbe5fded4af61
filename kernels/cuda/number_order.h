// Numbers in an order that decides every choice: unsigned integers that compare as float32 numbers do, NaN below all.
#pragma once

#include "kernels/cuda/vendor/vendor.h"

namespace mt::cuda {

inline constexpr unsigned kNoNumber = 0;  // below NaN: what is not there
inline constexpr unsigned kNotANumber = 1;

__device__ __forceinline__ unsigned OrderOf(float x) {
  if (x != x) return kNotANumber;
  const unsigned bits = __float_as_uint(x == 0.0f ? 0.0f : x);  // both zeros are one number
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float NumberOf(unsigned order) {
  if (order == kNotANumber) return __uint_as_float(0x7fc00000u);
  return __uint_as_float((order & 0x80000000u) != 0 ? order ^ 0x80000000u : ~order);
}

}  // namespace mt::cuda
