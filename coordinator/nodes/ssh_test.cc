#include "coordinator/nodes/ssh.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "absl/strings/match.h"
#include "common/check.h"
#include "common/env.h"
#include "coordinator/nodes/testing/test_sshd.h"

namespace mt {
namespace {

using testing::HasSubstr;

class SshTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = TestSshd::WhyNot(); !reason.empty()) GTEST_SKIP() << reason;
    char path[] = "/tmp/mt-ssh-XXXXXX";
    folder_ = mkdtemp(path);
    sshd_ = std::make_unique<TestSshd>(folder_);
  }
  void TearDown() override {
    sshd_.reset();
    if (!folder_.empty()) MT_CHECK_OK(Env::Real()->RemoveTree(folder_));
  }
  absl::Status Refusal(const SshOptions& options) {
    return SshSession::Connect(sshd_->node(), options).status();
  }

  std::string folder_;
  std::unique_ptr<TestSshd> sshd_;
};

TEST_F(SshTest, CommandGetsInputAndGivesOutputsAndStatus) {
  auto session = SshSession::Connect(sshd_->node(), sshd_->options());
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ((*session)->LocalAddress(), "127.0.0.1");
  const std::string input(300000, 'x');
  auto output = (*session)->Run("wc -c; echo problem >&2; exit 7", input, absl::Seconds(30));
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ(output->out, "300000\n");
  EXPECT_EQ(output->err, "problem\n");
  EXPECT_EQ(output->exit_status, 7);
}

TEST_F(SshTest, CommandThatNeverEndsIsGivenUp) {
  auto session = SshSession::Connect(sshd_->node(), sshd_->options());
  ASSERT_TRUE(session.ok()) << session.status();
  EXPECT_EQ((*session)->Run("exec tail -f /dev/null", "", absl::Milliseconds(300)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_F(SshTest, FilesArriveWholeWithTheirMode) {
  auto session = SshSession::Connect(sshd_->node(), sshd_->options());
  ASSERT_TRUE(session.ok()) << session.status();
  std::string contents(3 << 20, '\0');
  for (size_t i = 0; i < contents.size(); ++i)
    contents[i] = static_cast<char>(i * 2654435761u >> 13);
  std::ofstream(folder_ + "/source", std::ios::binary) << contents;
  ASSERT_TRUE((*session)->UploadFile(folder_ + "/source", folder_ + "/target", 0700).ok());
  EXPECT_EQ(*ReadFile(Env::Real(), folder_ + "/target"), contents);
  ASSERT_TRUE(
      (*session)->WriteFile(folder_ + "/target", "secret", 0600).ok());  // shorter, and private now
  EXPECT_EQ(*ReadFile(Env::Real(), folder_ + "/target"), "secret");
  struct stat info;
  ASSERT_EQ(stat((folder_ + "/target").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  const absl::Status status = (*session)->WriteFile(folder_ + "/no/such/folder", "x", 0600);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no such folder"));
  EXPECT_TRUE((*session)->WriteFile(folder_ + "/other", "still alive", 0600).ok());
}

TEST_F(SshTest, AHostThatFreezesIsGivenUpUnderSftpAndUnderACommand) {
  SshOptions options = sshd_->options();
  options.answer_timeout = absl::Milliseconds(500);
  auto session = SshSession::Connect(sshd_->node(), options);
  ASSERT_TRUE(session.ok()) << session.status();
  ASSERT_TRUE((*session)->WriteFile(folder_ + "/target", "first", 0600).ok());
  auto other = SshSession::Connect(sshd_->node(), options);
  ASSERT_TRUE(other.ok()) << other.status();
  sshd_->Freeze();
  // Without a limit this waits for ever.
  absl::Status status = (*session)->WriteFile(folder_ + "/target", "second", 0600);
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("host1: the host did not answer for 500ms"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(folder_ + "/target"));
  status = (*other)->Run("true", "", absl::Seconds(30)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  EXPECT_EQ((*session)->WriteFile(folder_ + "/target", "third", 0600).code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST_F(SshTest, UnknownKeyFailsWithTheCommandThatAcceptsIt) {
  SshOptions options = sshd_->options();
  options.known_hosts = folder_ + "/none";
  const absl::Status status = Refusal(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr("SHA256:"));
  EXPECT_NE(access(options.known_hosts.c_str(), F_OK), 0);  // nothing was written
  const std::string marker = "accept it with: ";
  const size_t at = message.find(marker);
  ASSERT_NE(at, std::string::npos) << message;
  ASSERT_EQ(system(message.substr(at + marker.size()).c_str()), 0);
  EXPECT_TRUE(SshSession::Connect(sshd_->node(), options).ok());
}

TEST_F(SshTest, NewKeyIsRememberedOnlyWhenAsked) {
  SshOptions options = sshd_->options();
  options.known_hosts = folder_ + "/none";
  options.accept_new_hosts = true;
  EXPECT_TRUE(Refusal(options).ok());
  options.accept_new_hosts = false;
  EXPECT_TRUE(Refusal(options).ok());
}

TEST_F(SshTest, ChangedKeyAlwaysFails) {
  sshd_->ChangeHostKey();
  SshOptions options = sshd_->options();
  for (const bool accept_new : {false, true}) {
    options.accept_new_hosts = accept_new;
    const absl::Status status = Refusal(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), HasSubstr("CHANGED"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("ssh-keygen -f"));
  }
}

TEST_F(SshTest, RefusedKeyIsNamed) {
  SshOptions options = sshd_->options();
  options.identities = {sshd_->MakeKey("stranger"), folder_ + "/absent"};
  const absl::Status status = Refusal(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(status.message()), HasSubstr("stranger (refused)"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("absent (cannot be read"));
}

TEST_F(SshTest, NobodyThereAndNoSuchNameAreUnavailable) {
  NodeConfig node = sshd_->node();
  node.port = 1;  // tcpmux: nothing listens there
  absl::Status status = SshSession::Connect(node, sshd_->options()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("refused"));
  node.address = "no-such-host.invalid";
  status = SshSession::Connect(node, sshd_->options()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no-such-host.invalid"));
}

}  // namespace
}  // namespace mt
