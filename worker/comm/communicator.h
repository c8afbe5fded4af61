// A group of ranks that exchange data. One interface; ways: ranks as threads of one process (tests), shared memory between
// processes of one host, Gloo across hosts, and between devices what the backend brings (NCCL).
//
// Invariants
//  - Every member calls the same collectives in the same order with the same sizes.
//  - Any failure (a dead peer, a deadline, Abort) makes the call and all later ones return UNAVAILABLE, ABORTED or
//    DEADLINE_EXCEEDED; the message names group, member, peer if known, operation and its number. Nothing hangs.
//  - Calls come from one thread; Abort, Health and Unfinished may come from any.
//  - The same layout gives the same bits. Host groups add in rank order 0, 1, ..., n-1 for every element, whatever the
//    transport, BF16 in float32 with one rounding at the end. Device groups add in the library's order, which is fixed for a
//    group and its topology; BF16 is rounded at every hop.
//
// Order
//  - A host group works on host memory (or on a backend in host memory, which finishes every call at once): a call has done
//    its work when it returns.
//  - A device group works on device memory, and its calls are steps of the backend's compute stream (the null stream): a
//    collective sees what was enqueued there before the call, and what is enqueued there afterwards sees its result. The call
//    itself returns at once and says nothing of the result: a failure shows in Health, in later calls and in WaitForEvent
//    (device_wait.h), which is how the host waits for a result. The backend's own waits are not enough: when a peer has
//    died they end only once the group has been aborted, and then look like success.
//  - Between BeginOverlap and EndOverlap a device group's collectives (not its messages) still wait for what was enqueued
//    before their call, but nothing waits for them: they run beside later compute work, which must leave their buffers alone.
//    After EndOverlap later compute work waits for all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/status.h"
#include "kernels/abi/mt_backend.h"

namespace mt {

enum class ReduceOp { kSum, kMax };

class Communicator {
 public:
  virtual ~Communicator() = default;

  int rank() const { return rank_; }  // member index in the group
  int size() const { return size_; }
  const std::string& name() const {
    return name_;
  }  // e.g. "tensor", "data", for messages and metrics

  // In place over data[0..count) of `dtype`: any type but FP8, which is gathered and broadcast only.
  virtual absl::Status AllReduce(void* data, int64_t count, mt_dtype dtype, ReduceOp op) = 0;
  // output (count elements) = this member's part of the sum of all members' input (size() * count
  // elements). output may be input + rank() * count elements.
  virtual absl::Status ReduceScatter(const void* input, void* output, int64_t count,
                                     mt_dtype dtype) = 0;
  // output (size() * count) = all members' input (count), in member order. input may be output +
  // rank() * count elements.
  virtual absl::Status AllGather(const void* input, void* output, int64_t count,
                                 mt_dtype dtype) = 0;
  virtual absl::Status Broadcast(void* data, int64_t count, mt_dtype dtype, int root) = 0;
  virtual absl::Status Barrier() = 0;

  // As AllReduce, but over a few values in host memory, and done when it returns, whatever the group: for control values at
  // start-up. A step must not call it: on a device group it waits for the device.
  virtual absl::Status AllReduceHost(void* data, int64_t count, mt_dtype dtype, ReduceOp op) {
    return AllReduce(data, count, dtype, op);
  }

  // See "Order" above; they do not nest, and do nothing in host groups.
  virtual absl::Status BeginOverlap() { return absl::OkStatus(); }
  virtual absl::Status EndOverlap() { return absl::OkStatus(); }

  // Point to point. Messages between two members arrive in the order sent. After Send `data` may be changed again (on the
  // compute stream, in device groups), which may be before the peer calls Receive: at least `kSendAhead` messages to one peer
  // are taken without a matching Receive, so that 1F1B's crossing sends cannot deadlock. Sizes must match.
  static constexpr int kSendAhead = 2;
  virtual absl::Status Send(const void* data, int64_t bytes, int peer) = 0;
  virtual absl::Status Receive(void* data, int64_t bytes, int peer) = 0;

  // Fails all present and future calls of this member with ABORTED: `reason`; in host groups soon its peers' too, while the peers
  // of a device group may learn nothing of it. Does not wait for anybody. Thread-safe.
  virtual void Abort(absl::string_view reason) = 0;

  // The failure that every later call returns, OK if there is none. Thread-safe.
  virtual absl::Status Health() const = 0;
  // What a device group was asked for and has not done, the oldest of it: "all-reduce 12 of 4096 BF16 (8192 bytes)"; empty if
  // nothing, and in host groups. Thread-safe.
  virtual std::string Unfinished() const { return ""; }

  virtual int64_t bytes_moved() const {
    return bytes_moved_;
  }  // sent by this member since the start
  // Inside calls; in device groups the time for which the group's own streams were busy with them.
  virtual absl::Duration seconds_spent() const { return time_spent_; }

 protected:
  Communicator(std::string name, int rank, int size)
      : name_(std::move(name)), rank_(rank), size_(size) {}
  int64_t bytes_moved_ = 0;
  absl::Duration time_spent_;

 private:
  std::string name_;
  int rank_, size_;
};

// The global rank that a communicator's error blames (a peer that died, left, aborted or did not
// come), if it names one. Survives Annotate-free propagation; the message says it too.
std::optional<int> BlamedRank(const absl::Status& status);

// How members find each other: a key-value store that all members of a job's generation share.
class Rendezvous {
 public:
  virtual ~Rendezvous() = default;
  virtual absl::Status Put(const std::string& key, const std::string& value) = 0;
  // Waits until the key exists. DEADLINE_EXCEEDED names the key.
  virtual absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) = 0;
};

// A group of one: everything is a copy.
std::unique_ptr<Communicator> NewSelfCommunicator(std::string name);

// `size` communicators of one in-process group, for ranks as threads; thread i uses element i.
std::vector<std::unique_ptr<Communicator>> NewInProcessGroup(
    std::string name, int size, absl::Duration timeout = absl::Seconds(60));

struct SharedMemoryOptions {
  std::string name;    // of the group, for messages
  std::string prefix;  // unique to job, generation and group: rendezvous keys begin with it
  int rank = 0, size = 1;
  std::vector<int> ranks;  // global rank of each member, for messages; empty = the member indices
  absl::Duration timeout = absl::Minutes(5);
  int64_t slot_bytes = 1 << 20;  // per member, of the staging area
};
// Members on one host, in one process-id namespace. Waits until all have joined. The memory has no
// name in any file system, so that nothing is left behind after a kill -9; a dead peer is noticed
// by its pidfd within a fraction of a second.
absl::StatusOr<std::unique_ptr<Communicator>> NewSharedMemoryCommunicator(
    const SharedMemoryOptions& options, Rendezvous* rendezvous);

struct GlooOptions {
  std::string name;
  std::string address;  // of the data interface of this host, numeric
  std::string prefix;   // unique to job, generation and group: rendezvous keys begin with it
  int rank = 0, size = 1;
  std::vector<int> ranks;  // global rank of each member, for messages; empty = the member indices
  absl::Duration timeout = absl::Minutes(5);
};
absl::StatusOr<std::unique_ptr<Communicator>> NewGlooCommunicator(const GlooOptions& options,
                                                                  Rendezvous* rendezvous);

}  // namespace mt
