#include "coordinator/jobs/log_store.h"

#include <gtest/gtest.h>

#include "common/testing/mem_env.h"

namespace mt {
namespace {

v1::LogChunk Chunk(int attempt, int rank, const std::string& data) {
  v1::LogChunk chunk;
  chunk.set_attempt(attempt);
  chunk.set_rank(rank);
  chunk.set_data(data);
  return chunk;
}

std::string All(LogStore& logs, const LogStore::Filter& filter, size_t max_bytes = 1 << 20) {
  std::string text;
  const auto page = logs.Read("j", filter, max_bytes);
  EXPECT_TRUE(page.ok()) << page.status();
  for (const auto& chunk : page->chunks)
    absl::StrAppend(&text, chunk.sequence(), ":", chunk.data());
  return text;
}

int64_t SequenceBeforeTail(LogStore& logs, const LogStore::Filter& filter, int64_t lines) {
  LogStore::Tail tail{.lines = lines};
  while (!tail.done) {
    const int64_t before = logs.scanned_bytes();
    const absl::Status status = logs.SearchTail("j", filter, tail);
    EXPECT_TRUE(status.ok()) << status;
    if (!status.ok()) break;
    EXPECT_LE(logs.scanned_bytes() - before, int64_t{2} * LogStore::kScanBytes);
  }
  return tail.after_sequence;
}

// Rank 0 says about `mib` MiB, and rank 5 one line after `quiet_at` of them.
void Fill(LogStore& logs, int mib, int quiet_at) {
  const std::string line = std::string(1023, 'x') + "\n";
  int64_t end = 0;
  for (int i = 0; i < mib * 1024; ++i) {
    if (i == quiet_at * 1024) {
      ASSERT_TRUE(*logs.Append("j", Chunk(1, 5, "quiet\n"), 6));
    }
    ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, line), end += 1024));
  }
}

TEST(LogStoreTest, NumbersFiltersAndResumes) {
  MemEnv env;
  LogStore logs(&env, "/logs");
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "a\n"), 2));
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 1, "b\n"), 2));
  ASSERT_TRUE(*logs.Append("j", Chunk(2, 0, "c\n"), 2));
  EXPECT_EQ(All(logs, {}), "1:a\n2:b\n3:c\n");
  EXPECT_EQ(All(logs, {.rank = 0, .all_ranks = false}), "1:a\n3:c\n");
  EXPECT_EQ(All(logs, {.attempt = 1, .after_sequence = 1}), "2:b\n");
  EXPECT_EQ(All(logs, {}, 1), "1:a\n");
  EXPECT_EQ(SequenceBeforeTail(logs, {}, 2), 1);
  EXPECT_EQ(SequenceBeforeTail(logs, {}, 99), 0);
  EXPECT_EQ(All(logs, {.after_sequence = 3}), "");
}

TEST(LogStoreTest, LinesSentTwiceAreStoredOnce) {
  MemEnv env;
  LogStore logs(&env, "/logs");
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "a\n"), 2));
  EXPECT_FALSE(*logs.Append("j", Chunk(1, 0, "a\n"), 2));
  EXPECT_EQ(logs.LastSequence("j"), 1);
}

TEST(LogStoreTest, SyncedSurvivesACrashAndNumbersGoOn) {
  MemEnv env;
  {
    LogStore logs(&env, "/logs");
    ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "kept\n"), 5));
    ASSERT_TRUE(logs.Sync().ok());
    ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "lost\n"), 10));
    env.Crash();
  }
  LogStore logs(&env, "/logs");
  EXPECT_EQ(All(logs, {}), "1:kept\n");
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "lost\n"), 10));  // the worker sends it again
  EXPECT_FALSE(*logs.Append("j", Chunk(1, 0, "kept\n"), 5));
  EXPECT_EQ(All(logs, {}), "1:kept\n2:lost\n");
}

TEST(LogStoreTest, TornEndIsIgnored) {
  MemEnv env;
  {
    LogStore logs(&env, "/logs");
    ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "whole\n"), 6));
    ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "torn\n"), 11));
    ASSERT_TRUE(logs.Sync().ok());
  }
  const std::string path = "/logs/j/00000000000000000001.log";
  ASSERT_TRUE(env.TruncateFile(path, env.Stat(path)->size_bytes - 3).ok());
  LogStore logs(&env, "/logs");
  EXPECT_EQ(All(logs, {}), "1:whole\n");
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "again\n"), 12));
  EXPECT_EQ(All(logs, {}), "1:whole\n2:again\n");
}

TEST(LogStoreTest, FullDiskIsAnErrorAndWhatWasThereStays) {
  MemEnv env;
  LogStore logs(&env, "/logs");
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "a\n"), 2));
  env.SetCapacity(env.UsedBytes() + 5);
  EXPECT_EQ(logs.Append("j", Chunk(1, 0, "b\n"), 4).status().code(),
            absl::StatusCode::kResourceExhausted);
  env.SetCapacity(std::nullopt);
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "c\n"), 6));
  EXPECT_EQ(All(logs, {}), "1:a\n2:c\n");
}

