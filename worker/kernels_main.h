// mt-worker kernels: which backend and kernel every operation of training resolves to on this machine, and how fast matrix
// products are. `mtctl plan` runs it, so that an operation that nobody has is refused before a job is queued.
#pragma once

#include <string>
#include <vector>

namespace mt {

// Prints {"operations": [{"operation", "backend", "kernel"}], "peak_flops": F} to stdout; returns an exit code.
//   [--backend=NAME] [--operation=NAME=BACKEND ...] [--precision=fp32|fp64|bf16|fp8] [--threads=N]
int KernelsMain(const std::vector<std::string>& arguments);

}  // namespace mt
