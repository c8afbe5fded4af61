#include "worker/data/sample/blend.h"

#include <algorithm>
#include <cmath>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/sample/numpy_random.h"

namespace mt {
namespace {

using ::testing::ElementsAre;

template <typename T>
std::vector<T> Values(std::span<const T> values) {
  return {values.begin(), values.end()};
}

TEST(BlendTest, EqualsMegatrons) {
  const BlendIndex two = BuildBlendIndex(std::vector<double>{0.3, 0.7}, 10).value();
  EXPECT_THAT(Values(two.dataset), ElementsAre(1, 0, 1, 1, 0, 1, 1, 0, 1, 1));
  EXPECT_THAT(Values(two.sample), ElementsAre(0, 0, 1, 2, 1, 3, 4, 2, 5, 6));
  const BlendIndex three = BuildBlendIndex(std::vector<double>{0.5, 0.25, 0.25}, 8).value();
  EXPECT_THAT(Values(three.dataset), ElementsAre(0, 1, 2, 0, 0, 1, 2, 0));
  EXPECT_THAT(Values(three.sample), ElementsAre(0, 0, 0, 1, 2, 1, 1, 3));
}

// helpers.cpp's rule as it stands there, for any number of datasets: also more than fill a vector, and ties.
TEST(BlendTest, TheFurthestBehindIsNextAndOfEqualsTheFirst) {
  NumpyRandomState random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<double> weights(1 + random.Interval(20));
    for (double& weight : weights) weight = 1.0 + static_cast<double>(random.Interval(3));
    const int64_t size = 1 + static_cast<int64_t>(random.Interval(200));
    const BlendIndex index = BuildBlendIndex(weights, size).value();
    const std::vector<double> shares = NormalizedWeights(weights);
    std::vector<int64_t> counts(weights.size());
    for (int64_t k = 0; k < size; ++k) {
      const double samples = std::max(static_cast<double>(k), 1.0);
      size_t best = 0;
      for (size_t i = 1; i < shares.size(); ++i) {
        if (shares[i] * samples - static_cast<double>(counts[i]) >
            shares[best] * samples - static_cast<double>(counts[best])) {
          best = i;
        }
      }
      ASSERT_EQ(index.dataset[static_cast<size_t>(k)], best);
      ASSERT_EQ(index.sample[static_cast<size_t>(k)], counts[best]++);
    }
  }
}

TEST(BlendTest, AllOfEachIsUsedOnce) {
  const std::vector<int64_t> sizes = {3, 0, 5, 1};
  const BlendIndex index = BuildExhaustiveBlendIndex(sizes).value();
  ASSERT_EQ(index.size(), 9);
  std::vector<int64_t> counts(sizes.size());
  for (int64_t k = 0; k < 9; ++k) {
    const size_t dataset = index.dataset[static_cast<size_t>(k)];
    EXPECT_EQ(index.sample[static_cast<size_t>(k)], counts[dataset]++);
  }
  EXPECT_EQ(counts, sizes);
}

TEST(BlendTest, SizesAreWhatTheWeightsAskForAndAHalfPercentMore) {
  const BlendSizes sizes = SizesOfBlend(std::vector<double>{0.25, 0.75}, 1001);
  EXPECT_EQ(sizes.size, 251 + 751);
  EXPECT_THAT(sizes.build, ElementsAre(253, 755));
}

}  // namespace
}  // namespace mt
