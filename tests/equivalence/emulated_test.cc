// The CUDA kernels, on the processor, train small models: layouts equal one rank in float32, and one
// rank equals the reference backend; in bf16 and fp8 a resumed run has the bits of an undisturbed
// one.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/equivalence/harness.h"
#include "tests/equivalence/models.h"

namespace mt::equivalence {
namespace {

constexpr auto kFp32 = v1::TrainingSpec::PRECISION_FP32, kBf16 = v1::TrainingSpec::PRECISION_BF16,
               kFp8 = v1::TrainingSpec::PRECISION_FP8;

v1::JobSpec JobOf(v1::TrainingSpec::Precision precision) {
  v1::JobSpec spec = SmallJob();
  v1::ModelSpec& model = *spec.mutable_model();
  model.set_layers(2);
  model.set_hidden(32);
  model.set_heads(4);
  model.set_kv_heads(2);
  model.set_head_dim(16);
  model.set_ffn(64);
  spec.mutable_training()->set_precision(precision);
  return spec;
}

Outcome Go(const RunOptions& options) {
  absl::StatusOr<Outcome> outcome = RunJob(options);
  EXPECT_TRUE(outcome.ok()) << outcome.status();
  return outcome.ok() ? *std::move(outcome) : Outcome{};
}

TEST(EmulatedTest, LayoutsEqualOneRankOfTheReferenceInFloat32) {
  const v1::JobSpec spec = JobOf(kFp32);
  const Outcome one = Go({.spec = spec, .steps = 2});
  for (const Layout& layout : {Layout{}, Layout{.tensor = 2, .sequence = true},
                               Layout{.data = 2, .pipeline = 2, .zero = true}}) {
    const Outcome run = Go({.spec = spec, .layout = layout, .backend = "emulated", .steps = 2});
    EXPECT_EQ(CheckEquivalent(run, one, 1e-5), absl::OkStatus()) << layout.Name();
  }
}

class EmulatedModelTest : public testing::TestWithParam<SmallModel> {};

TEST_P(EmulatedModelTest, EqualsTheReferenceInFloat32) {
  v1::JobSpec spec = SmallJobOf(GetParam());
  spec.mutable_model()->set_layers(2);
  spec.mutable_training()->set_precision(kFp32);
  Outcome one = Go({.spec = spec, .steps = 2});
  DropRounding(GetParam(), &one.gradients);
  for (const Layout& layout : {Layout{}, Layout{.tensor = 2, .sequence = true}}) {
    Outcome run = Go({.spec = spec, .layout = layout, .backend = "emulated", .steps = 2});
    DropRounding(GetParam(), &run.gradients);
    EXPECT_EQ(CheckEquivalent(run, one, 1e-5), absl::OkStatus()) << layout.Name();
  }
}
// Between them they have every operation.
std::vector<SmallModel> FewModels() {
  std::vector<SmallModel> few = AllModels();
  std::erase_if(few, [](const SmallModel& m) {
    return m.name != "deepseek_v3" && m.name != "gpt_oss" && m.name != "gpt2" &&
           m.name != "qk_norm";
  });
  return few;
}
INSTANTIATE_TEST_SUITE_P(Models, EmulatedModelTest, testing::ValuesIn(FewModels()),
                         [](const auto& info) { return info.param.name; });

TEST(EmulatedTest, LossesInNarrowTypesAreThoseOfTheReference) {
  for (const auto precision : {kBf16, kFp8}) {
    const v1::JobSpec spec = JobOf(precision);
    const Outcome reference = Go({.spec = spec, .steps = 3}),
                  emulated = Go({.spec = spec, .backend = "emulated", .steps = 3});
    ASSERT_EQ(emulated.losses.size(), 3u);
    for (size_t step = 0; step < 3; ++step)
      EXPECT_NEAR(emulated.losses[step] / reference.losses[step], 1, 0.005) << "step " << step + 1;
  }
}

TEST(EmulatedTest, ResumesWithTheSameBits) {
  for (const auto precision : {kBf16, kFp8}) {
    const RunOptions options{.spec = JobOf(precision), .backend = "emulated", .steps = 3};
    const Outcome undisturbed = Go(options);
    RunOptions part = options;
    part.steps = 1;
    const Outcome first = Go(part);
    part.steps = 2;
    part.resume = &first.state;
    part.position = first.position;
    const Outcome rest = Go(part);
    ASSERT_EQ(rest.losses.size(), 2u);
    EXPECT_EQ(first.losses[0], undisturbed.losses[0]);
    EXPECT_EQ(rest.losses[1], undisturbed.losses[2]);
    for (const auto& [name, tensor] : undisturbed.state)
      EXPECT_TRUE(rest.state.at(name).bytes == tensor.bytes) << name;
  }
}

}  // namespace
}  // namespace mt::equivalence
