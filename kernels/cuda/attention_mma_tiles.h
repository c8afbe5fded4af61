// Tiles of bf16 rows in shared memory and their products on the tensor cores: what the kernels of attention_flash_mma.cu are made
// of. A warp holds kTiles x 16 rows of a product; the layouts are those of vendor/mma.h.
#pragma once

#include <cstdint>

#include "kernels/cuda/types.h"
#include "kernels/cuda/vendor/mma.h"

namespace mt::cuda::mma {

// The rows of one head: row t is at data + t * step and has `columns` elements, a multiple of 8; there are `rows`.
template <typename T>
struct HeadRows {
  T* data;
  int step, rows, columns;
  __device__ __forceinline__ T* At(int row, int column) const {
    return data + static_cast<int64_t>(row) * step + column;
  }
};

inline constexpr int kChunkElements = 8;  // of 16 bytes, the widest access

// Bytes of a row of a tile. Rows are multiples of 128 bytes (all 32 banks); the 16-byte chunks of row r are stored with
// the low three bits of their number exclusive-or'ed with those of r, so that the 8 rows of a matrix that ldmatrix reads at one
// chunk lie in 8 different groups of banks.
template <int kHead>
inline constexpr int kRowBytes = (kHead + 63) / 64 * 128;
// Threads that share a row where rows are copied: a power of two, of which those past the row do nothing.
template <int kHead>
inline constexpr int kRowThreads = kHead <= 64    ? 8
                                   : kHead <= 128 ? 16
                                                  : 32;
template <int kHead>
__device__ __forceinline__ int Offset(int row, int chunk) {
  return row * kRowBytes<kHead> + ((chunk ^ (row & 7)) << 4);
}

// Where a lane points ldmatrix for the 16 x 16 elements whose first row is a multiple of 16 and whose chunks are 2 k and 2 k + 1:
// matrices 0 and 1 are the upper and lower 8 rows of chunk 2 k, matrices 2 and 3 of chunk 2 k + 1. Only k % 4 changes it by more than a
// constant: few registers hold all addresses of a kernel.
template <int kHead>
__device__ __forceinline__ SharedAddress FragmentOffset(int k) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return static_cast<SharedAddress>(lane % 16 * kRowBytes<kHead> +
                                    (((k % 4 * 2 + lane / 16) ^ (lane & 7)) << 4) + k / 4 * 128);
}
// The same elements with matrices 1 and 2 exchanged: 0 and 1 are the chunks of the upper 8 rows, 2 and 3 of the lower. HMMA takes A from
// four consecutive registers and B from two, which ldmatrix fills in the order of its matrices: in the other order every product waits
// for copies of registers. A wants the first pattern where its rows are rows of the tile, this one where ldmatrix transposes; B the other.
template <int kHead>
__device__ __forceinline__ SharedAddress PairOffset(int k) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  return static_cast<SharedAddress>((lane % 8 + lane / 16 * 8) * kRowBytes<kHead> +
                                    (((k % 4 * 2 + lane / 8 % 2) ^ (lane & 7)) << 4) + k / 4 * 128);
}

__device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int WarpIndex() { return static_cast<int>(threadIdx.x) / 32; }
// The same, known to the compiler as equal in all lanes: addresses that differ by it share their registers.
__device__ __forceinline__ int UniformWarpIndex() {
  return __shfl_sync(0xffffffffu, WarpIndex(), 0, 32);
}

// Starts to copy rows [first_row, first_row + kRows) to a tile, all threads of the block together; zeros where there are none.
template <int kHead, int kRows, int kThreads>
__device__ __forceinline__ void CopyTile(SharedAddress tile, const HeadRows<const bf16>& from,
                                         int first_row) {
  constexpr int kStep = kThreads / kRowThreads<kHead>;
  static_assert(kRows % kStep == 0 && kRowThreads<kHead> * 16 >= kRowBytes<kHead>);
  const int chunk = static_cast<int>(threadIdx.x) % kRowThreads<kHead>,
            row = static_cast<int>(threadIdx.x) / kRowThreads<kHead>;
  if (chunk * kChunkElements >= kHead) return;
  const bool column = chunk * kChunkElements < from.columns;
  const bf16* source = from.At(first_row + row, chunk * kChunkElements);
#pragma unroll
  for (int r = 0; r < kRows; r += kStep) {
    const bool present = column && first_row + row + r < from.rows;
    CopyAsync(tile + static_cast<SharedAddress>(Offset<kHead>(row + r, chunk)),
              present ? source : from.data, present);
    source += static_cast<int64_t>(kStep) * from.step;
  }
}

