#include "worker/data/sample/numpy_random.h"

#include <limits>

namespace mt {
namespace {

constexpr size_t kShift = 397;

uint32_t Twist(uint32_t high, uint32_t low, uint32_t shifted) {
  const uint32_t mixed = (high & 0x80000000u) | (low & 0x7fffffffu);
  return shifted ^ (mixed >> 1) ^ (-(mixed & 1u) & 0x9908b0dfu);
}

}  // namespace

NumpyRandomState::NumpyRandomState(uint32_t seed) {
  state_[0] = seed;
  for (uint32_t i = 1; i < kWords; ++i)
    state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
}

// Matsumoto and Nishimura 1998, in loops without a carried dependency, so that the compiler makes vectors of them.
void NumpyRandomState::Refill() {
  for (size_t i = 0; i < kWords - kShift; ++i)
    state_[i] = Twist(state_[i], state_[i + 1], state_[i + kShift]);
  for (size_t i = kWords - kShift; i < kWords - 1; ++i)
    state_[i] = Twist(state_[i], state_[i + 1], state_[i + kShift - kWords]);
  state_[kWords - 1] = Twist(state_[kWords - 1], state_[0], state_[kShift - 1]);
  for (size_t i = 0; i < kWords; ++i) {
    uint32_t word = state_[i];
    word ^= word >> 11;
    word ^= (word << 7) & 0x9d2c5680u;
    word ^= (word << 15) & 0xefc60000u;
    words_[i] = word ^ (word >> 18);
  }
  used_ = 0;
}

uint64_t NumpyRandomState::Interval(uint64_t max) {
  if (max == 0) return 0;
  const uint64_t mask = ~uint64_t{0} >> __builtin_clzll(max);
  while (true) {
    uint64_t value = Next32();
    if (max > std::numeric_limits<uint32_t>::max()) value = value << 32 | Next32();
    value &= mask;
    if (value <= max) return value;
  }
}

}  // namespace mt
