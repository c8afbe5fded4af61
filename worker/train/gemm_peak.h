// How fast this rank's backend multiplies matrices: the yardstick of MFU. The vendor's figure for
// dense bfloat16 where there is one and the job is in bfloat16 (or FP8, so that the two compare), else
// measured.
#pragma once

#include "common/status.h"
#include "worker/backend/operations.h"

namespace mt {

// Measured: FLOP/s of the best of the products in `dtype` that fit into about `budget`. Sizes grow as long as
// products are short, so that a processor is measured with small ones and a GPU with large ones; on
// a device time is the device's own, by events. All ranks should measure at the same time, so that
// ranks that share cores see their share; on a machine that may be busy with something else, a
// longer budget finds a moment in which it is not.
absl::StatusOr<double> MeasureGemmPeak(const Operations::Options& options, mt_dtype dtype,
                                       absl::Duration budget = absl::Milliseconds(45));

}  // namespace mt
