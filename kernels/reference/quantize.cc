// FP8 with one scale per tensor (Micikevicius et al. 2022, arXiv 2209.05433). Everything is float32 arithmetic, so that every
// backend gives the same codes.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/operations.h"

namespace mt::reference {

void Amax(const mt_amax_args& args) {
  WithType(args.dtype, [&](auto type) {
    const auto* data = static_cast<const decltype(type)*>(args.data);
    LargestMagnitude largest(args.amax);
    for (int64_t i = 0; i < args.count; ++i) largest.See(data[i]);
  });
}

void Quantize(const mt_quantize_args& args) {
  const bool e4m3 = args.output_dtype == MT_F8_E4M3;
  const float limit = e4m3 ? MT_E4M3_LARGEST : MT_E5M2_LARGEST, amax = *args.amax;
  float scale = 1, inverse = 1;
  if (!std::isfinite(amax)) {
    scale = std::numeric_limits<float>::quiet_NaN();
  } else if (amax != 0) {
    scale = amax / limit;
    inverse = std::min(limit / amax, std::numeric_limits<float>::max());
  }
  *args.output_scale = scale;
  auto* output = static_cast<uint8_t*>(args.output);
  auto* transposed = static_cast<uint8_t*>(args.transposed);
  WithType(args.dtype, [&](auto type) {
    const auto* source = static_cast<const decltype(type)*>(args.source);
    for (int64_t r = 0; r < args.rows; ++r) {
      for (int64_t c = 0; c < args.columns; ++c) {
        const float value = static_cast<float>(source[r * args.columns + c]) * inverse;
        const uint8_t code = e4m3 ? mt_e4m3_from_float(value) : mt_e5m2_from_float(value);
        if (output != nullptr) output[r * args.columns + c] = code;
        if (transposed != nullptr) transposed[c * args.rows + r] = code;
      }
    }
  });
}

}  // namespace mt::reference
