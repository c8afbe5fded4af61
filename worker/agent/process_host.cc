#include "worker/agent/process_host.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/time/time.h"
#include "common/log.h"
#include "worker/agent/process_tree.h"
#include "worker/agent/rank_frame.h"

namespace mt {
namespace {

constexpr size_t kMaxLineBytes = 64 << 10;
constexpr size_t kMaxLastLineBytes = 2 << 10;
constexpr int64_t kMaxUnhandledBytes = 4 << 20;
constexpr absl::Duration kTreeTimeout = absl::Seconds(20);
// What a rank may see of the daemon's environment.
constexpr const char* kInherited[] = {"PATH",
                                      "HOME",
                                      "USER",
                                      "LANG",
                                      "LC_ALL",
                                      "TZ",
                                      "TMPDIR",
                                      "MT_BACKEND_PATH",
                                      "MT_CUDA_LIBRARY_PATH",
                                      "MT_NCCL_SHARE_DEVICE",
                                      "LD_LIBRARY_PATH",
                                      "ASAN_OPTIONS",
                                      "TSAN_OPTIONS",
                                      "UBSAN_OPTIONS"};

// And whatever begins so: what people set to choose devices, interfaces and logs of the libraries on GPUs.
constexpr absl::string_view kInheritedPrefixes[] = {"CUDA_", "CUDNN_", "NCCL_"};

std::vector<std::string> InheritedEnvironment() {
  std::vector<std::string> inherited;
  for (const char* name : kInherited) {
    if (const char* value = std::getenv(name)) inherited.push_back(absl::StrCat(name, "=", value));
  }
  for (char** variable = environ; *variable != nullptr; ++variable) {
    for (const absl::string_view prefix : kInheritedPrefixes) {
      if (absl::StartsWith(*variable, prefix)) inherited.emplace_back(*variable);
    }
  }
  return inherited;
}

class Fd {
 public:
  explicit Fd(int fd = -1) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() { Close(); }
  void Close() {
    if (fd_ >= 0) close(fd_);
    fd_ = -1;
  }
  int get() const { return fd_; }

 private:
  int fd_;
};

struct Stream {
  Fd fd;
  bool is_stderr = false;
  std::string partial;
};

struct Child {
  RankId id;
  std::string tag;
  pid_t pid = 0;
  Fd pidfd, socket, log;
  Stream streams[2];
  int64_t log_offset = 0;
  std::string incoming;
  std::deque<std::string> last_lines;
  std::mutex mutex;
  std::string outgoing;               // guarded by mutex
  std::atomic<int64_t> unhandled{0};  // bytes posted to the loop and not handled yet
  bool paused = false;
};

absl::Status SystemError(absl::string_view what) {
  const int error = errno;
  const std::string message = absl::StrCat(what, ": ", std::strerror(error));
  if (error == EMFILE || error == ENFILE || error == EAGAIN || error == ENOMEM)
    return absl::ResourceExhaustedError(message);
  return absl::InternalError(message);
}

// The child's half of Spawn. Between fork and exec only async-signal-safe calls are allowed, and none
// of these allocates.
[[noreturn]] void BecomeRank(pid_t parent, int out, int err, int socket, char* const* arguments,
                             char* const* environment) {
  setsid();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(125);  // the daemon died before the line above took effect
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  umask(077);
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP, SIGPIPE, SIGCHLD}) ::signal(signal, SIG_DFL);
  const int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) _exit(125);
  if (socket == 3) {
    if (fcntl(3, F_SETFD, 0) != 0) _exit(125);
  } else if (dup2(socket, 3) < 0) {
    _exit(125);
  }
  syscall(SYS_close_range, 4u, ~0u, 0u);  // nothing that the daemon or its parents left open
  execve(arguments[0], arguments, environment);
  const char message[] = "the rank's program cannot be executed\n";
  (void)!write(2, message, sizeof(message) - 1);
  _exit(127);
}

class ProcessHost : public RankHost {
 public:
  ProcessHost(ProcessHostOptions options, EventLoop* loop)
      : options_(std::move(options)), loop_(loop) {}

