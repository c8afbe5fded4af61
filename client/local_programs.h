// Programs that mtctl starts on this machine: the coordinator (dev up, cluster up) and the worker (generate, plan's kernels).
// They are found beside mtctl, else on PATH. Nothing goes through a shell.
#pragma once

#include <string>
#include <vector>

#include "common/spec/print.h"
#include "common/status.h"

namespace mt::client {

// NOT_FOUND says where it was looked for.
absl::StatusOr<std::string> FindProgram(const std::string& name);

// Starts a daemon in a session of its own, its output appended to `log_path`. Returns its pid.
absl::StatusOr<int> SpawnDaemon(const std::vector<std::string>& command,
                                const std::string& log_path);
// True once the child `pid` of this process has ended; then *code is its exit code (128 + signal).
bool HasExited(int pid, int* code);
// True if `pid` is a running process whose program is `name`: a recycled pid is not ours.
bool IsRunning(int64_t pid, const std::string& name);

// Runs to the end with this terminal's stdin, stdout and stderr; returns its exit code.
absl::StatusOr<int> Run(const std::vector<std::string>& command);
// Runs to the end and returns stdout (at most 16 MiB); stderr of a failure is in the status, whose code is INTERNAL.
absl::StatusOr<std::string> Capture(const std::vector<std::string>& command);

// The last lines of a file from byte `from` on, for messages.
std::string TailOf(const std::string& path, int lines, uint64_t from = 0);

// What `mt-worker kernels` finds on this machine for the job's backend, overrides, precision and threads.
struct MachineKernels {
  Json operations;        // [{"operation", "backend", "kernel"}]
  double peak_flops = 0;  // FLOP/s of one rank's matrix products, measured
};
// NOT_FOUND: no mt-worker here. FAILED_PRECONDITION: it declines, e.g. an operation that no backend has.
absl::StatusOr<MachineKernels> ResolveKernels(const v1::JobSpec& spec);

}  // namespace mt::client
