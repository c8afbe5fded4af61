#include "kernels/cuda/vendor/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(MT_EMULATOR_RACES)
#include <sanitizer/tsan_interface.h>
#endif

namespace mt::emulator {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // reserved; a page or two is touched
thread_local Fiber* entering = nullptr;

size_t PageBytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

Fiber::Fiber() {
  const size_t bytes = kStackBytes + PageBytes();
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, PageBytes(), PROT_NONE) != 0) {
    std::fprintf(stderr, "emulated kernels: no memory for a fiber's stack\n");
    std::abort();
  }
  stack_ = static_cast<char*>(memory) + PageBytes();
#if defined(MT_EMULATOR_RACES)
  shadow_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if defined(MT_EMULATOR_RACES)
  __tsan_destroy_fiber(shadow_);
#endif
  munmap(stack_ - PageBytes(), kStackBytes + PageBytes());
}

void Fiber::Start(Body body, void* context) {
  body_ = body;
  context_ = context;
  ended_ = false;
}

void Fiber::Enter() { entering->Loop(); }

#if defined(__SANITIZE_ADDRESS__) || defined(MT_EMULATOR_RACES)

bool Fiber::Resume() {
  if (!entered_) {
    entered_ = true;
    entering = this;
    getcontext(&self_);
    self_.uc_stack.ss_sp = stack_;
    self_.uc_stack.ss_size = kStackBytes;
    self_.uc_link = nullptr;
    makecontext(&self_, Enter, 0);
  }
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);
  swapcontext(&resumer_, &self_);
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
  resumer_shadow_ = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(shadow_, __tsan_switch_to_fiber_no_sync);
  swapcontext(&resumer_, &self_);
#endif
  return !ended_;
}

void Fiber::Yield() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&shadow_, resumer_stack_, resumer_stack_bytes_);
  swapcontext(&self_, &resumer_);
  __sanitizer_finish_switch_fiber(shadow_, &resumer_stack_, &resumer_stack_bytes_);
#else
  __tsan_switch_to_fiber(resumer_shadow_, __tsan_switch_to_fiber_no_sync);
  swapcontext(&self_, &resumer_);
#endif
}

void Fiber::Loop() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &resumer_stack_, &resumer_stack_bytes_);
#endif
  while (true) {
    body_(context_);
    ended_ = true;
    Yield();
  }
}

#else

bool Fiber::Resume() {
  if (_setjmp(resumer_) == 0) {
    if (entered_) _longjmp(self_, 1);
    entered_ = true;
    entering = this;
    ucontext_t first;
    getcontext(&first);
    first.uc_stack.ss_sp = stack_;
    first.uc_stack.ss_size = kStackBytes;
    first.uc_link = nullptr;
    makecontext(&first, Enter, 0);
    setcontext(&first);
  }
  return !ended_;
}

void Fiber::Yield() {
  if (_setjmp(self_) == 0) _longjmp(resumer_, 1);
}

void Fiber::Loop() {
  while (true) {
    body_(context_);
    ended_ = true;
    Yield();
  }
}

#endif

}  // namespace mt::emulator
