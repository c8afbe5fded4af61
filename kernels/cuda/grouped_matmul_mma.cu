// Grouped products of bf16 with float32 sums on tensor cores, for GPUs of sm_80 and later.
//
// A block makes tiles of 128 x 128 of D, four warps 64 x 64 each. Slices of the operands, 64 deep, go by through three stages of
// shared memory: while one is multiplied, the next two are on their way, also across the border of two tiles, whose results the
// warps store by way of 2 KiB of their own. Two blocks share a multiprocessor. Operands that are stored the other way round
// (W in INPUT_GRADIENT, both in WEIGHT_GRADIENT) are slices of 64 rows of 128 elements that ldmatrix transposes.
//
// Rounding: sums of all products in float32; the result once at the end, with the bias. FLOPs: 2 in out per used row, plus what
// is empty of a group's last tile of rows (depth, in WEIGHT_GRADIENT).
#include "kernels/cuda/attention_mma_tiles.h"
#include "kernels/cuda/grouped_matmul.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

using namespace mma;

constexpr int kTile = 128, kDepth = 64, kStages = 3, kThreads = 128, kResident = 2;
constexpr int kWarpTile = 64, kFragments = kWarpTile / 16;  // of a warp, 16 rows or columns each
constexpr int kSliceBytes = kTile * kDepth * 2;             // of one operand
constexpr int kStageBytes = 2 * kSliceBytes;
constexpr int kStoreBytes = 16 * kRowBytes<kWarpTile>;  // of a warp: 16 rows of its results
constexpr int kRowsAt = kStages * kStageBytes + kThreads / kWarpThreads * kStoreBytes;

int SharedBytes(int groups) { return kRowsAt + (groups + 1) * static_cast<int>(sizeof(int32_t)); }

// How an operand's slice lies in shared memory: rows of 64 along the depth, or rows of 128 across it.
template <int kMode>
struct Layout {
  static constexpr bool a_across = kMode == MT_GROUPED_WEIGHT_GRADIENT,
                        b_across = kMode != MT_GROUPED_FORWARD;
};

// Starts to copy a slice: rows of kWidth elements from `source` on, `stride` apart; zeros from row `rows` and column `columns` on,
// which are multiples of a chunk. All threads.
template <int kWidth>
__device__ __forceinline__ void CopySlice(SharedAddress slice, const bf16* source, int64_t stride,
                                          int rows, int columns) {
  constexpr int kChunks = kWidth / kChunkElements, kStep = kThreads / kChunks,
                kRows = kTile * kDepth / kWidth;
  const int chunk = static_cast<int>(threadIdx.x) % kChunks,
            row = static_cast<int>(threadIdx.x) / kChunks;
  const bool column = chunk * kChunkElements < columns;
  const bf16* from = source + row * stride + chunk * kChunkElements;
  const SharedAddress to = slice + static_cast<SharedAddress>(Offset<kWidth>(row, chunk));
#pragma unroll
  for (int r = 0; r < kRows; r += kStep) {
    const bool present = column && row + r < rows;
    CopyAsync(to + r * kRowBytes<kWidth>, present ? from : source, present);
    from += kStep * stride;
  }
}

// Brings slice after slice of the block's tiles, in order.
template <int kMode>
class Feeder {
 public:
  using Tiles = GroupedTiles<kMode, kTile, kTile>;
  __device__ __forceinline__ Feeder(const Grouped& p, const Tiles& tiles)
      : next_(static_cast<int>(blockIdx.x)) {
    Advance(p, tiles);
  }
  // Starts the next slice, if there is one, into the stage, and closes a group of copies.
  __device__ __forceinline__ void Bring(const Grouped& p, const Tiles& tiles, SharedAddress stage) {
    if (exists_) {
      CopyA(p, stage);
      CopyB(p, stage + kSliceBytes);
      depth_ += kDepth;
      if (depth_ >= tile_.depth_end) Advance(p, tiles);
    }
    CommitCopies();
  }

