#include "worker/data/sample/index_arrays.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace mt {

absl::StatusOr<IndexArrays> IndexArrays::Allocate(const std::vector<uint64_t>& bytes) {
  constexpr uint64_t kAlignment = 64;
  uint64_t total = 0;
  for (const uint64_t size : bytes) total += (size + kAlignment - 1) / kAlignment * kAlignment;
  std::vector<std::span<char>> arrays(bytes.size());
  if (total == 0) return IndexArrays(nullptr, std::move(arrays));
  void* const memory =
      mmap(nullptr, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no ", total >> 20, " MiB of memory for the order of samples: ", std::strerror(errno)));
  }
  // Before the first touch, or it is too late for pages that exist. Without huge pages it is only slower.
  static_cast<void>(madvise(memory, total, MADV_HUGEPAGE));
  std::shared_ptr<const void> storage(
      memory, [total](const void* at) { munmap(const_cast<void*>(at), total); });
  char* at = static_cast<char*>(memory);
  for (size_t i = 0; i < bytes.size(); ++i) {
    arrays[i] = {at, bytes[i]};
    at += (bytes[i] + kAlignment - 1) / kAlignment * kAlignment;
  }
  return IndexArrays(std::move(storage), std::move(arrays));
}

}  // namespace mt
