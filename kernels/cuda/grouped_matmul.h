// What the kernels of grouped products have in common: the product of a group as D = op(A) op(B), and how blocks find their
// tiles from offsets that only the device knows.
//
//   FORWARD          D = y (group's rows, out)  A = x (group's rows, in)   B = W^T, W (out, in)    depth: in
//   INPUT_GRADIENT   D = x (group's rows, in)   A = y (group's rows, out)  B = W (out, in)         depth: out
//   WEIGHT_GRADIENT  D = W (out, in)            A = y^T                    B = x                   depth: the group's rows
//
// Blocks stay: block b takes the tiles b, b + gridDim.x, ... of a list that is the same in every block, so nothing waits for the
// host, and no two blocks write one element. An element is the sum over the depth in increasing order, whoever computes it.
#pragma once

#include <cstdint>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/reduce.h"

namespace mt::cuda {

struct Grouped {
  const int32_t* offsets;  // (E + 1)
  const void *a, *b, *bias;
  void* d;
  int64_t weight_stride, bias_stride;  // of two groups
  int groups, rows;
  int d_rows;  // WEIGHT_GRADIENT: out
  int columns;
  int depth;  // but WEIGHT_GRADIENT
  float beta;
};

inline Grouped GroupedOf(const mt_grouped_matmul_args& args) {
  const int in = static_cast<int>(args.in), out = static_cast<int>(args.out);
  Grouped p = {};
  p.offsets = args.offsets;
  p.weight_stride = args.weight_group_stride;
  p.bias_stride = args.bias_group_stride;
  p.groups = static_cast<int>(args.groups);
  p.rows = static_cast<int>(args.rows);
  switch (args.mode) {
    case MT_GROUPED_FORWARD:
      p.a = args.x, p.b = args.weight, p.d = args.y, p.bias = args.bias;
      p.columns = out, p.depth = in;
      break;
    case MT_GROUPED_INPUT_GRADIENT:
      p.a = args.y, p.b = args.weight, p.d = args.x;
      p.columns = in, p.depth = out;
      break;
    default:
      p.a = args.y, p.b = args.x, p.d = args.weight;
      p.d_rows = out, p.columns = in, p.beta = static_cast<float>(args.beta);
  }
  return p;
}

// At least as many tiles as there are, whatever the offsets.
inline int64_t MostTiles(const Grouped& p, int mode, int tile_rows, int tile_columns) {
  const int64_t across = DivideUp(p.columns, tile_columns);
  if (mode == MT_GROUPED_WEIGHT_GRADIENT) return p.groups * across * DivideUp(p.d_rows, tile_rows);
  return across * (p.rows / tile_rows + p.groups);
}

// first[g] = the tiles of rows of the groups before g, for g in [0, groups]; all threads of the block. Ends with a barrier.
template <int kThreads>
__device__ __forceinline__ void CountRowTiles(const int32_t* offsets, int groups, int tile_rows,
                                              int32_t* first) {
  __shared__ int32_t of_warp[kThreads / kWarpThreads];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarpThreads,
            warp = thread / kWarpThreads;
  const int each = (groups + kThreads - 1) / kThreads;
  const int begin = min(thread * each, groups), end = min(begin + each, groups);
  int32_t sum = 0;
  for (int g = begin; g < end; ++g)
    sum += (offsets[g + 1] - offsets[g] + tile_rows - 1) / tile_rows;
  int32_t before = sum;
  for (int lanes = 1; lanes < kWarpThreads; lanes *= 2) {
    const int32_t other = __shfl_up_sync(kAllLanes, before, lanes, kWarpThreads);
    if (lane >= lanes) before += other;
  }
  if (lane == kWarpThreads - 1) of_warp[warp] = before;
  before -= sum;
  __syncthreads();
  for (int w = 0; w < warp; ++w) before += of_warp[w];
  for (int g = begin; g < end; ++g) {
    first[g] = before;
    before += (offsets[g + 1] - offsets[g] + tile_rows - 1) / tile_rows;
  }
  if (thread == kThreads - 1) first[groups] = before;
  __syncthreads();
}

struct GroupedTile {
  int group, row, row_end, column;  // of D; rows below row_end exist
  int depth_begin, depth_end;
};

// The tiles of a launch. In bands of kBand tiles of rows, the rows first: the tiles that run at one time then share few columns of
// a group's matrix and few rows, which the second-level cache holds.
template <int kMode, int kTileRows, int kTileColumns>
class GroupedTiles {
 public:
  // `first` is CountRowTiles's, not read for WEIGHT_GRADIENT.
  __device__ __forceinline__ GroupedTiles(const Grouped& p, const int32_t* first)
      : first_(first), across_((p.columns + kTileColumns - 1) / kTileColumns) {
    down_ = (p.d_rows + kTileRows - 1) / kTileRows;
    count_ = across_ * (kMode == MT_GROUPED_WEIGHT_GRADIENT ? p.groups * down_ : first[p.groups]);
  }
  __device__ __forceinline__ int count() const { return count_; }

  __device__ __forceinline__ GroupedTile At(const Grouped& p, int tile) const {
    GroupedTile t;
    int row_tiles = tile / across_, first = 0;
    if constexpr (kMode == MT_GROUPED_WEIGHT_GRADIENT) {
      t.group = row_tiles / down_;
      first = t.group * down_;
      row_tiles = down_;
    } else {
      int low = 0, high = p.groups - 1;  // the last group whose first tile is not after this one
      while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (first_[middle] <= row_tiles) {
          low = middle;
        } else {
          high = middle - 1;
        }
      }
      t.group = low;
      first = first_[low];
      row_tiles = first_[low + 1] - first;
    }
    const int local = tile - first * across_, band = local / (kBand * across_) * kBand;
    const int rest = local - band * across_, high = min(kBand, row_tiles - band);
    const int row = (band + rest % high) * kTileRows;
    t.column = rest / high * kTileColumns;
    const int begin = p.offsets[t.group], end = p.offsets[t.group + 1];
    if constexpr (kMode == MT_GROUPED_WEIGHT_GRADIENT) {
      t.row = row;
      t.row_end = p.d_rows;
      t.depth_begin = begin;
      t.depth_end = end;
    } else {
      t.row = begin + row;
      t.row_end = end;
      t.depth_begin = 0;
      t.depth_end = p.depth;
    }
    return t;
  }

 private:
  static constexpr int kBand = 16;
  const int32_t* first_;
  int across_, down_, count_;
};

inline constexpr int kMostGroups = 2048;

// grouped_matmul_mma.cu: bf16 on tensor cores; absent where a vendor has other matrix instructions (MT_HAS_MMA_GROUPED). `Supports`
// looks at types, sizes and strides, `Fits` (what `Supports` accepts) at how the pointers are aligned and at the device's shared
// memory; MmaGroupedMatmul runs what `Fits` has accepted.
#if !defined(MT_VENDOR_HIP) && !defined(MT_VENDOR_MUSA)
#define MT_HAS_MMA_GROUPED 1
bool MmaGroupedSupports(const mt_grouped_matmul_args& args);
bool MmaGroupedFits(const mt_grouped_matmul_args& args);
int32_t MmaGroupedMatmul(const mt_grouped_matmul_args& args, const Launch& launch);
#endif

}  // namespace mt::cuda