  ~ProcessHost() override {
    *alive_ = false;
    stopping_ = true;
    Wake();
    if (thread_.joinable()) thread_.join();
    for (auto& [id, child] : children_) {
      kill(-child->pid, SIGKILL);
      (void)KillTree(child->tag, child->pid, kTreeTimeout);
      waitpid(child->pid, nullptr, 0);
    }
  }

  absl::Status Open() {
    epoll_ = Fd(epoll_create1(EPOLL_CLOEXEC));
    wake_ = Fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (epoll_.get() < 0 || wake_.get() < 0) return SystemError("epoll");
    // Orphans of ranks come to this process, so that they can be found and reaped.
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) return SystemError("prctl(PR_SET_CHILD_SUBREAPER)");
    epoll_event event{};
    event.events = EPOLLIN;
    epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event);
    thread_ = std::thread([this] { Run(); });
    return absl::OkStatus();
  }

  void SetHandler(RankHandler* handler) override { handler_ = handler; }

  absl::StatusOr<int32_t> Spawn(RankLaunch launch) override;

  void Send(const RankId& id, v1::ToRank message) override {
    const std::shared_ptr<Child> child = Find(id);
    if (child == nullptr) return;
    {
      std::lock_guard lock(child->mutex);
      if (absl::Status status = AppendFrame(message, &child->outgoing); !status.ok()) {
        MT_LOG(Error) << id.ToString() << ": " << status.ToString();
        return;
      }
    }
    {
      std::lock_guard lock(mutex_);
      writable_.insert(id);
    }
    Wake();
  }

  void Signal(const RankId& id, RankSignal signal) override {
    const std::shared_ptr<Child> child = Find(id);
    if (child == nullptr) return;
    if (signal == RankSignal::kTerminate) {
      syscall(SYS_pidfd_send_signal, child->pidfd.get(), SIGTERM, nullptr, 0);
      return;
    }
    std::lock_guard lock(mutex_);
    // Who is in the table is not reaped yet, so neither its pid nor its group's is another's.
    if (children_.contains(id)) kill(-child->pid, SIGKILL);
    syscall(SYS_pidfd_send_signal, child->pidfd.get(), SIGKILL, nullptr, 0);
  }

  void Sweep(const RankId& id, int32_t pid) override {
    if (absl::Status status = KillTree(TagOf(id), 0, kTreeTimeout); !status.ok()) {
      MT_LOG(Error) << status.ToString();
    }
  }

 private:
  std::string TagOf(const RankId& id) const {
    return absl::StrCat(id.ToString(), "@", options_.scope);
  }

  std::shared_ptr<Child> Find(const RankId& id) {
    std::lock_guard lock(mutex_);
    const auto it = children_.find(id);
    return it == children_.end() ? nullptr : it->second;
  }

  void Wake() {
    const uint64_t one = 1;
    (void)!write(wake_.get(), &one, sizeof(one));
  }

  void Watch(const RankId& id, int fd, uint32_t events);
  void Run();
  void ReadStream(Child& child, Stream& stream, bool final);
  void ReadSocket(Child& child);
  void WriteSocket(Child& child);
  void Deliver(Child& child, bool is_stderr, std::string data);
  void OnExit(const std::shared_ptr<Child>& child);
  void Post(Child& child, int64_t bytes, std::function<void(RankHandler*)> call);

  const ProcessHostOptions options_;
  EventLoop* const loop_;
  RankHandler* handler_ = nullptr;
  Fd epoll_, wake_;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::map<RankId, std::shared_ptr<Child>> children_;  // guarded by mutex_
  std::map<int, RankId> watched_;  // guarded by mutex_: which rank a descriptor belongs to
  std::set<RankId> writable_;      // guarded by mutex_: has something to send
  std::shared_ptr<std::atomic<bool>> alive_ = std::make_shared<std::atomic<bool>>(true);
  std::thread thread_;
};

