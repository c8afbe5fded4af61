// Arithmetic of reductions, shared by all transports in host memory so that they give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/abi/mt_backend.h"
#include "worker/comm/communicator.h"

namespace mt {

// Bytes of an element; 0 for numbers that are no type.
size_t ElementSize(mt_dtype dtype);
// FP8 is gathered and broadcast, but never added: no sum of it keeps a digit that matters.
bool Reducible(mt_dtype dtype);
const char* DtypeName(mt_dtype dtype);

// destination[i] = inputs[0][i] op inputs[1][i] op ..., in this order. BF16 is added in float32 and rounded once, to nearest
// even, at the end; integers wrap; kMax keeps a NaN, whichever side it is on. `destination` may be one of the inputs.
void Reduce(const std::vector<const void*>& inputs, void* destination, int64_t count,
            mt_dtype dtype, ReduceOp op);

}  // namespace mt
