// Memory, streams, events and graphs of the ABI over the CUDA runtime.
#pragma once

#include "kernels/abi/mt_backend.h"

namespace mt::cuda {

// Fills in the functions of backend->allocate … graph_destroy.
void FillQueueFunctions(mt_backend* backend);

}  // namespace mt::cuda
