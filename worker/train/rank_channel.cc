#include "worker/train/rank_channel.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>

#include "absl/time/time.h"
#include "common/env.h"
#include "common/log.h"
#include "worker/agent/rank_frame.h"

namespace mt {
namespace {

constexpr int kSignOfLifeMilliseconds = 1000;

}  // namespace

RankChannel::~RankChannel() {
  stopping_ = true;
  if (reader_.joinable()) {
    const uint64_t one = 1;
    (void)!write(wake_fd_, &one, sizeof(one));
    reader_.join();
  }
  if (signal_fd_ >= 0) close(signal_fd_);
  if (wake_fd_ >= 0) close(wake_fd_);
}

absl::StatusOr<v1::RankStart> RankChannel::ReceiveStart() {
  // SIGTERM is read from a descriptor by the reading thread; block it before any other thread
  // exists.
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC);
  wake_fd_ = eventfd(0, EFD_CLOEXEC);
  if (signal_fd_ < 0 || wake_fd_ < 0) return absl::InternalError("no descriptor for signals");
  char buffer[64 << 10];
  while (true) {
    v1::ToRank message;
    MT_ASSIGN_OR_RETURN(const bool taken, TakeFrame(&incoming_, &message));
    if (taken) {
      if (!message.has_start())
        return absl::InvalidArgumentError("the first message is not a start message");
      v1::RankStart start = std::move(*message.mutable_start());
      if (start.restore_file().empty()) return start;
      MT_ASSIGN_OR_RETURN(const std::string manifest, ReadFile(Env::Real(), start.restore_file()));
      if (!start.mutable_restore()->ParseFromString(manifest)) {
        return absl::InternalError(
            absl::StrCat(start.restore_file(), " (", manifest.size(),
                         " bytes) is not the manifest that the worker ",
                         "daemon wrote there; the next attempt writes it anew"));
      }
      return start;
    }
    const ssize_t count = read(fd_, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EBADF) {
      return absl::InvalidArgumentError(
          "file descriptor 3 is not open: ranks are started by the worker daemon, not by hand");
    }
    if (count <= 0) return absl::UnavailableError("the worker daemon is gone");
    incoming_.append(buffer, count);
  }
}

void RankChannel::StartReading(std::function<void(int)> on_gone) {
  on_gone_ = std::move(on_gone);
  reader_ = std::thread([this] { Read(); });
}

void RankChannel::Read() {
  pthread_setname_np(pthread_self(), "rank-channel");
  auto next_sign =
      std::chrono::steady_clock::now() + std::chrono::milliseconds(kSignOfLifeMilliseconds);
  char buffer[64 << 10];
  while (!stopping_) {
    pollfd waits[3] = {{fd_, POLLIN, 0}, {signal_fd_, POLLIN, 0}, {wake_fd_, POLLIN, 0}};
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
                          next_sign - std::chrono::steady_clock::now())
                          .count();
    poll(waits, 3, static_cast<int>(std::max<int64_t>(0, left)));
    if (waits[1].revents != 0) on_gone_(SIGTERM);
    if (waits[0].revents != 0) {
      const ssize_t count = recv(fd_, buffer, sizeof(buffer), MSG_DONTWAIT);
      if (count == 0 || (count < 0 && errno != EAGAIN && errno != EINTR)) on_gone_(0);
      if (count > 0) incoming_.append(buffer, count);
      while (true) {
        v1::ToRank message;
        const absl::StatusOr<bool> taken = TakeFrame(&incoming_, &message);
        if (!taken.ok()) on_gone_(0);
        if (!*taken) break;
        Handle(std::move(message));
      }
    }
    if (std::chrono::steady_clock::now() >= next_sign) {
      next_sign += std::chrono::milliseconds(kSignOfLifeMilliseconds);
      SendProgress();
    }
  }
}

void RankChannel::Handle(v1::ToRank message) {
  switch (message.body_case()) {
    case v1::ToRank::kRendezvousValue: {
      const std::lock_guard lock(mutex_);
      values_[message.rendezvous_value().key()] = message.rendezvous_value().value();
      break;
    }
    case v1::ToRank::kFileReady: {
      const std::lock_guard lock(mutex_);
      const std::string name = message.file_ready().file();
      files_[name] = std::move(*message.mutable_file_ready());
      break;
    }
    case v1::ToRank::kCheckpointNow:
      checkpoint_wanted_ = true;
      if (message.checkpoint_now().then_stop()) stop_wanted_ = true;
      break;
    default:
      break;
  }
  changed_.notify_all();
}

