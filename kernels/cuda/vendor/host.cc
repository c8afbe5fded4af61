#include "kernels/cuda/vendor/host.h"

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <vector>

namespace mt::emulator {

thread_local Place place;
thread_local void* dynamic_shared = nullptr;

namespace {

constexpr size_t kStackBytes = 256 << 10;  // reserved; a page or two is touched
constexpr int kWarp = 32;
constexpr size_t kSlotBytes = 64;

struct Fiber {
  char* stack = nullptr;
  ucontext_t first;  // its first entry; afterwards `resume`
  jmp_buf resume;
  bool started = false, finished = false, waiting = false;
  Place place;
  unsigned parity = 0;  // of its exchanges
};

// Lanes of a warp meet here. Two sets of slots take turns: a lane can be at most one exchange ahead of another.
struct Warp {
  alignas(16) char slots[2][kWarp * kSlotBytes];
  unsigned arrived = 0;
};

class Machine {
 public:
  static Machine& Get() {
    static thread_local Machine machine;
    return machine;
  }

  void Run(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body, void* context) {
    kernel_ = kernel;
    body_ = body;
    context_ = context;
    const char* seed = std::getenv("MT_EMULATOR_SEED");
    const unsigned long value = seed == nullptr ? 0 : std::strtoul(seed, nullptr, 10);
    shuffled_ = value != 0;
    random_.seed(value);
    shared_.resize(shared_bytes + 16);
    auto address = reinterpret_cast<uintptr_t>(shared_.data());
    dynamic_shared = reinterpret_cast<void*>((address + 15) / 16 * 16);
    const size_t threads = size_t{block.x} * block.y * block.z;
    Reserve(threads);
    const size_t blocks = size_t{grid.x} * grid.y * grid.z;
    std::vector<size_t> order(blocks);
    std::iota(order.begin(), order.end(), size_t{0});
    if (shuffled_) std::shuffle(order.begin(), order.end(), random_);
    for (const size_t b : order) {
      std::fill(shared_.begin(), shared_.end(), static_cast<char>(0xff));  // NaN: nobody may read what nobody wrote
      const dim3 at(static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                    static_cast<unsigned>(b / grid.x / grid.y));
      RunBlock(grid, block, at, threads);
    }
  }

  void SyncBlock() {
    ++block_arrived_;
    Wait();
  }

  const char* Exchange(unsigned mask, const void* value, size_t bytes) {
    Fiber& self = *current_;
    Warp& warp = warps_[static_cast<size_t>(self.place.warp)];
    char* slots = warp.slots[self.parity];
    self.parity ^= 1;
    std::memcpy(slots + static_cast<size_t>(self.place.lane) * kSlotBytes, value, bytes);
    warp.arrived |= 1u << self.place.lane;
    if ((warp.arrived & mask) != mask) {
      Wait();
    } else {
      warp.arrived &= ~mask;
      const size_t first = static_cast<size_t>(self.place.warp) * kWarp;
      for (size_t lane = 0; lane < kWarp && first + lane < threads_; ++lane) {
        if ((mask >> lane) & 1u) fibers_[first + lane].waiting = false;
      }
    }
    return slots;
  }

 private:
  void Reserve(size_t threads) {
    threads_ = threads;
    while (fibers_.size() < threads) {
      Fiber fiber;
      fiber.stack = static_cast<char*>(
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      if (fiber.stack == MAP_FAILED) Die("no memory for a fiber's stack");
      fibers_.push_back(fiber);
    }
    warps_.resize((threads + kWarp - 1) / kWarp);
  }

  void RunBlock(dim3 grid, dim3 block, dim3 at, size_t threads) {
    for (Warp& warp : warps_) warp.arrived = 0;
    for (size_t i = 0; i < threads; ++i) {
      Fiber& fiber = fibers_[i];
      fiber.started = fiber.finished = fiber.waiting = false;
      fiber.parity = 0;
      fiber.place = {dim3(static_cast<unsigned>(i % block.x), static_cast<unsigned>(i / block.x % block.y),
                          static_cast<unsigned>(i / block.x / block.y)),
                     at, block, grid, static_cast<int>(i % kWarp), static_cast<int>(i / kWarp)};
    }
    live_ = threads;
    block_arrived_ = 0;
    std::vector<size_t> order(threads);
    std::iota(order.begin(), order.end(), size_t{0});
    while (live_ > 0) {
      if (shuffled_) std::shuffle(order.begin(), order.end(), random_);
      bool progress = false;
      for (const size_t i : order) {
        Fiber& fiber = fibers_[i];
        if (fiber.finished || fiber.waiting) continue;
        progress = true;
        Resume(fiber);
      }
      if (block_arrived_ > 0 && block_arrived_ == live_) {
        // As on hardware, threads that have returned count as arrived.
        block_arrived_ = 0;
        for (size_t i = 0; i < threads; ++i) fibers_[i].waiting = false;
        progress = true;
      }
      if (!progress) Die("threads wait for each other: a barrier or shuffle that not all of its threads reach");
    }
  }

  void Resume(Fiber& fiber) {
    current_ = &fiber;
    place = fiber.place;
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.resume, 1);
    fiber.started = true;
    getcontext(&fiber.first);
    fiber.first.uc_stack.ss_sp = fiber.stack;
    fiber.first.uc_stack.ss_size = kStackBytes;
    fiber.first.uc_link = nullptr;
    makecontext(&fiber.first, Enter, 0);
    setcontext(&fiber.first);
  }

  static void Enter() {
    Machine& machine = Get();
    machine.body_(machine.context_);
    machine.current_->finished = true;
    --machine.live_;
    _longjmp(machine.scheduler_, 1);
  }

  void Wait() {
    current_->waiting = true;
    if (_setjmp(current_->resume) == 0) _longjmp(scheduler_, 1);
  }

  [[noreturn]] void Die(const char* what) {
    std::fprintf(stderr, "emulated kernel %s, block (%u, %u, %u): %s\n", kernel_, place.block.x, place.block.y,
                 place.block.z, what);
    std::abort();
  }

  const char* kernel_ = "";
  Body body_ = nullptr;
  void* context_ = nullptr;
  bool shuffled_ = false;
  std::mt19937_64 random_;
  std::vector<char> shared_;
  std::vector<Fiber> fibers_;
  std::vector<Warp> warps_;
  Fiber* current_ = nullptr;
  jmp_buf scheduler_;
  size_t threads_ = 0, live_ = 0, block_arrived_ = 0;
};

}  // namespace

void Launch(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes, Body body, void* context) {
  Machine::Get().Run(kernel, grid, block, shared_bytes, body, context);
}
void SyncBlock() { Machine::Get().SyncBlock(); }
const char* Exchange(unsigned mask, const void* value, size_t bytes) {
  return Machine::Get().Exchange(mask, value, bytes);
}

}  // namespace mt::emulator