 private:
  __device__ __forceinline__ void Advance(const Grouped& p, const Tiles& tiles) {
    exists_ = next_ < tiles.count();
    if (!exists_) return;
    tile_ = tiles.At(p, next_);
    depth_ = tile_.depth_begin;
    next_ += static_cast<int>(gridDim.x);
  }
  __device__ __forceinline__ void CopyA(const Grouped& p, SharedAddress slice) const {
    const auto* const a = static_cast<const bf16*>(p.a);
    if constexpr (Layout<kMode>::a_across) {
      CopySlice<kTile>(slice, a + int64_t{depth_} * p.d_rows + tile_.row, p.d_rows,
                       tile_.depth_end - depth_, p.d_rows - tile_.row);
    } else {
      CopySlice<kDepth>(slice, a + int64_t{tile_.row} * p.depth + depth_, p.depth,
                        tile_.row_end - tile_.row, p.depth - depth_);
    }
  }
  __device__ __forceinline__ void CopyB(const Grouped& p, SharedAddress slice) const {
    const auto* b = static_cast<const bf16*>(p.b);
    if constexpr (kMode != MT_GROUPED_WEIGHT_GRADIENT) b += tile_.group * p.weight_stride;
    if constexpr (Layout<kMode>::b_across) {
      CopySlice<kTile>(slice, b + int64_t{depth_} * p.columns + tile_.column, p.columns,
                       tile_.depth_end - depth_, p.columns - tile_.column);
    } else {
      CopySlice<kDepth>(slice, b + int64_t{tile_.column} * p.depth + depth_, p.depth,
                        p.columns - tile_.column, p.depth - depth_);
    }
  }

  GroupedTile tile_ = {};
  int next_, depth_ = 0;
  bool exists_ = false;
};

using Sums = float[kFragments][2 * kFragments][4];

// sums += the product of a stage's slices, of this warp's rows and columns.
template <int kMode>
__device__ __forceinline__ void MultiplySlices(Sums& sums, SharedAddress stage) {
  const int warp_row = WarpIndex() / 2, warp_column = WarpIndex() % 2;  // in units of kWarpTile
  const SharedAddress a_slice = stage, b_slice = stage + kSliceBytes;
#pragma unroll
  for (int k = 0; k < kDepth / 16; ++k) {
    uint32_t a[kFragments][4];
#pragma unroll
    for (int i = 0; i < kFragments; ++i) {
      if constexpr (Layout<kMode>::a_across) {
        LoadMatricesTransposed(
            a[i], a_slice + PairOffset<kTile>(i) + warp_row * 128 + 16 * k * kRowBytes<kTile>);
      } else {
        LoadMatrices(a[i], a_slice + FragmentOffset<kDepth>(k) +
                               (warp_row * kWarpTile + 16 * i) * kRowBytes<kDepth>);
      }
    }
#pragma unroll
    for (int n = 0; n < kFragments; ++n) {
      uint32_t b[4];
      if constexpr (Layout<kMode>::b_across) {
        LoadMatricesTransposed(
            b, b_slice + FragmentOffset<kTile>(n) + warp_column * 128 + 16 * k * kRowBytes<kTile>);
      } else {
        LoadMatrices(b, b_slice + PairOffset<kDepth>(k) +
                            (warp_column * kWarpTile + 16 * n) * kRowBytes<kDepth>);
      }
#pragma unroll
      for (int i = 0; i < kFragments; ++i) {
        MultiplyAdd(sums[i][2 * n], a[i], b[0], b[1]);
        MultiplyAdd(sums[i][2 * n + 1], a[i], b[2], b[3]);
      }
    }
  }
}

