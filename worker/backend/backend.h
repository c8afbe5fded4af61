// Backends are shared libraries `libmt_backend_<name>.so`, found at start and never unloaded (a
// CUDA runtime cannot be), so a Backend pointer is valid until the process ends.
//
// Searched in this order: folders of MT_BACKEND_PATH (colon-separated), the executable's folder,
// <executable>/../lib.
#pragma once

#include <string>
#include <vector>

#include "common/status.h"
#include "kernels/abi/mt_backend.h"

namespace mt {

class Backend {
 public:
  Backend(const mt_backend* abi, mt_device_info info, std::string path)
      : abi_(abi), info_(info), path_(std::move(path)) {}
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  const mt_backend& abi() const { return *abi_; }
  std::string name() const { return abi_->name; }
  const mt_device_info& info() const { return info_; }  // as probed
  const std::string& path() const { return path_; }
  bool host_memory() const { return (info_.capabilities & MT_CAPABILITY_HOST_MEMORY) != 0; }

  // OK, or `code` as a Status: "<what> on backend <name>: <its message>". INVALID_ARGUMENT,
  // UNIMPLEMENTED, RESOURCE_EXHAUSTED or INTERNAL.
  absl::Status ToStatus(int32_t code, absl::string_view what) const;

 private:
  const mt_backend* abi_;
  mt_device_info info_;
  std::string path_;
};

// Loads (once per process) and probes one backend. NOT_FOUND: no such library, names the folders
// that were searched. FAILED_PRECONDITION: it would not load, its ABI major version differs, or its
// probe declined (with its reason). Thread-safe.
absl::StatusOr<const Backend*> LoadBackend(absl::string_view name);

// The backend of a job: `requested`, or, when that is empty or "auto", the first of cuda, musa,
// txda, cpu that loads and probes well. "reference" is only used when asked for. NOT_FOUND lists
// why each one declined.
absl::StatusOr<const Backend*> ChooseBackend(absl::string_view requested);

// For node reports: one line per known backend that is installed here: "cpu", "cuda: 8 x <device>"
// or "cuda: <why it declined>".
std::vector<std::string> DescribeBackends();

// Devices of the backend that "auto" chooses here, each of which holds one rank; 0 if that computes in
// host memory.
int CountDevices();

}  // namespace mt
