#include "worker/agent/hang_detector.h"

#include <gtest/gtest.h>

namespace mt {
namespace {

v1::Progress At(const std::string& phase, int64_t step, const std::string& where = "computing") {
  v1::Progress progress;
  progress.set_phase(phase);
  progress.set_step(step);
  progress.set_where(where);
  return progress;
}

class HangDetectorTest : public ::testing::Test {
 protected:
  // Steps of these lengths, one after the other.
  void Steps(int count, absl::Duration each) {
    for (int i = 0; i < count; ++i) {
      now_ += each;
      detector_.OnProgress(At("step", ++step_), now_);
    }
  }
  absl::Duration now_;
  int64_t step_ = 0;
  HangDetector detector_{absl::Seconds(10), absl::Seconds(300), absl::ZeroDuration()};
};

TEST_F(HangDetectorTest, StartHasItsOwnDeadline) {
  EXPECT_FALSE(detector_.IsHung(absl::Seconds(299)));
  EXPECT_TRUE(detector_.IsHung(absl::Seconds(300)));
}

TEST_F(HangDetectorTest, LearnsFromStepsAndForgetsTheWarmUp) {
  detector_.OnProgress(At("step", 0), now_);
  Steps(5, absl::Seconds(60));
  EXPECT_EQ(detector_.Deadline(now_), absl::Seconds(300));
  Steps(30, absl::Seconds(4));
  EXPECT_EQ(detector_.Deadline(now_), absl::Seconds(20));
  EXPECT_FALSE(detector_.IsHung(now_ + absl::Seconds(19)));
  EXPECT_TRUE(detector_.IsHung(now_ + absl::Seconds(20)));
}

TEST_F(HangDetectorTest, NeverBelowTheFloor) {
  detector_.OnProgress(At("step", 0), now_);
  Steps(50, absl::Milliseconds(10));
  EXPECT_EQ(detector_.Deadline(now_), absl::Seconds(10));
}

TEST_F(HangDetectorTest, OtherPhasesHaveTheStartDeadlineAndDoNotTeach) {
  detector_.OnProgress(At("step", 0), now_);
  Steps(20, absl::Seconds(1));
  detector_.OnProgress(At("checkpoint", step_), now_);
  EXPECT_EQ(detector_.Deadline(now_), absl::Seconds(300));
  now_ += absl::Seconds(200);
  detector_.OnProgress(At("step", step_), now_);
  Steps(10, absl::Seconds(1));
  EXPECT_EQ(detector_.Deadline(now_), absl::Seconds(10));
}

TEST_F(HangDetectorTest, SignsOfLifeAreNotProgress) {
  detector_.OnProgress(At("step", 0), now_);
  Steps(10, absl::Seconds(1));
  for (int i = 1; i <= 10; ++i) detector_.OnProgress(At("step", step_), now_ + absl::Seconds(i));
  EXPECT_TRUE(detector_.IsHung(now_ + absl::Seconds(10)));
}

// The silent one is named first; the ones that wait for it get half as much again.
TEST_F(HangDetectorTest, WhoIsHeardWaitingForPeersIsGivenLonger) {
  detector_.OnProgress(At("step", 0), now_);
  Steps(10, absl::Seconds(1));
  for (int i = 1; i <= 16; ++i) {
    detector_.OnProgress(At("step", step_, "waiting: all-reduce in the group data"),
                         now_ + absl::Seconds(i));
    if (i == 14) {
      EXPECT_FALSE(detector_.IsHung(now_ + absl::Seconds(i)));
    }
  }
  EXPECT_TRUE(detector_.IsHung(now_ + absl::Seconds(16)));
  EXPECT_TRUE(detector_.IsHung(now_ + absl::Seconds(30)));  // not heard for long
}

}  // namespace
}  // namespace mt
