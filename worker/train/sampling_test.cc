#include "worker/train/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace mt {
namespace {

// Probabilities 0.1, 0.4, 0.3, 0.2.
const std::vector<double> kLogits = {std::log(0.1), std::log(0.4), std::log(0.3), std::log(0.2)};

// How many of 1000 evenly spaced numbers give each token.
std::vector<int> Counts(const SamplingOptions& options,
                        const std::vector<double>& logits = kLogits) {
  std::vector<int> counts(logits.size());
  for (int i = 0; i < 1000; ++i) ++counts[SampleToken(logits, options, (i + 0.5) / 1000)];
  return counts;
}

TEST(SamplingTest, GreedyTakesTheLowestOfTheMostLikely) {
  EXPECT_EQ(SampleToken(kLogits, {}, 0.99), 1);
  EXPECT_EQ(SampleToken(std::vector<double>{1, 3, 3}, {.top_k = 2, .top_p = 0.1}, 0.99), 1);
}

TEST(SamplingTest, DrawsByProbability) {
  EXPECT_THAT(Counts({.temperature = 1}), testing::ElementsAre(100, 400, 300, 200));
  // Squares of the probabilities, over their sum 0.3.
  EXPECT_THAT(Counts({.temperature = 0.5}), testing::ElementsAre(33, 534, 300, 133));
}

TEST(SamplingTest, TopKLeavesTheMostLikely) {
  EXPECT_THAT(Counts({.temperature = 1, .top_k = 2}), testing::ElementsAre(0, 571, 429, 0));
  EXPECT_THAT(Counts({.temperature = 1, .top_k = 1}), testing::ElementsAre(0, 1000, 0, 0));
  EXPECT_THAT(Counts({.temperature = 1, .top_k = 9}), testing::ElementsAre(100, 400, 300, 200));
  // The lower ids among equals.
  EXPECT_THAT(Counts({.temperature = 1, .top_k = 2}, {0, 0, 0}), testing::ElementsAre(500, 500, 0));
}

TEST(SamplingTest, TopPLeavesTheFewestThatReachIt) {
  EXPECT_THAT(Counts({.temperature = 1, .top_p = 0.65}), testing::ElementsAre(0, 571, 429, 0));
  EXPECT_THAT(Counts({.temperature = 1, .top_p = 0.75}), testing::ElementsAre(0, 444, 334, 222));
  EXPECT_THAT(Counts({.temperature = 1, .top_p = 1e-9}), testing::ElementsAre(0, 1000, 0, 0));
  // Of what top_k leaves: 4/7 of it are enough.
  EXPECT_THAT(Counts({.temperature = 1, .top_k = 2, .top_p = 0.5}),
              testing::ElementsAre(0, 1000, 0, 0));
}

TEST(SamplingTest, BadOptionsAreNamed) {
  EXPECT_TRUE(CheckSampling({.temperature = 0.7, .top_k = 50, .top_p = 0.9}).ok());
  EXPECT_THAT(CheckSampling({.temperature = -1}).message(), testing::HasSubstr("temperature = -1"));
  EXPECT_THAT(CheckSampling({.temperature = NAN}).message(), testing::HasSubstr("temperature"));
  EXPECT_THAT(CheckSampling({.top_k = -1}).message(), testing::HasSubstr("top_k = -1"));
  EXPECT_THAT(CheckSampling({.top_p = 0}).message(), testing::HasSubstr("top_p = 0"));
  EXPECT_THAT(CheckSampling({.top_p = 1.5}).message(), testing::HasSubstr("top_p = 1.5"));
}

}  // namespace
}  // namespace mt
