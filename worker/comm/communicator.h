// A group of ranks that exchange data. One interface; three ways: ranks as threads of one process
// (tests), shared memory between processes of one host, Gloo across hosts (NCCL comes with the CUDA
// backend).
//
// Invariants
//  - Every member calls the same collectives in the same order with the same sizes.
//  - Reductions add in rank order 0, 1, ..., n-1 for every element, whatever the transport: the
//  same bits everywhere.
//  - Any failure (a dead peer, a deadline, Abort) makes the call and all later ones return
//  UNAVAILABLE, ABORTED or
//    DEADLINE_EXCEEDED; the message names group, member, peer if known, operation and its number.
//    Nothing hangs.
//  - Calls come from one thread; Abort may come from any.
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

  // In place over data[0..count) of `dtype` (MT_F32, MT_F64, MT_I32, MT_I64).
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

  // Point to point. Messages between two members arrive in the order sent. Send returns when `data`
  // may be changed again, which may be before the peer calls Receive: at least `kSendAhead`
  // messages to one peer are taken without a matching Receive, so that 1F1B's crossing sends cannot
  // deadlock. Sizes must match.
  static constexpr int kSendAhead = 2;
  virtual absl::Status Send(const void* data, int64_t bytes, int peer) = 0;
  virtual absl::Status Receive(void* data, int64_t bytes, int peer) = 0;

  // Fails all present and future calls of this member (and soon its peers') with ABORTED: `reason`.
  // Thread-safe.
  virtual void Abort(absl::string_view reason) = 0;

  int64_t bytes_moved() const { return bytes_moved_; }  // sent by this member since the start
  absl::Duration seconds_spent() const { return time_spent_; }  // inside calls

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
