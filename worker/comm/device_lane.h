// One communicator of the backend's library (NCCL), with a stream of its own and the calls on it that are not done yet.
//
// Invariants
//  - Calls run on the lane's stream in the order in which they were made. Each waits for what was on the compute stream when
//    it was made. So the library sees one communicator used on one stream only.
//  - Every call has two events, before and after it on the lane's stream: the first tells since when the call waits for its
//    peers, the second that it is done. Both go back to a pool when it is.
//  - `aborted_` is set before the library's abort is entered; after that nothing but destroy is called. An abort waits for a
//    call that another thread is making, but only for `abort_grace`: the library's abort is what ends a call that hangs.
//  - The library's abort may wait for peers, who perhaps wait in aborts of their own. So each lane's runs on a thread of its own
//    and only the lane's destruction waits for it: a rank begins all of its aborts before it waits for any.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "worker/comm/checked_communicator.h"
#include "worker/comm/device_wait.h"

namespace mt {

// What all lanes of a process share. The pointed-to outlive every lane.
struct DeviceAccess {
  const mt_backend* backend = nullptr;  // opened
  const mt_collectives* collectives = nullptr;
  WaitTime time;
  absl::Duration abort_grace = absl::Milliseconds(300);
};

class DeviceLane {
 public:
  struct Options {
    std::string prefix;              // of rendezvous keys
    int rank = 0, size = 2;          // in the lane
    std::vector<int> members;        // of the group: for each place in the lane the member it is
    std::vector<std::string> names;  // of those members, for messages
    absl::Duration timeout;
  };
  DeviceLane(const DeviceAccess& device, Options options);
  // Waits until an abort has returned, if there was one, and, as the library may, for the peers to destroy theirs.
  ~DeviceLane();
  DeviceLane(const DeviceLane&) = delete;
  DeviceLane& operator=(const DeviceLane&) = delete;

  // First of all, once: waits until all have come. DEADLINE_EXCEEDED names, and blames, the first that has not. After an error
  // the lane can only be aborted and destroyed.
  absl::Status Join(Rendezvous* rendezvous);
  // Enqueues one call of the library. compute_waits: what is enqueued on the compute stream later waits for it.
  using Body = std::function<int32_t(mt_communicator, mt_stream)>;
  absl::Status Enqueue(const CommunicatorCall& call, const Body& body, bool compute_waits);
  // What is enqueued on the compute stream later waits for all calls made so far.
  absl::Status MakeComputeWait();
  mt_stream stream() const { return stream_; }

  // ---- from any thread
  struct Trouble {
    absl::Status status;  // blames a member if there is only one to blame
    CommunicatorCall call;
  };
  // Notes what is done; tells if the library reports a failure or the oldest call waits for its peers past the deadline.
  std::optional<Trouble> Look();
  // The oldest call that waits for its peers, as of the last Look.
  std::optional<CommunicatorCall> Waiting() const;
  // Begins to end everything in flight; returns at once.
  void Abort();
  // The same if any call is not done: it would keep the library's destroy, or the stream's, from returning.
  void AbortUnfinished();
  absl::Duration spent() const;

 private:
  struct Pending {
    CommunicatorCall call;
    mt_event begin = nullptr, done = nullptr;
    std::optional<absl::Duration> since;  // when it began to wait for its peers, as far as seen
  };

  absl::Status Begin(Rendezvous* rendezvous);
  absl::Status Await(Rendezvous* rendezvous);
  absl::Status Missing(Rendezvous* rendezvous);
  absl::Status CallLibrary(const CommunicatorCall& call, const Body& body);
  absl::Status Settle();
  absl::Status Code(int32_t code, absl::string_view what) const;
  absl::Status Blame(const absl::Status& status) const;
  absl::StatusOr<mt_event> TakeEvent();
  // With mutex_ held:
  absl::Status Harvest();
  const Pending* Oldest() const;  // null if there is none

  const DeviceAccess device_;
  const mt_backend& backend_;
  const mt_collectives& library_;
  const Options options_;
  mt_communicator communicator_ = nullptr;
  mt_stream stream_ = nullptr;
  mt_event ready_ = nullptr;     // passes points of one stream on to another
  std::timed_mutex call_mutex_;  // held while the library is called for a collective
  std::atomic<bool> aborted_{false};
  std::thread aborting_;  // started by whoever set aborted_

  mutable std::mutex mutex_;  // guards what follows
  std::deque<Pending> pending_;
  std::optional<Pending> calling_;  // has no events yet
  std::vector<mt_event> spare_;
  int64_t last_number_ = 0;
  absl::Duration spent_;
};

}  // namespace mt
