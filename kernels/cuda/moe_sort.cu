// The choices of all rows in the order of their experts, those of one expert in the order of rows: a stable counting sort, without
// a word to the host.
//
// Tiles of 1024 choices count their experts; one block turns the counts into the number of an expert's choices before each tile,
// and the totals into offsets; then a choice's rank among its expert's is known, and with it its place, or that it is dropped.
// Where the lightest are dropped, choices are first sorted without a limit, then a block per expert finds the capacity-th largest
// weight by its digits and moves up what stays. Counts are integers: the result is the same in any order of threads.
//
// Bytes that cannot be avoided: 12 N k. Here ids are read twice, and dropping the lightest reads the weights five times more.
#include <bit>

#include "kernels/cuda/number_order.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/sort_rows.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

constexpr int kMostExperts = 512;
constexpr int kThreads = 256, kWarps = kThreads / kWarpThreads;
constexpr int kRounds = kSortTile / kThreads;  // choices of a lane
constexpr int kPlaceThreads = 1024;

struct Sort {
  const int32_t* ids;    // (N k)
  const float* weights;  // (N k), read only to drop the lightest
  int64_t count, tiles;  // N k
  int64_t capacity;      // count if there is none
  int experts, expert_bits;
  int32_t *position, *source, *offsets;  // (N k), (N k), (E + 1)
  double* dropped;
  int32_t* counts;   // (tiles, E): first a tile's own, then those of the tiles before
  int32_t* begins;   // (E + 1): offsets without a capacity; null if the lightest are not dropped
  int32_t* choices;  // (N k): in the order of experts, nothing dropped
};

__global__ void __launch_bounds__(kThreads) CountExperts(Sort a) {
  __shared__ int32_t counts[kMostExperts];
  for (int64_t tile = blockIdx.x; tile < a.tiles; tile += gridDim.x) {
    for (int e = static_cast<int>(threadIdx.x); e < a.experts; e += kThreads) counts[e] = 0;
    __syncthreads();
    for (int round = 0; round < kRounds; ++round) {
      const int64_t i = tile * kSortTile + round * kThreads + threadIdx.x;
      if (i < a.count) atomicAdd(&counts[a.ids[i]], 1);
    }
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < a.experts; e += kThreads)
      a.counts[tile * a.experts + e] = counts[e];
    __syncthreads();  // before the next tile clears them
  }
}

// offsets[e] = sum of counts before e, for e in [0, experts]; all threads of the block. `count` is thread e's.
__device__ void StoreOffsets(int32_t (&sums)[kPlaceThreads], int32_t count, int experts,
                             int32_t* offsets) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // what the caller kept there has been read
  sums[thread] = thread < experts ? count : 0;
  __syncthreads();
  for (int distance = 1; distance < kMostExperts; distance *= 2) {
    const int32_t before = thread >= distance ? sums[thread - distance] : 0;
    __syncthreads();
    sums[thread] += before;
    __syncthreads();
  }
  if (thread < experts) offsets[thread + 1] = sums[thread];
  if (thread == 0) offsets[0] = 0;
}

// One block. Thread (part p, expert e) has a stretch of the tiles; a warp's threads read neighbouring experts.
__global__ void __launch_bounds__(kPlaceThreads) PlaceExperts(Sort a) {
  __shared__ int32_t sums[kPlaceThreads];
  const int thread = static_cast<int>(threadIdx.x);
  const int columns = 1 << a.expert_bits, parts = kPlaceThreads / columns;
  const int e = thread % columns, part = thread / columns;
  const int64_t each = DivideUp(a.tiles, parts), first = part * each;
  const int64_t last = first + each < a.tiles ? first + each : a.tiles;
  int32_t sum = 0;
  if (e < a.experts) {
#pragma unroll 8
    for (int64_t tile = first; tile < last; ++tile) sum += a.counts[tile * a.experts + e];
  }
  sums[thread] = sum;
  __syncthreads();
  int32_t before = 0, total = 0;  // in earlier parts, in all parts
  for (int p = 0; p < parts; ++p) {
    const int32_t here = sums[p * columns + e];
    if (p < part) before += here;
    total += here;
  }
  if (e < a.experts) {
#pragma unroll 8
    for (int64_t tile = first; tile < last; ++tile) {
      const int32_t here = a.counts[tile * a.experts + e];
      a.counts[tile * a.experts + e] = before;
      before += here;
    }
  }
  if (a.begins != nullptr) StoreOffsets(sums, total, a.experts, a.begins);
  StoreOffsets(sums, total < a.capacity ? total : static_cast<int32_t>(a.capacity), a.experts,
               a.offsets);
  if (thread == 0 && a.dropped != nullptr)
    *a.dropped += static_cast<double>(a.count - sums[a.experts - 1]);
}