absl::StatusOr<int32_t> ProcessHost::Spawn(RankLaunch launch) {
  auto child = std::make_shared<Child>();
  child->id = launch.id;
  child->tag = TagOf(launch.id);
  v1::ToRank first;
  *first.mutable_start() = std::move(launch.start);
  MT_RETURN_IF_ERROR(AppendFrame(first, &child->outgoing));

  child->log = Fd(
      open(launch.log_path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (child->log.get() < 0) return SystemError(absl::StrCat("open ", launch.log_path));
  struct stat info;
  if (fstat(child->log.get(), &info) == 0) child->log_offset = info.st_size;
  int sockets[2], out[2], err[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) != 0)
    return SystemError("socketpair");
  child->socket = Fd(sockets[0]);
  Fd rank_socket(sockets[1]);
  if (pipe2(out, O_CLOEXEC) != 0) return SystemError("pipe");
  child->streams[0].fd = Fd(out[0]);
  Fd rank_out(out[1]);
  if (pipe2(err, O_CLOEXEC) != 0) return SystemError("pipe");
  child->streams[1].fd = Fd(err[0]);
  child->streams[1].is_stderr = true;
  Fd rank_err(err[1]);
  for (const int fd : {sockets[0], out[0], err[0]}) fcntl(fd, F_SETFL, O_NONBLOCK);

  // Everything that allocates is done before fork.
  std::vector<std::string> argument_text = {options_.program};
  argument_text.insert(argument_text.end(), options_.arguments.begin(), options_.arguments.end());
  const int threads = std::max(1, first.start().threads());
  std::vector<std::string> environment_text = {
      absl::StrCat(kRankTagVariable, "=", child->tag), absl::StrCat("OMP_NUM_THREADS=", threads),
      "OMP_WAIT_POLICY=passive",  // ranks share cores: a spinning pool would starve its neighbours
      "OMP_DYNAMIC=false", "MALLOC_ARENA_MAX=2"};
  for (std::string& variable : InheritedEnvironment())
    environment_text.push_back(std::move(variable));
  for (const std::string& variable : options_.environment) {
    const std::string name = variable.substr(0, variable.find('='));
    if (std::getenv(name.c_str()) == nullptr) environment_text.push_back(variable);
  }
  std::vector<char*> arguments, environment;
  for (auto& text : argument_text) arguments.push_back(text.data());
  for (auto& text : environment_text) environment.push_back(text.data());
  arguments.push_back(nullptr);
  environment.push_back(nullptr);

  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid < 0) return SystemError("fork");
  if (pid == 0) {
    BecomeRank(parent, rank_out.get(), rank_err.get(), rank_socket.get(), arguments.data(),
               environment.data());
  }
  child->pid = pid;
  child->pidfd = Fd(static_cast<int>(syscall(SYS_pidfd_open, pid, 0)));
  if (child->pidfd.get() < 0) {
    const absl::Status status = SystemError("pidfd_open");
    kill(pid, SIGKILL);
    waitpid(pid, nullptr, 0);
    return status;
  }
  {
    std::lock_guard lock(mutex_);
    children_[child->id] = child;
    writable_.insert(child->id);
  }
  Watch(child->id, child->pidfd.get(), EPOLLIN);
  for (auto& stream : child->streams) Watch(child->id, stream.fd.get(), EPOLLIN);
  Watch(child->id, child->socket.get(), EPOLLIN);
  Wake();
  return pid;
}

void ProcessHost::Watch(const RankId& id, int fd, uint32_t events) {
  {
    std::lock_guard lock(mutex_);
    watched_[fd] = id;
  }
  epoll_event event{};
  event.events = events;
  event.data.fd = fd;
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0 && errno == EEXIST) {
    epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event);
  }
}

