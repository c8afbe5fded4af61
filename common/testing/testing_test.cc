#include <gtest/gtest.h>

#include "common/testing/mem_env.h"
#include "common/testing/sim_event_loop.h"
#include "common/testing/sim_transport.h"

namespace mt {
namespace {

void Write(Env* env, const std::string& path, absl::string_view data, bool sync) {
  auto file = env->NewWritableFile(path, Env::WriteMode::kTruncate);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Append(data).ok());
  if (sync) {
    ASSERT_TRUE((*file)->Sync().ok());
  }
}

TEST(MemEnvTest, CrashLosesUnsyncedBytesAndNames) {
  MemEnv env;
  ASSERT_TRUE(env.CreateDirectories("/d").ok());
  Write(&env, "/d/named", "synced", true);
  ASSERT_TRUE(env.SyncDirectory("/d").ok());
  {
    auto file = env.NewWritableFile("/d/named", Env::WriteMode::kAppend);
    ASSERT_TRUE((*file)->Append(" lost").ok());
    EXPECT_EQ(*ReadFile(&env, "/d/named"), "synced lost");
  }
  Write(&env, "/d/unnamed", "synced, but the folder is not", true);
  env.Crash();
  EXPECT_EQ(*ReadFile(&env, "/d/named"), "synced");
  EXPECT_FALSE(Exists(&env, "/d/unnamed"));
}

TEST(MemEnvTest, RenameIsUndoneByCrashUnlessTheFolderIsSynced) {
  MemEnv env;
  ASSERT_TRUE(WriteFileAtomically(&env, "/f", "old").ok());
  Write(&env, "/new", "new", true);
  ASSERT_TRUE(env.Rename("/new", "/f").ok());
  EXPECT_EQ(*ReadFile(&env, "/f"), "new");
  env.Crash();
  EXPECT_EQ(*ReadFile(&env, "/f"), "old");
  ASSERT_TRUE(WriteFileAtomically(&env, "/f", "newer").ok());
  env.Crash();
  EXPECT_EQ(*ReadFile(&env, "/f"), "newer");
}

TEST(MemEnvTest, RemovalsAndFolderRenamesFollowTheFolder) {
  MemEnv env;
  ASSERT_TRUE(env.CreateDirectories("/a/tmp").ok());
  ASSERT_TRUE(WriteFileAtomically(&env, "/a/tmp/x", "1").ok());
  ASSERT_TRUE(env.Rename("/a/tmp", "/a/final").ok());
  env.Crash();
  EXPECT_TRUE(Exists(&env, "/a/tmp/x"));
  ASSERT_TRUE(env.RemoveTree("/a/final").ok());
  ASSERT_TRUE(env.Rename("/a/tmp", "/a/final").ok());
  ASSERT_TRUE(env.SyncDirectory("/a").ok());
  env.Crash();
  EXPECT_EQ(*ReadFile(&env, "/a/final/x"), "1");
  ASSERT_TRUE(env.RemoveTree("/a/final").ok());
  env.Crash();
  EXPECT_TRUE(Exists(&env, "/a/final/x"));
  ASSERT_TRUE(env.RemoveTree("/a/final").ok());
  ASSERT_TRUE(env.SyncDirectory("/a").ok());
  env.Crash();
  EXPECT_FALSE(Exists(&env, "/a/final/x"));
}

TEST(MemEnvTest, FullDiskFaultsLocksAndDeadHandles) {
  MemEnv env;
  env.SetCapacity(4);
  auto file = env.NewWritableFile("/f", Env::WriteMode::kTruncate);
  EXPECT_EQ((*file)->Append("12345").code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(env.RemoveFile("/f").ok());
  EXPECT_EQ(*env.FreeBytes("/"), 4u);
  env.SetFault([](absl::string_view operation, const std::string&) {
    return operation == "sync" ? absl::DataLossError("EIO") : absl::OkStatus();
  });
  EXPECT_EQ((*file)->Sync().code(), absl::StatusCode::kDataLoss);
  env.SetFault(nullptr);
  auto lock = env.Lock("/lock");
  ASSERT_TRUE(lock.ok());
  EXPECT_EQ(env.Lock("/lock").status().code(), absl::StatusCode::kFailedPrecondition);
  env.KillProcess();
  EXPECT_TRUE(env.Lock("/lock").ok());
  EXPECT_EQ((*file)->Append("").code(), absl::StatusCode::kUnavailable);
}

TEST(SimEventLoopTest, TimersRunInOrderOfTimeThenCreation) {
  SimScheduler scheduler;
  SimEventLoop a(&scheduler);
  auto b = std::make_unique<SimEventLoop>(&scheduler);
  std::string order;
  a.After(absl::Seconds(2), [&] { order += "2"; });
  b->After(absl::Seconds(1), [&] { order += "1"; });
  a.Post([&] { order += "0"; });
  const auto cancelled = a.After(absl::Seconds(1), [&] { order += "x"; });
  a.Cancel(cancelled);
  b->After(absl::Seconds(3), [&] { order += "dead"; });
  scheduler.RunUntil(absl::Seconds(2));
  b.reset();
  scheduler.RunUntil(absl::Hours(1));
  EXPECT_EQ(order, "012");
  EXPECT_EQ(scheduler.now(), absl::Hours(1));
}

TEST(SimEventLoopTest, StoppedProcessRunsItsTasksWhenItGoesOn) {
  SimScheduler scheduler;
  SimEventLoop loop(&scheduler);
  int runs = 0;
  loop.After(absl::Seconds(1), [&] { ++runs; });
  loop.SetStopped(true);
  scheduler.RunUntil(absl::Seconds(5));
  EXPECT_EQ(runs, 0);
  loop.SetStopped(false);
  scheduler.RunUntil(absl::Seconds(5));
  EXPECT_EQ(runs, 1);
}

struct Server : WorkerStreamHandler {
  std::vector<int64_t> received;
  std::shared_ptr<WorkerStream> stream;
  int closed = 0;
  void OnMessage(std::shared_ptr<WorkerStream> from, v1::WorkerMessage message) override {
    stream = from;
    received.push_back(message.event().sequence());
  }
  void OnClosed(std::shared_ptr<WorkerStream>, absl::Status) override { ++closed; }
};

v1::WorkerMessage Numbered(int64_t sequence) {
  v1::WorkerMessage message;
  message.mutable_event()->set_sequence(sequence);
  return message;
}

TEST(SimTransportTest, OrderIsKeptPartitionsHoldAndThenBreak) {
  SimScheduler scheduler;
  const auto random = NewSeededRandom(7);
  SimNetwork network(&scheduler, random.get());
  SimEventLoop server_loop(&scheduler), worker_loop(&scheduler);
  Server server;
  network.SetServer(&server_loop, &server);
  const auto dialer = network.NewDialer("n", &worker_loop);
  int closed = 0, answers = 0;
  auto connection =
      dialer->Dial([&](v1::CoordinatorMessage) { ++answers; }, [&](absl::Status) { ++closed; });
  for (int i = 0; i < 50; ++i) connection->Send(Numbered(i));
  scheduler.RunUntil(absl::Seconds(1));
  ASSERT_EQ(server.received.size(), 50u);
  EXPECT_TRUE(std::is_sorted(server.received.begin(), server.received.end()));
  server.stream->Send({});
  scheduler.RunUntil(absl::Seconds(2));
  EXPECT_EQ(answers, 1);

  network.SetPartitioned("n", true);  // short: held, then delivered
  connection->Send(Numbered(50));
  scheduler.RunUntil(absl::Seconds(5));
  EXPECT_EQ(server.received.size(), 50u);
  network.SetPartitioned("n", false);
  scheduler.RunUntil(absl::Seconds(6));
  EXPECT_EQ(server.received.size(), 51u);

  network.SetPartitioned("n", true);  // long: both ends break
  scheduler.RunUntil(absl::Minutes(2));
  EXPECT_EQ(closed, 1);
  EXPECT_EQ(server.closed, 1);
}

TEST(SimTransportTest, ServerDeathIsSeenAndTheNextServerIsReached) {
  SimScheduler scheduler;
  const auto random = NewSeededRandom(7);
  SimNetwork network(&scheduler, random.get());
  SimEventLoop worker_loop(&scheduler);
  auto server_loop = std::make_unique<SimEventLoop>(&scheduler);
  Server first, second;
  network.SetServer(server_loop.get(), &first);
  const auto dialer = network.NewDialer("n", &worker_loop);
  int closed = 0;
  auto connection = dialer->Dial([](v1::CoordinatorMessage) {}, [&](absl::Status) { ++closed; });
  connection->Send(Numbered(1));
  scheduler.RunUntil(absl::Seconds(1));
  network.SetServer(nullptr, nullptr);
  server_loop = std::make_unique<SimEventLoop>(&scheduler);
  scheduler.RunUntil(absl::Seconds(2));
  EXPECT_EQ(closed, 1);
  connection = dialer->Dial([](v1::CoordinatorMessage) {}, [&](absl::Status) { ++closed; });
  scheduler.RunUntil(absl::Seconds(3));
  EXPECT_EQ(closed, 2);
  network.SetServer(server_loop.get(), &second);
  connection = dialer->Dial([](v1::CoordinatorMessage) {}, [&](absl::Status) { ++closed; });
  connection->Send(Numbered(2));
  scheduler.RunUntil(absl::Seconds(4));
  EXPECT_EQ(second.received.size(), 1u);
  connection = nullptr;
  scheduler.RunUntil(absl::Seconds(5));
  EXPECT_EQ(second.closed, 1);
}

}  // namespace
}  // namespace mt
