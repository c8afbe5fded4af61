// Which dataset each sample of a blend comes from, equal to Megatron-LM's BlendedDataset (blended_dataset.py, helpers.cpp,
// blended_megatron_dataset_builder.py). A blend draws no random numbers: sample k goes to the dataset that is furthest behind its share,
// the first of equals; what is random is the order within each dataset.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "common/status.h"
#include "worker/data/sample/index_arrays.h"

namespace mt {

// What is built of each dataset beyond what the weights ask for (Megatron's mid_level_dataset_surplus): the blend may take a few
// samples more of one than its share.
constexpr double kBlendSurplus = 0.005;
constexpr size_t kMaxBlendedDatasets = 32767;

// Weights that sum to one, rounded as numpy rounds them: w / numpy.sum(w).
std::vector<double> NormalizedWeights(std::span<const double> weights);

struct BlendSizes {
  std::vector<int64_t> build;  // samples to build of each dataset
  int64_t size = 0;            // of the blend: at least the samples asked for
};
// For weights that sum to one.
BlendSizes SizesOfBlend(std::span<const double> weights, int64_t num_samples);

// Arrays by sample of the blend.
struct BlendIndex {
  std::span<const uint16_t> dataset;
  std::span<const uint32_t> sample;  // of that dataset
  IndexArrays arrays;                // what the two point into, in this order

  explicit BlendIndex(IndexArrays arrays);
  int64_t size() const { return static_cast<int64_t>(dataset.size()); }
};

// `size` samples in proportion to `weights`, which are normalized again, as Megatron does. RESOURCE_EXHAUSTED: no memory.
absl::StatusOr<BlendIndex> BuildBlendIndex(std::span<const double> weights, int64_t size);
// All of `sizes[i]` samples of each dataset, in proportion to what they are of those not yet used up.
absl::StatusOr<BlendIndex> BuildExhaustiveBlendIndex(std::span<const int64_t> sizes);

}  // namespace mt
