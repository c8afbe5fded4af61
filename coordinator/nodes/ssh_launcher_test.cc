#include "coordinator/nodes/ssh_launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <future>
#include <sstream>

#include "absl/strings/str_split.h"
#include "absl/synchronization/notification.h"
#include "common/check.h"
#include "coordinator/nodes/local_launcher.h"
#include "coordinator/nodes/testing/test_sshd.h"

namespace mt {
namespace {

using testing::HasSubstr;

// A program that behaves as a daemon towards its launcher; the launchers do not care what is in a bundle.
constexpr char kDaemon[] =
    "#!/bin/sh\n[ \"$1\" != version ] || exit 0\nexec tail -f "
    "/dev/null\n";

// A process that has ended may stay a zombie for as long as its parent, which is not us, likes.
bool Runs(int pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string line;
  std::getline(file, line);
  const size_t name_end = line.rfind(") ");
  return name_end != std::string::npos && line[name_end + 2] != 'Z' && line[name_end + 2] != 'X';
}

class LauncherTest : public testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = TestSshd::WhyNot(); !reason.empty()) GTEST_SKIP() << reason;
    char path[] = "/tmp/mt-launch-XXXXXX";
    folder_ = mkdtemp(path);
    for (const char* name : {"ssh", "remote", "local"})
      MT_CHECK_OK(env_->CreateDirectories(folder_ + "/" + name));
    sshd_ = std::make_unique<TestSshd>(folder_ + "/ssh");
    auto ca = ClusterCa::LoadOrCreate(env_, folder_ + "/ca");
    MT_CHECK_OK(ca.status());
    ca_ = std::move(*ca);
    MakeBundle(kDaemon);
    loop_ = NewThreadEventLoop("test");
  }
  void TearDown() override {
    if (folder_.empty()) return;
    for (const char* node : {"host1", "host2"}) EXPECT_TRUE(Do(&NodeLauncher::Stop, node).ok());
    OnLoop([this] { launcher_.reset(); });
    loop_.reset();
    sshd_.reset();
    MT_CHECK_OK(env_->RemoveTree(folder_));
  }
  void MakeBundle(const std::string& program) {
    const std::string folder = folder_ + "/bundle";
    MT_CHECK_OK(env_->CreateDirectories(folder));
    std::ofstream(folder + "/mt-worker") << program;
    std::ofstream(folder + "/libfirst.so") << std::string(100000, 'a');
    MT_CHECK(
        system(("cd " + folder + " && rm -f MANIFEST && sha256sum mt-worker libfirst.so >MANIFEST")
                   .c_str()) == 0);
  }
  NodeLauncher* launcher() {
    if (launcher_ == nullptr) {
      auto bundle = LoadBundle(env_, folder_ + "/bundle");
      MT_CHECK_OK(bundle.status());
      digest_ = bundle->digest;
      SshLauncherOptions options;
      options.ssh = sshd_->options();
      options.cluster_id = "test";
      options.bundle = *bundle;
      options.ca = ca_.get();
      options.coordinator_port = 4242;
      options.remote_folder = folder_ + "/remote";
      launcher_ = NewSshLauncher(loop_.get(), options);
    }
    return launcher_.get();
  }
  void OnLoop(std::function<void()> body) {
    absl::Notification done;
    loop_->Post([&] {
      body();
      done.Notify();
    });
    done.WaitForNotification();
  }
  using Method = void (NodeLauncher::*)(const NodeConfig&, NodeLauncher::Done);
  std::future<absl::Status> Begin(Method method, const NodeConfig& node) {
    auto promise = std::make_shared<std::promise<absl::Status>>();
    std::future<absl::Status> future = promise->get_future();
    OnLoop([&] {
      (launcher()->*method)(node, [promise](absl::Status status) { promise->set_value(status); });
    });
    return future;
  }
  absl::Status Do(Method method, const std::string& node) {
    return Begin(method, sshd_->node(node)).get();
  }
  std::string Root(const std::string& node) const { return folder_ + "/remote/test/" + node; }
  int Pid(const std::string& node) const {
    std::ifstream file(Root(node) + "/daemon.pid");
    int pid = 0;
    file >> pid;
    return pid;
  }
  std::string Remote() const { return folder_ + "/remote/bundles/" + digest_; }
  ino_t Inode() const {
    struct stat info = {};
    stat((Remote() + "/mt-worker").c_str(), &info);
    return info.st_ino;
  }

  Env* const env_ = Env::Real();
  std::string folder_, digest_;
  std::unique_ptr<TestSshd> sshd_;
  std::unique_ptr<ClusterCa> ca_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<NodeLauncher> launcher_;
};