void RankChannel::Send(const v1::FromRank& message) {
  std::string frame;
  if (absl::Status status = AppendFrame(message, &frame); !status.ok()) {
    MT_LOG(Error) << status.ToString();
    return;
  }
  const std::lock_guard lock(send_mutex_);
  for (size_t done = 0; done < frame.size();) {
    const ssize_t count = send(fd_, frame.data() + done, frame.size() - done, MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return;  // the daemon is gone: the reading thread sees it and ends the process
    done += count;
  }
}

absl::Status RankChannel::Put(const std::string& key, const std::string& value) {
  v1::FromRank message;
  message.mutable_rendezvous_put()->set_key(key);
  message.mutable_rendezvous_put()->set_value(value);
  Send(message);
  return absl::OkStatus();
}

absl::StatusOr<std::string> RankChannel::Get(const std::string& key, absl::Duration timeout) {
  v1::FromRank message;
  message.mutable_rendezvous_get()->set_key(key);
  Send(message);
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, absl::ToChronoNanoseconds(timeout),
                         [&] { return values_.contains(key); })) {
    return absl::DeadlineExceededError(
        absl::StrCat("rendezvous key ", key, " was not put within ", absl::FormatDuration(timeout),
                     ": a peer did not come up, or the coordinator cannot be reached"));
  }
  return values_[key];
}

absl::StatusOr<std::string> RankChannel::FetchFile(const std::string& name) {
  {
    const std::lock_guard lock(mutex_);
    files_.erase(name);
  }
  v1::FromRank message;
  message.mutable_need_file()->set_file(name);
  Send(message);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] {
    return files_.contains(name);
  });  // the daemon's deadline for the phase ends a wait for ever
  const v1::FileReady& ready = files_[name];
  if (!ready.ok()) {
    const auto code = ready.code() == 0 ? absl::StatusCode::kUnavailable
                                        : static_cast<absl::StatusCode>(ready.code());
    return absl::Status(code, absl::StrCat("checkpoint file ", name, ": ", ready.message()));
  }
  return ready.path();
}

void RankChannel::SetPhase(const std::string& phase, int64_t step) {
  {
    const std::lock_guard lock(mutex_);
    phase_ = phase;
    step_ = step;
    if (moved_ != nullptr) moved_before_ = moved_->load(std::memory_order_relaxed);
  }
  SendProgress();
}

void RankChannel::SendProgress() {
  v1::FromRank message;
  auto* progress = message.mutable_progress();
  {
    const std::lock_guard lock(mutex_);
    progress->set_phase(phase_);
    const int64_t moved = moved_ == nullptr || phase_ == "step"
                              ? 0
                              : (moved_->load(std::memory_order_relaxed) - moved_before_) >> 20;
    if (moved > 0) progress->set_phase(absl::StrCat(phase_, ", ", moved, " MiB"));
    progress->set_step(step_);
  }
  progress->set_where(Where());
  Send(message);
}

void RankChannel::CountBytes(std::shared_ptr<const std::atomic<int64_t>> moved) {
  const std::lock_guard lock(mutex_);
  moved_ = std::move(moved);
  moved_before_ = 0;
}

void RankChannel::EnterCollective(const std::string* group, const char* operation) {
  collectives_.fetch_add(1, std::memory_order_relaxed);
  operation_.store(operation, std::memory_order_relaxed);
  group_.store(group, std::memory_order_release);
}

void RankChannel::LeaveCollective() { group_.store(nullptr, std::memory_order_release); }

void RankChannel::SetDeviceWaiting(std::function<std::string()> waiting) {
  const std::lock_guard lock(waiting_mutex_);
  device_waiting_ = std::move(waiting);
}

std::string RankChannel::Where() {
  const std::string* group = group_.load(std::memory_order_acquire);
  if (group == nullptr) {
    const std::lock_guard lock(waiting_mutex_);
    const std::string waiting = device_waiting_ == nullptr ? "" : device_waiting_();
    return waiting.empty() ? "computing" : absl::StrCat("waiting: ", waiting);
  }
  return absl::StrCat("waiting: ", operation_.load(std::memory_order_relaxed), " in the group ",
                      *group, ", collective ", collectives_.load(std::memory_order_relaxed),
                      " of this rank");
}

}  // namespace mt
