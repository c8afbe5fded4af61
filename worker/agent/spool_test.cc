#include "worker/agent/spool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/testing/mem_env.h"

namespace mt {
namespace {

constexpr char kPath[] = "/state/events.spool";

v1::WorkerEvent Exited(int rank) {
  v1::WorkerEvent event;
  event.set_job_id("job");
  event.set_rank(rank);
  event.mutable_rank_exited()->set_exit_code(1);
  return event;
}

v1::WorkerEvent Line(const std::string& text) {
  v1::WorkerEvent event;
  event.set_job_id("job");
  event.mutable_log_lines()->set_data(text);
  return event;
}

class SpoolTest : public ::testing::Test {
 protected:
  SpoolTest() { EXPECT_TRUE(env_.CreateDirectories("/state").ok()); }
  std::unique_ptr<Spool> Open(int64_t limit = 16 << 20) {
    auto spool = Spool::Open(&env_, kPath, limit);
    EXPECT_TRUE(spool.ok()) << spool.status();
    return std::move(*spool);
  }
  static std::vector<int64_t> Sequences(const Spool& spool) {
    std::vector<int64_t> sequences;
    for (const auto& event : spool.Pending()) sequences.push_back(event.sequence());
    return sequences;
  }
  MemEnv env_;
};

TEST_F(SpoolTest, SurvivesAKillInOrder) {
  {
    auto spool = Open();
    spool->Append(Exited(0));
    spool->Append(Line("hello\n"));
    spool->Append(Exited(1));
    spool->Acknowledge(1);
  }
  env_.KillProcess();
  auto spool = Open();
  EXPECT_THAT(Sequences(*spool), ::testing::ElementsAre(2, 3));
  EXPECT_EQ(spool->Pending()[0].log_lines().data(), "hello\n");
  EXPECT_EQ(spool->next_sequence(), 4);
}

TEST_F(SpoolTest, TruthSurvivesPowerLoss) {
  {
    auto spool = Open();
    spool->Append(Line("not synced, and then\n"));
    spool->Append(Exited(7));
    spool->Append(Line("lost\n"));
  }
  env_.Crash();
  auto spool = Open();
  ASSERT_EQ(spool->Pending().size(), 2u);
  EXPECT_EQ(spool->Pending()[1].rank(), 7);
}

// A coordinator that is away acknowledges nothing: what newer reports replaced leaves the file all the same.
TEST_F(SpoolTest, TheFileStaysBoundedWithoutAcknowledgements) {
  auto spool = Open(/*limit=*/1 << 10);
  v1::WorkerEvent report;
  report.set_job_id("job");
  report.mutable_step_report()->set_checkpoint_stall_microseconds(1234567);
  for (int i = 0; i < 400'000; ++i) spool->Append(report);
  EXPECT_LT(spool->pending_bytes(), 2 << 10);
  const auto size = env_.Stat(kPath);
  ASSERT_TRUE(size.ok()) << size.status();
  EXPECT_LT(size->size_bytes, 5u << 20);
}

TEST_F(SpoolTest, SequencesGoOnWhenAllIsAcknowledged) {
  {
    auto spool = Open();
    spool->Append(Exited(0));
    spool->Append(Exited(1));
    spool->Acknowledge(2);
    EXPECT_TRUE(spool->Pending().empty());
  }
  auto spool = Open();
  EXPECT_TRUE(spool->Pending().empty());
  EXPECT_EQ(spool->next_sequence(), 3);
}

TEST_F(SpoolTest, ATornTailIsCutAndWhatComesNextIsKept) {
  uint64_t size = 0;
  {
    auto spool = Open();
    spool->Append(Exited(0));
    size = env_.Stat(kPath)->size_bytes;
    spool->Append(Exited(1));
  }
  for (uint64_t cut = size + 1; cut < size + 20; ++cut) {
    ASSERT_TRUE(env_.TruncateFile(kPath, cut).ok());
    auto spool = Open();
    EXPECT_THAT(Sequences(*spool), ::testing::ElementsAre(1)) << "cut at " << cut;
    spool->Append(Exited(2));
    spool = Open();
    EXPECT_EQ(spool->Pending().back().rank(), 2);
  }
}

TEST_F(SpoolTest, ADamagedRecordEndsWhatIsBelieved) {
  uint64_t size = 0;
  {
    auto spool = Open();
    spool->Append(Exited(0));
    size = env_.Stat(kPath)->size_bytes;
    spool->Append(Exited(1));
  }
  ASSERT_TRUE(env_.CorruptByte(kPath, size + 14).ok());
  EXPECT_THAT(Sequences(*Open()), ::testing::ElementsAre(1));
}

TEST_F(SpoolTest, OverTheLimitLogLinesAreDroppedAndCountedAndExitsAreKept) {
  auto spool = Open(/*limit=*/4096);
  const std::string line = std::string(99, 'x') + "\n";
  for (int i = 0; i < 1000; ++i) spool->Append(Line(line));
  for (int i = 0; i < 200; ++i) spool->Append(Exited(i));
  EXPECT_LT(spool->pending_bytes(), 4096 + 200 * 100);
  int exits = 0;
  for (const auto& event : spool->Pending()) exits += event.has_rank_exited();
  EXPECT_EQ(exits, 200);
  const int64_t dropped = spool->dropped_lines();
  EXPECT_GT(dropped, 900);

  spool->Acknowledge(spool->next_sequence() - 1);
  spool->Append(Line("after\n"));
  ASSERT_EQ(spool->Pending().size(), 2u);
  EXPECT_THAT(spool->Pending()[0].log_lines().data(),
              ::testing::HasSubstr(absl::StrCat(dropped, " lines were not forwarded")));
  EXPECT_EQ(spool->Pending()[1].log_lines().data(), "after\n");
}

TEST_F(SpoolTest, OverTheLimitOnlyTheNewestStepReportIsKept) {
  auto spool = Open(/*limit=*/1);
  for (int step = 1; step <= 50; ++step) {
    v1::WorkerEvent event;
    event.mutable_step_report()->mutable_progress()->set_step(step);
    spool->Append(event);
  }
  ASSERT_EQ(spool->Pending().size(), 1u);
  EXPECT_EQ(spool->Pending()[0].step_report().progress().step(), 50);
}

TEST_F(SpoolTest, AFullDiskLosesNothingOnceThereIsRoomAgain) {
  {
    auto spool = Open();
    env_.SetCapacity(env_.UsedBytes());
    spool->Append(Exited(0));
    spool->Append(Exited(1));
    EXPECT_EQ(spool->Pending().size(), 2u);
    env_.SetCapacity(std::nullopt);
    spool->Append(Exited(2));
  }
  env_.Crash();
  EXPECT_THAT(Sequences(*Open()), ::testing::ElementsAre(1, 2, 3));
}

}  // namespace
}  // namespace mt