TEST_F(LauncherTest, BringsBundleCertificateAndDaemon) {
  ASSERT_EQ(Do(&NodeLauncher::Launch, "host1"), absl::OkStatus());
  const int pid = Pid("host1");
  ASSERT_GT(pid, 1);
  EXPECT_TRUE(Runs(pid));
  EXPECT_EQ(*ReadFile(env_, Remote() + "/mt-worker"), kDaemon);
  EXPECT_EQ(*ReadFile(env_, Root("host1") + "/coordinator"), "127.0.0.1:4242\n");
  EXPECT_EQ(*ReadFile(env_, Root("host1") + "/tls/ca.crt"), ca_->certificate_pem());
  struct stat info;
  ASSERT_EQ(stat((Root("host1") + "/tls/node.key").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(getsid(pid), pid);  // detached: a session of its own
}

TEST_F(LauncherTest, ManyNodesAtOnce) {
  auto first = Begin(&NodeLauncher::Launch, sshd_->node("host1"));
  auto second = Begin(&NodeLauncher::Launch, sshd_->node("host2"));
  EXPECT_EQ(first.get(), absl::OkStatus());
  EXPECT_EQ(second.get(), absl::OkStatus());
  EXPECT_NE(Pid("host1"), Pid("host2"));
}

TEST_F(LauncherTest, RunningDaemonIsLeftAloneAndItsCertificateRenewed) {
  ASSERT_EQ(Do(&NodeLauncher::Launch, "host1"), absl::OkStatus());
  const int pid = Pid("host1");
  const std::string certificate = *ReadFile(env_, Root("host1") + "/tls/node.crt");
  ASSERT_EQ(Do(&NodeLauncher::Launch, "host1"), absl::OkStatus());
  EXPECT_EQ(Pid("host1"), pid);
  EXPECT_NE(*ReadFile(env_, Root("host1") + "/tls/node.crt"), certificate);
}

TEST_F(LauncherTest, BundleIsCopiedOnlyWhenItDiffers) {
  ASSERT_EQ(Do(&NodeLauncher::Launch, "host1"), absl::OkStatus());
  const ino_t inode = Inode();
  ASSERT_EQ(Do(&NodeLauncher::Launch, "host2"), absl::OkStatus());
  EXPECT_EQ(Inode(), inode);
  std::ofstream(Remote() + "/libfirst.so") << "damaged";
  ASSERT_EQ(Do(&NodeLauncher::Launch, "host2"), absl::OkStatus());
  EXPECT_NE(Inode(), inode);
  EXPECT_EQ(ReadFile(env_, Remote() + "/libfirst.so")->size(), 100000u);
  EXPECT_EQ(env_->List(folder_ + "/remote/bundles")->size(), 1u);  // nothing half-done is left
}

TEST_F(LauncherTest, WhatArrivedBrokenNeverRuns) {
  (void)launcher();  // has read the bundle
  std::ofstream(folder_ + "/bundle/libfirst.so")
      << "changed since";  // what is sent is not what MANIFEST says
  const absl::Status status = Do(&NodeLauncher::Launch, "host1");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("differs from what was sent"));
  EXPECT_EQ(Pid("host1"), 0);
}

TEST_F(LauncherTest, DamagedBundleIsRefusedHere) {
  std::ofstream(folder_ + "/bundle/libfirst.so") << "changed";
  EXPECT_EQ(LoadBundle(env_, folder_ + "/bundle").status().code(), absl::StatusCode::kDataLoss);
  std::ofstream(folder_ + "/bundle/MANIFEST") << std::string(64, '0') << "  ../../etc/passwd\n";
  EXPECT_EQ(LoadBundle(env_, folder_ + "/bundle").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(LoadBundle(env_, folder_ + "/absent").status().code(), absl::StatusCode::kNotFound);
  MakeBundle(kDaemon);
}

TEST_F(LauncherTest, ProgramThatCannotRunThereIsReported) {
  MakeBundle("#!/bin/sh\necho version GLIBC_9.9 not found >&2\nexit 1\n");
  const absl::Status status = Do(&NodeLauncher::Launch, "host1");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("GLIBC_9.9 not found"));
}

TEST_F(LauncherTest, StopEndsTheDaemonAndNobodyElse) {
  ASSERT_EQ(Do(&NodeLauncher::Launch, "host1"), absl::OkStatus());
  const int pid = Pid("host1");
  // A process that has the number of an earlier daemon: another start time.
  const std::string record = *ReadFile(env_, Root("host1") + "/daemon.pid");
  const std::vector<std::string> fields = absl::StrSplit(record, ' ');
  std::ofstream(Root("host1") + "/daemon.pid") << fields[0] << " 1 " << fields[2];
  ASSERT_EQ(Do(&NodeLauncher::Stop, "host1"), absl::OkStatus());
  EXPECT_TRUE(Runs(pid));
  std::ofstream(Root("host1") + "/daemon.pid") << record;
  ASSERT_EQ(Do(&NodeLauncher::Stop, "host1"), absl::OkStatus());
  EXPECT_FALSE(Runs(pid));
}

TEST_F(LauncherTest, NothingFromOutsideReachesAShell) {
  NodeConfig node = sshd_->node("host1");
  node.interface =
      "$(touch " + folder_ + "/owned)`touch " + folder_ + "/owned`; touch " + folder_ + "/owned";
  ASSERT_EQ(Begin(&NodeLauncher::Launch, node).get(), absl::OkStatus());
  EXPECT_FALSE(Exists(env_, folder_ + "/owned"));
}

TEST_F(LauncherTest, EachFailureNamesItsHost) {
  NodeConfig dead = sshd_->node("dead");
  dead.port = 1;
  auto first = Begin(&NodeLauncher::Launch, dead);
  auto second = Begin(&NodeLauncher::Launch, sshd_->node("host1"));
  EXPECT_THAT(std::string(first.get().message()), HasSubstr("dead (127.0.0.1) port 1"));
  EXPECT_EQ(second.get(), absl::OkStatus());
}

TEST_F(LauncherTest, LocalDaemonsOutliveTheLauncherAndAreFoundAgain) {
  const std::string worker = folder_ + "/bundle/mt-worker";
  ASSERT_EQ(chmod(worker.c_str(), 0755), 0);
  const NodeConfig node = LocalNodes(2, 3)[1];
  EXPECT_EQ(node.name, "dev-2");
  const auto run = [&](Method method) {
    std::promise<absl::Status> promise;
    std::unique_ptr<NodeLauncher> local;
    OnLoop([&] {
      local = NewLocalLauncher(loop_.get(), env_,
                               {worker, folder_ + "/local", ca_.get(), "127.0.0.1:4242", ""});
      (local.get()->*method)(node, [&](absl::Status status) { promise.set_value(status); });
    });
    const absl::Status status = promise.get_future().get();
    OnLoop([&] { local.reset(); });
    return status;
  };
  const auto pid = [&] {
    std::ifstream file(folder_ + "/local/dev-2/daemon.pid");
    int value = 0;
    file >> value;
    return value;
  };
  ASSERT_EQ(run(&NodeLauncher::Launch), absl::OkStatus());
  const int first = pid();
  ASSERT_GT(first, 1);
  EXPECT_EQ(getsid(first), first);
  ASSERT_EQ(run(&NodeLauncher::Launch), absl::OkStatus());
  EXPECT_EQ(pid(), first);
  ASSERT_EQ(run(&NodeLauncher::Stop), absl::OkStatus());
  EXPECT_FALSE(Runs(first));
}

TEST_F(LauncherTest, DaemonThatEndsRightAfterItsStartSaysWhy) {
  MakeBundle(
      "#!/bin/sh\n[ \"$1\" != version ] || exit 0\necho line one\necho no interface ib7\nexit 1\n");
  const absl::Status status = Do(&NodeLauncher::Launch, "host1");
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("line one no interface ib7"));
  EXPECT_THAT(launcher()->Whereabouts(sshd_->node("host1")),
              HasSubstr(Root("host1") + "/worker.log"));
}

TEST_F(LauncherTest, LocalDaemonThatEndsRightAfterItsStartSaysWhy) {
  std::ofstream(folder_ + "/broken") << "#!/bin/sh\necho no interface ib7\nexit 1\n";
  MT_CHECK(chmod((folder_ + "/broken").c_str(), 0700) == 0);
  std::unique_ptr<NodeLauncher> local;
  std::promise<absl::Status> done;
  OnLoop([&] {
    local = NewLocalLauncher(loop_.get(), env_,
                             {.worker = folder_ + "/broken",
                              .folder = folder_ + "/local",
                              .ca = ca_.get(),
                              .coordinator_address = "127.0.0.1:1",
                              .bundle_digest = ""});
    NodeConfig node;
    node.name = "dev-1";
    local->Launch(node, [&](absl::Status status) { done.set_value(std::move(status)); });
  });
  const absl::Status status = done.get_future().get();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("no interface ib7"));
  OnLoop([&] { local.reset(); });
}

}  // namespace
}  // namespace mt