// A warp has 32 * kRounds neighbouring choices of the tile and takes them in order, 32 at a time: a choice's rank is the number of
// its expert's choices in earlier tiles, in earlier warps, in earlier rounds and in lower lanes.
__global__ void __launch_bounds__(kThreads) MoveChoices(Sort a) {
  __shared__ int32_t counts[kWarps][kMostExperts];
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int32_t used = a.offsets[a.experts];
  for (int64_t tile = blockIdx.x; tile < a.tiles; tile += gridDim.x) {
    for (int e = lane; e < a.experts; e += kWarpThreads) counts[warp][e] = 0;
    __syncwarp();
    const int64_t first = tile * kSortTile + warp * kRounds * kWarpThreads + lane;
    int32_t expert[kRounds], rank[kRounds];
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int64_t i = first + round * kWarpThreads;
      const bool exists = i < a.count;
      expert[round] = exists ? a.ids[i] : 0;
      const unsigned same = LanesWithKey(expert[round], exists, a.expert_bits);
      const int below = __popc(same & ((1u << lane) - 1u));
      const int before = counts[warp][expert[round]];
      rank[round] = before + below;
      __syncwarp();  // everyone has read
      if (exists && below == 0) counts[warp][expert[round]] = before + __popc(same);
      __syncwarp();
    }
    __syncthreads();
    for (int e = static_cast<int>(threadIdx.x); e < a.experts; e += kThreads) {
      int32_t before = a.counts[tile * a.experts + e];
      for (int w = 0; w < kWarps; ++w) {
        const int32_t here = counts[w][e];
        counts[w][e] = before;
        before += here;
      }
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int64_t i = first + round * kWarpThreads;
      if (i >= a.count) continue;
      const int32_t e = expert[round], r = counts[warp][e] + rank[round];
      if (i >= used) a.source[i] = -1;
      if (a.begins != nullptr) {
        a.choices[a.begins[e] + r] = static_cast<int32_t>(i);
      } else if (r < a.capacity) {
        a.position[i] = a.offsets[e] + r;
        a.source[a.offsets[e] + r] = static_cast<int32_t>(i);
      } else {
        a.position[i] = -1;
      }
    }
    __syncthreads();  // before the next tile clears the counts
  }
}

// Among the choices of one expert: those heavier than `threshold` stay, and the first `equals` of those that weigh as much.
struct Heaviest {
  unsigned threshold;
  int32_t equals;
};

// By the digits of the weights' order, the highest first. All threads; thread d counts digit d.
__device__ Heaviest FindHeaviest(const Sort& a, int32_t first, int32_t last) {
  constexpr int kDigits = 256, kDigitBits = 8;
  static_assert(kThreads == kDigits);
  __shared__ int32_t counts[kDigits], above[kDigits + 1];
  __shared__ Heaviest found;
  const int digit = static_cast<int>(threadIdx.x);
  Heaviest result = {0, static_cast<int32_t>(a.capacity)};
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    counts[digit] = 0;
    __syncthreads();
    for (int32_t i = first + digit; i < last; i += kThreads) {
      const unsigned order = OrderOf(a.weights[a.choices[i]]);
      const bool same = shift == 32 - kDigitBits ||
                        order >> (shift + kDigitBits) == result.threshold >> (shift + kDigitBits);
      if (same) atomicAdd(&counts[order >> shift & (kDigits - 1)], 1);
    }
    __syncthreads();
    above[digit] = counts[digit];  // becomes the number of choices with this digit or a higher one
    if (digit == 0) above[kDigits] = 0;
    __syncthreads();
    for (int distance = 1; distance < kDigits; distance *= 2) {
      const int32_t higher = digit + distance < kDigits ? above[digit + distance] : 0;
      __syncthreads();
      above[digit] += higher;
      __syncthreads();
    }
    if (above[digit] >= result.equals && above[digit + 1] < result.equals) {
      found = {result.threshold | static_cast<unsigned>(digit) << shift,
               result.equals - above[digit + 1]};
    }
    __syncthreads();
    result = found;  // the next digit is found several barriers later
  }
  return result;
}

