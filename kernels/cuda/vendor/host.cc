#include "kernels/cuda/vendor/host.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <numeric>
#include <random>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/vendor/fiber.h"
#include "kernels/cuda/vendor/happens_before.h"

namespace mt::emulator {

thread_local Place place;
thread_local void* dynamic_shared = nullptr;

namespace {

constexpr int kWarp = 32;
constexpr size_t kSlotBytes = 64;
constexpr size_t kGuardBytes = 64;
constexpr unsigned char kGuard = 0xa5;

// Not memcpy: see happens_before.h.
void CopyBytes(char* to, const char* from, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) to[i] = from[i];
}

// What the lanes of one exchange brought. Each of them holds it until its next exchange; a warp whose lanes exchange in groups
// may have several at once.
struct Snapshot {
  alignas(16) char values[kWarp * kSlotBytes];
  int holders = 0;
};

struct Thread {
  Fiber fiber;
  Place place;
  bool ended = false, waiting = false;
  unsigned barrier = 0;  // the one it comes to next
  Snapshot* snapshot = nullptr;
};

// Lanes that have come to an exchange and wait for the rest of their mask.
struct Warp {
  unsigned arrived = 0;
  unsigned masks[kWarp];
  size_t bytes[kWarp];
  alignas(16) char values[kWarp * kSlotBytes];
};

class Machine {
 public:
  static Machine& Get() {
    static thread_local Machine machine;
    return machine;
  }

