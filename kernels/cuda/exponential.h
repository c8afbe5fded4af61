// Exponentials as exact as the data's type can show: CUDA's fast ones for bfloat16 (relative error 2^-21 (1 + |x|) at most, where
// a bfloat16 has 2^-9), the accurate ones for float32.
#pragma once

#include <type_traits>

#include "kernels/cuda/types.h"

namespace mt::cuda {

template <typename T>
__device__ __forceinline__ float Exp(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return expf(x);
  } else {
    return __expf(x);
  }
}

// 1 / (1 + e^-x)
template <typename T>
__device__ __forceinline__ float Sigmoid(float x) {
  if constexpr (std::is_same_v<T, float>) {
    return 1.0f / (1.0f + expf(-x));
  } else {
    return __fdividef(1.0f, 1.0f + __expf(-x));
  }
}

}  // namespace mt::cuda
