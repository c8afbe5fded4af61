// How fast this rank's backend multiplies matrices, measured: the yardstick of MFU where no vendor
// states a peak.
#pragma once

#include "common/status.h"
#include "worker/backend/operations.h"

namespace mt {

// FLOP/s of the best of a few products in `dtype`, for about 50 ms. All ranks should measure at the
// same time, so that ranks that share cores see their share.
absl::StatusOr<double> MeasureGemmPeak(const Operations::Options& options, mt_dtype dtype);

}  // namespace mt