void ProcessHost::Run() {
  pthread_setname_np(pthread_self(), "rank-host");
  while (!stopping_) {
    epoll_event events[64];
    const int count = epoll_wait(epoll_.get(), events, 64, -1);
    uint64_t drained;
    (void)!read(wake_.get(), &drained, sizeof(drained));

    std::set<RankId> writable;
    std::vector<std::shared_ptr<Child>> all;
    {
      std::lock_guard lock(mutex_);
      writable.swap(writable_);
      for (const auto& [id, child] : children_) all.push_back(child);
    }
    for (const auto& child : all) {
      if (writable.contains(child->id)) WriteSocket(*child);
      const bool pause = child->unhandled > kMaxUnhandledBytes;
      if (pause != child->paused) {
        child->paused = pause;
        for (auto& stream : child->streams) {
          if (stream.fd.get() >= 0) Watch(child->id, stream.fd.get(), pause ? 0u : EPOLLIN);
        }
        if (child->socket.get() >= 0) Watch(child->id, child->socket.get(), pause ? 0u : EPOLLIN);
      }
    }
    std::vector<std::shared_ptr<Child>> ended;
    for (int i = 0; i < count; ++i) {
      const int fd = events[i].data.fd;
      std::shared_ptr<Child> child;
      {
        std::lock_guard lock(mutex_);
        const auto it = watched_.find(fd);
        if (it == watched_.end()) continue;
        const auto entry = children_.find(it->second);
        if (entry == children_.end()) continue;
        child = entry->second;
      }
      if (fd == child->pidfd.get()) {
        ended.push_back(child);  // after what it wrote
      } else if (fd == child->socket.get()) {
        if (events[i].events & EPOLLOUT) WriteSocket(*child);
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) ReadSocket(*child);
      } else {
        for (auto& stream : child->streams) {
          if (fd == stream.fd.get()) ReadStream(*child, stream, /*final=*/false);
        }
      }
    }
    for (const auto& child : ended) OnExit(child);
  }
}

void ProcessHost::Post(Child& child, int64_t bytes, std::function<void(RankHandler*)> call) {
  std::shared_ptr<Child> shared;
  {
    std::lock_guard lock(mutex_);
    const auto it = children_.find(child.id);
    if (it != children_.end()) shared = it->second;
  }
  if (shared != nullptr) shared->unhandled += bytes;
  loop_->Post([this, alive = alive_, shared, bytes, call = std::move(call)] {
    if (!*alive) return;
    call(handler_);
    if (shared == nullptr) return;
    const int64_t before = shared->unhandled.fetch_sub(bytes);
    if (before > kMaxUnhandledBytes && before - bytes <= kMaxUnhandledBytes) Wake();
  });
}

// Writes whole lines to the log file and forwards them.
void ProcessHost::Deliver(Child& child, bool is_stderr, std::string data) {
  const int64_t offset = child.log_offset;
  for (size_t done = 0; done < data.size();) {
    const ssize_t count = write(child.log.get(), data.data() + done, data.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0)
      break;  // a full disk must not stop the rank: the lines still go to the coordinator
    done += count;
  }
  child.log_offset += static_cast<int64_t>(data.size());
  for (size_t begin = 0; begin < data.size();) {
    size_t end = data.find('\n', begin);
    if (end == std::string::npos) end = data.size();
    child.last_lines.push_back(data.substr(begin, std::min(end - begin, kMaxLastLineBytes)));
    if (child.last_lines.size() > static_cast<size_t>(options_.last_lines))
      child.last_lines.pop_front();
    begin = end + 1;
  }
  const int64_t bytes = static_cast<int64_t>(data.size());
  Post(child, bytes,
       [id = child.id, data = std::move(data), is_stderr, offset](RankHandler* handler) {
         handler->OnRankOutput(id, data, is_stderr, offset);
       });
}

void ProcessHost::ReadStream(Child& child, Stream& stream, bool final) {
  char buffer[64 << 10];
  bool ended = final;
  do {
    const ssize_t count = stream.fd.get() < 0 ? 0 : read(stream.fd.get(), buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) break;  // nothing more now
    if (count == 0) {
      ended = true;
      break;
    }
    stream.partial.append(buffer, count);
    const size_t last = stream.partial.rfind('\n');
    if (last != std::string::npos) {
      std::string lines = stream.partial.substr(0, last + 1);
      stream.partial.erase(0, last + 1);
      Deliver(child, stream.is_stderr, std::move(lines));
    } else if (stream.partial.size() >= kMaxLineBytes) {
      Deliver(child, stream.is_stderr, std::exchange(stream.partial, {}));
    }
  } while (final);  // otherwise epoll calls again: no rank keeps the thread to itself
  if (!ended) return;
  if (!stream.partial.empty()) Deliver(child, stream.is_stderr, std::exchange(stream.partial, {}));
  if (stream.fd.get() < 0) return;
  {
    std::lock_guard lock(mutex_);
    watched_.erase(stream.fd.get());
  }
  stream.fd.Close();
}

