#include "common/spec/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "common/spec/model_traits.h"

namespace mt {
namespace {

constexpr double kTurn = 2 * std::numbers::pi;

double Llama3(const v1::RopeSpec& rope, double frequency) {
  const double original = static_cast<double>(rope.original_max_positions()),
               wave = kTurn / frequency;
  if (wave < original / rope.high_freq_factor()) return frequency;
  if (wave > original / rope.low_freq_factor()) return frequency / rope.factor();
  const double kept = (original / wave - rope.low_freq_factor()) /
                      (rope.high_freq_factor() - rope.low_freq_factor());
  return (1 - kept) * frequency / rope.factor() + kept * frequency;
}

// Attention is made sharper the further the context is stretched.
double YarnScale(double factor, double mscale) {
  return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1;
}

double YarnAmplitude(const v1::RopeSpec& rope) {
  if (rope.attention_factor() != 0) return rope.attention_factor();
  if (rope.mscale() != 0 && rope.mscale_all_dim() != 0) {
    return YarnScale(rope.factor(), rope.mscale()) /
           YarnScale(rope.factor(), rope.mscale_all_dim());
  }
  return YarnScale(rope.factor(), 1);
}

// Pairs that turn often within the original context stay; those that turn less than once or so are stretched.
void Yarn(const v1::RopeSpec& rope, double theta, int64_t rotary_dim, std::vector<double>* all) {
  const double dim = static_cast<double>(rotary_dim),
               original = static_cast<double>(rope.original_max_positions());
  // The pair (not rounded) that turns `rotations` times in the original context.
  auto pair = [&](double rotations) {
    return dim * std::log(original / (rotations * kTurn)) / (2 * std::log(theta));
  };
  double first = pair(rope.beta_fast()), last = pair(rope.beta_slow());
  if (!rope.has_truncate() || rope.truncate()) {
    first = std::floor(first);
    last = std::ceil(last);
  }
  first = std::max(first, 0.0);
  last = std::min(last, dim - 1);
  if (first == last) last += 0.001;
  for (size_t j = 0; j < all->size(); ++j) {
    const double stretched =
        std::clamp((static_cast<double>(j) - first) / (last - first), 0.0, 1.0);
    (*all)[j] *= stretched / rope.factor() + (1 - stretched);
  }
}

}  // namespace

RopeFrequencies RopeFrequenciesOf(const v1::ModelSpec& model) {
  const v1::RopeSpec& rope = model.rope();
  const int64_t dim = RotaryDim(model);
  RopeFrequencies result;
  for (int64_t j = 0; j < dim / 2; ++j) {
    const double exponent = -2.0 * static_cast<double>(j) / static_cast<double>(dim);
    result.frequencies.push_back(std::pow(model.rope_theta(), exponent));
  }
  switch (rope.scaling()) {
    case v1::RopeSpec::SCALING_LINEAR:
      for (double& frequency : result.frequencies) frequency /= rope.factor();
      break;
    case v1::RopeSpec::SCALING_LLAMA3:
      for (double& frequency : result.frequencies) frequency = Llama3(rope, frequency);
      break;
    case v1::RopeSpec::SCALING_YARN:
      Yarn(rope, model.rope_theta(), dim, &result.frequencies);
      result.amplitude = YarnAmplitude(rope);
      break;
    default:
      break;
  }
  return result;
}

std::vector<double> RopeTable(const v1::ModelSpec& model, int64_t positions) {
  const RopeFrequencies rope = RopeFrequenciesOf(model);
  const size_t half = rope.frequencies.size();
  std::vector<double> table(static_cast<size_t>(positions) * 2 * half);
  for (size_t p = 0; p < static_cast<size_t>(positions); ++p) {
    for (size_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(p) * rope.frequencies[j];
      table[p * 2 * half + j] = rope.amplitude * std::cos(angle);
      table[p * 2 * half + half + j] = rope.amplitude * std::sin(angle);
    }
  }
  return table;
}

double AttentionScale(const v1::ModelSpec& model) {
  const v1::RopeSpec& rope = model.rope();
  const double scale = 1.0 / std::sqrt(static_cast<double>(KeyHeadDim(model)));
  if (rope.scaling() != v1::RopeSpec::SCALING_YARN || rope.mscale_all_dim() == 0) return scale;
  const double mscale = YarnScale(rope.factor(), rope.mscale_all_dim());
  return scale * mscale * mscale;
}

}  // namespace mt
