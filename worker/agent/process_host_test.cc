// Real processes: shells that misbehave as ranks do.
#include "worker/agent/process_host.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "worker/agent/process_tree.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Collects what the host says; waits are for events, with a long bound that only a bug reaches.
class Recorder : public RankHandler {
 public:
  void OnRankMessage(const RankId&, v1::FromRank) override {}
  void OnRankOutput(const RankId&, std::string data, bool is_stderr, int64_t offset) override {
    const std::lock_guard lock(mutex_);
    if (!is_stderr) {
      EXPECT_GE(offset, first_offset);
    }
    output_ += data;
    changed_.notify_all();
  }
  void OnRankExited(const RankId&, RankExit exit) override {
    const std::lock_guard lock(mutex_);
    exit_ = std::move(exit);
    exited_ = true;
    changed_.notify_all();
  }
  void WaitForOutput(const std::string& text) {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60), [&] {
      return absl::StrContains(output_, text);
    })) << output_;
  }
  RankExit WaitForExit() {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, std::chrono::seconds(60), [&] { return exited_; }));
    return exit_;
  }
  int64_t first_offset = 0;
  std::string output() {
    const std::lock_guard lock(mutex_);
    return output_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::string output_;
  RankExit exit_;
  bool exited_ = false;
};

class ProcessHostTest : public ::testing::Test {
 protected:
  ProcessHostTest()
      : folder_(std::filesystem::path(::testing::TempDir()) /
                absl::StrCat("process-host-", getpid())) {
    std::filesystem::create_directories(folder_);
  }
  ~ProcessHostTest() override {
    host_ = nullptr;
    loop_ = nullptr;
    std::filesystem::remove_all(folder_);
  }

  int Spawn(const std::string& script) {
    ProcessHostOptions options;
    options.program = "/bin/sh";
    options.arguments = {"-c", script};
    options.scope = folder_.string();
    options.environment = {"NCCL_HOSTID=h1"};
    auto host = NewProcessHost(options, loop_.get());
    EXPECT_TRUE(host.ok()) << host.status();
    host_ = std::move(*host);
    host_->SetHandler(&recorder_);
    RankLaunch launch;
    launch.id = id_;
    launch.log_path = (folder_ / "rank-0.log").string();
    launch.start.set_threads(3);
    const auto pid = host_->Spawn(std::move(launch));
    EXPECT_TRUE(pid.ok()) << pid.status();
    return pid.value_or(-1);
  }
  std::string Tag() const { return absl::StrCat(id_.ToString(), "@", folder_.string()); }
  static bool Lives(int pid) { return kill(pid, 0) == 0; }

  const RankId id_{"job", 1, 0};
  std::filesystem::path folder_;
  Recorder recorder_;
  std::unique_ptr<EventLoop> loop_ = NewThreadEventLoop("test");
  std::unique_ptr<RankHost> host_;
};

TEST_F(ProcessHostTest, KilledRankIsReportedWithSignalAndLastLines) {
  const int pid = Spawn("for i in 1 2 3; do echo line $i; done; echo up; exec sleep 1000");
  recorder_.WaitForOutput("up\n");
  kill(pid, SIGKILL);
  const RankExit exit = recorder_.WaitForExit();
  EXPECT_EQ(exit.signal, SIGKILL);
  EXPECT_EQ(exit.exit_code, -1);
  EXPECT_THAT(exit.last_lines, ElementsAre("line 1", "line 2", "line 3", "up"));
}

TEST_F(ProcessHostTest, OnlyTheLastFortyLinesAreKept) {
  Spawn("i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); done; printf 'no end of line'; exit 7");
  const RankExit exit = recorder_.WaitForExit();
  EXPECT_EQ(exit.exit_code, 7);
  EXPECT_EQ(exit.signal, 0);
  ASSERT_EQ(exit.last_lines.size(), 40u);
  EXPECT_EQ(exit.last_lines.front(), "61");
  EXPECT_EQ(exit.last_lines.back(), "no end of line");
}

// A child in the background, one in a session of its own whose parent has ended, and one that
// ignores signals.
TEST_F(ProcessHostTest, NothingThatARankStartedOutlivesIt) {
  Spawn(
      "sleep 1000 & echo $!\n"
      "sh -c 'setsid sleep 1000 & echo $!'\n"
      "(trap '' TERM HUP INT; sleep 1000 & wait) & echo $!\n"
      "echo up; kill -9 $$");
  recorder_.WaitForExit();
  const std::vector<std::string> lines = absl::StrSplit(recorder_.output(), '\n');
  ASSERT_GE(lines.size(), 4u);
  for (int i = 0; i < 3; ++i) {
    EXPECT_FALSE(Lives(std::stoi(lines[i]))) << "process " << lines[i] << " of the rank is alive";
  }
}

TEST_F(ProcessHostTest, RankThatIgnoresTerminateDiesOfKill) {
  Spawn("trap 'echo ignored' TERM; echo up; while :; do sleep 1000 & wait $!; done");
  recorder_.WaitForOutput("up\n");
  loop_->Post([this] { host_->Signal(id_, RankSignal::kTerminate); });
  recorder_.WaitForOutput("ignored\n");
  loop_->Post([this] { host_->Signal(id_, RankSignal::kKill); });
  EXPECT_EQ(recorder_.WaitForExit().signal, SIGKILL);
}

