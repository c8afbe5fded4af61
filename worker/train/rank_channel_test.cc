#include "worker/train/rank_channel.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "common/env.h"
#include "worker/agent/rank_frame.h"

namespace mt {
namespace {

class RankChannelTest : public ::testing::Test {
 protected:
  RankChannelTest() { socketpair(AF_UNIX, SOCK_STREAM, 0, ends_); }
  ~RankChannelTest() override {
    close(ends_[0]);
    close(ends_[1]);
  }
  // Where the rank says it is, as the daemon hears it.
  std::string Where(RankChannel& channel) {
    channel.SetPhase("step", 7);
    const v1::Progress progress = Next();
    EXPECT_EQ(progress.step(), 7);
    return progress.where();
  }
  std::string Phase() { return Next().phase(); }
  v1::Progress Next() {
    v1::FromRank message;
    char buffer[4096];
    while (true) {
      const absl::StatusOr<bool> taken = TakeFrame(&incoming_, &message);
      EXPECT_TRUE(taken.ok()) << taken.status();
      if (!taken.ok() || *taken) return message.progress();
      const ssize_t count = read(ends_[1], buffer, sizeof(buffer));
      EXPECT_GT(count, 0);
      if (count <= 0) return message.progress();
      incoming_.append(buffer, static_cast<size_t>(count));
    }
  }

  int ends_[2] = {-1, -1};
  std::string incoming_;
};

TEST_F(RankChannelTest, SaysWhichCollectiveTheRankIsIn) {
  RankChannel channel(ends_[0]);
  EXPECT_EQ(Where(channel), "computing");
  const std::string group = "data (ranks 0,1)";
  channel.EnterCollective(&group, "all-reduce");
  EXPECT_EQ(Where(channel),
            "waiting: all-reduce in the group data (ranks 0,1), collective 1 of this rank");
  channel.LeaveCollective();
  EXPECT_EQ(Where(channel), "computing");
}

// Calls of device groups return at once; what their device waits in is asked for when the daemon is told.
TEST_F(RankChannelTest, SaysWhichCollectiveTheDeviceIsIn) {
  RankChannel channel(ends_[0]);
  std::string unfinished;
  channel.SetDeviceWaiting([&] { return unfinished; });
  EXPECT_EQ(Where(channel), "computing");
  unfinished = "all-reduce 12 of 4 F32 (16 bytes) in the group data (ranks 0,1)";
  EXPECT_EQ(Where(channel),
            "waiting: all-reduce 12 of 4 F32 (16 bytes) in the group data (ranks 0,1)");
  channel.SetDeviceWaiting(nullptr);
  EXPECT_EQ(Where(channel), "computing");
}

// What keeps a file away for a while must not read as if the checkpoint were lost.
TEST_F(RankChannelTest, WhyAFileDoesNotComeIsToldUnchanged) {
  for (const auto code : {absl::StatusCode::kUnavailable, absl::StatusCode::kResourceExhausted,
                          absl::StatusCode::kDataLoss, absl::StatusCode::kOk}) {
    int ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    std::thread daemon([&] {
      std::string incoming;
      v1::FromRank asked;
      char buffer[4096];
      while (!asked.has_need_file()) {
        const ssize_t count = read(ends[1], buffer, sizeof(buffer));
        if (count <= 0) return;
        incoming.append(buffer, static_cast<size_t>(count));
        while (!asked.has_need_file() && TakeFrame(&incoming, &asked).value_or(false)) {
        }
      }
      v1::ToRank answer;
      answer.mutable_file_ready()->set_file(asked.need_file().file());
      answer.mutable_file_ready()->set_message("why");
      answer.mutable_file_ready()->set_code(static_cast<int32_t>(code));
      std::string frame;
      ASSERT_TRUE(AppendFrame(answer, &frame).ok());
      (void)!write(ends[1], frame.data(), frame.size());
    });
    {
      RankChannel channel(ends[0]);
      channel.StartReading([](int) {});
      const absl::Status status = channel.FetchFile("shard-r0.safetensors").status();
      // A daemon that gives no code: nothing is known of the file.
      EXPECT_EQ(status.code(),
                code == absl::StatusCode::kOk ? absl::StatusCode::kUnavailable : code);
      EXPECT_EQ(status.message(), "checkpoint file shard-r0.safetensors: why");
    }
    daemon.join();
    close(ends[0]);
    close(ends[1]);
  }
}

// Writing a checkpoint may take longer than any deadline: what says that it goes on is that its bytes move.
TEST_F(RankChannelTest, TellsTheBytesThatMoveInAPhase) {
  const auto moved = std::make_shared<std::atomic<int64_t>>(int64_t{100} << 20);
  RankChannel channel(ends_[0]);
  channel.CountBytes(moved);
  channel.StartReading([](int) {});  // signs of life
  channel.SetPhase("finish", 7);
  EXPECT_EQ(Phase(), "finish");
  *moved += int64_t{5} << 20;
  std::string phase;
  while ((phase = Phase()) == "finish") {
  }
  EXPECT_EQ(phase, "finish, 5 MiB");
  channel.SetPhase("step", 8);
  *moved += int64_t{5} << 20;
  while ((phase = Phase()) == "finish, 5 MiB") {
  }
  EXPECT_EQ(phase, "step");
  EXPECT_EQ(Phase(), "step") << "a write behind the training is not the training's progress";
}

TEST_F(RankChannelTest, AManifestThatIsTooLargeForAMessageComesByAFile) {
  v1::CheckpointManifest manifest;
  manifest.set_job_id("job-1");
  manifest.set_step(20);
  while (manifest.files_size() < 20) manifest.add_files()->set_name(std::string(1 << 20, 'a'));
  const std::string path = absl::StrCat(::testing::TempDir(), "/restore-", getpid(), ".pb");
  ASSERT_TRUE(WriteFileAtomically(Env::Real(), path, manifest.SerializeAsString()).ok());
  v1::ToRank first;
  first.mutable_start()->set_job_id("job-1");
  first.mutable_start()->set_restore_file(path);
  std::string frame;
  ASSERT_TRUE(AppendFrame(first, &frame).ok());
  ASSERT_EQ(write(ends_[1], frame.data(), frame.size()), static_cast<ssize_t>(frame.size()));
  RankChannel channel(ends_[0]);
  const absl::StatusOr<v1::RankStart> start = channel.ReceiveStart();
  ASSERT_TRUE(start.ok()) << start.status();
  EXPECT_EQ(start->restore().SerializeAsString(), manifest.SerializeAsString());
  unlink(path.c_str());
}

}  // namespace
}  // namespace mt