TEST(LogStoreTest, AReadOfAQuietRankIsBoundedAndGoesOnWhereItStopped) {
  MemEnv env;
  LogStore logs(&env, "/logs", {.segment_bytes = 4 << 20});
  Fill(logs, 10, 9);
  LogStore::Filter filter{.rank = 5, .all_ranks = false};
  std::vector<v1::LogChunk> found;
  for (bool at_end = false; !at_end;) {
    const int64_t before = logs.scanned_bytes();
    const auto page = logs.Read("j", filter);
    ASSERT_TRUE(page.ok()) << page.status();
    EXPECT_LE(logs.scanned_bytes() - before, int64_t{2} * LogStore::kScanBytes);
    ASSERT_TRUE(page->at_end || page->scanned_to > filter.after_sequence);
    filter.after_sequence = page->scanned_to;
    at_end = page->at_end;
    found.insert(found.end(), page->chunks.begin(), page->chunks.end());
  }
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].data(), "quiet\n");
  EXPECT_EQ(filter.after_sequence, logs.LastSequence("j"));
  // Who follows reads what is new, not all of it again.
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "new\n"), -1));
  const int64_t before = logs.scanned_bytes();
  const auto page = logs.Read("j", filter);
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_TRUE(page->chunks.empty());
  EXPECT_EQ(page->scanned_to, logs.LastSequence("j"));
  EXPECT_LE(logs.scanned_bytes() - before, 128 << 10);
}

TEST(LogStoreTest, TheTailOfAQuietRankIsFoundInBoundedSteps) {
  MemEnv env;
  LogStore logs(&env, "/logs", {.segment_bytes = 4 << 20});
  Fill(logs, 10, 1);
  const LogStore::Filter quiet{.rank = 5, .all_ranks = false};
  const int64_t before = SequenceBeforeTail(logs, quiet, 1);
  EXPECT_EQ(before, 1024);
  EXPECT_EQ(SequenceBeforeTail(logs, quiet, 2), 1024);  // there is only one
  EXPECT_EQ(SequenceBeforeTail(logs, {}, 3), logs.LastSequence("j") - 3);
  EXPECT_EQ(SequenceBeforeTail(logs, {.after_sequence = 5000}, 100000), 5000);
}

TEST(LogStoreTest, AStartReadsSummariesAndNotTheLines) {
  MemEnv env;
  {
    LogStore logs(&env, "/logs", {.segment_bytes = 1 << 20});
    Fill(logs, 5, 1);
    ASSERT_TRUE(logs.Sync().ok());
  }
  int64_t last = 0;
  {
    LogStore logs(&env, "/logs", {.segment_bytes = 1 << 20});
    last = logs.LastSequence("j");
    EXPECT_EQ(last, 5 * 1024 + 1);
    EXPECT_LE(logs.scanned_bytes(), int64_t{2} << 20);  // the one that was being written
  }
  LogStore logs(&env, "/logs", {.segment_bytes = 1 << 20});
  EXPECT_EQ(logs.LastSequence("j"), last);
  EXPECT_EQ(logs.scanned_bytes(), 0);
  EXPECT_FALSE(*logs.Append("j", Chunk(1, 5, "quiet\n"), 6));  // was stored, the summary says
  EXPECT_EQ(All(logs, {.rank = 5, .all_ranks = false, .after_sequence = 1000}), "1025:quiet\n");
  // A summary that does not fit is not believed.
  ASSERT_TRUE(WriteFileAtomically(&env, "/logs/j/00000000000000000001.log.summary", "torn").ok());
  LogStore again(&env, "/logs", {.segment_bytes = 1 << 20});
  EXPECT_EQ(again.LastSequence("j"), last);
  EXPECT_GT(again.scanned_bytes(), 0);
}

TEST(LogStoreTest, TheOldestLinesOfAJobGoWhenItHasTooManyAndThatIsSaidOnce) {
  MemEnv env;
  LogStore logs(&env, "/logs", {.job_bytes = 3 << 20, .segment_bytes = 1 << 20});
  std::vector<std::string> said;
  logs.SetOnDropped([&](const std::string& job, const std::string& message) {
    said.push_back(absl::StrCat(job, ": ", message));
  });
  Fill(logs, 10, 1);
  EXPECT_LE(env.UsedBytes(), uint64_t{4} << 20);
  const auto page = logs.Read("j", {});
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_GT(page->chunks.at(0).sequence(), 6000);
  EXPECT_EQ(logs.LastSequence("j"), 10 * 1024 + 1);
  ASSERT_EQ(said.size(), 1u);
  EXPECT_NE(said[0].find("j: the job's log has reached 3 MiB"), std::string::npos) << said[0];
}

TEST(LogStoreTest, NothingIsStoredWhileTheDiskIsNearlyFullAndAgainWhenThereIsRoom) {
  MemEnv env;
  LogStore logs(&env, "/logs", {.min_free_bytes = 1000});
  env.SetCapacity(env.UsedBytes() + 3000);
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "a\n"), 2));
  env.SetCapacity(env.UsedBytes() + 900);
  const absl::Status status = logs.Append("j", Chunk(1, 0, "b\n"), 4).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(status.message().find("stay in the nodes' own logs"), std::string::npos) << status;
  env.SetCapacity(env.UsedBytes() + 1100);  // not enough to begin again
  EXPECT_FALSE(logs.Append("j", Chunk(1, 0, "c\n"), 6).ok());
  env.SetCapacity(env.UsedBytes() + 2000);
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "d\n"), 8));
  EXPECT_EQ(All(logs, {}), "1:a\n2:d\n");
}

TEST(LogStoreTest, SubscribersAreToldOncePerNotify) {
  MemEnv env;
  LogStore logs(&env, "/logs");
  int calls = 0;
  const auto id = logs.Subscribe("j", [&] { ++calls; });
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "a\n"), 2));
  ASSERT_TRUE(*logs.Append("other", Chunk(1, 0, "a\n"), 2));
  logs.Notify();
  logs.Notify();
  EXPECT_EQ(calls, 1);
  logs.Unsubscribe(id);
  ASSERT_TRUE(*logs.Append("j", Chunk(1, 0, "b\n"), 4));
  logs.Notify();
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace mt
