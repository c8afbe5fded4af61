#include "kernels/cuda/sort_rows.h"

#include "kernels/cuda/reduce.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpThreads;
constexpr int kRounds = kSortTile / kThreads;  // rows of a lane
constexpr int kMostDigits = 1 << kSortDigitBits;
constexpr int kScanThreads = 1024;

// The rows before a pass. In the first pass keys are ids and row i is i.
struct Unsorted {
  const int32_t *keys, *rows;
  int64_t count, start, largest_key;
  int shift, digit_bits, digits;

  __device__ __forceinline__ int32_t Key(int64_t i) const {
    if (rows != nullptr) return keys[i];
    const int64_t key = keys[i] - start;
    return static_cast<int32_t>(key >= 0 && key < largest_key ? key : largest_key);
  }
  __device__ __forceinline__ int32_t Row(int64_t i) const {
    return rows != nullptr ? rows[i] : static_cast<int32_t>(i);
  }
  __device__ __forceinline__ int Digit(int32_t key) const { return (key >> shift) & (digits - 1); }
};

// counts[digit * tiles + tile]
__global__ void __launch_bounds__(kThreads)
    CountDigits(Unsorted input, int64_t tiles, int32_t* counts) {
  __shared__ int32_t tile_counts[kMostDigits];
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    for (int digit = static_cast<int>(threadIdx.x); digit < input.digits; digit += kThreads)
      tile_counts[digit] = 0;
    __syncthreads();
    for (int round = 0; round < kRounds; ++round) {
      const int64_t i = tile * kSortTile + round * kThreads + threadIdx.x;
      if (i < input.count) atomicAdd(&tile_counts[input.Digit(input.Key(i))], 1);
    }
    __syncthreads();
    for (int digit = static_cast<int>(threadIdx.x); digit < input.digits; digit += kThreads)
      counts[digit * tiles + tile] = tile_counts[digit];
    __syncthreads();  // before the next tile clears them
  }
}

// counts[i] = sum of counts before i. One block: thread t has a stretch of its own.
__global__ void __launch_bounds__(kScanThreads) SumCounts(int32_t* counts, int64_t count) {
  __shared__ int32_t sums[kScanThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t each = DivideUp(count, kScanThreads);
  const int64_t first = thread * each, last = first + each < count ? first + each : count;
  int32_t sum = 0;
  for (int64_t i = first; i < last; ++i) sum += counts[i];
  sums[thread] = sum;
  __syncthreads();
  for (int distance = 1; distance < kScanThreads; distance *= 2) {
    const int32_t before = thread >= distance ? sums[thread - distance] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  int32_t place = sums[thread] - sum;
  for (int64_t i = first; i < last; ++i) {
    const int32_t here = counts[i];
    counts[i] = place;
    place += here;
  }
}

// A warp has 32 * kRounds neighbouring rows of the tile and takes them in order, 32 at a time: a row's place is where its digit's
// rows of the tile begin, plus those of earlier warps, of earlier rounds and of lower lanes.
__global__ void __launch_bounds__(kThreads)
    MoveRows(Unsorted input, int64_t tiles, const int32_t* places, int32_t* keys, int32_t* rows) {
  __shared__ int32_t counts[kWarps][kMostDigits];
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    for (int digit = lane; digit < input.digits; digit += kWarpThreads) counts[warp][digit] = 0;
    __syncwarp();
    const int64_t first = tile * kSortTile + warp * kRounds * kWarpThreads + lane;
    int32_t key[kRounds], rank[kRounds];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int64_t i = first + round * kWarpThreads;
      const bool exists = i < input.count;
      key[round] = exists ? input.Key(i) : 0;
      const int digit = input.Digit(key[round]);
      const unsigned same = LanesWithKey(digit, exists, input.digit_bits);
      const int below = __popc(same & ((1u << lane) - 1u));
      const int before = counts[warp][digit];
      rank[round] = before + below;
      __syncwarp();  // everyone has read
      if (exists && below == 0) counts[warp][digit] = before + __popc(same);
      __syncwarp();
    }
    __syncthreads();
    for (int digit = static_cast<int>(threadIdx.x); digit < input.digits; digit += kThreads) {
      int32_t place = places[digit * tiles + tile];
      for (int w = 0; w < kWarps; ++w) {
        const int32_t here = counts[w][digit];
        counts[w][digit] = place;
        place += here;
      }
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int64_t i = first + round * kWarpThreads;
      if (i >= input.count) continue;
      const int32_t place = counts[warp][input.Digit(key[round])] + rank[round];
      keys[place] = key[round];
      rows[place] = input.Row(i);
    }
    __syncthreads();  // before the next tile clears the counts
  }
}

}  // namespace

int32_t SortRows(const int32_t* ids, int64_t count, int64_t start, int64_t keys, int32_t* scratch,
                 SortedRows* sorted, const Launch& launch) {
  const SortPlan plan = PlanSort(count, keys);
  int32_t* const pairs[2] = {scratch, scratch + 2 * count};  // keys, then rows
  int32_t* const counts = scratch + 4 * count;
  Unsorted input = {ids, nullptr, count, start, keys, 0, plan.digit_bits, 1 << plan.digit_bits};
  for (int pass = 0; pass < plan.passes; ++pass) {
    int32_t* const output = pairs[pass % 2];
    MT_CUDA(MT_LAUNCH(CountDigits, GridOf(plan.tiles), kThreads, 0, launch.stream, input,
                      plan.tiles, counts));
    MT_CUDA(MT_LAUNCH(SumCounts, 1, kScanThreads, 0, launch.stream, counts,
                      plan.tiles << plan.digit_bits));
    MT_CUDA(MT_LAUNCH(MoveRows, GridOf(plan.tiles), kThreads, 0, launch.stream, input, plan.tiles,
                      counts, output, output + count));
    input.keys = output;
    input.rows = output + count;
    input.shift += plan.digit_bits;
  }
  *sorted = {input.keys, input.rows, pairs[plan.passes % 2]};
  return MT_OK;
}

}  // namespace mt::cuda
