// Rows in the order of their keys, rows of one key in increasing order: a stable radix sort on the device, without a word to the
// host.
//
// Every pass takes some bits of the key: tiles of kSortTile rows count their digits, one block turns the counts into places, and
// tiles move their rows there. Counts are integers and a row's place is the number of rows before it, so the result is the same
// in any order of threads.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/packs.h"

namespace mt::cuda {

inline constexpr int kSortTile = 1024;
inline constexpr int kSortDigitBits =
    9;  // at most: counters of 8 warps then fit into 16 KiB of shared memory

struct SortPlan {
  int64_t count, tiles;
  int passes, digit_bits;
};
// For `count` rows with keys in [0, largest_key].
inline SortPlan PlanSort(int64_t count, int64_t largest_key) {
  const int bits = std::max<int>(1, std::bit_width(static_cast<uint64_t>(largest_key)));
  const int passes = static_cast<int>(DivideUp(bits, kSortDigitBits));
  return {count, DivideUp(count, kSortTile), passes, static_cast<int>(DivideUp(bits, passes))};
}
// int32 elements of scratch: two pairs of keys and rows, and the counts of digits.
inline int64_t SortElements(const SortPlan& plan) {
  return 4 * plan.count + (plan.tiles << plan.digit_bits);
}

// Of count rows: keys[i] is the key of row rows[i], in increasing (key, row). `free` has room for count more elements.
struct SortedRows {
  const int32_t *keys, *rows;
  int32_t* free;
};

// Row i's key is ids[i] - start if that is in [0, keys), else `keys`: those come last. `scratch` has SortElements of
// PlanSort(count, keys).
int32_t SortRows(const int32_t* ids /* (count) */, int64_t count, int64_t start, int64_t keys,
                 int32_t* scratch, SortedRows* sorted, const Launch& launch);

// The lanes that have the same key as this one, among those whose row exists; keys are below 2^bits. All 32 lanes take part.
__device__ __forceinline__ unsigned LanesWithKey(int key, bool exists, int bits) {
  unsigned same = __ballot_sync(0xffffffffu, exists);
  for (int bit = 0; bit < bits; ++bit) {
    const bool set = (key >> bit & 1) != 0;
    const unsigned votes = __ballot_sync(0xffffffffu, set);
    same &= set ? votes : ~votes;
  }
  return same;
}

}  // namespace mt::cuda
