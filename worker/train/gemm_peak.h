// How fast this rank's backend multiplies matrices: the yardstick of MFU. The vendor's figure for
// dense bfloat16 where there is one, else measured.
#pragma once

#include "common/status.h"
#include "worker/backend/operations.h"

namespace mt {

// On a processor: FLOP/s of the best of the products in `dtype` that fit into about `budget`. All ranks should
// measure at the same time, so that ranks that share cores see their share; on a machine that may
// be busy with something else, a longer budget finds a moment in which it is not.
absl::StatusOr<double> MeasureGemmPeak(const Operations::Options& options, mt_dtype dtype,
                                       absl::Duration budget = absl::Milliseconds(45));

}  // namespace mt
