#include "common/spec/batch_schedule.h"

#include <gtest/gtest.h>

#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/env.h"

namespace mt {
namespace {

v1::TrainingSpec Ramp(int64_t start, int64_t increment, int64_t samples, int64_t final_batch) {
  v1::TrainingSpec spec;
  spec.set_global_batch(final_batch);
  spec.mutable_batch_rampup()->set_start(start);
  spec.mutable_batch_rampup()->set_increment(increment);
  spec.mutable_batch_rampup()->set_samples(samples);
  return spec;
}

int64_t Number(absl::string_view text) {
  int64_t number = 0;
  EXPECT_TRUE(absl::SimpleAtoi(text, &number)) << text;
  return number;
}

// tests/golden/batch_rampup/make.py: every step's size, and with it where every step begins and ends.
TEST(BatchSchedule, IsMegatronCores) {
  const auto golden =
      ReadFile(Env::Real(), MT_SOURCE_DIR "/tests/golden/batch_rampup/expected.txt");
  ASSERT_TRUE(golden.ok()) << golden.status();
  int cases = 0;
  for (const absl::string_view line : absl::StrSplit(*golden, '\n', absl::SkipEmpty())) {
    SCOPED_TRACE(line);
    const std::vector<absl::string_view> words = absl::StrSplit(line, ' ');
    ASSERT_GT(words.size(), 5u);
    const v1::TrainingSpec spec =
        Ramp(Number(words[0]), Number(words[1]), Number(words[2]), Number(words[3]));
    int64_t consumed = 0, step = 0;
    for (size_t i = 5; i < words.size(); ++i) {
      const std::pair<absl::string_view, absl::string_view> run = absl::StrSplit(words[i], '*');
      for (int64_t left = Number(run.second); left > 0; --left) {
        ASSERT_EQ(SamplesOfSteps(spec, step), consumed) << "step " << step;
        ASSERT_EQ(GlobalBatchAt(spec, consumed), Number(run.first)) << "step " << step;
        consumed += Number(run.first);
        ++step;
        ASSERT_EQ(GlobalBatchBefore(spec, consumed), Number(run.first)) << "step " << step;
      }
    }
    ++cases;
  }
  EXPECT_GT(cases, 60);
}

TEST(BatchSchedule, WithoutARampEveryStepIsWhole) {
  v1::TrainingSpec spec;
  spec.set_global_batch(12);
  EXPECT_EQ(GlobalBatchAt(spec, 0), 12);
  EXPECT_EQ(GlobalBatchAt(spec, 1'000'000), 12);
  EXPECT_EQ(GlobalBatchBefore(spec, 12), 12);
  EXPECT_EQ(SamplesOfSteps(spec, 0), 0);
  EXPECT_EQ(SamplesOfSteps(spec, 7), 84);
}

// A plan asks for them before anything is judged by its length.
TEST(BatchSchedule, LongRunsAreCountedAtOnceAndDoNotOverflow) {
  const v1::TrainingSpec slow = Ramp(1, 1, int64_t{1} << 48, 1 << 20);
  EXPECT_EQ(SamplesOfSteps(slow, 1'000), 1'000);
  EXPECT_GT(SamplesOfSteps(slow, 1'000'000'000), 1'000'000'000);
  EXPECT_GT(GlobalBatchBefore(slow, int64_t{1} << 47), 1);
  const v1::TrainingSpec large = Ramp(1, 1, 10, 1 << 24);
  EXPECT_EQ(SamplesOfSteps(large, std::numeric_limits<int64_t>::max() / 2),
            std::numeric_limits<int64_t>::max());
}

}  // namespace
}  // namespace mt
