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
  const auto chunks = logs.Read("j", filter, max_bytes);
  EXPECT_TRUE(chunks.ok()) << chunks.status();
  for (const auto& chunk : *chunks) absl::StrAppend(&text, chunk.sequence(), ":", chunk.data());
  return text;
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
  EXPECT_EQ(*logs.SequenceBeforeTail("j", {}, 2), 1);
  EXPECT_EQ(*logs.SequenceBeforeTail("j", {}, 99), 0);
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