// The warp's results, rounded, to memory in 16-byte stores by way of its `room` in shared memory.
template <int kMode>
__device__ __forceinline__ void StoreRounded(const Grouped& p, const GroupedTile& tile,
                                             const Sums& sums, char* room) {
  const int lane = Lane(), column = tile.column + WarpIndex() % 2 * kWarpTile;
  const int first_row = tile.row + WarpIndex() / 2 * kWarpTile;
  const bf16* bias = nullptr;
  if (kMode == MT_GROUPED_FORWARD && p.bias != nullptr)
    bias = static_cast<const bf16*>(p.bias) + tile.group * p.bias_stride;
#pragma unroll
  for (int i = 0; i < kFragments; ++i) {
    __syncwarp();  // nobody reads the rows before
#pragma unroll
    for (int n = 0; n < 2 * kFragments; ++n) {
      float low = 0, high = 0;
      const int c = column + 8 * n + lane % 4 * 2;
      if (bias != nullptr && c < p.columns) low = ToFloat(bias[c]), high = ToFloat(bias[c + 1]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        *reinterpret_cast<uint32_t*>(room + Offset<kWarpTile>(8 * half + lane / 4, n) +
                                     lane % 4 * 4) =
            PackBf16(sums[i][n][2 * half] + low, sums[i][n][2 * half + 1] + high);
      }
    }
    __syncwarp();
    constexpr int kChunks = kWarpTile / kChunkElements;
    const int chunk = lane % kChunks, c = column + chunk * kChunkElements;
#pragma unroll
    for (int r = 0; r < 16; r += kWarpThreads / kChunks) {
      const int in_room = r + lane / kChunks, row = first_row + 16 * i + in_room;
      if (row < tile.row_end && c < p.columns) {
        *reinterpret_cast<uint4*>(static_cast<bf16*>(p.d) + int64_t{row} * p.columns + c) =
            *reinterpret_cast<const uint4*>(room + Offset<kWarpTile>(in_room, chunk));
      }
    }
  }
}

// The warp's part of a weight's gradient: four lanes fill a sector of 32 bytes.
__device__ __forceinline__ void StoreGradient(const Grouped& p, const GroupedTile& tile,
                                              const Sums& sums) {
  const int lane = Lane();
  float* const d = static_cast<float*>(p.d) + tile.group * p.weight_stride;
  const int first_row = tile.row + WarpIndex() / 2 * kWarpTile + lane / 4;
  const int first_column = tile.column + WarpIndex() % 2 * kWarpTile + lane % 4 * 2;
#pragma unroll
  for (int i = 0; i < kFragments; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = first_row + 16 * i + 8 * half;
      if (row >= tile.row_end) continue;
#pragma unroll
      for (int n = 0; n < 2 * kFragments; ++n) {
        const int column = first_column + 8 * n;
        if (column >= p.columns) continue;
        auto* const at = reinterpret_cast<float2*>(d + int64_t{row} * p.columns + column);
        float2 value = {sums[i][n][2 * half], sums[i][n][2 * half + 1]};
        if (p.beta != 0) {
          const float2 before = *at;
          value.x += before.x;
          value.y += before.y;
        }
        *at = value;
      }
    }
  }
}

