// The ABI's collectives over NCCL, without blocking: a communicator can be aborted from another thread at any time, also while it
// is still being made. NCCL answers calls on such communicators with ncclInProgress; nothing may be enqueued after such a call
// until that has passed, so every call here waits for it, and gives up when the communicator is aborted.
#pragma once

#include "kernels/abi/mt_backend.h"
#include "kernels/cuda/libraries.h"

namespace mt::cuda {

// The table over this library. `bind` makes the device current for the calling thread. Both are kept for the process's life; a
// second call replaces them (tests).
const mt_collectives* MakeCollectives(const Nccl* nccl, int32_t (*bind)());

}  // namespace mt::cuda
