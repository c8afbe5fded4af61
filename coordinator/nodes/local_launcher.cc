#include "coordinator/nodes/local_launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <set>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "common/log.h"
#include "common/worker_command.h"
#include "coordinator/nodes/launch_pool.h"

namespace mt {
namespace {

constexpr int kNumThreads = 4;
constexpr absl::Duration kFirstLook = absl::Seconds(1);   // whether a daemon that was started lives
constexpr absl::Duration kStopGrace = absl::Seconds(15);  // the daemon's own ranks get ten seconds

// Field 22 of /proc/<pid>/stat, in clock ticks since boot; nothing for a process that is gone or a
// zombie.
std::optional<std::string> StartTime(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/stat"));
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  const size_t name_end = line.rfind(") ");  // the name in parentheses may hold anything
  if (name_end == std::string::npos) return std::nullopt;
  const std::vector<std::string> fields = absl::StrSplit(line.substr(name_end + 2), ' ');
  if (fields.size() < 20 || fields[0] == "Z" || fields[0] == "X") return std::nullopt;
  return fields[19];
}

std::string BootId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  std::getline(file, id);
  return id;
}

class LocalLauncher : public NodeLauncher {
 public:
  LocalLauncher(EventLoop* loop, Env* env, LocalLauncherOptions options)
      : env_(env),
        options_(std::move(options)),
        pool_(std::make_unique<LaunchPool>(loop, kNumThreads)) {}

  void Launch(const NodeConfig& node, Done done) override {
    pool_->Run(
        node.name, [this, node] { return Annotate(LaunchNow(node), node.name); }, std::move(done));
  }
  void Stop(const NodeConfig& node, Done done) override {
    pool_->Run(
        node.name, [this, node] { return Annotate(StopNow(node), node.name); }, std::move(done));
  }
  std::string Whereabouts(const NodeConfig& node) const override {
    return absl::StrCat("it dials ", options_.coordinator_address, "; see ", Root(node),
                        "/worker.log");
  }

 private:
  std::string Root(const NodeConfig& node) const { return JoinPath(options_.folder, node.name); }

  // The daemon that daemon.pid describes, if it is alive.
  std::optional<pid_t> Alive(const NodeConfig& node) {
    const absl::StatusOr<std::string> text =
        ReadFile(env_, JoinPath(Root(node), "daemon.pid"), 4096);
    if (!text.ok()) return std::nullopt;
    const std::vector<std::string> fields =
        absl::StrSplit(*text, absl::ByAnyChar(" \n"), absl::SkipEmpty());
    int pid = 0;
    if (fields.size() != 3 || !absl::SimpleAtoi(fields[0], &pid) || pid <= 1 ||
        fields[2] != BootId()) {
      return std::nullopt;
    }
    waitpid(pid, nullptr, WNOHANG);  // it may be our child and have ended
    const std::optional<std::string> start = StartTime(pid);
    return start.has_value() && *start == fields[1] ? std::optional<pid_t>(pid) : std::nullopt;
  }

  absl::Status LaunchNow(const NodeConfig& node) {
    const std::string root = Root(node);
    MT_RETURN_IF_ERROR(env_->CreateDirectories(JoinPath(root, "state")));
    WorkerCommand command;
    command.node = node.name;
    command.coordinator = absl::StrCat("@", root, "/coordinator");
    command.state_folder = JoinPath(root, "state");
    command.slots = node.slots;
    command.data_cache_bytes = node.data_cache_bytes;
    command.interface = node.interface;
    command.bundle_digest = options_.bundle_digest;
    if (options_.ca != nullptr) {
      command.tls_folder = JoinPath(root, "tls");
      MT_ASSIGN_OR_RETURN(const CertificateAndKey pair, options_.ca->IssueNode(node.name));
      MT_RETURN_IF_ERROR(WriteCertificate(env_, command.tls_folder, "node", pair));
      MT_RETURN_IF_ERROR(WriteFileAtomically(env_, JoinPath(command.tls_folder, "ca.crt"),
                                             options_.ca->certificate_pem()));
    }
    MT_RETURN_IF_ERROR(WriteFileAtomically(env_, JoinPath(root, "coordinator"),
                                           options_.coordinator_address + "\n"));
    if (Alive(node).has_value()) return absl::OkStatus();
    MT_ASSIGN_OR_RETURN(const pid_t pid, Spawn(command, JoinPath(root, "worker.log")));
    const std::optional<std::string> start = StartTime(pid);
    if (start.has_value()) {
      MT_LOG(Info) << node.name << ": worker daemon is process " << pid;
      MT_RETURN_IF_ERROR(WriteFileAtomically(env_, JoinPath(root, "daemon.pid"),
                                             absl::StrCat(pid, " ", *start, " ", BootId(), "\n")));
    }
    if (!start.has_value() || EndsWithin(pid, kFirstLook)) {
      waitpid(pid, nullptr, WNOHANG);
      return absl::FailedPreconditionError(
          absl::StrCat(options_.worker, " ended right after its start: ",
                       LastLines(JoinPath(root, "worker.log")), " (", root, "/worker.log)"));
    }
    return absl::OkStatus();
  }

