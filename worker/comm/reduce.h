// Arithmetic of reductions, shared by all transports so that they give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/abi/mt_backend.h"
#include "worker/comm/communicator.h"

namespace mt {

// Bytes of an element; 0 for types that communicators do not carry in reductions or gathers.
size_t ReducibleSize(mt_dtype dtype);
const char* DtypeName(mt_dtype dtype);

// accumulator[i] = accumulator[i] op value[i]. kMax keeps a NaN, whichever side it is on.
void Accumulate(void* accumulator, const void* value, int64_t count, mt_dtype dtype, ReduceOp op);

}  // namespace mt
