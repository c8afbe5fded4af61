// Arrays that samples are looked up in: made once, then only read; in memory of their own or in a file that ranks share.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "common/status.h"

namespace mt {

class IndexArrays {
 public:
  // Zeros, in huge pages where the system has them: arrays are shuffled. RESOURCE_EXHAUSTED: no memory.
  static absl::StatusOr<IndexArrays> Allocate(const std::vector<uint64_t>& bytes);
  // `storage` keeps what `arrays` point to.
  IndexArrays(std::shared_ptr<const void> storage, std::vector<std::span<char>> arrays)
      : storage_(std::move(storage)), arrays_(std::move(arrays)) {}

  size_t size() const { return arrays_.size(); }
  std::span<const char> bytes(size_t i) const { return arrays_[i]; }
  // Arrays begin at multiples of 64 bytes. Those out of a file must not be written.
  template <typename T>
  std::span<T> array(size_t i) const {
    return {reinterpret_cast<T*>(arrays_[i].data()), arrays_[i].size() / sizeof(T)};
  }
  const std::shared_ptr<const void>& storage() const { return storage_; }

 private:
  std::shared_ptr<const void> storage_;
  std::vector<std::span<char>> arrays_;
};

}  // namespace mt
