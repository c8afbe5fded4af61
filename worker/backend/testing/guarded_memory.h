// For tests: device memory as the host sees it. Nobody can touch it but where an Access is held, which is what a fake device
// does while it works; anybody else gets a signal and a line that says what was touched. Allocations end at a page that nobody can
// touch, are filled with NaN, and their addresses are not used again while anything is allocated.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>

namespace mt::testing {

class GuardedMemory {
 public:
  // The one of this library, never destroyed.
  static GuardedMemory& Get();

  // Aligned to 256 bytes, as a CUDA device's. Aborts when 64 GiB have been asked for.
  void* Allocate(size_t bytes);
  // Aborts if it is not an allocation.
  void Free(void* pointer);
  // In an allocation that has not been freed, or at its end.
  bool Holds(const void* pointer) const;
  // Anywhere in the addresses that devices have.
  bool IsDeviceAddress(const void* pointer) const;

  // While one exists, any thread may touch what is allocated.
  class Access {
   public:
    Access() { Get().Allow(+1); }
    ~Access() { Get().Allow(-1); }
    Access(const Access&) = delete;
    Access& operator=(const Access&) = delete;
  };

 private:
  struct Block {
    char* pages = nullptr;
    size_t mapped = 0;  // bytes from `pages` on
    size_t bytes = 0;   // asked for
    bool freed = false;
  };
  GuardedMemory();
  void Allow(int change);
  void Protect() const;
  void Close(char* pages, size_t bytes) const;
  const Block* Find(const void* pointer) const;

  mutable std::mutex mutex_;
  int nothing_ = -1;  // an empty file: its pages cannot be touched, whatever their protection
  char* begin_ = nullptr;
  char* next_ = nullptr;
  std::map<const char*, Block> blocks_;  // by address
  int live_ = 0;                         // blocks that are not freed
  int allowed_ = 0;
};

}  // namespace mt::testing
