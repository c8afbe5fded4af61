// What `configure` was told before `open`.
#pragma once

#include <cstdint>
#include <string>

namespace mt::cuda {

struct Configuration {
  std::string attention = "auto";  // auto | cudnn | flash
  std::string gemm_cache;          // path; empty = none
  bool tf32 = false;
  bool operator==(const Configuration&) const = default;
};

// MT_ERROR_UNSUPPORTED: no such key; MT_ERROR_INVALID: the value, with what is allowed. On an error nothing changes.
int32_t SetConfiguration(const char* key, const char* value, Configuration* configuration);

}  // namespace mt::cuda
