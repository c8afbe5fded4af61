// Tiles of attention in float32: 256 threads, seen as 16 rows of 16, hold a product of 64 x 64 and load what it is made of
// through shared memory. Thread (ty, tx) holds rows ty + 16 i and columns tx + 16 j, i and j in 0..3, so that the 16 threads of
// one row are half a warp. Portable: no instruction that only one vendor has.
#pragma once

#include <cstdint>

#include "kernels/cuda/types.h"
#include "kernels/cuda/vendor/vendor.h"

namespace mt::cuda::tiles {

inline constexpr int kThreads = 256;
inline constexpr int kTile = 64;  // rows (and columns) of a tile
inline constexpr int kPitch =
    kTile + 1;  // of a tile in shared memory: a column is then spread over all banks
inline constexpr int kDepth = 32;  // of a product that is loaded at once
inline constexpr int kDepthPitch = kDepth + 1;
inline constexpr int kPer = 4;  // rows, and columns, of one thread
inline constexpr int kStep = kTile / kPer;

// A tile (64, 64) and two operands (64, 32), or another tile in their place.
inline constexpr int kPoolFloats = 2 * kTile * kDepthPitch;
inline constexpr int kSharedBytes =
    (kTile * kPitch + kPoolFloats) * static_cast<int>(sizeof(float));
static_assert(kPoolFloats >= kTile * kPitch && kSharedBytes <= 48 << 10);

// The rows of one head: row t is at data + t * step and has `columns` elements; there are `rows`.
template <typename T>
struct Rows {
  T* data;
  int64_t step;
  int rows, columns;
};

using Accumulator = float[kPer][kPer];

__device__ __forceinline__ int ThreadRow() { return static_cast<int>(threadIdx.x) / kStep; }
__device__ __forceinline__ int ThreadColumn() { return static_cast<int>(threadIdx.x) % kStep; }

// Rows [row, row + 64) and columns [column, column + width) into shared memory; zeros where there are none.
template <int kWidth, int kWidthPitch, typename T>
__device__ __forceinline__ void Load(float* shared, const Rows<const T>& from, int row,
                                     int column) {
  for (int i = static_cast<int>(threadIdx.x); i < kTile * kWidth; i += kThreads) {
    const int r = i / kWidth, c = i % kWidth;
    const bool inside = row + r < from.rows && column + c < from.columns;
    shared[r * kWidthPitch + c] =
        inside ? ToFloat(from.data[(row + r) * from.step + column + c]) : 0.0f;
  }
}

// sum = A[row..] B[column..]^T over all columns of both. `pool` is free afterwards for whoever synchronises first.
template <typename T>
__device__ __forceinline__ void Products(Accumulator& sum, float* pool, const Rows<const T>& a,
                                         int row, const Rows<const T>& b, int column) {
  float* const left = pool;
  float* const right = pool + kTile * kDepthPitch;
  for (int i = 0; i < kPer; ++i) {
    for (int j = 0; j < kPer; ++j) sum[i][j] = 0;
  }
  for (int depth = 0; depth < a.columns; depth += kDepth) {
    __syncthreads();  // the pool may still be read
    Load<kDepth, kDepthPitch>(left, a, row, depth);
    Load<kDepth, kDepthPitch>(right, b, column, depth);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) {
      float x[kPer], y[kPer];
#pragma unroll
      for (int i = 0; i < kPer; ++i) x[i] = left[(ThreadRow() + kStep * i) * kDepthPitch + k];
#pragma unroll
      for (int j = 0; j < kPer; ++j) y[j] = right[(ThreadColumn() + kStep * j) * kDepthPitch + k];
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
#pragma unroll
        for (int j = 0; j < kPer; ++j) sum[i][j] += x[i] * y[j];
      }
    }
  }
}

// sum[s] += W X[row.., 64 s..], or W^T X; W is a tile in shared memory that all threads have written before the next barrier,
// X rows of memory that go through `pool`.
template <bool kTransposed, int kSlices, typename T>
__device__ __forceinline__ void AddProduct(Accumulator (&sum)[kSlices], const float* weights,
                                           float* pool, const Rows<const T>& x, int row) {
#pragma unroll
  for (int s = 0; s < kSlices; ++s) {
    __syncthreads();
    Load<kTile, kPitch>(pool, x, row, s * kTile);
    __syncthreads();
#pragma unroll 8
    for (int k = 0; k < kTile; ++k) {
      float w[kPer], y[kPer];
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
        const int r = ThreadRow() + kStep * i;
        w[i] = kTransposed ? weights[k * kPitch + r] : weights[r * kPitch + k];
      }
#pragma unroll
      for (int j = 0; j < kPer; ++j) y[j] = pool[k * kPitch + ThreadColumn() + kStep * j];
#pragma unroll
      for (int i = 0; i < kPer; ++i) {
#pragma unroll
        for (int j = 0; j < kPer; ++j) sum[s][i][j] += w[i] * y[j];
      }
    }
  }
}

// The threads' elements to a tile in shared memory. All threads must be done with what was there.
__device__ __forceinline__ void Store(float* weights, const Accumulator& values) {
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      weights[(ThreadRow() + kStep * i) * kPitch + ThreadColumn() + kStep * j] = values[i][j];
    }
  }
}

// The elements, each row times factor[i], to memory, where there is any.
template <int kSlices, typename T>
__device__ __forceinline__ void StoreRows(const Rows<T>& to, int row,
                                          const Accumulator (&values)[kSlices],
                                          const float (&factor)[kPer]) {
#pragma unroll
  for (int s = 0; s < kSlices; ++s) {
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const int r = row + ThreadRow() + kStep * i, c = s * kTile + ThreadColumn() + kStep * j;
        if (r < to.rows && c < to.columns)
          to.data[r * to.step + c] = FromFloat<T>(values[s][i][j] * factor[i]);
      }
    }
  }
}

// Over the 16 threads of a row; all lanes take part and all get the result.
template <typename Operation>
__device__ __forceinline__ float RowReduce(float value, Operation operation) {
#pragma unroll
  for (int lanes = kStep / 2; lanes > 0; lanes /= 2)
    value = operation(value, __shfl_xor_sync(0xffffffffu, value, lanes, 32));
  return value;
}

}  // namespace mt::cuda::tiles
