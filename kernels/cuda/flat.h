// Kernels over flat memory that are bound by it: element i of the results depends on element i of the inputs alone.
//
// A thread has kInFlight independent packs (16 bytes of the widest tensor) on their way before it uses the first; neighbouring
// threads touch neighbouring packs; blocks go on to the next piece until all is done. Sizes are int64 throughout.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/types.h"

namespace mt::cuda {

inline constexpr int kFlatThreads = 256;
inline constexpr int kFlatBlocksPerMultiprocessor = 8;  // 2048 threads: all that fit

// Reads or writes N elements: as one access if `kWhole` (the caller has checked alignment), else one by one.
template <bool kWhole, typename T, int N>
__device__ __forceinline__ Pack<T, N> LoadPack(const T* data) {
  if constexpr (kWhole) {
    return *reinterpret_cast<const Pack<T, N>*>(data);
  } else {
    Pack<T, N> pack;
#pragma unroll
    for (int j = 0; j < N; ++j) pack.at[j] = data[j];
    return pack;
  }
}
// Work has two members, for N elements from element i on, aligned for packs of N (N is also 1):
//   template <int N> Loaded Load(int64_t i) const;
//   template <int N> void Store(int64_t i, const Loaded& loaded) const;
// All loads of a round come before its stores, so that results may lie exactly on inputs.
template <int N, int kInFlight, typename Work>
__device__ __forceinline__ void FlatLoop(const Work& work, int64_t count) {
  using Loaded = decltype(work.template Load<N>(0));
  const int64_t packs = count / N;
  const int64_t threads = int64_t{gridDim.x} * kFlatThreads;
  const int64_t thread = int64_t{blockIdx.x} * kFlatThreads + threadIdx.x;
  int64_t i = thread;
  for (; i + (kInFlight - 1) * threads < packs; i += kInFlight * threads) {
    Loaded loaded[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) loaded[u] = work.template Load<N>((i + u * threads) * N);
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) work.template Store<N>((i + u * threads) * N, loaded[u]);
  }
  for (; i < packs; i += threads) work.template Store<N>(i * N, work.template Load<N>(i * N));
  if (N > 1 && thread < count - packs * N) {
    const int64_t last = packs * N + thread;
    work.template Store<1>(last, work.template Load<1>(last));
  }
}

template <int N, int kInFlight, typename Work>
__global__ void __launch_bounds__(kFlatThreads) FlatKernel(Work work, int64_t count) {
  FlatLoop<N, kInFlight>(work, count);
}

// Blocks for `count` > 0 elements, of which a thread takes `per_thread` in one round.
inline unsigned FlatBlocks(int64_t count, int64_t per_thread, const Launch& launch) {
  const int64_t per_block = per_thread * kFlatThreads;
  return static_cast<unsigned>(
      std::min<int64_t>((count + per_block - 1) / per_block,
                        int64_t{launch.multiprocessors} * kFlatBlocksPerMultiprocessor));
}

// Calls body(element) for this thread's share of data[0..count), in an order that depends on count and the grid alone, not on
// alignment (`kWhole` as in LoadPack).
template <bool kWhole, int kInFlight = 4, typename T, typename Body>
__device__ __forceinline__ void ForEachElement(const T* data, int64_t count, Body&& body) {
  constexpr int N = kPackElements<T>;
  const int64_t packs = count / N;
  const int64_t threads = int64_t{gridDim.x} * blockDim.x;
  const int64_t thread = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  int64_t i = thread;
  for (; i + (kInFlight - 1) * threads < packs; i += kInFlight * threads) {
    Pack<T, N> pack[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u)
      pack[u] = LoadPack<kWhole, T, N>(data + (i + u * threads) * N);
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
#pragma unroll
      for (int j = 0; j < N; ++j) body(pack[u].at[j]);
    }
  }
  for (; i < packs; i += threads) {
    const Pack<T, N> pack = LoadPack<kWhole, T, N>(data + i * N);
#pragma unroll
    for (int j = 0; j < N; ++j) body(pack.at[j]);
  }
  if (thread < count - packs * N) body(data[packs * N + thread]);
}

template <int N, int kInFlight = 4, typename Work>
cudaError_t LaunchFlat(const Work& work, int64_t count, const Launch& launch) {
  if (count <= 0) return cudaSuccess;
  auto* kernel = FlatKernel<N, kInFlight, Work>;
  return MT_LAUNCH(kernel, dim3(FlatBlocks(count, N * kInFlight, launch)), dim3(kFlatThreads), 0,
                   launch.stream, work, count);
}

}  // namespace mt::cuda
