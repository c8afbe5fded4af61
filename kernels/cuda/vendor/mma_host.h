// mma.h on the processor: lanes exchange their registers and each computes what the PTX ISA says it holds. Included by mma.h.
//
// An asynchronous copy arrives when it is waited for, or at once if MT_EMULATOR_SEED is odd: a kernel that reads too early is
// wrong under one, a kernel that overwrites what others still read under the other.
#pragma once

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <vector>

#include "kernels/abi/small_floats.h"

namespace mt::cuda::mma {

using SharedAddress = uintptr_t;
inline SharedAddress AddressOf(const void* shared) { return reinterpret_cast<uintptr_t>(shared); }

inline constexpr unsigned kWarpMask = 0xffffffffu;

// The bf16 in half `half` of register `index` of the registers that a lane published.
inline float Element(const char* published, int lane, int index, int half) {
  uint16_t bits;
  std::memcpy(&bits, published + lane * 64 + index * 4 + half * 2, sizeof bits);
  return mt_float_from_bf16(bits);
}

inline void MultiplyAdd(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b0, b1};
  const char* all = emulator::Exchange(kWarpMask, mine, sizeof mine);
  const int group = emulator::place.lane / 4, thread = emulator::place.lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? group : group + 8, column = 2 * thread + i % 2;
    float sum = 0;
    for (int k = 0; k < 16; ++k) {
      // Row r, column k of A is with lane 4 (r % 8) + (k % 8) / 2, in register r / 8 + 2 (k / 8).
      const float x = Element(all, 4 * (row % 8) + k % 8 / 2, row / 8 + 2 * (k / 8), k % 2);
      // Row k, column n of B is with lane 4 n + (k % 8) / 2, in register k / 8.
      const float y = Element(all, 4 * column + k % 8 / 2, 4 + k / 8, k % 2);
      sum += x * y;
    }
    c[i] += sum;
  }
}

inline void LoadMatrices(uint32_t (&r)[4], SharedAddress row, bool transposed) {
  const char* all = emulator::Exchange(kWarpMask, &row, sizeof row);
  const int group = emulator::place.lane / 4, thread = emulator::place.lane % 4;
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t halves[2];
    for (int half = 0; half < 2; ++half) {
      const int at_row = transposed ? 2 * thread + half : group;
      const int at_column = transposed ? group : 2 * thread + half;
      SharedAddress address;
      std::memcpy(&address, all + (8 * matrix + at_row) * 64, sizeof address);
      if (address % 16 != 0) std::abort();  // the instruction faults
      std::memcpy(&halves[half], reinterpret_cast<const char*>(address) + 2 * at_column, 2);
    }
    std::memcpy(&r[matrix], halves, sizeof halves);
  }
}
inline void LoadMatrices(uint32_t (&r)[4], SharedAddress row) { LoadMatrices(r, row, false); }
inline void LoadMatricesTransposed(uint32_t (&r)[4], SharedAddress row) {
  LoadMatrices(r, row, true);
}

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool present;
  void Run() const {
    if (present) {
      std::memcpy(to, from, bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }
};
// Copies of one thread: groups that were committed, oldest first, and what was started since.
struct Copies {
  std::deque<std::vector<Copy>> groups;
  std::vector<Copy> open;
};
// A pointer per thread of a block and nothing that the first of them would make for all: for ThreadSanitizer fibers are threads.
inline Copies& MyCopies() {
  static thread_local Copies* of_thread[1024] = {};
  Copies*& mine = of_thread[emulator::place.warp * 32 + emulator::place.lane];
  if (mine == nullptr) mine = new Copies;
  return *mine;
}

inline void CopyAsync(SharedAddress shared, const void* global, size_t bytes, bool present) {
  const auto address = reinterpret_cast<uintptr_t>(global);
  if (shared % bytes != 0 || (present && address % bytes != 0)) std::abort();
  const char* seed = std::getenv("MT_EMULATOR_SEED");
  const Copy copy{reinterpret_cast<void*>(shared), global, bytes, present};
  if (seed != nullptr && std::strtoul(seed, nullptr, 10) % 2 == 1) {
    copy.Run();
  } else {
    MyCopies().open.push_back(copy);
  }
}
inline void CopyAsync(SharedAddress shared, const void* global, bool present) {
  CopyAsync(shared, global, 16, present);
}
inline void CopyWordAsync(SharedAddress shared, const void* global, bool present) {
  CopyAsync(shared, global, 4, present);
}
inline void CommitCopies() {
  Copies& mine = MyCopies();
  mine.groups.push_back(std::move(mine.open));
  mine.open.clear();
}
template <int kPending>
void WaitForCopies() {
  Copies& mine = MyCopies();
  while (mine.groups.size() > kPending) {
    for (const Copy& copy : mine.groups.front()) copy.Run();
    mine.groups.pop_front();
  }
}

inline float Exp2(float x) { return std::exp2(x); }
inline uint32_t PackBf16(float low, float high) {
  return static_cast<uint32_t>(mt_bf16_from_float(low)) |
         static_cast<uint32_t>(mt_bf16_from_float(high)) << 16;
}

}  // namespace mt::cuda::mma
