// No device: kernels compiled for the processor. Every thread of a block is a fiber; the fibers of a block take turns between
// barriers and shuffles, in order or, with a seed, in an order that changes at every turn and lets warps run ahead, so that a
// missing barrier shows as a wrong result. Blocks run one after the other (in a seeded order too: a result may not depend on it).
//
// A launch finishes before MT_LAUNCH returns. What a device leaves undefined ends the program with the kernel's name: threads that
// wait for each other forever (a barrier that only some reach), exchanges under masks that do not agree, writes just beyond the
// dynamic shared memory. Dynamic shared memory and the values of lanes outside a mask are NaN; `__shared__` variables are not
// cleared, so that one which is read before it is written shows only where blocks leave different values. MT_EMULATOR_SEED=<n>
// sets the order; 0 or nothing is in order.
//
// Compiled with ThreadSanitizer (preset tsan), accesses that no barrier orders are reported, whatever the order: happens_before.h.
//
// Invariant: one operating-system thread per launch, so `__shared__` is a thread_local of the function.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9
};
struct mt_host_stream;
using cudaStream_t = mt_host_stream*;
inline const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaSuccess                     ? "cudaSuccess"
         : error == cudaErrorInvalidConfiguration ? "cudaErrorInvalidConfiguration"
                                                  : "cudaErrorInvalidValue";
}
inline const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyDefault = 4, cudaMemcpyDeviceToDevice = 3 };
inline cudaError_t cudaMemcpyAsync(void* destination, const void* source, size_t bytes,
                                   cudaMemcpyKind, cudaStream_t) {
  std::memmove(destination, source, bytes);
  return cudaSuccess;
}
namespace mt::emulator {

// Where the running fiber is.
struct Place {
  dim3 thread, block, block_size, grid_size;
  int lane = 0, warp = 0;
};
extern thread_local Place place;
extern thread_local void* dynamic_shared;

using Body = void (*)(void* context);
// What cudaFuncSetAttribute does to the kernel's dynamic shared memory: at most 227 KiB, or what LimitShared has said.
cudaError_t AllowShared(const void* kernel, int bytes);
void LimitShared(int bytes);
// Refuses what a device refuses: empty or too large grids and blocks, dynamic shared memory beyond 48 KiB that was not allowed.
cudaError_t CheckLaunch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes);
// Runs body(context) once per thread of every block.
void Launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body,
            void* context);

// Waits for all threads of the block that have not returned, and for all lanes of `mask`.
void SyncBlock();
void SyncWarp(unsigned mask);
// Waits for all lanes of `mask`, which has the caller's own, then returns the 32 values that they brought (`bytes` each, at most
// 64), lane l's at l * 64 and NaN for lanes that are not in the mask; valid until the lane's next call. Lanes that name different
// masks end the program.
const char* Exchange(unsigned mask, const void* value, size_t bytes);
// Ends the program with the kernel's name and the thread's place.
[[noreturn]] void Die(const char* what);

template <typename Kernel, typename... Arguments>
cudaError_t LaunchKernel(const char* name, Kernel* kernel, dim3 grid, dim3 block,
                         size_t shared_bytes, cudaStream_t, Arguments... arguments) {
  static_assert((size_t{0} + ... + sizeof(Arguments)) <= 4096,
                "a kernel's parameters are at most 4 KiB");
  if (const cudaError_t error =
          CheckLaunch(reinterpret_cast<const void*>(kernel), grid, block, shared_bytes);
      error != cudaSuccess)
    return error;
  auto body = [&] { kernel(arguments...); };
  Launch(
      name, grid, block, shared_bytes,
      [](void* context) { (*static_cast<decltype(body)*>(context))(); }, &body);
  return cudaSuccess;
}

// The value of lane `source` of this thread's warp.
template <typename T>
T Shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= 64);
  const char* values = Exchange(mask, &value, sizeof value);
  T result;
  std::memcpy(&result, values + (source & 31) * 64, sizeof result);
  return result;
}

inline void CheckWidth(int width) {
  if (width != 32) Die("a shuffle over another width than 32");
}

}  // namespace mt::emulator

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int value) {
  return mt::emulator::AllowShared(reinterpret_cast<const void*>(kernel), value);
}

#define threadIdx (::mt::emulator::place.thread)
#define blockIdx (::mt::emulator::place.block)
#define blockDim (::mt::emulator::place.block_size)
#define gridDim (::mt::emulator::place.grid_size)

#define MT_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                            \
  ::mt::emulator::LaunchKernel(#kernel, (kernel), (grid), (block), (shared_bytes), (stream), \
                               __VA_ARGS__)
#define MT_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::mt::emulator::dynamic_shared)

inline void __syncthreads() { mt::emulator::SyncBlock(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { mt::emulator::SyncWarp(mask); }
template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  mt::emulator::CheckWidth(width);
  return mt::emulator::Shuffle(mask, value, source);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  mt::emulator::CheckWidth(width);
  return mt::emulator::Shuffle(mask, value, mt::emulator::place.lane ^ lanes);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, int delta, int width = 32) {
  mt::emulator::CheckWidth(width);
  const int lane = mt::emulator::place.lane;
  return mt::emulator::Shuffle(mask, value, lane >= delta ? lane - delta : lane);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, int delta, int width = 32) {
  mt::emulator::CheckWidth(width);
  const int lane = mt::emulator::place.lane;
  return mt::emulator::Shuffle(mask, value, lane + delta < 32 ? lane + delta : lane);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const unsigned bit = predicate != 0;
  const char* values = mt::emulator::Exchange(mask, &bit, sizeof bit);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    unsigned vote = 0;
    if ((mask >> lane) & 1u) std::memcpy(&vote, values + lane * 64, sizeof vote);
    votes |= vote << lane;
  }
  return votes;
}

// Replaces *address by change(*address) at once; returns what was there. Orders nothing else.
template <typename T, typename Change>
T mt_atomic_change(T* address, Change&& change) {
  T before, after;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  do {
    after = change(before);
  } while (!__atomic_compare_exchange(address, &before, &after, true, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED));
  return before;
}
template <typename T>
T atomicAdd(T* address, T value) {
  return mt_atomic_change(address, [&](T before) { return before + value; });
}
template <typename T>
T atomicMax(T* address, T value) {
  return mt_atomic_change(address, [&](T before) { return std::max(before, value); });
}
template <typename T>
T atomicMin(T* address, T value) {
  return mt_atomic_change(address, [&](T before) { return std::min(before, value); });
}
inline void __threadfence() {}

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcs(T* address, T value) {
  *address = value;
}

inline int __float_as_int(float value) {
  int bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline unsigned __float_as_uint(float value) {
  return static_cast<unsigned>(__float_as_int(value));
}
inline float __uint_as_float(unsigned bits) { return __int_as_float(static_cast<int>(bits)); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
// Rounded for itself also where the compiler may fuse a product with a sum.
inline float __fmul_rn(float x, float y) {
  const volatile float product = x * y;
  return product;
}
inline double __dadd_rn(double x, double y) {
  const volatile double sum = x + y;
  return sum;
}
inline double __dmul_rn(double x, double y) {
  const volatile double product = x * y;
  return product;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
using std::isfinite;
using std::isnan;
using std::max;
using std::min;
