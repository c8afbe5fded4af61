// The rank's end of its socket to the daemon: start message, rendezvous, files, orders, signs of
// life.
//
// Invariant: one thread reads; when the socket ends (the daemon is gone) or SIGTERM comes, it ends
// the process at once through `on_gone`: a rank without its daemon must not go on. Send and the
// waits below may be called from any thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "common/status.h"
#include "mt/v1/rank.pb.h"
#include "worker/comm/communicator.h"

namespace mt {

class RankChannel : public Rendezvous {
 public:
  explicit RankChannel(int fd) : fd_(fd) {}
  ~RankChannel() override;
  RankChannel(const RankChannel&) = delete;

  // The first message; blocks. UNAVAILABLE: the daemon is gone. INVALID_ARGUMENT: something else
  // came. A manifest that came by a file is in `restore`; NOT_FOUND, INTERNAL: that file is gone or no manifest.
  absl::StatusOr<v1::RankStart> ReceiveStart();
  // From here on a thread reads. `on_gone` must not return; `signal` is SIGTERM, or 0 when the
  // daemon is gone.
  void StartReading(std::function<void(int signal)> on_gone);

  void Send(const v1::FromRank& message);

  // Rendezvous.
  absl::Status Put(const std::string& key, const std::string& value) override;
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override;

  // Local path of a file of the checkpoint to restore that is not where it should be; blocks while
  // the daemon fetches it. DATA_LOSS: no whole copy is left anywhere. All else is the daemon's reason why it could not look or
  // could not store what it found, and says nothing of the checkpoint.
  absl::StatusOr<std::string> FetchFile(const std::string& name);

  // Orders from the coordinator, for the next step boundary.
  bool checkpoint_wanted() const { return checkpoint_wanted_; }
  bool stop_wanted() const { return stop_wanted_; }
  void ForgetCheckpointWanted() { checkpoint_wanted_ = false; }

  // Where the rank is. SetPhase sends Progress at once; the reading thread repeats it every second
  // as a sign of life, with where() as it is then: "waiting: <operation> <number> of <group>"
  // inside a collective.
  void SetPhase(const std::string& phase, int64_t step);
  // Bytes of files that this rank has moved so far, by whichever thread. Outside a step a sign of life tells how many they are since
  // the phase began, as part of the phase ("finish, 12 MiB"): as long as it changes the rank does not hang, however slow its disk is.
  void CountBytes(std::shared_ptr<const std::atomic<int64_t>> moved);
  void EnterCollective(const std::string* group, const char* operation);
  void LeaveCollective();
  // Device groups are waited for outside their calls: `waiting` says for which, "" if for none. Called by the reading thread until
  // it is taken back with null.
  void SetDeviceWaiting(std::function<std::string()> waiting);

 private:
  void Read();
  void Handle(v1::ToRank message);
  void SendProgress();
  std::string Where();

  const int fd_;
  int signal_fd_ = -1, wake_fd_ = -1;
  std::string incoming_;
  std::function<void(int)> on_gone_;
  std::mutex send_mutex_;
  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;
  std::map<std::string, v1::FileReady> files_;
  std::string phase_ = "start";
  int64_t step_ = 0;
  std::shared_ptr<const std::atomic<int64_t>> moved_;
  int64_t moved_before_ = 0;  // when the phase began
  std::mutex waiting_mutex_;
  std::function<std::string()> device_waiting_;     // guarded by waiting_mutex_
  std::atomic<const std::string*> group_{nullptr};  // in a collective of this group
  std::atomic<const char*> operation_{nullptr};
  std::atomic<int64_t> collectives_{0};
  std::atomic<bool> checkpoint_wanted_{false}, stop_wanted_{false}, stopping_{false};
  std::thread reader_;
};

}  // namespace mt
