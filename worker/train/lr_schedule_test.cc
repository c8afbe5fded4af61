#include "worker/train/lr_schedule.h"

#include <gtest/gtest.h>

namespace mt {
namespace {

v1::TrainingSpec Spec(v1::ScheduleSpec::Kind kind, int64_t decay_steps) {
  v1::TrainingSpec training;
  training.set_steps(100);
  training.mutable_optimizer()->set_lr(1.0);
  training.mutable_schedule()->set_kind(kind);
  training.mutable_schedule()->set_warmup_steps(10);
  training.mutable_schedule()->set_decay_steps(decay_steps);
  training.mutable_schedule()->set_min_lr(0.1);
  return training;
}

TEST(LearningRateTest, WarmsUpFromTheFirstStepToThePeak) {
  for (const auto kind : {v1::ScheduleSpec::KIND_CONSTANT, v1::ScheduleSpec::KIND_LINEAR,
                          v1::ScheduleSpec::KIND_COSINE, v1::ScheduleSpec::KIND_WSD}) {
    const v1::TrainingSpec training = Spec(kind, 90);
    EXPECT_DOUBLE_EQ(LearningRateAt(training, 0), 0.1);
    EXPECT_DOUBLE_EQ(LearningRateAt(training, 4), 0.5);
    EXPECT_DOUBLE_EQ(LearningRateAt(training, 9), 1.0);
    EXPECT_DOUBLE_EQ(LearningRateAt(training, 10), 1.0);
  }
}

TEST(LearningRateTest, EachKindDecaysItsOwnWay) {
  EXPECT_DOUBLE_EQ(LearningRateAt(Spec(v1::ScheduleSpec::KIND_CONSTANT, 90), 99), 1.0);
  const v1::TrainingSpec linear = Spec(v1::ScheduleSpec::KIND_LINEAR, 90);
  EXPECT_DOUBLE_EQ(LearningRateAt(linear, 55), 0.55);
  EXPECT_DOUBLE_EQ(LearningRateAt(linear, 100), 0.1);
  const v1::TrainingSpec cosine = Spec(v1::ScheduleSpec::KIND_COSINE, 90);
  EXPECT_DOUBLE_EQ(LearningRateAt(cosine, 55), 0.55);
  EXPECT_NEAR(LearningRateAt(cosine, 40), 0.1 + 0.9 * 0.75, 1e-12);
  EXPECT_DOUBLE_EQ(LearningRateAt(cosine, 5000), 0.1);
  const v1::TrainingSpec wsd = Spec(v1::ScheduleSpec::KIND_WSD, 20);
  EXPECT_DOUBLE_EQ(LearningRateAt(wsd, 80), 1.0);
  EXPECT_DOUBLE_EQ(LearningRateAt(wsd, 90), 0.55);
  EXPECT_DOUBLE_EQ(LearningRateAt(wsd, 100), 0.1);
}

}  // namespace
}  // namespace mt