TEST_F(ProcessHostTest, StoppedRankDiesOfKill) {
  const int pid = Spawn("echo up; exec sleep 1000");
  recorder_.WaitForOutput("up\n");
  kill(pid, SIGSTOP);
  loop_->Post([this] { host_->Signal(id_, RankSignal::kKill); });
  EXPECT_EQ(recorder_.WaitForExit().signal, SIGKILL);
}

TEST_F(ProcessHostTest, EnvironmentIsMadeNotInherited) {
  setenv("LD_PRELOAD", "", 1);
  setenv("A_SECRET", "s3cret", 1);
  setenv("NCCL_DEBUG", "WARN", 1);
  Spawn("env; umask; ulimit -c; grep NoNewPrivs /proc/self/status; ls /proc/self/fd");
  unsetenv("LD_PRELOAD");
  unsetenv("A_SECRET");
  unsetenv("NCCL_DEBUG");
  EXPECT_EQ(recorder_.WaitForExit().exit_code, 0);
  const std::string output = recorder_.output();
  EXPECT_THAT(output, HasSubstr("OMP_NUM_THREADS=3\n"));
  EXPECT_THAT(output, HasSubstr("OMP_WAIT_POLICY=passive\n"));
  EXPECT_THAT(output, HasSubstr("NCCL_DEBUG=WARN\n"));
  EXPECT_THAT(output, HasSubstr("NCCL_HOSTID=h1\n"));  // what the daemon says
  EXPECT_THAT(output, HasSubstr("0077\n"));
  EXPECT_THAT(output, HasSubstr("NoNewPrivs:\t1\n"));
  EXPECT_THAT(output, ::testing::EndsWith("\n0\n1\n2\n3\n4\n"));  // 4 is what ls opens
  EXPECT_THAT(output, ::testing::Not(HasSubstr("LD_PRELOAD")));
  EXPECT_THAT(output, ::testing::Not(HasSubstr("s3cret")));
}

TEST_F(ProcessHostTest, OutputIsAppendedToTheLogFile) {
  std::ofstream(folder_ / "rank-0.log") << "earlier\n";
  recorder_.first_offset = 8;
  Spawn("echo now; echo fault >&2");
  recorder_.WaitForExit();
  std::stringstream text;
  text << std::ifstream(folder_ / "rank-0.log").rdbuf();
  EXPECT_THAT(text.str(), ::testing::AnyOf("earlier\nnow\nfault\n", "earlier\nfault\nnow\n"));
}

// The daemon is killed: its rank ends with it, by the parent-death signal.
TEST_F(ProcessHostTest, RanksDieWithTheDaemon) {
  int told[2];
  ASSERT_EQ(pipe2(told, O_CLOEXEC), 0);
  const pid_t daemon = fork();
  if (daemon == 0) {
    auto loop = NewThreadEventLoop("daemon");
    ProcessHostOptions options;
    options.program = "/bin/sh";
    options.arguments = {"-c", "trap '' HUP TERM; sleep 1000; sleep 1000"};
    options.scope = folder_.string();
    options.environment = {"NCCL_HOSTID=h1"};
    auto host = NewProcessHost(options, loop.get());
    if (!host.ok()) _exit(1);
    (*host)->SetHandler(&recorder_);
    RankLaunch launch;
    launch.id = id_;
    launch.log_path = (folder_ / "daemon.log").string();
    loop->Post([&] {  // as in the daemon: forked on the loop's thread
      const int32_t pid = (*host)->Spawn(std::move(launch)).value_or(-1);
      (void)!write(told[1], &pid, sizeof(pid));
    });
    pause();
  }
  int32_t rank = -1;
  ASSERT_EQ(read(told[0], &rank, sizeof(rank)), static_cast<ssize_t>(sizeof(rank)));
  pollfd rank_ends{static_cast<int>(syscall(SYS_pidfd_open, rank, 0)), POLLIN, 0};
  ASSERT_GE(rank_ends.fd, 0);
  kill(daemon, SIGKILL);
  waitpid(daemon, nullptr, 0);
  EXPECT_EQ(poll(&rank_ends, 1, 60000), 1);
  close(rank_ends.fd);
  EXPECT_TRUE(KillTree(Tag(), 0, absl::Seconds(20)).ok());  // the shell's own child
}

// What the daemon's crash leaves behind is found by its tag alone, also in another session.
TEST_F(ProcessHostTest, SweepEndsWhatAnEarlierDaemonLeft) {
  Spawn("true");
  recorder_.WaitForExit();
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    setsid();
    const std::string variable = absl::StrCat(kRankTagVariable, "=", Tag());
    char* arguments[] = {const_cast<char*>("sh"), const_cast<char*>("-c"),
                         const_cast<char*>("echo; exec sleep 1000"), nullptr};
    char* environment[] = {const_cast<char*>(variable.c_str()), nullptr};
    dup2(ready[1], 1);
    execve("/bin/sh", arguments, environment);
    _exit(127);
  }
  char byte;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  host_->Sweep(id_, pid);
  EXPECT_FALSE(Lives(pid));
}

}  // namespace
}  // namespace mt
