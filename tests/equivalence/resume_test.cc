// A run goes on from its saved boxes: under the same layout with the same bits, under another one with the same losses.
// Recomputation changes no bit.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/equivalence/harness.h"

namespace mt::equivalence {
namespace {

constexpr Layout kTensorPipeline = {.tensor = 2, .pipeline = 2, .sequence = true};
constexpr Layout kData = {.data = 4, .zero = true};
constexpr Layout kTensor = {.tensor = 4};

struct Precision {
  const char* backend;
  v1::TrainingSpec::Precision precision;
  double tolerance;
};
void PrintTo(const Precision& precision, std::ostream* out) { *out << precision.backend; }
constexpr Precision kFloat64 = {"reference", v1::TrainingSpec::PRECISION_FP64, 1e-9};
constexpr Precision kFloat32 = {"cpu", v1::TrainingSpec::PRECISION_FP32, 1e-5};

v1::JobSpec JobOf(const Precision& p, bool tied) {
  v1::JobSpec spec = SmallJob();
  spec.mutable_training()->set_precision(p.precision);
  spec.mutable_model()->set_tie_embeddings(tied);
  return spec;
}

class ResumeTest : public testing::TestWithParam<std::tuple<Precision, bool>> {
 protected:
  Outcome Go(const Layout& layout, int64_t steps, const Outcome* from = nullptr) {
    const auto& [precision, tied] = GetParam();
    RunOptions options{.spec = JobOf(precision, tied),
                       .layout = layout,
                       .backend = precision.backend,
                       .steps = steps};
    if (from != nullptr) {
      options.resume = &from->state;
      options.position = from->position;
    }
    absl::StatusOr<Outcome> outcome = RunJob(options);
    EXPECT_TRUE(outcome.ok()) << outcome.status();
    return outcome.ok() ? *std::move(outcome) : Outcome{};
  }
};

TEST_P(ResumeTest, OtherLayoutsContinueTheCurve) {
  const double tolerance = std::get<0>(GetParam()).tolerance;
  const Outcome undisturbed = Go(kTensorPipeline, 15);
  const Outcome first = Go(kTensorPipeline, 5), second = Go(kData, 5, &first),
                third = Go(kTensor, 5, &second);
  ASSERT_EQ(third.position.step, 15);
  EXPECT_EQ(third.position.consumed_samples, 15 * 8);
  std::vector<double> losses = first.losses;
  losses.insert(losses.end(), second.losses.begin(), second.losses.end());
  // Float32 diverges slowly: its promise is five steps after a resume.
  if (tolerance < 1e-6) losses.insert(losses.end(), third.losses.begin(), third.losses.end());
  for (size_t step = 0; step < losses.size(); ++step) {
    EXPECT_NEAR(losses[step], undisturbed.losses[step], tolerance * undisturbed.losses[step])
        << "step " << step;
  }
  // The third part against a run that changed its layout once less.
  const Outcome direct = Go(kData, 5, &second);
  for (size_t step = 0; step < 5; ++step) {
    EXPECT_NEAR(third.losses[step], direct.losses[step], tolerance * direct.losses[step])
        << "step " << step;
  }
}

TEST_P(ResumeTest, SameLayoutSameBits) {
  for (const Layout& layout :
       {kTensorPipeline, kData, Layout{.tensor = 2, .data = 2, .pipeline = 2, .zero = true}}) {
    const Outcome undisturbed = Go(layout, 8), half = Go(layout, 3), rest = Go(layout, 5, &half);
    ASSERT_EQ(rest.losses.size(), 5u);
    for (size_t step = 0; step < 5; ++step) {
      EXPECT_EQ(rest.losses[step], undisturbed.losses[step + 3])
          << layout.Name() << " step " << step + 3;
    }
    EXPECT_EQ(CheckSameBits(rest.state, undisturbed.state), absl::OkStatus());
  }
}

TEST_P(ResumeTest, ZeroChangesNoBitOfTheLoss) {
  const Outcome whole = Go({.data = 2}, 4), sharded = Go({.data = 2, .zero = true}, 4);
  // The gradient norm is added in another order, so only the first loss and gradients have the same bits for sure.
  EXPECT_EQ(whole.losses[0], sharded.losses[0]);
  EXPECT_EQ(CheckSameBits(whole.gradients, sharded.gradients), absl::OkStatus());
}

TEST_P(ResumeTest, RecomputationChangesNoBit) {
  const auto& [precision, tied] = GetParam();
  for (const Layout& layout : {Layout{}, kTensorPipeline}) {
    RunOptions options{
        .spec = JobOf(precision, tied), .layout = layout, .backend = precision.backend, .steps = 4};
    const absl::StatusOr<Outcome> kept = RunJob(options);
    options.spec.mutable_training()->set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
    const absl::StatusOr<Outcome> recomputed = RunJob(options);
    ASSERT_TRUE(kept.ok() && recomputed.ok()) << kept.status() << recomputed.status();
    EXPECT_EQ(kept->losses, recomputed->losses) << layout.Name();
    EXPECT_EQ(CheckSameBits(recomputed->gradients, kept->gradients), absl::OkStatus());
    EXPECT_EQ(CheckSameBits(recomputed->state, kept->state), absl::OkStatus());
  }
}

INSTANTIATE_TEST_SUITE_P(Precisions, ResumeTest,
                         testing::Combine(testing::Values(kFloat64, kFloat32), testing::Bool()),
                         [](const auto& info) {
                           return absl::StrCat(std::get<0>(info.param).backend,
                                               std::get<1>(info.param) ? "_tied" : "");
                         });

}  // namespace
}  // namespace mt::equivalence
