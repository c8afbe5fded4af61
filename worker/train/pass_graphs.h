// Passes that a device runs again and again with the same arguments, recorded and launched whole:
// one call instead of hundreds.
//
// A pass is run as it is the first time (libraries choose their kernels then), recorded the second
// time and launched from then on; until it is forgotten, it is never recorded again. A pass that cannot be recorded goes on
// as it is, with one line in the log. The bits are the same either way.
#pragma once

#include <vector>

#include "absl/functional/function_ref.h"
#include "common/status.h"
#include "worker/backend/backend.h"

namespace mt {

class PassGraphs {
 public:
  // Passes are numbered [0, passes). Not enabled: every pass is always run as it is.
  PassGraphs(const Backend& backend, bool enabled, int64_t passes)
      : backend_(backend), enabled_(enabled), passes_(static_cast<size_t>(passes)) {}
  ~PassGraphs();
  PassGraphs(const PassGraphs&) = delete;
  PassGraphs& operator=(const PassGraphs&) = delete;

  // `body` enqueues the pass: operations and copies on the compute stream, nothing else; it may be
  // called twice, and what it does on the host must not matter when it is not called.
  absl::Status Run(int64_t pass, absl::FunctionRef<absl::Status()> body);
  // Passes have other arguments from here on: what was recorded is dropped, and is recorded anew. The device has run all of it.
  void Forget();

 private:
  struct Pass {
    bool has_run = false;
    mt_graph graph = nullptr;
  };
  absl::StatusOr<mt_graph> Record(absl::FunctionRef<absl::Status()> body);

  const Backend& backend_;
  bool enabled_;
  std::vector<Pass> passes_;
};

}  // namespace mt