  void Run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body,
           void* context) {
    kernel_ = kernel;
    body_ = body;
    context_ = context;
    const char* seed = std::getenv("MT_EMULATOR_SEED");
    const unsigned long value = seed == nullptr ? 0 : std::strtoul(seed, nullptr, 10);
    shuffled_ = value != 0;
    random_.seed(value);
    shared_.resize(shared_bytes + 16 + kGuardBytes);
    auto address = reinterpret_cast<uintptr_t>(shared_.data());
    dynamic_shared = reinterpret_cast<void*>((address + 15) / 16 * 16);
    shared_bytes_ = shared_bytes;
    Reserve(size_t{block.x} * block.y * block.z);
    for (const size_t b : Order(size_t{grid.x} * grid.y * grid.z)) {
      const dim3 at(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y));
      RunBlock(grid, block, at);
    }
  }

  void SyncBlock() {
    // Two take turns: a thread may reach the next barrier before another has left this one.
    char* const barrier = &barriers_[current_->barrier];
    current_->barrier ^= 1;
    Publish(barrier);
    ++block_arrived_;
    Wait();
    Observe(barrier);
  }

  const char* Exchange(unsigned mask, const void* value, size_t bytes) {
    Thread& self = *current_;
    Warp& warp = warps_[static_cast<size_t>(self.place.warp)];
    const auto lane = static_cast<size_t>(self.place.lane);
    if ((mask >> lane & 1u) == 0)
      Die("a thread exchanges values under a mask without its own lane");
    Release(self);
    warp.masks[lane] = mask;
    warp.bytes[lane] = bytes;
    CopyBytes(warp.values + lane * kSlotBytes, static_cast<const char*>(value), bytes);
    warp.arrived |= 1u << lane;
    if ((warp.arrived & mask) == mask)
      Complete(warp, mask, bytes);
    else
      Wait();
    return self.snapshot->values;
  }

  void SyncWarp(unsigned mask) {
    Warp* const warp = &warps_[static_cast<size_t>(current_->place.warp)];
    Publish(warp);
    Exchange(mask, "", 1);
    Observe(warp);
  }

  [[noreturn]] void Die(const char* what) {
    std::fprintf(stderr, "emulated kernel %s, block (%u, %u, %u), thread (%u, %u, %u): %s\n",
                 kernel_, place.block.x, place.block.y, place.block.z, place.thread.x,
                 place.thread.y, place.thread.z, what);
    std::abort();
  }

 private:
  // 0..count-1, shuffled if there is a seed.
  std::vector<size_t> Order(size_t count) {
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), size_t{0});
    if (shuffled_) std::shuffle(order.begin(), order.end(), random_);
    return order;
  }

  void Reserve(size_t threads) {
    while (threads_.size() < threads) {
      threads_.push_back(std::make_unique<Thread>());
      snapshots_.push_back(std::make_unique<Snapshot>());  // a thread holds at most one
      free_.push_back(snapshots_.back().get());
    }
    count_ = threads;
    warps_.resize((threads + kWarp - 1) / kWarp);
  }

  void RunBlock(dim3 grid, dim3 block, dim3 at) {
    std::memset(dynamic_shared, 0xff, shared_bytes_);  // NaN: nobody may read what nobody wrote
    unsigned char* const guard = static_cast<unsigned char*>(dynamic_shared) + shared_bytes_;
    std::memset(guard, kGuard, kGuardBytes);
    for (Warp& warp : warps_) warp.arrived = 0;
    for (size_t i = 0; i < count_; ++i) {
      Thread& thread = *threads_[i];
      thread.ended = thread.waiting = false;
      thread.barrier = 0;
      thread.place = {
          dim3(static_cast<unsigned>(i % block.x), static_cast<unsigned>(i / block.x % block.y),
               static_cast<unsigned>(i / block.x / block.y)),
          at,
          block,
          grid,
          static_cast<int>(i % kWarp),
          static_cast<int>(i / kWarp)};
      thread.fiber.Start(RunThread, this);
    }
    Publish(&begin_);
    TakeTurns();
    Observe(&end_);
    for (size_t i = 0; i < kGuardBytes; ++i) {
      if (guard[i] != kGuard) Die("the block wrote beyond its dynamic shared memory");
    }
  }

  static void RunThread(void* machine) {
    Machine& self = *static_cast<Machine*>(machine);
    Observe(&self.begin_);
    self.body_(self.context_);
    Publish(&self.end_);
  }

  // Every thread that does not wait runs until it waits or ends, round after round. With a seed the order changes from round to
  // round, and in half of the rounds one warp after the other runs until all its threads wait for the block: warps run ahead of
  // each other as far as barriers let them.
  void TakeTurns() {
    live_ = count_;
    block_arrived_ = 0;
    while (live_ > 0) {
      bool progress = false;
      if (shuffled_ && random_() % 2 == 0) {
        for (const size_t warp : Order(warps_.size())) {
          const size_t first = warp * kWarp, lanes = std::min<size_t>(kWarp, count_ - first);
          while (RunOnce(first, lanes)) progress = true;
        }
      } else {
        progress = RunOnce(0, count_);
      }
      if (block_arrived_ > 0 && block_arrived_ == live_) {
        // As on hardware, threads that have returned count as arrived.
        block_arrived_ = 0;
        for (size_t i = 0; i < count_; ++i) threads_[i]->waiting = false;
        progress = true;
      }
      if (!progress)
        Die("threads wait for each other: a barrier or exchange that not all of its threads reach");
    }
  }

  // Resumes those of `count` threads that can go on; false if there are none.
  bool RunOnce(size_t first, size_t count) {
    bool progress = false;
    for (const size_t i : Order(count)) {
      Thread& thread = *threads_[first + i];
      if (thread.ended || thread.waiting) continue;
      progress = true;
      Resume(thread);
    }
    return progress;
  }

  void Resume(Thread& thread) {
    current_ = &thread;
    place = thread.place;
    if (thread.fiber.Resume()) return;
    thread.ended = true;
    --live_;
    Release(thread);
  }

  void Wait() {
    Thread& self = *current_;
    self.waiting = true;
    self.fiber.Yield();
  }

  // All lanes of the mask are there: they get one snapshot, and lanes that are not in the mask read as NaN from it.
  void Complete(Warp& warp, unsigned mask, size_t bytes) {
    Snapshot* const snapshot = free_.back();
    free_.pop_back();
    snapshot->holders = 0;
    const size_t first = static_cast<size_t>(current_->place.warp) * kWarp;
    for (size_t lane = 0; lane < kWarp; ++lane) {
      char* const slot = snapshot->values + lane * kSlotBytes;
      if ((mask >> lane & 1u) == 0) {
        for (size_t i = 0; i < kSlotBytes; ++i) slot[i] = static_cast<char>(0xff);
        continue;
      }
      if (warp.masks[lane] != mask) Die("lanes of one exchange name different masks");
      if (warp.bytes[lane] != bytes) Die("lanes of one exchange bring values of different sizes");
      CopyBytes(slot, warp.values + lane * kSlotBytes, bytes);
      Thread& thread = *threads_[first + lane];
      thread.snapshot = snapshot;
      thread.waiting = false;
      ++snapshot->holders;
    }
    warp.arrived &= ~mask;
  }

  void Release(Thread& thread) {
    if (thread.snapshot != nullptr && --thread.snapshot->holders == 0)
      free_.push_back(thread.snapshot);
    thread.snapshot = nullptr;
  }

  const char* kernel_ = "";
  Body body_ = nullptr;
  void* context_ = nullptr;
  bool shuffled_ = false;
  std::mt19937_64 random_;
  std::vector<char> shared_;
  size_t shared_bytes_ = 0;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<Warp> warps_;
  std::vector<std::unique_ptr<Snapshot>> snapshots_;
  std::vector<Snapshot*> free_;
  Thread* current_ = nullptr;
  size_t count_ = 0, live_ = 0, block_arrived_ = 0;
  char begin_ = 0, end_ = 0, barriers_[2] = {0, 0};  // named to happens_before.h
};

