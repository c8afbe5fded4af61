#include "worker/train/step_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mt {
namespace {

using ::testing::HasSubstr;

v1::StepReport ReportOf(const StepResult& result) {
  v1::JobSpec spec;
  spec.mutable_training()->set_steps(10);
  spec.mutable_data()->set_sequence_length(8);
  return StepReporter(spec, 0, 0, absl::ZeroDuration())
      .Report(result, 4, absl::Milliseconds(5), absl::ZeroDuration(), absl::Seconds(1));
}

TEST(StepLineTest, OfADenseModelNamesNoExperts) {
  const v1::StepReport report = ReportOf({.step = 1, .loss = 2.5});
  EXPECT_FALSE(report.progress().has_moe());
  EXPECT_THAT(StepReporter::Line(report.progress(), 1), HasSubstr("| loss 2.500000 | grad norm"));
}

TEST(StepLineTest, ShowsAuxiliaryLossesInOrderAndTheBusiestExpert) {
  const v1::StepReport report = ReportOf(
      {.step = 3,
       .loss = 2.5,
       .auxiliary_losses = {{"router_z", 0.002}, {"balance", 0.011}},
       .expert_load = ExpertLoad{.first_layer = 2, .load_ratio = {1.25, 2.0}, .dropped = 7}});
  EXPECT_EQ(report.progress().moe().first_layer(), 2);
  EXPECT_EQ(report.progress().auxiliary_losses().at("balance"), 0.011);
  EXPECT_THAT(
      StepReporter::Line(report.progress(), 1),
      HasSubstr("loss 2.500000 | balance 0.011000 | router_z 0.002000 | expert load 1.62 at "
                "most 2.00 | dropped 7 | grad norm"));
}

}  // namespace
}  // namespace mt
