// numpy.random.RandomState(seed): the stream and the shuffle that Megatron's orders are defined by (numpy's legacy generator, whose
// stream is frozen: MT19937 with Knuth's seeding, masks and rejection for intervals).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

namespace mt {

class NumpyRandomState {
 public:
  explicit NumpyRandomState(uint32_t seed);

  uint32_t Next32() {
    if (used_ == kWords) Refill();
    return words_[used_++];
  }
  // Uniform in [0, max], by masking and rejection.
  uint64_t Interval(uint64_t max);

  // RandomState.shuffle of one dimension. Where elements go to is drawn a block ahead and fetched into the cache meanwhile: in arrays
  // that are larger than the cache, waiting for memory is nearly all of the work. At most 2^32 values.
  template <typename T>
  void Shuffle(std::span<T> values) {
    std::array<uint32_t, kBlock> targets;
    for (uint64_t last = values.size(); last > 1;) {
      const size_t count = DrawTargets(last - 1, targets, [&](uint64_t target) {
        __builtin_prefetch(values.data() + target, /*write=*/1);
      });
      for (size_t k = 0; k < count; ++k) std::swap(values[--last], values[targets[k]]);
    }
  }

 private:
  static constexpr size_t kWords = 624;
  static constexpr size_t kBlock = 128;

  void Refill();

  // Targets of elements first, first - 1, ...: as many as fit the block and share a mask, at least one.
  template <typename Prefetch>
  size_t DrawTargets(uint64_t first, std::array<uint32_t, kBlock>& targets, Prefetch prefetch) {
    const uint32_t mask = MaskOf(static_cast<uint32_t>(first));
    const uint32_t lowest = mask >> 1;  // elements up to here have a smaller mask
    uint32_t element = static_cast<uint32_t>(first);
    size_t count = 0;
    while (count < kBlock && element > lowest) {
      const uint32_t target = Next32() & mask;
      targets[count] = target;
      prefetch(target);  // of a rejected one: wasted, not wrong
      const bool accepted = target <= element;
      count += accepted;
      element -= accepted;
    }
    return count;
  }
  static uint32_t MaskOf(uint32_t max) { return ~uint32_t{0} >> __builtin_clz(max); }

  std::array<uint32_t, kWords> state_;
  std::array<uint32_t, kWords> words_;  // tempered
  size_t used_ = kWords;
};

}  // namespace mt
