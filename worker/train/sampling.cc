#include "worker/train/sampling.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace mt {
namespace {

int32_t MostLikely(std::span<const double> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Sets the weight of every token that top_k and top_p leave out to zero.
void Restrict(const SamplingOptions& options, std::vector<double>* weights) {
  const bool all_k = options.top_k == 0 || options.top_k >= static_cast<int64_t>(weights->size());
  if (all_k && options.top_p >= 1) return;
  std::vector<size_t> order(weights->size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return (*weights)[a] > (*weights)[b]; });
  size_t kept = all_k ? order.size() : static_cast<size_t>(options.top_k);
  if (options.top_p < 1) {
    double total = 0, reached = 0;
    for (size_t i = 0; i < kept; ++i) total += (*weights)[order[i]];
    for (size_t i = 0; i < kept; ++i) {
      reached += (*weights)[order[i]];
      if (reached >= options.top_p * total) kept = i + 1;
    }
  }
  for (size_t i = kept; i < order.size(); ++i) (*weights)[order[i]] = 0;
}

}  // namespace

absl::Status CheckSampling(const SamplingOptions& options) {
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature)) {
    return absl::InvalidArgumentError(absl::StrCat("temperature = ", options.temperature,
                                                   "; it must be zero (greedy) or positive"));
  }
  if (options.top_k < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "top_k = ", options.top_k, "; it must be zero (all tokens) or a number of tokens"));
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("top_p = ", options.top_p, "; it must be above 0 and at most 1 (all tokens)"));
  }
  return absl::OkStatus();
}

int32_t SampleToken(std::span<const double> logits, const SamplingOptions& options,
                    double uniform) {
  if (options.temperature == 0) return MostLikely(logits);
  const double maximum = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weights;
  weights.reserve(logits.size());
  for (const double logit : logits)
    weights.push_back(std::exp((logit - maximum) / options.temperature));
  Restrict(options, &weights);
  double rest = uniform * std::accumulate(weights.begin(), weights.end(), 0.0);
  for (size_t id = 0; id < weights.size(); ++id) {
    rest -= weights[id];
    if (rest < 0) return static_cast<int32_t>(id);
  }
  return MostLikely(logits);  // rounding left a sliver at the end
}

}  // namespace mt
