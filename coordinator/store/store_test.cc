#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "coordinator/store/memory_store.h"
#include "coordinator/store/sqlite_store.h"

namespace mt {
namespace {

using ::testing::HasSubstr;

class FixedClock : public Clock {
 public:
  absl::Time Now() override { return now; }
  absl::Duration Monotonic() override { return absl::ZeroDuration(); }
  absl::Time now = absl::FromUnixSeconds(1000);
};

class SqliteStoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/mt_store_XXXXXX";
    folder_ = mkdtemp(pattern);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::unique_ptr<StateStore> Open() {
    auto store = OpenSqliteStore(Env::Real(), folder_, &clock_);
    EXPECT_TRUE(store.ok()) << store.status();
    return store.ok() ? std::move(*store) : nullptr;
  }
  std::string folder_;
  FixedClock clock_;
};

StoreBatch OneOfEach() {
  StoreBatch batch;
  store::JobRecord job;
  job.mutable_job()->set_id("a-1");
  job.mutable_job()->set_state(v1::JOB_STATE_RUNNING);
  job.set_order(3);
  batch.jobs["a-1"] = job;
  batch.progress["a-1"].set_step(7);
  batch.attempts[{"a-1", 2}].set_job_id("a-1");
  batch.attempts[{"a-1", 2}].set_generation(2);
  store::CheckpointRecord checkpoint;
  checkpoint.set_job_id("a-1");
  checkpoint.set_step(5);
  batch.checkpoints[{"a-1", 5}] = checkpoint;
  batch.nodes["n1"].set_name("n1");
  batch.nodes["n1"].set_acknowledged_sequence(42);
  for (int i = 1; i <= 3; ++i) {
    v1::Event event;
    event.set_sequence(i);
    event.set_job_id(i == 2 ? "b-1" : "a-1");
    batch.events.push_back(event);
  }
  return batch;
}

TEST_F(SqliteStoreTest, ARestoredBackupHasAGreaterEpochThanAnyDaemonHasSeen) {
  const std::string path = folder_ + "/coordinator.db", backup = folder_ + "/backup.db";
  ASSERT_EQ(Open()->Load()->epoch, 1000);
  std::filesystem::copy_file(path, backup);
  for (int i = 1; i <= 5; ++i) ASSERT_EQ(Open()->Load()->epoch, 1000 + i);
  std::filesystem::copy_file(backup, path, std::filesystem::copy_options::overwrite_existing);
  clock_.now += absl::Minutes(1);
  EXPECT_EQ(Open()->Load()->epoch, 1060);
  clock_.now -= absl::Hours(1);  // a clock that goes back does not take the epoch with it
  EXPECT_EQ(Open()->Load()->epoch, 1061);
}

TEST_F(SqliteStoreTest, EverythingComesBackAndTheEpochGrows) {
  {
    auto store = Open();
    const auto state = store->Load();
    ASSERT_TRUE(state.ok()) << state.status();
    EXPECT_EQ(state->epoch, 1000);
    ASSERT_TRUE(store->Commit(OneOfEach()).ok());
  }
  auto store = Open();
  auto state = store->Load();
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_EQ(state->epoch, 1001);  // in the same second
  EXPECT_FALSE(state->cluster_id.empty());
  EXPECT_EQ(state->jobs.at("a-1").order(), 3);
  EXPECT_EQ(state->progress.at("a-1").step(), 7);
  EXPECT_EQ(state->attempts.count({"a-1", 2}), 1u);
  EXPECT_EQ(state->checkpoints.count({"a-1", 5}), 1u);
  EXPECT_EQ(state->nodes.at("n1").acknowledged_sequence(), 42);
  EXPECT_EQ(state->last_event_sequence, 3);
  EXPECT_EQ(store->ListEvents("a-1", 0, 10)->size(), 2u);
  EXPECT_EQ(store->ListEvents("", 1, 10)->size(), 2u);
  // A limit keeps the newest.
  const auto newest = store->ListEvents("", 0, 2);
  ASSERT_EQ(newest->size(), 2u);
  EXPECT_EQ(newest->front().sequence(), 2);
  EXPECT_EQ(newest->back().sequence(), 3);
  EXPECT_EQ(store->ListEvents("a-1", 0, 1)->front().sequence(), 3);
  StoreBatch erase;
  erase.checkpoints[{"a-1", 5}] = std::nullopt;
  ASSERT_TRUE(store->Commit(erase).ok());
  EXPECT_TRUE(store->Load()->checkpoints.empty());
}

TEST_F(SqliteStoreTest, SecondCoordinatorIsRefusedByPidAndPath) {
  auto store = Open();
  const auto second = OpenSqliteStore(Env::Real(), folder_);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(absl::StrCat("pid ", getpid())));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(folder_));
  store.reset();
  EXPECT_NE(Open(), nullptr);
}

TEST_F(SqliteStoreTest, CommittedSurvivesKill) {
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    auto store = OpenSqliteStore(Env::Real(), folder_);
    const bool ok = store.ok() && (*store)->Load().ok() && (*store)->Commit(OneOfEach()).ok();
    (void)!write(ready[1], ok ? "y" : "n", 1);
    pause();
    _exit(0);
  }
  char answer = 0;
  ASSERT_EQ(read(ready[0], &answer, 1), 1);
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  close(ready[0]);
  close(ready[1]);
  ASSERT_EQ(answer, 'y');
  auto store = Open();
  EXPECT_EQ(store->Load()->progress.at("a-1").step(), 7);
}

TEST_F(SqliteStoreTest, DamageAndNewerSchemaAreRefused) {
  Open().reset();
  const std::string path = folder_ + "/coordinator.db";
  {
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(60);  // user_version, big-endian
    file.write("\0\0\0\x63", 4);
  }
  const auto newer = OpenSqliteStore(Env::Real(), folder_);
  EXPECT_EQ(newer.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(newer.status().message()), HasSubstr("schema version 99"));
  std::ofstream(path, std::ios::binary | std::ios::trunc) << std::string(8192, 'x');
  const auto damaged = OpenSqliteStore(Env::Real(), folder_);
  EXPECT_EQ(damaged.status().code(), absl::StatusCode::kDataLoss) << damaged.status();
}

TEST(MemoryStoreTest, DeathsAndFullDisk) {
  auto disk = std::make_shared<MemoryDisk>();
  auto store = NewMemoryStore(disk);
  ASSERT_TRUE(store->Load().ok());
  disk->full = true;
  EXPECT_EQ(store->Commit(OneOfEach()).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(disk->state.jobs.empty());
  disk->full = false;
  disk->death = [] { return MemoryDisk::Death::kAfter; };
  EXPECT_EQ(store->Commit(OneOfEach()).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(disk->state.jobs.size(), 1u);
  disk->death = nullptr;
  EXPECT_EQ(store->Commit({}).code(), absl::StatusCode::kAborted);
  EXPECT_EQ(NewMemoryStore(disk)->Load()->epoch, 2);
}

}  // namespace
}  // namespace mt
