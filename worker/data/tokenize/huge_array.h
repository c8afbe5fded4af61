// A fixed array of zeros for tables that are read at random: in huge pages where the system gives them, since otherwise every look
// into a large table waits for the page tables too. Asked for before the first touch, which decides.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <type_traits>
#include <utility>

#include "common/check.h"

namespace mt {

template <typename T>
class HugeArray {
 public:
  // All bytes zero must be a T.
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

  explicit HugeArray(size_t size) : size_(size) {
    void* memory =
        mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MT_CHECK(memory != MAP_FAILED) << "no memory for " << bytes() << " bytes";
    if (bytes() >= kHugePage) (void)madvise(memory, bytes(), MADV_HUGEPAGE);  // a wish
    data_ = static_cast<T*>(memory);
  }
  HugeArray(HugeArray&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  HugeArray& operator=(HugeArray&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~HugeArray() {
    if (data_ != nullptr) munmap(data_, bytes());
  }

  size_t size() const { return size_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }
  T* begin() { return data_; }
  T* end() { return data_ + size_; }

 private:
  static constexpr size_t kHugePage = size_t{2} << 20;
  size_t bytes() const { return size_ * sizeof(T); }

  T* data_;
  size_t size_;
};

}  // namespace mt