  static bool EndsWithin(pid_t pid, absl::Duration time) {
    const int descriptor = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
    if (descriptor < 0) return false;
    pollfd wait = {descriptor, POLLIN, 0};
    const bool ended = poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(time))) > 0;
    close(descriptor);
    return ended;
  }
  std::string LastLines(const std::string& path) const {
    const absl::StatusOr<std::string> log = ReadFile(env_, path);
    if (!log.ok()) return std::string(log.status().message());
    const std::vector<std::string> lines = absl::StrSplit(*log, '\n', absl::SkipEmpty());
    const size_t first = lines.size() > 3 ? lines.size() - 3 : 0;
    return absl::StrJoin(lines.begin() + static_cast<std::ptrdiff_t>(first), lines.end(), " ");
  }

  // In a session of its own, with nothing of ours open, so that it outlives the coordinator.
  absl::StatusOr<pid_t> Spawn(const WorkerCommand& command, const std::string& log) {
    std::vector<std::string> arguments = FormatWorkerCommand(command);
    arguments.insert(arguments.begin(), options_.worker);
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, log.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    posix_spawn_file_actions_addclosefrom_np(&actions, 3);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setsigdefault(&attributes, &all);
    posix_spawnattr_setflags(&attributes,
                             POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    pid_t pid = 0;
    const int error =
        posix_spawn(&pid, options_.worker.c_str(), &actions, &attributes, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    posix_spawnattr_destroy(&attributes);
    if (error != 0) {
      return absl::FailedPreconditionError(absl::StrCat("cannot start ", options_.worker, ": ",
                                                        std::strerror(error),
                                                        "; name the program by --worker"));
    }
    return pid;
  }

  absl::Status StopNow(const NodeConfig& node) {
    const std::optional<pid_t> pid = Alive(node);
    if (pid.has_value()) {
      // The descriptor stands for this very process, even if its number is used again.
      const int descriptor = static_cast<int>(syscall(SYS_pidfd_open, *pid, 0));
      if (descriptor >= 0 && Alive(node) == pid) {
        syscall(SYS_pidfd_send_signal, descriptor, SIGTERM, nullptr, 0);
        pollfd wait = {descriptor, POLLIN, 0};
        if (poll(&wait, 1, static_cast<int>(absl::ToInt64Milliseconds(kStopGrace))) == 0) {
          syscall(SYS_pidfd_send_signal, descriptor, SIGKILL, nullptr, 0);
          poll(&wait, 1, 5000);
        }
      }
      if (descriptor >= 0) close(descriptor);
      waitpid(*pid, nullptr, WNOHANG);
    }
    const absl::Status removed = env_->RemoveFile(JoinPath(Root(node), "daemon.pid"));
    return absl::IsNotFound(removed) ? absl::OkStatus() : removed;
  }

  Env* const env_;
  const LocalLauncherOptions options_;
  std::unique_ptr<LaunchPool> pool_;  // last: its threads use the rest
};

}  // namespace

std::vector<NodeConfig> LocalNodes(int num_nodes, int slots) {
  std::vector<NodeConfig> nodes;
  for (int i = 1; i <= num_nodes; ++i) {
    NodeConfig node;
    node.name = absl::StrCat("dev-", i);
    node.slots = slots;
    node.interface = "lo";
    nodes.push_back(std::move(node));
  }
  return nodes;
}

std::unique_ptr<NodeLauncher> NewLocalLauncher(EventLoop* loop, Env* env,
                                               LocalLauncherOptions options) {
  return std::make_unique<LocalLauncher>(loop, env, std::move(options));
}

}  // namespace mt