// The number of earlier threads of the block for which it holds, and of all; all threads take part.
struct Votes {
  int32_t before, all;
};
__device__ __forceinline__ Votes CountVotes(bool holds) {
  __shared__ int32_t counts[kWarps];
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads,
            warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const unsigned votes = __ballot_sync(kAllLanes, holds);
  __syncthreads();  // a call before may still be read
  if (lane == 0) counts[warp] = __popc(votes);
  __syncthreads();
  Votes result = {static_cast<int32_t>(__popc(votes & ((1u << lane) - 1u))), 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) result.before += counts[w];
    result.all += counts[w];
  }
  return result;
}

// A block takes an expert.
__global__ void __launch_bounds__(kThreads) KeepHeaviest(Sort a) {
  const int e = static_cast<int>(blockIdx.x);
  const int32_t first = a.begins[e], last = a.begins[e + 1], offset = a.offsets[e];
  Heaviest heaviest = {0, last - first};
  if (last - first > a.capacity) heaviest = FindHeaviest(a, first, last);
  int32_t kept = 0, equals = 0;  // so far
  for (int32_t begin = first; begin < last; begin += kThreads) {
    const int32_t i = begin + static_cast<int32_t>(threadIdx.x);
    const int32_t choice = i < last ? a.choices[i] : 0;
    const unsigned order = i < last ? OrderOf(a.weights[choice]) : kNoNumber;
    const bool is_equal = i < last && order == heaviest.threshold;
    const Votes same = CountVotes(is_equal);
    const bool stays = i < last && (order > heaviest.threshold ||
                                    (is_equal && equals + same.before < heaviest.equals));
    const Votes staying = CountVotes(stays);
    if (i < last) {
      const int32_t place = offset + kept + staying.before;
      a.position[choice] = stays ? place : -1;
      if (stays) a.source[place] = choice;
    }
    equals += same.all;
    kept += staying.all;
  }
}

Sort SortOf(const mt_moe_sort_args& args) {
  Sort a = {};
  a.ids = args.ids;
  a.weights = static_cast<const float*>(args.weights);
  a.count = args.rows * args.top_k;
  a.tiles = DivideUp(a.count, kSortTile);
  a.capacity = args.capacity > 0 ? std::min(args.capacity, a.count) : a.count;
  a.experts = static_cast<int>(args.experts);
  a.expert_bits = std::bit_width(static_cast<unsigned>(args.experts - 1));
  a.position = args.position;
  a.source = args.source;
  a.offsets = args.offsets;
  a.dropped = args.dropped;
  a.counts = static_cast<int32_t*>(args.workspace);
  if (args.capacity > 0 && args.drop_lightest != 0) {
    a.begins = a.counts + a.tiles * a.experts;
    a.choices = a.begins + a.experts + 1;
  }
  return a;
}

}  // namespace

bool MoeSortSupports(int32_t operation, const mt_moe_sort_args& args) {
  constexpr int64_t kMostChoices = INT32_MAX - kThreads;  // KeepHeaviest counts beyond the last
  if (args.experts <= kMostExperts && args.rows * args.top_k <= kMostChoices) return true;
  host::Fail(MT_ERROR_UNSUPPORTED, operation,
             "experts = %lld (at most %d), rows * top_k = %lld (at most %lld)",
             static_cast<long long>(args.experts), kMostExperts,
             static_cast<long long>(args.rows * args.top_k), static_cast<long long>(kMostChoices));
  return false;
}

int64_t MoeSortWorkspace(const mt_moe_sort_args& args) {
  const int64_t count = args.rows * args.top_k;
  const bool select = args.capacity > 0 && args.drop_lightest != 0;
  return static_cast<int64_t>(sizeof(int32_t)) *
         (DivideUp(count, kSortTile) * args.experts + (select ? args.experts + 1 + count : 0));
}

int32_t MoeSort(const mt_moe_sort_args& args, const Launch& launch) {
  const Sort a = SortOf(args);
  if (a.tiles > 0) MT_CUDA(MT_LAUNCH(CountExperts, GridOf(a.tiles), kThreads, 0, launch.stream, a));
  MT_CUDA(MT_LAUNCH(PlaceExperts, 1, kPlaceThreads, 0, launch.stream, a));
  if (a.tiles == 0) return MT_OK;
  MT_CUDA(MT_LAUNCH(MoveChoices, GridOf(a.tiles), kThreads, 0, launch.stream, a));
  if (a.begins != nullptr) {
    MT_CUDA(
        MT_LAUNCH(KeepHeaviest, static_cast<unsigned>(a.experts), kThreads, 0, launch.stream, a));
  }
  return MT_OK;
}

}  // namespace mt::cuda