// s = A B^T: A's rows are 16 kTiles from `a_rows` on, B's are all kColumns rows of a tile. Of every 4 steps of 16 columns B of the first
// kPairs comes by PairOffset: 4 wherever a kernel then has registers for the second set of addresses without spilling.
template <int kTiles, int kColumns, int kHead, int kPairs>
__device__ __forceinline__ void Products(float (&s)[kTiles][kColumns / 8][4], SharedAddress a_rows,
                                         SharedAddress b_tile) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) s[i][n][e] = 0;
    }
  }
#pragma unroll
  for (int k = 0; k < kHead / 16; ++k) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      LoadMatrices(a[i], a_rows + FragmentOffset<kHead>(k) + 16 * i * kRowBytes<kHead>);
    }
#pragma unroll
    for (int n = 0; n < kColumns / 16; ++n) {
      uint32_t b[4];
      const bool pairs = k % 4 < kPairs;
      LoadMatrices(b, b_tile + (pairs ? PairOffset<kHead>(k) : FragmentOffset<kHead>(k)) +
                          16 * n * kRowBytes<kHead>);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        MultiplyAdd(s[i][2 * n], a[i], b[0], pairs ? b[1] : b[2]);
        MultiplyAdd(s[i][2 * n + 1], a[i], pairs ? b[2] : b[1], b[3]);
      }
    }
  }
}

// sum += W X: W (16 kTiles, kRows) is in the registers of a product, rounded to bf16 here; X all kRows rows of a tile.
template <int kTiles, int kRows, int kHead>
__device__ __forceinline__ void AddProduct(float (&sum)[kTiles][kHead / 8][4],
                                           const float (&w)[kTiles][kRows / 8][4],
                                           SharedAddress x_tile) {
#pragma unroll
  for (int k = 0; k < kRows / 16; ++k) {
    uint32_t a[kTiles][4];
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      a[i][0] = PackBf16(w[i][2 * k][0], w[i][2 * k][1]);
      a[i][1] = PackBf16(w[i][2 * k][2], w[i][2 * k][3]);
      a[i][2] = PackBf16(w[i][2 * k + 1][0], w[i][2 * k + 1][1]);
      a[i][3] = PackBf16(w[i][2 * k + 1][2], w[i][2 * k + 1][3]);
    }
#pragma unroll
    for (int c = 0; c < kHead / 16; ++c) {
      uint32_t b[4];
      LoadMatricesTransposed(b, x_tile + FragmentOffset<kHead>(c) + 16 * k * kRowBytes<kHead>);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        MultiplyAdd(sum[i][2 * c], a[i], b[0], b[1]);
        MultiplyAdd(sum[i][2 * c + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// The warp's rows, times factor[i][0] (row g of tile i) and factor[i][1] (row g + 8), rounded, to rows first_row + warp_row.. of
// memory in 16-byte stores, by way of the same rows of a tile in shared memory, which no other warp may be reading.
template <int kTiles, int kHead>
__device__ __forceinline__ void StoreRows(const HeadRows<bf16>& to, int first_row, char* tile,
                                          int warp_row, const float (&values)[kTiles][kHead / 8][4],
                                          const float (&factor)[kTiles][2]) {
  const int lane = Lane();
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int c = 0; c < kHead / 8; ++c) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_row + 16 * i + 8 * half + lane / 4;
        *reinterpret_cast<uint32_t*>(tile + Offset<kHead>(row, c) + lane % 4 * 4) = PackBf16(
            values[i][c][2 * half] * factor[i][half], values[i][c][2 * half + 1] * factor[i][half]);
      }
    }
  }
  __syncwarp();
  constexpr int kStep = 32 / kRowThreads<kHead>;
  const int chunk = lane % kRowThreads<kHead>;
#pragma unroll
  for (int r = 0; r < 16 * kTiles; r += kStep) {
    const int row = warp_row + r + lane / kRowThreads<kHead>;
    if (first_row + row < to.rows && chunk * kChunkElements < to.columns) {
      *reinterpret_cast<uint4*>(to.At(first_row + row, chunk * kChunkElements)) =
          *reinterpret_cast<const uint4*>(tile + Offset<kHead>(row, chunk));
    }
  }
}

}  // namespace mt::cuda::mma
