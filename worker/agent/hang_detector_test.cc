#include "worker/agent/hang_detector.h"

#include <gtest/gtest.h>

#include "common/metered_env.h"
#include "common/testing/mem_env.h"

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

// Each piece takes nearly as long as a phase may; what the rank says of it is RankChannel's.
TEST_F(HangDetectorTest, SlowFileIsNoHangAndOneThatStandsStillIs) {
  MemEnv disk;
  const auto moved = std::make_shared<std::atomic<int64_t>>(0);
  MeteredEnv metered(&disk, moved);
  auto file = *metered.NewWritableFile("/shard", Env::WriteMode::kTruncate);
  const auto say = [&] {
    detector_.OnProgress(At(absl::StrCat("finish, ", *moved >> 20, " MiB"), 12), now_);
  };
  const std::string piece(4 << 20, 'x');
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(file->Append(piece).ok());
    say();
    now_ += absl::Seconds(290);
    EXPECT_FALSE(detector_.IsHung(now_)) << "piece " << i;
  }
  std::string back(piece.size(), ' ');
  const auto reader = *metered.NewRandomAccessFile("/shard");
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(reader->Read(i * piece.size(), piece.size(), back.data()).ok());
    say();
    now_ += absl::Seconds(290);
    EXPECT_FALSE(detector_.IsHung(now_)) << "read piece " << i;
  }
  for (int second = 0; second < 10; ++second) {
    say();
    now_ += absl::Seconds(1);
  }
  EXPECT_TRUE(detector_.IsHung(now_)) << "signs of life, but no byte for 300 s";
}

}  // namespace
}  // namespace mt
