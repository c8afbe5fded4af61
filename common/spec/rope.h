// Rotary positions (Su et al. 2021, arXiv 2104.09864): at position p pair j of a head is turned by the angle
// p * frequencies[j], where frequencies[j] = theta^(-2j/d), d = RotaryDim, unless RopeSpec.scaling makes the context longer:
//   linear  all frequencies / factor (Chen et al. 2023, arXiv 2306.15595)
//   llama3  long waves / factor, short ones as they are, a ramp between (Llama 3.1's reference code)
//   yarn    the same idea by rotations within the original context, and attention a little sharper (Peng et al. 2023, arXiv
//           2309.00071, section 3; DeepSeek-V2's mscale, arXiv 2405.04434, section 3.1.4)
// All in float64.
#pragma once

#include <cstdint>
#include <vector>

#include "mt/v1/spec.pb.h"

namespace mt {

struct RopeFrequencies {
  std::vector<double> frequencies;  // RotaryDim(model) / 2
  double amplitude = 1;             // of cosine and sine
};
// `model` is resolved.
RopeFrequencies RopeFrequenciesOf(const v1::ModelSpec& model);

// (positions, d): [p, j] = cos, [p, d/2 + j] = sin.
std::vector<double> RopeTable(const v1::ModelSpec& model, int64_t positions);

// Of q k^T before the softmax: 1 / sqrt(KeyHeadDim), times DeepSeek's mscale squared where rope.mscale_all_dim is given.
double AttentionScale(const v1::ModelSpec& model);

}  // namespace mt
