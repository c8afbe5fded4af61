// What every transport has in common: arguments are checked, operations are numbered, time and
// bytes are counted, and the first failure is kept. Transports implement the Do... functions and
// report only what went wrong and whom they blame.
//
// Invariant: after the first failure (or Abort) no Do... function is entered again; every later
// call returns that failure.
#pragma once

#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "worker/comm/communicator.h"

namespace mt {

// An error that blames group member `member`.
absl::Status PeerError(absl::StatusCode code, absl::string_view message, int member);
// The member that an error of this group blames, if it does.
std::optional<int> BlamedMember(const absl::Status& status);

struct CommunicatorCall {
  const char* operation = "";  // "all-reduce"
  int64_t number = 0;          // of this communicator's calls, from 1
  std::string detail;          // " of 4096 BF16 (8192 bytes)"
};

class CheckedCommunicator : public Communicator {
 public:
  absl::Status AllReduce(void* data, int64_t count, mt_dtype dtype, ReduceOp op) final;
  absl::Status ReduceScatter(const void* input, void* output, int64_t count, mt_dtype dtype) final;
  absl::Status AllGather(const void* input, void* output, int64_t count, mt_dtype dtype) final;
  absl::Status Broadcast(void* data, int64_t count, mt_dtype dtype, int root) final;
  absl::Status Barrier() final;
  absl::Status Send(const void* data, int64_t bytes, int peer) final;
  absl::Status Receive(void* data, int64_t bytes, int peer) final;
  void Abort(absl::string_view reason) final;
  absl::Status Health() const final;

  // Runs the transport's way into the group, so that its errors are named like those of any
  // operation.
  absl::Status JoinGroup(const std::function<absl::Status()>& join);

 protected:
  // `ranks`: global rank of each member; empty = the member indices.
  CheckedCommunicator(std::string name, int rank, int size, std::vector<int> ranks);

  // Called with checked arguments, at least two members and something to move. Byte counts instead
  // of elements where no arithmetic is done.
  virtual absl::Status DoAllReduce(void* data, int64_t count, mt_dtype dtype, ReduceOp op) = 0;
  virtual absl::Status DoReduceScatter(const void* input, void* output, int64_t count,
                                       mt_dtype dtype) = 0;
  virtual absl::Status DoAllGather(const void* input, void* output, int64_t bytes) = 0;
  virtual absl::Status DoBroadcast(void* data, int64_t bytes, int root) = 0;
  virtual absl::Status DoBarrier() = 0;
  virtual absl::Status DoSend(const void* data, int64_t bytes, int peer) = 0;
  virtual absl::Status DoReceive(void* data, int64_t bytes, int peer) = 0;
  // Wakes this member's own call, if one is under way, and the peers'. Any thread; at most once.
  virtual void DoAbort(absl::string_view reason) = 0;
  // After any failure of a call, so that peers learn of it. `status` is what the call returns.
  virtual void OnFailure(const absl::Status& status) {}

  // "rank 5 (member 1)", or "member 1" when ranks are the indices.
  std::string MemberName(int member) const;

  // The call that a Do... function is part of.
  const CommunicatorCall& current_call() const { return call_; }
  // For transports whose work fails after the call has returned: keeps `status` as the group's failure, named after `call`,
  // unless there is one already. Any thread.
  absl::Status FailCall(const absl::Status& status, const CommunicatorCall& call);

 private:
  template <typename Body>
  absl::Status Run(const char* operation, std::string detail, int64_t moved, Body body);

  const std::vector<int> ranks_;
  CommunicatorCall call_;  // the newest
  mutable std::mutex mutex_;
  absl::Status failure_;  // guarded by mutex_
};

}  // namespace mt
