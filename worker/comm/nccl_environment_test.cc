#include "worker/comm/nccl_environment.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

namespace mt {
namespace {

NcclPlace Place(int rank, int nodes) {
  NcclPlace place{.rank = rank};
  for (int i = 0; i < 4; ++i) {
    v1::RankSlot slot;
    slot.set_rank(i);
    slot.set_node(absl::StrCat("node", i * nodes / 4));
    slot.set_data_address(absl::StrCat("10.0.0.", 1 + i * nodes / 4));
    place.rank_table.push_back(slot);
  }
  return place;
}

absl::StatusOr<std::string> Interface(const std::string& address) {
  if (address == "10.0.0.2" || address == "fd00::2") return "ib0";
  return absl::InvalidArgumentError(address);
}

using Map = std::map<std::string, std::string>;
Map Of(const NcclPlace& place) {
  const auto environment = NcclEnvironment(place, Interface);
  EXPECT_TRUE(environment.ok()) << environment.status();
  Map map;
  if (environment.ok()) {
    for (const Setting& setting : *environment) map[setting.name] = setting.value;
  }
  return map;
}

TEST(NcclEnvironment, TheInterfaceIsThatOfTheDataAddress) {
  EXPECT_EQ(Of(Place(3, 2)),
            (Map{{"NCCL_SOCKET_IFNAME", "=ib0"}, {"NCCL_SOCKET_FAMILY", "AF_INET"}}));
  NcclPlace six = Place(3, 2);
  six.rank_table[3].set_data_address("fd00::2");
  EXPECT_EQ(Of(six)["NCCL_SOCKET_FAMILY"], "AF_INET6");
}

TEST(NcclEnvironment, OneNodeMeetsOnLoopback) {
  EXPECT_EQ(Of(Place(0, 1)), (Map{{"NCCL_SOCKET_IFNAME", "=lo"}}));
}

TEST(NcclEnvironment, NothingIsGuessed) {
  EXPECT_EQ(NcclEnvironment(Place(0, 2), Interface).status().code(),
            absl::StatusCode::kInvalidArgument);
  NcclPlace none = Place(0, 2);
  none.rank_table[0].clear_data_address();
  const absl::Status status = NcclEnvironment(none, Interface).status();
  EXPECT_NE(status.message().find("node node0 has no data address"), std::string::npos) << status;
}

TEST(NcclEnvironment, RanksThatShareADeviceLookLikeHosts) {
  NcclPlace first = Place(0, 1), second = Place(1, 1);
  first.share_device = second.share_device = true;
  EXPECT_NE(Of(first)["NCCL_HOSTID"], Of(second)["NCCL_HOSTID"]);
  EXPECT_EQ(Of(first)["NCCL_P2P_DISABLE"], "1");
  EXPECT_EQ(Of(first)["NCCL_SHM_DISABLE"], "1");
}

TEST(NcclEnvironment, TheUsersSettingGoesFirst) {
  setenv("MT_TEST_A", "mine", 1);
  unsetenv("MT_TEST_B");
  setenv("MT_TEST_C", "the daemon's", 1);
  EXPECT_EQ(
      SetEnvironment({{"MT_TEST_A", "ours"}, {"MT_TEST_B", "ours"}, {"MT_TEST_C", "ours", true}}),
      "MT_TEST_A=mine MT_TEST_B=ours MT_TEST_C=ours");
  EXPECT_STREQ(getenv("MT_TEST_A"), "mine");
  EXPECT_STREQ(getenv("MT_TEST_C"), "ours");
}

TEST(InterfaceOf, FindsLoopbackAndNothingElse) {
  EXPECT_EQ(InterfaceOf("127.0.0.1").value_or(""), "lo");
  EXPECT_FALSE(InterfaceOf("192.0.2.7").ok());
  EXPECT_FALSE(InterfaceOf("node7").ok());
}

}  // namespace
}  // namespace mt