// Dynamic shared memory that a kernel was allowed by cudaFuncSetAttribute.
class SharedLimits {
 public:
  static SharedLimits& Get() {
    static SharedLimits limits;
    return limits;
  }
  void Set(const void* kernel, size_t bytes) {
    const std::lock_guard lock(mutex_);
    bytes_[kernel] = bytes;
  }
  size_t Of(const void* kernel) {
    const std::lock_guard lock(mutex_);
    const auto found = bytes_.find(kernel);
    return found == bytes_.end() ? size_t{48} << 10 : std::max(found->second, size_t{48} << 10);
  }

 private:
  std::mutex mutex_;
  std::unordered_map<const void*, size_t> bytes_;
};

std::atomic<int> most_shared_bytes = 227 << 10;  // compute capability 9.0

}  // namespace

cudaError_t AllowShared(const void* kernel, int bytes) {
  if (bytes < 0 || bytes > most_shared_bytes) return cudaErrorInvalidValue;
  SharedLimits::Get().Set(kernel, static_cast<size_t>(bytes));
  return cudaSuccess;
}

void LimitShared(int bytes) { most_shared_bytes = bytes; }

cudaError_t CheckLaunch(const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  const bool grid_fits = grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.x <= 0x7fffffffu &&
                         grid.y <= 0xffff && grid.z <= 0xffff;
  const bool block_fits = threads > 0 && threads <= 1024 && block.z <= 64;
  if (!grid_fits || !block_fits) return cudaErrorInvalidConfiguration;
  return shared_bytes <= SharedLimits::Get().Of(kernel) ? cudaSuccess : cudaErrorInvalidValue;
}

void Launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body,
            void* context) {
  Machine::Get().Run(kernel, grid, block, shared_bytes, body, context);
}
void SyncBlock() { Machine::Get().SyncBlock(); }
void SyncWarp(unsigned mask) { Machine::Get().SyncWarp(mask); }
const char* Exchange(unsigned mask, const void* value, size_t bytes) {
  return Machine::Get().Exchange(mask, value, bytes);
}
void Die(const char* what) { Machine::Get().Die(what); }

}  // namespace mt::emulator
