// The end of a row of attention, portable: a sink joins the softmax when all keys have been seen, as one more logit without a value.
#pragma once

#include "kernels/cuda/vendor/vendor.h"

namespace mt::cuda {

struct RowEnd {
  float factor;  // of the row's output
  float lse;
};

// `maximum` of the scaled scores and the `sum` of their exponentials relative to it; a row that has seen nothing (-infinity, 0) is
// one past the end, of which nothing is stored. A NaN in any of them is in both results.
__device__ __forceinline__ RowEnd EndRow(float maximum, float sum, bool has_sink, float sink) {
  if (!has_sink) return {1.0f / sum, maximum + logf(sum)};
  const float highest = max(maximum, sink);
  const float keys = expf(maximum - highest), total = sum * keys + expf(sink - highest);
  return {keys / total, highest + logf(total)};
}

}  // namespace mt::cuda
