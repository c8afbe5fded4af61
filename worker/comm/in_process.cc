// Groups without processes: a group of one, and ranks as threads.
//
// In-process members share one Group. A collective publishes each member's pointers and meets the
// others at rounds: a member leaves round k only when all members have entered it. Between the
// first round and the last, all published pointers are valid, so members read each other's memory
// directly.
//
// Invariants
//  - `entered` of a member only grows; a member waits until every member's `entered` has reached
//  its own.
//  - The first failure is kept in the group: everyone who waits, or will, returns it.
//  - A member that was destroyed (left) fails only those who still need it: what it had entered
//  before counts.
#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>

#include "common/check.h"
#include "worker/comm/checked_communicator.h"
#include "worker/comm/reduce.h"

namespace mt {
namespace {

class SelfCommunicator : public CheckedCommunicator {
 public:
  explicit SelfCommunicator(std::string name) : CheckedCommunicator(std::move(name), 0, 1, {}) {}

 private:
  // The base class answers everything for a group of one.
  absl::Status Unreachable() { return absl::InternalError("a group of one has no peers"); }
  absl::Status DoAllReduce(void*, int64_t, mt_dtype, ReduceOp) override { return Unreachable(); }
  absl::Status DoReduceScatter(const void*, void*, int64_t, mt_dtype) override {
    return Unreachable();
  }
  absl::Status DoAllGather(const void*, void*, int64_t) override { return Unreachable(); }
  absl::Status DoBroadcast(void*, int64_t, int) override { return Unreachable(); }
  absl::Status DoBarrier() override { return Unreachable(); }
  absl::Status DoSend(const void*, int64_t, int) override { return Unreachable(); }
  absl::Status DoReceive(void*, int64_t, int) override { return Unreachable(); }
  void DoAbort(absl::string_view) override {}
};

enum class Kind { kAllReduce, kReduceScatter, kAllGather, kBroadcast, kBarrier };

struct Group {
  struct Call {
    Kind kind = Kind::kBarrier;
    int64_t amount = 0;  // elements or bytes; must agree
    const void* input = nullptr;
    void* output = nullptr;
  };
  struct Member {
    int64_t entered = 0;
    bool left = false;
    Call calls[2];  // of an even and an odd round: a member may be one round ahead of one that
                    // still reads
  };
  Group(int size, absl::Duration timeout)
      : timeout(timeout), members(size), mailboxes(size * size) {}

  const absl::Duration timeout;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<Member> members;  // guarded by mutex, except calls between rounds
  std::vector<std::deque<std::vector<char>>> mailboxes;  // [from * size + to]
  absl::Status failure;
  int failed_member = -1;
};

class InProcessCommunicator : public CheckedCommunicator {
 public:
  InProcessCommunicator(std::string name, int rank, int size, std::shared_ptr<Group> group)
      : CheckedCommunicator(std::move(name), rank, size, {}), group_(std::move(group)) {}
  ~InProcessCommunicator() override {
    const std::lock_guard<std::mutex> lock(group_->mutex);
    group_->members[rank()].left = true;
    group_->changed.notify_all();
  }

 private:
  // Waits for `done`; `needed(i)` tells whether member i's absence makes that impossible.
  template <typename Done, typename Needed>
  absl::Status Wait(std::unique_lock<std::mutex>& lock, Done done, Needed needed) {
    const auto deadline =
        std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(group_->timeout);
    while (!done()) {
      if (!group_->failure.ok()) return PeerFailure();
      for (int i = 0; i < size(); ++i) {
        if (group_->members[i].left && needed(i)) {
          return PeerError(absl::StatusCode::kUnavailable,
                           absl::StrCat(MemberName(i), " has left the group"), i);
        }
      }
      if (group_->changed.wait_until(lock, deadline) == std::cv_status::timeout && !done()) {
        if (!group_->failure.ok()) return PeerFailure();
        for (int i = 0; i < size(); ++i) {
          if (needed(i)) {
            return PeerError(absl::StatusCode::kDeadlineExceeded,
                             absl::StrCat("waited ", absl::FormatDuration(group_->timeout), " for ",
                                          MemberName(i)),
                             i);
          }
        }
      }
    }
    return absl::OkStatus();
  }
  absl::Status PeerFailure() {
    const int member = group_->failed_member;
    return PeerError(absl::StatusCode::kAborted,
                     absl::StrCat(MemberName(member), " failed: ", group_->failure.message()),
                     member);
  }

  // Publishes this member's part and meets all others; fails if they are in another operation.
  absl::Status Enter(Kind kind, int64_t amount, const void* input, void* output) {
    std::unique_lock<std::mutex> lock(group_->mutex);
    Group::Member& self = group_->members[rank()];
    parity_ = (self.entered + 1) % 2;
    self.calls[parity_] = {kind, amount, input, output};
    MT_RETURN_IF_ERROR(Meet(lock));
    for (int i = 0; i < size(); ++i) {
      const Group::Call& other = CallOf(i);
      if (other.kind != kind || other.amount != amount) {
        return PeerError(
            absl::StatusCode::kAborted,
            absl::StrCat(MemberName(i), " is in another operation (kind ",
                         static_cast<int>(other.kind), ", amount ", other.amount, "; here kind ",
                         static_cast<int>(kind), ", amount ", amount, ")"),
            i);
      }
    }
    return absl::OkStatus();
  }
  absl::Status Meet() {
    std::unique_lock<std::mutex> lock(group_->mutex);
    return Meet(lock);
  }
  absl::Status Meet(std::unique_lock<std::mutex>& lock) {
    const int64_t round = ++group_->members[rank()].entered;
    group_->changed.notify_all();
    const auto missing = [&](int i) { return group_->members[i].entered < round; };
    return Wait(
        lock,
        [&] {
          for (int i = 0; i < size(); ++i) {
            if (missing(i)) return false;
          }
          return true;
        },
        missing);
  }
  const Group::Call& CallOf(int member) const { return group_->members[member].calls[parity_]; }
  const char* InputOf(int member) const { return static_cast<const char*>(CallOf(member).input); }

