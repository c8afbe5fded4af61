#include "coordinator/nodes/hostfile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

namespace mt {
namespace {

using testing::HasSubstr;
using testing::StartsWith;

std::vector<NodeConfig> Parse(const std::string& text) {
  auto nodes = ParseHostfile(text, "hosts");
  EXPECT_TRUE(nodes.ok()) << nodes.status();
  return nodes.ok() ? *nodes : std::vector<NodeConfig>();
}
std::string Refusal(const std::string& text) {
  const absl::Status status = ParseHostfile(text, "hosts").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
  return std::string(status.message());
}

TEST(HostfileTest, EveryDialectIsRead) {
  const auto nodes = Parse(
      "# a comment\n"
      "\n"
      "gpu01 slots=8\n"
      "gpu02:4   # MPICH\n"
      "10.0.0.7\r\n"
      "  alice@gpu03 slots=2 max_slots=4 port=2222 ifname=ib0 type=A100 rack=r7\n"
      "[fd00:0::1]:2\n"
      "[fd00::2] user=bob\n"
      "login addr=login.example.org\n"
      "a.b-c.D");
  ASSERT_EQ(nodes.size(), 8u);
  EXPECT_EQ(nodes[0].name, "gpu01");
  EXPECT_EQ(nodes[0].slots, 8);
  EXPECT_EQ(nodes[0].line, 3);
  EXPECT_EQ(nodes[0].port, 22);
  EXPECT_EQ(nodes[1].name, "gpu02");
  EXPECT_EQ(nodes[1].slots, 4);
  EXPECT_EQ(nodes[2].address, "10.0.0.7");
  EXPECT_EQ(nodes[2].slots, 0);
  EXPECT_EQ(nodes[3].user, "alice");
  EXPECT_EQ(nodes[3].port, 2222);
  EXPECT_EQ(nodes[3].interface, "ib0");
  EXPECT_EQ(nodes[4].address, "fd00::1");
  EXPECT_EQ(nodes[4].slots, 2);
  EXPECT_EQ(nodes[5].user, "bob");
  EXPECT_EQ(nodes[6].name, "login");
  EXPECT_EQ(nodes[6].address, "login.example.org");
  EXPECT_EQ(nodes[7].name, "a.b-c.d");
}

TEST(HostfileTest, RangesKeepOrderAndWidth) {
  const auto nodes = Parse("root@gpu[008-010,7].lan:2 port=23\nr[1-2]n[1-2]");
  std::vector<std::string> names;
  for (const NodeConfig& node : nodes) names.push_back(node.name);
  EXPECT_THAT(names, testing::ElementsAre("gpu008.lan", "gpu009.lan", "gpu010.lan", "gpu7.lan",
                                          "r1n1", "r1n2", "r2n1", "r2n2"));
  EXPECT_EQ(nodes[1].slots, 2);
  EXPECT_EQ(nodes[1].user, "root");
  EXPECT_EQ(nodes[1].port, 23);
}

TEST(HostfileTest, TheGuidesExampleIsReadAsItSays) {
  std::ifstream file(MT_SOURCE_DIR "/docs/guide/hostfile.md");
  const std::string page(std::istreambuf_iterator<char>(file), {});
  const size_t begin = page.find("```\n"), end = page.find("```\n", begin + 4);
  ASSERT_NE(end, std::string::npos);
  const auto nodes = Parse(page.substr(begin + 4, end - begin - 4));
  ASSERT_EQ(nodes.size(), 9u);
  EXPECT_EQ(nodes[4].name, "gpu05");
  EXPECT_EQ(nodes[4].interface, "ib0");
  EXPECT_EQ(nodes[8].address, "fd00::7");
}

struct Bad {
  const char* text;
  const char* where;
  const char* says;
};

TEST(HostfileTest, NonsenseIsRefusedByLineAndColumn) {
  const Bad cases[] = {
      {"", "hosts:1:1: ", "no hosts"},
      {"# only a comment\n", "hosts:1:1: ", "no hosts"},
      {"a\nb\n a slots=2", "hosts:3:2: ", "already in line 1"},
      {"A\na", "hosts:2:1: ", "already in line 1"},
      {"n[1-3]\nn2", "hosts:2:1: ", "already in line 1"},
      {"a addr=10.0.0.1\n10.0.0.1", "hosts:2:1: ", "same machine"},
      {"[fd00::1]\n[fd00:0::1]", "hosts:2:1: ", "already in line 1"},
      {"a slots=0", "hosts:1:9: ", "from 1 to"},
      {"a slots=-1", "hosts:1:9: ", "from 1 to"},
      {"a slots=4x", "hosts:1:9: ", "from 1 to"},
      {"a slots=", "hosts:1:9: ", "no value"},
      {"a slots=99999999999999999999", "hosts:1:9: ", "from 1 to"},
      {"a slots=1 slots=2", "hosts:1:11: ", "twice"},
      {"a:2 slots=2", "hosts:1:5: ", "twice"},
      {"a slots=4 max_slots=2", "hosts:1:21: ", "smaller"},
      {"u@a user=v", "hosts:1:5: ", "twice"},
      {"a port=70000", "hosts:1:8: ", "65535"},
      {"a:ssh", "hosts:1:3: ", "ports are written port=N"},
      {"a b", "hosts:1:3: ", "key=value"},
      {"a slot=2", "hosts:1:3: ", "unknown key \"slot\""},
      {"a role=spare", "hosts:1:3: ", "role= is not supported"},
      {"slots=2", "hosts:1:1: ", "begins with a host"},
      {"-oProxyCommand=id", "hosts:1:1: ", ""},
      {"-x", "hosts:1:1: ", "begin with '-'"},
      {"-u@a", "hosts:1:1: ", "begin with '-'"},
      {"a@-b", "hosts:1:3: ", "'-'"},
      {"u;id@a", "hosts:1:1: ", "not a user name"},
      {"@a", "hosts:1:1: ", "not a user name"},
      {"a;reboot", "hosts:1:1: ", "character ';'"},
      {"a$(id)", "hosts:1:1: ", "character '$'"},
      {"my_host", "hosts:1:1: ", "'_'"},
      {"a..b", "hosts:1:1: ", "dots"},
      {"10.0.0.256", "hosts:1:1: ", "IPv4"},
      {"10.0.1", "hosts:1:1: ", "IPv4"},
      {"fd00::1", "hosts:1:1: ", "in brackets: [fd00::1]"},
      {"[gpus]", "hosts:1:1: ", "groups are not known"},
      {"[fd00::1]x", "hosts:1:10: ", "':slots'"},
      {"n[1-", "hosts:1:2: ", "without ']'"},
      {"n1]", "hosts:1:3: ", "without '['"},
      {"n[]", "hosts:1:3: ", "range"},
      {"n[3-1]", "hosts:1:3: ", "backwards"},
      {"n[01-100]", "hosts:1:3: ", "same number of digits"},
      {"n[1-99999999]", "hosts:1:3: ", "larger than"},
      {"n[0-999][0-999]", "hosts:1:1: ", "more than"},
      {"n[1-2] addr=10.0.0.1", "hosts:1:8: ", "one machine"},
      {"a ifname=../x", "hosts:1:10: ", "network interface"},
      {"a ifname=eth0;id", "hosts:1:10: ", "network interface"},
      {"a addr=-x", "hosts:1:8: ", "'-'"},
      {"a type=a/b", "hosts:1:8: ", "type"},
      {"a\nb\x01", "hosts:2:2: ", "control character 0x01"},
  };
  for (const Bad& bad : cases) {
    const std::string message = Refusal(bad.text);
    EXPECT_THAT(message, StartsWith(bad.where)) << bad.text;
    EXPECT_THAT(message, HasSubstr(bad.says)) << bad.text;
  }
  EXPECT_THAT(Refusal(std::string("a\0b", 3)), HasSubstr("control character 0x00"));
  EXPECT_THAT(Refusal(std::string(64, 'a')), HasSubstr("longer than"));
  EXPECT_THAT(Refusal("x" + std::string(58, 'a') + "x"), HasSubstr("longer than"));
  EXPECT_THAT(Refusal("ab addr=" + std::string(300, 'a')), HasSubstr("not a host name"));
}

TEST(HostfileTest, DataCacheIsASize) {
  const auto nodes = ParseHostfile("a slots=1 data_cache=200G\nb data_cache=1.5T\nc", "hosts");
  ASSERT_TRUE(nodes.ok()) << nodes.status();
  EXPECT_EQ((*nodes)[0].data_cache_bytes, 200'000'000'000);
  EXPECT_EQ((*nodes)[1].data_cache_bytes, 1'500'000'000'000);
  EXPECT_EQ((*nodes)[2].data_cache_bytes, 0);
  for (const char* bad : {"-5G", "G", "12X", "0", "1e30", "1..5G"}) {
    const auto refused = ParseHostfile(absl::StrCat("a data_cache=", bad), "hosts");
    EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace mt
