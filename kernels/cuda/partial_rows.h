// The second stage of a weight's gradient: rows of float32 partial sums, added in a fixed order.
#pragma once

#include <cstdint>

#include "kernels/cuda/operations.h"

namespace mt::cuda {

// destination[c] += sum over r < rows of partials[r * columns + c].
int32_t AddPartialRows(const float* partials /* (rows, columns) */, int64_t rows, int64_t columns,
                       float* destination /* (columns) */, const Launch& launch);

}  // namespace mt::cuda
