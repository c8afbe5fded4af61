// The element types of device code and how they are loaded, computed with and stored.
#pragma once

#include <cstdint>

#include "kernels/cuda/vendor/vendor.h"

#include "kernels/abi/mt_backend.h"
#include "kernels/abi/small_floats.h"

namespace mt::cuda {

// bfloat16 as memory; arithmetic is in float.
struct bf16 {
  uint16_t bits;
};

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(bf16 x) { return mt_float_from_bf16(x.bits); }

// Rounds once, to nearest even.
template <typename T>
__device__ __forceinline__ T FromFloat(float x);
template <>
__device__ __forceinline__ float FromFloat<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 FromFloat<bf16>(float x) {
#if defined(__CUDA_ARCH__)
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
#else
  return {mt_bf16_from_float(x)};
#endif
}

// N elements that are loaded and stored at once; 16 bytes are the widest access of one thread.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T at[N];
};
template <typename T>
inline constexpr int kPackElements = static_cast<int>(16 / sizeof(T));

template <int N, typename T>
__device__ __forceinline__ Pack<T, N> LoadPack(const T* address) {
  return *reinterpret_cast<const Pack<T, N>*>(address);
}
// nvcc takes stores of structs apart: where an element is chosen by a condition, or two branches end in a store, it makes four or
// eight narrow stores of one wide (seen in PTX). __stwb is an ordinary store that stays whole.
template <int N, typename T>
__device__ __forceinline__ void StorePack(T* address, const Pack<T, N>& pack) {
#if defined(__CUDA_ARCH__)
  if constexpr (sizeof pack == 16) {
    uint4 words;
    memcpy(&words, &pack, sizeof words);
    __stwb(reinterpret_cast<uint4*>(address), words);
    return;
  }
#endif
  *reinterpret_cast<Pack<T, N>*>(address) = pack;
}

// True if `pointer` can be read in packs of `bytes`.
inline bool IsAligned(const void* pointer, size_t bytes = 16) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

// Calls `function` with a value of the C++ type of `dtype` (F32 or BF16); the caller has refused other types.
template <typename Function>
auto WithType(int32_t dtype, Function&& function) {
  return dtype == MT_BF16 ? function(bf16{}) : function(float{});
}

}  // namespace mt::cuda
