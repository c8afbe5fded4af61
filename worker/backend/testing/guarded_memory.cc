#include "worker/backend/testing/guarded_memory.h"

#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace mt::testing {
namespace {

constexpr size_t kAddresses = size_t{1} << 36;
constexpr size_t kAlignment = 256;
size_t RoundUp(size_t value, size_t unit) { return (value + unit - 1) / unit * unit; }
size_t PageBytes() {
  static const auto bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

[[noreturn]] void Die(const char* why) {
  std::fprintf(stderr, "guarded memory: %s\n", why);
  std::abort();
}

struct sigaction before[2];  // who handled SIGSEGV and SIGBUS until now

}  // namespace

GuardedMemory& GuardedMemory::Get() {
  static auto* const memory = new GuardedMemory;
  return *memory;
}

GuardedMemory::GuardedMemory() {
  void* const reserved =
      mmap(nullptr, kAddresses, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) Die("mmap failed");
  begin_ = next_ = static_cast<char*>(reserved);
  nothing_ = memfd_create("nothing", MFD_CLOEXEC);
  if (nothing_ < 0) Die("memfd_create failed");
  struct sigaction action = {};
  action.sa_flags = SA_SIGINFO;
  action.sa_sigaction = [](int signal, siginfo_t* info, void*) {
    const GuardedMemory& memory = Get();
    if (memory.IsDeviceAddress(info->si_addr)) {
      // The mutex may be held here: nothing is changed, and the process ends.
      const Block* const block = memory.Find(info->si_addr);
      char line[200];
      const int length =
          std::snprintf(line, sizeof line, "guarded memory: %s touched device memory%s at %p\n",
                        memory.allowed_ > 0 ? "the device" : "the host",
                        signal == SIGSEGV                  ? ""
                        : block != nullptr && block->freed ? " that was freed"
                                                           : " that is not allocated",
                        info->si_addr);
      (void)!write(STDERR_FILENO, line, static_cast<size_t>(length));
    }
    // It faults again, and that ends the process.
    sigaction(signal, &before[signal == SIGSEGV ? 0 : 1], nullptr);
  };
  sigaction(SIGSEGV, &action, &before[0]);
  sigaction(SIGBUS, &action, &before[1]);
}

void* GuardedMemory::Allocate(size_t bytes) {
  const std::lock_guard lock(mutex_);
  const size_t used = RoundUp(bytes == 0 ? 1 : bytes, kAlignment);
  Block block{.pages = next_, .mapped = RoundUp(used, PageBytes()), .bytes = bytes};
  if (static_cast<size_t>(begin_ + kAddresses - next_) < block.mapped + PageBytes())
    Die("no addresses are left");
  next_ += block.mapped + PageBytes();
  char* const pointer = block.pages + block.mapped - used;
  if (mprotect(block.pages, block.mapped, PROT_READ | PROT_WRITE) != 0) Die("mprotect failed");
  std::memset(block.pages, 0xff, block.mapped);
  Close(block.pages + block.mapped, PageBytes());
  Protect();
  blocks_[pointer] = block;
  ++live_;
  return pointer;
}

void GuardedMemory::Free(void* pointer) {
  const std::lock_guard lock(mutex_);
  const auto found = blocks_.find(static_cast<char*>(pointer));
  if (found == blocks_.end() || found->second.freed) Die("free of what is not allocated");
  Block& block = found->second;
  block.freed = true;
  Close(block.pages, block.mapped);
  if (--live_ > 0) return;
  // Thousands of mappings would make each change of protection slow.
  if (mmap(begin_, static_cast<size_t>(next_ - begin_), PROT_NONE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
    Die("mmap failed");
  next_ = begin_;
  blocks_.clear();
}

void GuardedMemory::Close(char* pages, size_t bytes) const {
  if (mmap(pages, bytes, PROT_NONE, MAP_PRIVATE | MAP_FIXED, nothing_, 0) == MAP_FAILED)
    Die("mmap failed");
}

bool GuardedMemory::IsDeviceAddress(const void* pointer) const {
  return pointer >= begin_ && pointer < begin_ + kAddresses;
}

const GuardedMemory::Block* GuardedMemory::Find(const void* pointer) const {
  const auto after = blocks_.upper_bound(static_cast<const char*>(pointer));
  return after == blocks_.begin() ? nullptr : &std::prev(after)->second;
}

bool GuardedMemory::Holds(const void* pointer) const {
  const std::lock_guard lock(mutex_);
  const Block* const block = Find(pointer);
  return block != nullptr && !block->freed && pointer <= block->pages + block->mapped;
}

void GuardedMemory::Allow(int change) {
  const std::lock_guard lock(mutex_);
  const bool was = allowed_ > 0;
  allowed_ += change;
  if (was != (allowed_ > 0)) Protect();
}

void GuardedMemory::Protect() const {
  if (next_ != begin_ && mprotect(begin_, static_cast<size_t>(next_ - begin_),
                                  allowed_ > 0 ? PROT_READ | PROT_WRITE : PROT_NONE) != 0)
    Die("mprotect failed");
}

}  // namespace mt::testing
