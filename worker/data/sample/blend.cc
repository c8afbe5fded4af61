// Compiled without contraction of products and sums (CMakeLists.txt): ties are decided by the last bit of a double.
#include "worker/data/sample/blend.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace mt {
namespace {

// numpy's order of summation (pairwise_sum in loops_utils.h.src): eight running sums in blocks of up to 128, halves above that.
double NumpySum(std::span<const double> values) {
  constexpr size_t kLanes = 8, kBlock = 128;
  if (values.size() < kLanes) return std::accumulate(values.begin(), values.end(), 0.0);
  if (values.size() > kBlock) {
    size_t half = values.size() / 2;
    half -= half % kLanes;
    return NumpySum(values.first(half)) + NumpySum(values.subspan(half));
  }
  double lanes[kLanes];
  std::copy_n(values.begin(), kLanes, lanes);
  size_t i = kLanes;
  for (; i < values.size() - values.size() % kLanes; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
  }
  double sum = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) +
               ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
  for (; i < values.size(); ++i) sum += values[i];
  return sum;
}

// How far each dataset is behind its share. Padded to whole lanes with datasets that are never behind, so that the search for the
// largest is a loop of vectors.
class Shares {
 public:
  explicit Shares(std::span<const double> weights)
      : weights_((weights.size() + kLanes - 1) / kLanes * kLanes, 0.0),
        counts_(weights_.size(), std::numeric_limits<double>::infinity()),
        errors_(weights_.size()) {
    std::copy(weights.begin(), weights.end(), weights_.begin());
    std::fill_n(counts_.begin(), weights.size(), 0.0);
  }
  // The dataset that sample `k` is of.
  size_t FurthestBehind(int64_t k) {
    const double samples = std::max(static_cast<double>(k), 1.0);
    double best[kLanes];
    std::fill_n(best, kLanes, -std::numeric_limits<double>::infinity());
    for (size_t i = 0; i < weights_.size(); i += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const double error = weights_[i + lane] * samples - counts_[i + lane];
        errors_[i + lane] = error;
        best[lane] = error > best[lane] ? error : best[lane];
      }
    }
    const double largest = *std::max_element(best, best + kLanes);
    size_t dataset = 0;
    while (errors_[dataset] != largest) ++dataset;
    return dataset;
  }
  // Returns how many samples of the dataset came before.
  int64_t Take(size_t dataset) {
    const double before = counts_[dataset];
    counts_[dataset] += 1;
    return static_cast<int64_t>(before);
  }
  void Finish(size_t dataset) { counts_[dataset] = std::numeric_limits<double>::infinity(); }

 private:
  static constexpr size_t kLanes = 4;
  std::vector<double> weights_, counts_, errors_;
};

absl::StatusOr<IndexArrays> Allocate(int64_t size) {
  const auto count = static_cast<uint64_t>(size);
  return IndexArrays::Allocate({2 * count, 4 * count});
}

}  // namespace

std::vector<double> NormalizedWeights(std::span<const double> weights) {
  const double sum = NumpySum(weights);
  std::vector<double> normalized(weights.begin(), weights.end());
  for (double& weight : normalized) weight /= sum;
  return normalized;
}

BlendSizes SizesOfBlend(std::span<const double> weights, int64_t num_samples) {
  BlendSizes sizes;
  for (const double weight : weights) {
    const double target = std::ceil(static_cast<double>(num_samples) * weight);
    sizes.size += static_cast<int64_t>(target);
    sizes.build.push_back(static_cast<int64_t>(std::ceil(target * (1 + kBlendSurplus))));
  }
  return sizes;
}

BlendIndex::BlendIndex(IndexArrays owned) : arrays(std::move(owned)) {
  dataset = arrays.array<const uint16_t>(0);
  sample = arrays.array<const uint32_t>(1);
}

absl::StatusOr<BlendIndex> BuildBlendIndex(std::span<const double> weights, int64_t size) {
  MT_ASSIGN_OR_RETURN(IndexArrays arrays, Allocate(size));
  const std::span<uint16_t> datasets = arrays.array<uint16_t>(0);
  const std::span<uint32_t> samples = arrays.array<uint32_t>(1);
  Shares shares(NormalizedWeights(weights));
  for (size_t k = 0; k < datasets.size(); ++k) {
    const size_t dataset = shares.FurthestBehind(static_cast<int64_t>(k));
    datasets[k] = static_cast<uint16_t>(dataset);
    samples[k] = static_cast<uint32_t>(shares.Take(dataset));
  }
  return BlendIndex(std::move(arrays));
}

absl::StatusOr<BlendIndex> BuildExhaustiveBlendIndex(std::span<const int64_t> sizes) {
  const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
  MT_ASSIGN_OR_RETURN(IndexArrays arrays, Allocate(total));
  const std::span<uint16_t> datasets = arrays.array<uint16_t>(0);
  const std::span<uint32_t> samples = arrays.array<uint32_t>(1);
  std::vector<double> weights;
  for (const int64_t size : sizes)
    weights.push_back(static_cast<double>(size) / static_cast<double>(total));
  Shares shares(weights);
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] == 0) shares.Finish(i);
  }
  for (size_t k = 0; k < datasets.size(); ++k) {
    const size_t dataset = shares.FurthestBehind(static_cast<int64_t>(k));
    const int64_t before = shares.Take(dataset);
    datasets[k] = static_cast<uint16_t>(dataset);
    samples[k] = static_cast<uint32_t>(before);
    if (before + 1 == sizes[dataset]) shares.Finish(dataset);
  }
  return BlendIndex(std::move(arrays));
}

}  // namespace mt
