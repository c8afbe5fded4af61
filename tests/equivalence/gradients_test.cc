// Whole models, forward and backward, against finite differences of the loss in float64: every parameter tensor, some of its
// elements.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/equivalence/harness.h"
#include "tests/equivalence/models.h"

namespace mt::equivalence {
namespace {

constexpr int kElements = 3;    // of each tensor
constexpr double kStep = 1e-5;  // central differences: the error is of its square

uint64_t Mix(uint64_t x) {
  x = (x + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
double Noise(uint64_t x) { return static_cast<double>(Mix(x) >> 11) * 0x1p-53 - 0.5; }

double* ElementOf(LogicalTensor* tensor, int64_t element) {
  return reinterpret_cast<double*>(tensor->bytes.data()) + element;
}

class ModelGradientTest : public testing::TestWithParam<SmallModel> {};

TEST_P(ModelGradientTest, EqualsFiniteDifferences) {
  RunOptions options{.spec = SmallJobOf(GetParam()), .steps = 0};
  options.spec.mutable_model()->set_layers(2);
  options.spec.mutable_training()->set_global_batch(2);
  options.spec.mutable_training()->set_micro_batch(1);
  // What is counted for each sequence by itself needs several of them in a micro-batch.
  if (GetParam().model.moe().balance() == v1::MoeSpec::BALANCE_SEQUENCE) {
    options.spec.mutable_training()->set_global_batch(4);
    options.spec.mutable_training()->set_micro_batch(2);
  }
  absl::StatusOr<Outcome> fresh = RunJob(options);
  ASSERT_TRUE(fresh.ok()) << fresh.status();
  // Away from ones and zeros, where wrong gradients may look right.
  LogicalState state = std::move(fresh->state);
  uint64_t seed = 0;
  for (auto& [name, tensor] : state) {
    if (name.starts_with("optimizer.last_load.")) {  // of an uneven step before
      for (int64_t i = 0; i < tensor.Elements(); ++i)
        *ElementOf(&tensor, i) = static_cast<double>(1 + i);
    }
    if (name.starts_with("optimizer.")) continue;
    for (int64_t i = 0; i < tensor.Elements(); ++i) *ElementOf(&tensor, i) += 0.2 * Noise(++seed);
  }
  options.steps = 1;
  options.resume = &state;
  absl::StatusOr<Outcome> run = RunJob(options);
  ASSERT_TRUE(run.ok()) << run.status();
  DropRounding(GetParam(), &run->gradients);
  ASSERT_FALSE(run->gradients.empty());
  auto loss_at = [&](const std::string& name, int64_t element, double value) {
    double* const place = ElementOf(&state.at(name), element);
    const double kept = std::exchange(*place, value);
    const absl::StatusOr<Outcome> moved = RunJob(options);
    *place = kept;
    EXPECT_TRUE(moved.ok()) << moved.status();
    return moved.ok() ? moved->total_losses.at(0) : NAN;
  };
  for (const auto& [name, gradient] : run->gradients) {
    double largest = 0;
    for (int64_t i = 0; i < gradient.Elements(); ++i)
      largest = std::max(largest, std::abs(gradient.At(i)));
    // An expert that no token chose has none, and the differences say so too.
    if (name.find(".mlp.experts.") == std::string::npos) {
      EXPECT_GT(largest, 1e-7) << name << " has no gradient";
    }
    for (int i = 0; i < kElements; ++i) {
      const int64_t element =
          static_cast<int64_t>(Mix(++seed) % static_cast<uint64_t>(gradient.Elements()));
      const double value = *ElementOf(&state.at(name), element);
      const double difference =
          (loss_at(name, element, value + kStep) - loss_at(name, element, value - kStep)) /
          (2 * kStep);
      EXPECT_NEAR(gradient.At(element), difference, 1e-6 * largest + 1e-10)
          << name << " element " << element;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, ModelGradientTest, testing::ValuesIn(AllModels()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace mt::equivalence