void ProcessHost::ReadSocket(Child& child) {
  char buffer[64 << 10];
  bool ended = false;
  while (child.socket.get() >= 0) {
    const ssize_t count = read(child.socket.get(), buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) break;
    if (count <= 0) {
      ended = true;
      break;
    }
    child.incoming.append(buffer, count);
  }
  while (true) {
    v1::FromRank message;
    const absl::StatusOr<bool> taken = TakeFrame(&child.incoming, &message);
    if (!taken.ok()) {
      MT_LOG(Error) << child.id.ToString() << " sent " << taken.status().message()
                    << ": killing it";
      syscall(SYS_pidfd_send_signal, child.pidfd.get(), SIGKILL, nullptr, 0);
      child.incoming.clear();
      ended = true;
      break;
    }
    if (!*taken) break;
    Post(child, static_cast<int64_t>(message.ByteSizeLong()),
         [id = child.id, message = std::move(message)](RankHandler* handler) {
           handler->OnRankMessage(id, message);
         });
  }
  if (!ended || child.socket.get() < 0) return;
  {
    std::lock_guard lock(mutex_);
    watched_.erase(child.socket.get());
  }
  child.socket.Close();
}

void ProcessHost::WriteSocket(Child& child) {
  if (child.socket.get() < 0) return;
  std::lock_guard lock(child.mutex);
  while (!child.outgoing.empty()) {
    const ssize_t count =
        send(child.socket.get(), child.outgoing.data(), child.outgoing.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      if (errno != EAGAIN) child.outgoing.clear();  // it is ending: its pidfd will tell
      break;
    }
    child.outgoing.erase(0, count);
  }
  Watch(child.id, child.socket.get(),
        (child.paused ? 0u : EPOLLIN) | (child.outgoing.empty() ? 0u : EPOLLOUT));
}

void ProcessHost::OnExit(const std::shared_ptr<Child>& child) {
  // Not reaped yet: until then neither the pid nor the session number can be given to another
  // process.
  if (absl::Status status = KillTree(child->tag, child->pid, kTreeTimeout); !status.ok()) {
    MT_LOG(Error) << status.ToString();
  }
  ReadSocket(*child);
  for (auto& stream : child->streams) ReadStream(*child, stream, /*final=*/true);
  {
    std::lock_guard lock(mutex_);
    for (const int fd : {child->pidfd.get(), child->socket.get(), child->streams[0].fd.get(),
                         child->streams[1].fd.get()}) {
      watched_.erase(fd);
    }
    children_.erase(child->id);
  }
  RankExit exit;
  siginfo_t info{};
  if (waitid(P_PID, child->pid, &info, WEXITED) == 0) {
    exit.exit_code = info.si_code == CLD_EXITED ? info.si_status : -1;
    exit.signal = info.si_code == CLD_EXITED ? 0 : info.si_status;
  } else {
    exit.exit_code = -1;
    exit.signal = SIGKILL;
  }
  exit.last_lines.assign(child->last_lines.begin(), child->last_lines.end());
  Post(*child, 0,
       [id = child->id, exit](RankHandler* handler) { handler->OnRankExited(id, exit); });
}

}  // namespace

absl::StatusOr<std::unique_ptr<RankHost>> NewProcessHost(ProcessHostOptions options,
                                                         EventLoop* loop) {
  auto host = std::make_unique<ProcessHost>(std::move(options), loop);
  MT_RETURN_IF_ERROR(host->Open());
  return host;
}

}  // namespace mt
