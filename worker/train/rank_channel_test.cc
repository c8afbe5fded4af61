#include "worker/train/rank_channel.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

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
    v1::FromRank message;
    char buffer[4096];
    while (true) {
      const absl::StatusOr<bool> taken = TakeFrame(&incoming_, &message);
      if (!taken.ok()) return taken.status().ToString();
      if (*taken) break;
      const ssize_t count = read(ends_[1], buffer, sizeof(buffer));
      if (count <= 0) return "no more";
      incoming_.append(buffer, static_cast<size_t>(count));
    }
    EXPECT_EQ(message.progress().step(), 7);
    return message.progress().where();
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

}  // namespace
}  // namespace mt
