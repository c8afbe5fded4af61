// Which thread owns which elements in the kernels that stream over rows: index arithmetic as plain functions of sizes, tested
// without a launch in packs_test.cc, and the loads and stores that go with it. Offsets of elements are 64-bit throughout.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/types.h"

namespace mt::cuda {

inline constexpr int kStreamThreads = 256;

__host__ __device__ constexpr int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

// grid.x for `blocks` pieces of work; every kernel goes on to piece block + gridDim.x, so that more than the hardware's limit of
// blocks is a matter of turns.
inline unsigned GridOf(int64_t blocks) {
  return static_cast<unsigned>(std::clamp<int64_t>(blocks, 1, 0x7fffffff));
}

// ---- Flat: (rows, items_per_row) items in row-major order, cut into pieces of `items_per_block` whatever the length of a row.
// items_per_row < 2^31. The 64-bit division happens once per block, each item costs one of 32 bits.
struct RowItem {
  int64_t row;
  uint32_t item;
};
__host__ __device__ __forceinline__ RowItem FirstItem(int64_t block, uint32_t items_per_block,
                                                      uint32_t items_per_row) {
  const int64_t first = block * items_per_block;
  const int64_t row = first / items_per_row;
  return {row, static_cast<uint32_t>(first - row * items_per_row)};
}
// The item that is `offset` (< 2^31) after `first`.
__host__ __device__ __forceinline__ RowItem ItemAfter(RowItem first, uint32_t offset,
                                                      uint32_t items_per_row) {
  const uint32_t item = first.item + offset, rows = item / items_per_row;
  return {first.row + rows, item - rows * items_per_row};
}
inline constexpr int64_t kMostItems = 0x7fffffff;  // of a row

// Calls body(items) for each piece of kItems items a thread that the block takes; items whose row is past the last are not there.
template <int kItems, typename Body>
__device__ __forceinline__ void ForEachPiece(int64_t rows, uint32_t items_per_row, Body&& body) {
  constexpr uint32_t kPiece = kStreamThreads * kItems;
  const int64_t pieces = DivideUp(rows * items_per_row, kPiece);
  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    const RowItem first = FirstItem(piece, kPiece, items_per_row);
    RowItem items[kItems];
#pragma unroll
    for (int i = 0; i < kItems; ++i)
      items[i] = ItemAfter(first, i * kStreamThreads + threadIdx.x, items_per_row);
    body(items);
  }
}

// ---- A row at any address: single elements up to a 16-byte boundary, packs, single elements again.
struct SplitRow {
  int head;       // elements before the first pack
  int tail;       // elements after the last one
  int64_t packs;  // of 16 bytes
};
__host__ __device__ __forceinline__ SplitRow SplitAt(uintptr_t address, int64_t count,
                                                     int element_bytes) {
  const int pack_elements = 16 / element_bytes;
  const int misplaced = static_cast<int>(address % 16) / element_bytes;
  int64_t head = misplaced == 0 ? 0 : pack_elements - misplaced;
  if (head > count) head = count;
  const int64_t packs = (count - head) / pack_elements;
  return {static_cast<int>(head), static_cast<int>(count - head - packs * pack_elements), packs};
}

// ---- Rows in registers: a team of kThreads threads holds kThreads * kElements columns, in packs; thread t has the packs t,
// t + kThreads, ... More elements of a thread mean more loads in flight but fewer threads: bfloat16 is unpacked to float32 in
// registers, so about 64 of them are 16 elements in a forward pass and 8 in a backward one, which keeps three rows, the next
// three, and the sums of the weight's gradient.
template <int kThreads, int kElements>
struct RowShape {
  static constexpr int threads = kThreads, elements = kElements;
};

// Calls function(RowShape) with the smallest team that holds a row; false if none does.
template <typename Function>
bool WithForwardShape(int64_t columns, Function&& function) {
  if (columns <= 256) {
    function(RowShape<32, 8>{});
  } else if (columns <= 512) {
    function(RowShape<32, 16>{});
  } else if (columns <= 1024) {
    function(RowShape<64, 16>{});
  } else if (columns <= 2048) {
    function(RowShape<128, 16>{});
  } else if (columns <= 4096) {
    function(RowShape<256, 16>{});
  } else if (columns <= 8192) {
    function(RowShape<512, 16>{});
  } else {
    return false;
  }
  return true;
}
// `kWide`: a kernel that takes 1024 threads where it must.
template <bool kWide, typename Function>
bool WithBackwardShape(int64_t columns, Function&& function) {
  if (columns <= 256) {
    function(RowShape<32, 8>{});
  } else if (columns <= 512) {
    function(RowShape<64, 8>{});
  } else if (columns <= 1024) {
    function(RowShape<128, 8>{});
  } else if (columns <= 2048) {
    function(RowShape<256, 8>{});
  } else if (columns <= 4096) {
    function(RowShape<512, 8>{});
  } else if (columns <= 8192) {
    function(RowShape < kWide ? 1024 : 512, kWide ? 8 : 16 > {});
  } else {
    return false;
  }
  return true;
}

// Rows of partial sums of a weight's gradient: as many blocks as fill 132 multiprocessors (H100, H200) once, when a block's
// threads hold a row in registers; more would cost more traffic for partial sums. Of sizes alone, so the bits are the same
// on every device.
inline int64_t PartialRows(int64_t rows, int64_t columns) {
  const int64_t blocks_each = std::clamp<int64_t>(8192 / std::max<int64_t>(columns, 1), 1, 16);
  return std::clamp<int64_t>(rows, 1, 132 * blocks_each);
}

// N floats at a 16-byte boundary (N < 4: at a boundary of their size), whatever N.
template <int N>
__device__ __forceinline__ Pack<float, N> LoadFloats(const float* address) {
  constexpr int kWide = N < 4 ? N : 4;
  Pack<float, N> result;
#pragma unroll
  for (int first = 0; first < N; first += kWide) {
    const Pack<float, kWide> part = LoadPack<kWide>(address + first);
#pragma unroll
    for (int k = 0; k < kWide; ++k) result.at[first + k] = part.at[k];
  }
  return result;
}
template <int N>
__device__ __forceinline__ void StoreFloats(float* address, const float (&values)[N]) {
  constexpr int kWide = N < 4 ? N : 4;
#pragma unroll
  for (int first = 0; first < N; first += kWide) {
    Pack<float, kWide> part;
#pragma unroll
    for (int k = 0; k < kWide; ++k) part.at[k] = values[first + k];
    StorePack(address + first, part);
  }
}

// This thread's packs of a row of `packs` packs; zeros past its end.
template <int kThreads, int kPacks, int N, typename T>
__device__ __forceinline__ void LoadRow(const T* row, int packs, int thread,
                                        Pack<T, N> (&out)[kPacks]) {
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int index = p * kThreads + thread;
    if (index < packs) {
      out[p] = LoadPack<N>(row + index * N);
    } else {
#pragma unroll
      for (int k = 0; k < N; ++k) out[p].at[k] = FromFloat<T>(0.0f);
    }
  }
}

}  // namespace mt::cuda