  // scratch_ = inputs of all members at byte `offset`, reduced in rank order.
  void ReduceToScratch(int64_t offset, int64_t count, mt_dtype dtype, ReduceOp op) {
    const int64_t bytes = count * ElementSize(dtype);
    if (static_cast<int64_t>(scratch_.size()) < bytes) scratch_.resize(bytes);
    if (bytes == 0) return;
    inputs_.clear();
    for (int i = 0; i < size(); ++i) inputs_.push_back(InputOf(i) + offset);
    Reduce(inputs_, scratch_.data(), count, dtype, op);
  }

  absl::Status DoAllReduce(void* data, int64_t count, mt_dtype dtype, ReduceOp op) override {
    MT_RETURN_IF_ERROR(Enter(Kind::kAllReduce, count, data, data));
    const int64_t element = ElementSize(dtype);
    const int64_t first = count * rank() / size(), last = count * (rank() + 1) / size();
    ReduceToScratch(first * element, last - first, dtype, op);
    MT_RETURN_IF_ERROR(Meet());  // all have read
    for (int i = 0; i < size() && last > first; ++i) {
      std::memcpy(static_cast<char*>(CallOf(i).output) + first * element, scratch_.data(),
                  (last - first) * element);
    }
    return Meet();
  }
  absl::Status DoReduceScatter(const void* input, void* output, int64_t count,
                               mt_dtype dtype) override {
    MT_RETURN_IF_ERROR(Enter(Kind::kReduceScatter, count, input, output));
    const int64_t bytes = count * ElementSize(dtype);
    ReduceToScratch(rank() * bytes, count, dtype, ReduceOp::kSum);
    MT_RETURN_IF_ERROR(Meet());
    std::memcpy(output, scratch_.data(), bytes);
    return absl::OkStatus();
  }
  absl::Status DoAllGather(const void* input, void* output, int64_t bytes) override {
    MT_RETURN_IF_ERROR(Enter(Kind::kAllGather, bytes, input, output));
    for (int i = 0; i < size(); ++i) {
      char* destination = static_cast<char*>(output) + i * bytes;
      if (destination != InputOf(i)) std::memcpy(destination, InputOf(i), bytes);
    }
    return Meet();
  }
  absl::Status DoBroadcast(void* data, int64_t bytes, int root) override {
    MT_RETURN_IF_ERROR(Enter(Kind::kBroadcast, bytes, data, data));
    if (rank() != root) std::memcpy(data, InputOf(root), bytes);
    return Meet();
  }
  absl::Status DoBarrier() override { return Enter(Kind::kBarrier, 0, nullptr, nullptr); }

  // Exactly kSendAhead messages fit, so that tests in threads meet the same limit as the strictest
  // transport.
  absl::Status DoSend(const void* data, int64_t bytes, int peer) override {
    std::vector<char> message(static_cast<const char*>(data),
                              static_cast<const char*>(data) + bytes);
    std::unique_lock<std::mutex> lock(group_->mutex);
    auto& mailbox = group_->mailboxes[rank() * size() + peer];
    MT_RETURN_IF_ERROR(Wait(
        lock, [&] { return mailbox.size() < static_cast<size_t>(kSendAhead); },
        [&](int i) { return i == peer; }));
    mailbox.push_back(std::move(message));
    group_->changed.notify_all();
    return absl::OkStatus();
  }
  absl::Status DoReceive(void* data, int64_t bytes, int peer) override {
    std::unique_lock<std::mutex> lock(group_->mutex);
    auto& mailbox = group_->mailboxes[peer * size() + rank()];
    MT_RETURN_IF_ERROR(Wait(
        lock, [&] { return !mailbox.empty(); }, [&](int i) { return i == peer; }));
    const std::vector<char> message = std::move(mailbox.front());
    mailbox.pop_front();
    group_->changed.notify_all();
    if (static_cast<int64_t>(message.size()) != bytes) {
      return PeerError(absl::StatusCode::kAborted,
                       absl::StrCat(MemberName(peer), " sent ", message.size(), " bytes"), peer);
    }
    if (bytes > 0) std::memcpy(data, message.data(), bytes);
    return absl::OkStatus();
  }
  void DoAbort(absl::string_view reason) override { Fail(absl::AbortedError(reason)); }
  void OnFailure(const absl::Status& status) override { Fail(status); }
  void Fail(const absl::Status& status) {
    const std::lock_guard<std::mutex> lock(group_->mutex);
    if (group_->failure.ok()) {
      group_->failure = status;
      group_->failed_member = rank();
    }
    group_->changed.notify_all();
  }

  const std::shared_ptr<Group> group_;
  int parity_ = 0;  // of the round that published the current call
  std::vector<char> scratch_;
  std::vector<const void*> inputs_;
};

}  // namespace

std::unique_ptr<Communicator> NewSelfCommunicator(std::string name) {
  return std::make_unique<SelfCommunicator>(std::move(name));
}

std::vector<std::unique_ptr<Communicator>> NewInProcessGroup(std::string name, int size,
                                                             absl::Duration timeout) {
  MT_CHECK(size >= 1) << name << ": a group of " << size;
  auto group = std::make_shared<Group>(size, timeout);
  std::vector<std::unique_ptr<Communicator>> members;
  for (int i = 0; i < size; ++i)
    members.push_back(std::make_unique<InProcessCommunicator>(name, i, size, group));
  return members;
}

}  // namespace mt
