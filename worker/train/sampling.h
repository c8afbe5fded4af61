// Which token comes next, given the logits of all.
#pragma once

#include <cstdint>
#include <span>

#include "common/status.h"

namespace mt {

struct SamplingOptions {
  double temperature = 0;  // 0 = greedy: the most likely token, the lowest id among equals
  int64_t top_k = 0;       // only the k most likely tokens; 0 = all
  // Of those, only the most likely ones that together reach this probability (nucleus sampling, Holtzman et al. 2020); 1 = all.
  double top_p = 1;
};

// INVALID_ARGUMENT names the option, its value and what would do.
absl::Status CheckSampling(const SamplingOptions& options);

// softmax(logits / temperature) of what top_k and then top_p leave, inverted at `uniform` in (0, 1), in the order of ids. Among
// equals the lower ids stay. At least one token stays.
int32_t SampleToken(std::span<const double> logits, const SamplingOptions& options, double uniform);

}  // namespace mt