template <int kMode>
__global__ void __launch_bounds__(kThreads, kResident) GroupedMmaKernel(const Grouped p) {
  constexpr bool kWeights = kMode == MT_GROUPED_WEIGHT_GRADIENT;
  MT_DYNAMIC_SHARED(char, shared);
  char* const room = shared + kStages * kStageBytes + WarpIndex() * kStoreBytes;
  auto* const first = reinterpret_cast<int32_t*>(shared + kRowsAt);
  if constexpr (!kWeights) CountRowTiles<kThreads>(p.offsets, p.groups, kTile, first);
  const GroupedTiles<kMode, kTile, kTile> tiles(p, first);
  const SharedAddress stages = AddressOf(shared);

  Feeder<kMode> feeder(p, tiles);
#pragma unroll
  for (int stage = 0; stage < kStages - 1; ++stage)
    feeder.Bring(p, tiles, stages + stage * kStageBytes);
  SharedAddress here = stages, behind = stages + (kStages - 1) * kStageBytes;
  for (int t = static_cast<int>(blockIdx.x); t < tiles.count(); t += static_cast<int>(gridDim.x)) {
    const GroupedTile tile = tiles.At(p, t);
    Sums sums = {};
    // A group without rows still has one slice, of zeros: its gradient is beta W.
    int depth = tile.depth_begin;
    do {
      WaitForCopies<kStages - 2>();
      __syncthreads();  // this slice is here, and nobody reads the one before
      feeder.Bring(p, tiles, behind);
      MultiplySlices<kMode>(sums, here);
      behind = here;
      here = here == stages + (kStages - 1) * kStageBytes ? stages : here + kStageBytes;
      depth += kDepth;
    } while (depth < tile.depth_end);
    if constexpr (kWeights) {
      StoreGradient(p, tile, sums);
    } else {
      StoreRounded<kMode>(p, tile, sums, room);
    }
  }
  if constexpr (!kWeights) {
    auto* const d = static_cast<bf16*>(p.d);
    const int64_t end = int64_t{p.rows} * p.columns;
    for (int64_t i = int64_t{p.offsets[p.groups]} * p.columns +
                     (int64_t{blockIdx.x} * kThreads + threadIdx.x) * kChunkElements;
         i < end; i += int64_t{gridDim.x} * kThreads * kChunkElements)
      *reinterpret_cast<uint4*>(d + i) = make_uint4(0, 0, 0, 0);
  }
}

// Whether the device gives a block the shared memory: compute capabilities 8.6, 8.9 and 12.0 have 99 KiB.
template <int kMode>
bool HasShared() {
  if (cudaFuncSetAttribute(GroupedMmaKernel<kMode>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           SharedBytes(kMostGroups)) == cudaSuccess)
    return true;
  (void)cudaGetLastError();  // the portable kernel's launch must not take it for its own
  return false;
}

template <int kMode>
int32_t LaunchMma(const mt_grouped_matmul_args& args, const Launch& launch) {
  auto* kernel = GroupedMmaKernel<kMode>;
  const Grouped p = GroupedOf(args);
  const int bytes = SharedBytes(p.groups);
  const int64_t blocks =
      std::min(MostTiles(p, kMode, kTile, kTile), int64_t{launch.multiprocessors} * kResident);
  MT_CUDA(MT_LAUNCH(kernel, GridOf(blocks), kThreads, bytes, launch.stream, p));
  return MT_OK;
}

}  // namespace

bool MmaGroupedSupports(const mt_grouped_matmul_args& args) {
  return args.dtype == MT_BF16 && args.in % kChunkElements == 0 && args.out % kChunkElements == 0 &&
         args.weight_group_stride % kChunkElements == 0;
}

bool MmaGroupedFits(const mt_grouped_matmul_args& args) {
  if (!IsAligned(args.x) || !IsAligned(args.y) || !IsAligned(args.weight)) return false;
  switch (args.mode) {
    case MT_GROUPED_FORWARD:
      return HasShared<MT_GROUPED_FORWARD>();
    case MT_GROUPED_INPUT_GRADIENT:
      return HasShared<MT_GROUPED_INPUT_GRADIENT>();
    default:
      return HasShared<MT_GROUPED_WEIGHT_GRADIENT>();
  }
}

int32_t MmaGroupedMatmul(const mt_grouped_matmul_args& args, const Launch& launch) {
  switch (args.mode) {
    case MT_GROUPED_FORWARD:
      return LaunchMma<MT_GROUPED_FORWARD>(args, launch);
    case MT_GROUPED_INPUT_GRADIENT:
      return LaunchMma<MT_GROUPED_INPUT_GRADIENT>(args, launch);
    default:
      return LaunchMma<MT_GROUPED_WEIGHT_GRADIENT>(args, launch);
  }
}

}  // namespace mt::cuda
