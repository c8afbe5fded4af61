// What training a model costs in arithmetic that no implementation can do without: what MFU and step times are measured with.
#pragma once

#include <cstdint>

#include "mt/v1/spec.pb.h"

namespace mt {

// Model FLOPs of one training step over `tokens` tokens, as Narayanan et al. 2021 (arXiv 2104.04473) count them, without
// recomputation: forward and twice as much backward, a multiplication and an addition each.
//  - Matrices: 6 per parameter that a token meets: of experts the chosen ones and the shared ones, of the embedding none
//    (a look-up), the head once, and once more for multi-token prediction.
//  - Causal attention: 3 heads (key head + value head) per token and key, with half of the square of the sequence, or what a
//    window leaves of it.
double ModelFlops(const v1::ModelSpec& model, int64_t sequence_length, int64_t tokens);

}  // namespace mt
