// Ranks of one host as processes that share memory.
//
// The segment holds, per member, a state (pid, round counter, bell) and a staging slot of two
// halves, and per ordered pair of members a mailbox. Everything that a member may wait for is a
// predicate over the segment; whoever changes something that member i may wait for rings i's bell,
// a futex word. A wait spins for a moment and then sleeps on its own bell, waking several times a
// second to look whether a peer's process has ended.
//
// Collectives go in blocks of half a slot, alternating between the halves:
//   all-reduce      copy the block to my slot; meet; sum my share of it over all slots in rank
//   order, into my slot; meet; copy
//                   all shares out. Small ones: copy; meet; everyone sums everything.
//   reduce-scatter  copy one piece per member; meet; sum my piece over all slots, straight to the
//   output. all-gather, broadcast   copy to my slot; meet; copy out of the others'.
// Invariant: block k's half is written again in block k + 2, after the meeting of block k + 1,
// which every member enters only when it has done reading block k. So one half is never written
// while somebody still reads it.
//
// Messages: each mailbox has kMailSlots slots, each a segment of its own, made by the sender as
// large as the largest message so far, so that a message of any size is taken at once; the receiver
// copies while the sender still does.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/check.h"
#include "common/hash.h"
#include "common/random.h"
#include "worker/comm/checked_communicator.h"
#include "worker/comm/reduce.h"
#include "worker/comm/shared_segment.h"

namespace mt {
namespace {

constexpr uint64_t kMagic = 0x6d742d67726f7570;  // "mt-group"
constexpr int kMailSlots = Communicator::kSendAhead;
constexpr int kSpins = 300;  // a few microseconds: ranks may outnumber cores
constexpr absl::Duration kLookInterval =
    absl::Milliseconds(100);                    // between looks whether peers live
constexpr int64_t kSmallBytes = 16 << 10;       // all-reduces up to this are summed by everyone
constexpr int64_t kMailPieceBytes = 256 << 10;  // of a message, made visible together
constexpr int64_t kSumPieceBytes = 8 << 10;     // stays in the first-level cache

struct MailSlot {
  std::atomic<int64_t> written;  // bytes of the current message that may be read
  int64_t bytes;                 // of the current message
  int64_t capacity;              // of the segment
  int32_t fd;                    // the sender's
};
struct alignas(64) Mailbox {
  std::atomic<uint64_t> sent, received;  // message s is in slot s % kMailSlots
  MailSlot slots[kMailSlots];
};
struct alignas(64) MemberState {
  std::atomic<int32_t> pid;
  std::atomic<uint32_t> joined, left;
  std::atomic<uint32_t> bell, sleeping;
  std::atomic<uint32_t> entered;  // rounds
  std::atomic<uint64_t>
      operations[2];  // what it is doing, by the round's parity: all must do the same
};
struct alignas(64) Header {
  uint64_t magic, nonce;
  int64_t size, slot_bytes;
  std::atomic<uint32_t> failure;  // 0 none, 1 being written, 2 readable
  int32_t failed_member;          // who failed first, and
  int32_t blamed_member;          // whom it blames: itself, or the peer that it missed
  char reason[512];
};

struct Geometry {
  explicit Geometry(int64_t size, int64_t slot_bytes)
      : members(sizeof(Header)),
        mailboxes(members + size * sizeof(MemberState)),
        slots((mailboxes + size * size * sizeof(Mailbox) + 4095) / 4096 * 4096),
        total(slots + size * slot_bytes) {}
  size_t members, mailboxes, slots, total;
};

enum class Kind : uint64_t { kAllReduce = 1, kReduceScatter, kAllGather, kBroadcast, kBarrier };

class SharedMemoryCommunicator : public CheckedCommunicator {
 public:
  explicit SharedMemoryCommunicator(const SharedMemoryOptions& options)
      : CheckedCommunicator(options.name, options.rank, options.size, options.ranks),
        timeout_(options.timeout),
        slot_bytes_((std::max<int64_t>(options.slot_bytes, options.size * 1024) + 8191) / 8192 *
                    8192),
        half_bytes_(slot_bytes_ / 2),
        geometry_(options.size, slot_bytes_),
        watches_(options.size),
        outgoing_(options.size),
        incoming_(options.size) {}
  ~SharedMemoryCommunicator() override {
    if (segment_ == nullptr) return;
    member(rank())->left.store(1);
    RingAll();
  }

  absl::Status Join(const std::string& prefix, Rendezvous* rendezvous) {
    const std::string key = absl::StrCat(prefix, "/segment");
    if (rank() == 0) {
      MT_ASSIGN_OR_RETURN(segment_, SharedSegment::Create(geometry_.total));
      header()->size = size();
      header()->slot_bytes = slot_bytes_;
      header()->nonce = Random::Real()->Next();
      header()->magic = kMagic;
      MT_RETURN_IF_ERROR(
          rendezvous->Put(key, absl::StrCat(getpid(), " ", segment_->fd(), " ", header()->nonce)));
    } else {
      MT_ASSIGN_OR_RETURN(const std::string value, rendezvous->Get(key, timeout_));
      const std::vector<std::string> parts = absl::StrSplit(value, ' ');
      int pid = 0, fd = 0;
      uint64_t nonce = 0;
      if (parts.size() != 3 || !absl::SimpleAtoi(parts[0], &pid) ||
          !absl::SimpleAtoi(parts[1], &fd) || !absl::SimpleAtoi(parts[2], &nonce)) {
        return absl::InternalError(absl::StrCat("rendezvous key ", key, " holds \"", value, "\""));
      }
      absl::StatusOr<std::unique_ptr<SharedSegment>> segment =
          SharedSegment::Open(pid, fd, geometry_.total);
      if (!segment.ok())
        return PeerError(segment.status().code(),
                         absl::StrCat(MemberName(0), ": ", segment.status().message()), 0);
      segment_ = *std::move(segment);
      if (header()->magic != kMagic || header()->nonce != nonce || header()->size != size() ||
          header()->slot_bytes != slot_bytes_) {
        segment_.reset();
        return PeerError(absl::StatusCode::kAborted,
                         absl::StrCat("the segment of ", MemberName(0), " is of another group"), 0);
      }
    }
    member(rank())->pid.store(getpid());
    member(rank())->joined.store(1);
    RingAll();
    MT_RETURN_IF_ERROR(WaitForAll([&](int i) { return member(i)->joined.load() == 0; }));
    for (int i = 0; i < size(); ++i) {
      if (i == rank()) continue;
      absl::StatusOr<std::unique_ptr<ProcessWatch>> watch =
          ProcessWatch::Open(member(i)->pid.load());
      if (!watch.ok())
        return PeerError(watch.status().code(),
                         absl::StrCat(MemberName(i), ": ", watch.status().message()), i);
      watches_[i] = *std::move(watch);
    }
    MT_RETURN_IF_ERROR(Meet(Operation(Kind::kBarrier, 0)));
    segment_->CloseDescriptor();
    return absl::OkStatus();
  }

 private:
  Header* header() const { return reinterpret_cast<Header*>(segment_->data()); }
  MemberState* member(int i) const {
    return reinterpret_cast<MemberState*>(segment_->data() + geometry_.members) + i;
  }
  Mailbox* mailbox(int from, int to) const {
    return reinterpret_cast<Mailbox*>(segment_->data() + geometry_.mailboxes) + from * size() + to;
  }
  char* half(int i, int64_t block) const {
    return segment_->data() + geometry_.slots + i * slot_bytes_ + (block % 2) * half_bytes_;
  }

  // ---- waiting
  void Ring(int i) {
    MemberState* state = member(i);
    state->bell.fetch_add(1);
    if (state->sleeping.load() != 0) FutexWakeAll(&state->bell);
  }
  void RingAll() {
    for (int i = 0; i < size(); ++i) {
      if (i != rank()) Ring(i);
    }
  }

  // Waits until done(); needed(i) tells whether that cannot happen without member i.
  template <typename Done, typename Needed>
  absl::Status Wait(Done done, Needed needed) {
    for (int i = 0; i < kSpins; ++i) {
      if (done()) return absl::OkStatus();
      __builtin_ia32_pause();
    }
    MemberState* self = member(rank());
    const auto deadline = std::chrono::steady_clock::now() + absl::ToChronoNanoseconds(timeout_);
    bool look = false;
    while (true) {
      const uint32_t bell = self->bell.load();
      const absl::Status trouble = Trouble(needed, look);
      if (done())
        return absl::OkStatus();  // after Trouble: who did his part and then ended is no trouble
      if (!trouble.ok()) return trouble;
      const auto left = deadline - std::chrono::steady_clock::now();
      if (left <= left.zero()) return Timeout(needed);
      self->sleeping.store(1);
      if (done()) {
        self->sleeping.store(0);
        return absl::OkStatus();
      }
      look = !FutexWait(&self->bell, bell, std::min(kLookInterval, absl::FromChrono(left)));
      self->sleeping.store(0);
    }
  }
  template <typename Missing>
  absl::Status WaitForAll(Missing missing) {
    return Wait(
        [&] {
          for (int i = 0; i < size(); ++i) {
            if (missing(i)) return false;
          }
          return true;
        },
        missing);
  }
  template <typename Needed>
  absl::Status Trouble(Needed needed, bool look) {
    if (header()->failure.load() == 2) {
      const int by = header()->failed_member;
      return PeerError(absl::StatusCode::kAborted,
                       absl::StrCat(MemberName(by), " failed: ", header()->reason),
                       header()->blamed_member);
    }
    for (int i = 0; i < size(); ++i) {
      if (i == rank() || !needed(i)) continue;
      if (member(i)->left.load() != 0) {
        return PeerError(absl::StatusCode::kUnavailable,
                         absl::StrCat(MemberName(i), " has left the group"), i);
      }
      if (look && watches_[i] != nullptr && watches_[i]->Exited()) {
        return PeerError(
            absl::StatusCode::kUnavailable,
            absl::StrCat(MemberName(i), " has ended (process ", member(i)->pid.load(), ")"), i);
      }
    }
    return absl::OkStatus();
  }
  template <typename Needed>
  absl::Status Timeout(Needed needed) {
    for (int i = 0; i < size(); ++i) {
      if (i != rank() && needed(i)) {
        return PeerError(
            absl::StatusCode::kDeadlineExceeded,
            absl::StrCat("waited ", absl::FormatDuration(timeout_), " for ", MemberName(i)), i);
      }
    }
    return absl::DeadlineExceededError(absl::StrCat("waited ", absl::FormatDuration(timeout_)));
  }

  static uint64_t Operation(Kind kind, int64_t amount) {
    return static_cast<uint64_t>(kind) << 56 ^ static_cast<uint64_t>(amount);
  }
  // A round: returns when every member has entered it, all in the same operation.
  absl::Status Meet(uint64_t operation) {
    MemberState* self = member(rank());
    const uint32_t round = self->entered.load(std::memory_order_relaxed) + 1;
    self->operations[round % 2].store(operation, std::memory_order_relaxed);
    self->entered.store(round);
    RingAll();
    MT_RETURN_IF_ERROR(WaitForAll(
        [&](int i) { return static_cast<int32_t>(member(i)->entered.load() - round) < 0; }));
    for (int i = 0; i < size(); ++i) {
      if (member(i)->operations[round % 2].load(std::memory_order_relaxed) != operation) {
        return PeerError(absl::StatusCode::kAborted,
                         absl::StrCat(MemberName(i), " is in another operation"), i);
      }
    }
    return absl::OkStatus();
  }

  // ---- collectives
  // destination (may be null), own_slot (may be null) = the members' bytes at `offset` of their
  // halves, summed in rank order.
  void SumHalves(int64_t block, int64_t offset, int64_t bytes, mt_dtype dtype, ReduceOp op,
                 char* destination, char* own_slot) {
    alignas(64) char piece[kSumPieceBytes];
    const int64_t element = ElementSize(dtype);
    inputs_.resize(size());
    for (int64_t at = 0; at < bytes; at += kSumPieceBytes) {
      const int64_t count = std::min(kSumPieceBytes, bytes - at);
      for (int i = 0; i < size(); ++i) inputs_[i] = half(i, block) + offset + at;
      Reduce(inputs_, piece, count / element, dtype, op);
      if (destination != nullptr) std::memcpy(destination + at, piece, count);
      if (own_slot != nullptr) std::memcpy(own_slot + at, piece, count);
    }
  }

  absl::Status DoAllReduce(void* data, int64_t count, mt_dtype dtype, ReduceOp op) override {
    const int64_t element = ElementSize(dtype), total = count * element;
    const uint64_t operation = Operation(Kind::kAllReduce, total);
    char* bytes = static_cast<char*>(data);
    if (total <= std::min(kSmallBytes, half_bytes_)) {
      const int64_t block = blocks_++;
      std::memcpy(half(rank(), block), bytes, total);
      MT_RETURN_IF_ERROR(Meet(operation));
      SumHalves(block, 0, total, dtype, op, bytes, nullptr);
      return absl::OkStatus();
    }
    for (int64_t at = 0; at < total; at += half_bytes_) {
      const int64_t block = blocks_++, length = std::min(half_bytes_, total - at),
                    elements = length / element;
      const auto share = [&](int i) { return elements * i / size() * element; };
      std::memcpy(half(rank(), block), bytes + at, length);
      MT_RETURN_IF_ERROR(Meet(operation));
      const int64_t mine = share(rank());
      SumHalves(block, mine, share(rank() + 1) - mine, dtype, op, bytes + at + mine,
                half(rank(), block) + mine);
      MT_RETURN_IF_ERROR(Meet(operation));
      for (int i = 0; i < size(); ++i) {
        if (i != rank())
          std::memcpy(bytes + at + share(i), half(i, block) + share(i), share(i + 1) - share(i));
      }
    }
    return absl::OkStatus();
  }

  absl::Status DoReduceScatter(const void* input, void* output, int64_t count,
                               mt_dtype dtype) override {
    const int64_t total = count * ElementSize(dtype), piece = half_bytes_ / size() / 64 * 64;
    for (int64_t at = 0; at < total; at += piece) {
      const int64_t block = blocks_++, length = std::min(piece, total - at);
      for (int i = 0; i < size(); ++i) {
        std::memcpy(half(rank(), block) + i * piece,
                    static_cast<const char*>(input) + i * total + at, length);
      }
      MT_RETURN_IF_ERROR(Meet(Operation(Kind::kReduceScatter, total)));
      SumHalves(block, rank() * piece, length, dtype, ReduceOp::kSum,
                static_cast<char*>(output) + at, nullptr);
    }
    return absl::OkStatus();
  }

  absl::Status DoAllGather(const void* input, void* output, int64_t bytes) override {
    for (int64_t at = 0; at < bytes; at += half_bytes_) {
      const int64_t block = blocks_++, length = std::min(half_bytes_, bytes - at);
      std::memcpy(half(rank(), block), static_cast<const char*>(input) + at, length);
      MT_RETURN_IF_ERROR(Meet(Operation(Kind::kAllGather, bytes)));
      for (int i = 0; i < size(); ++i) {
        char* destination = static_cast<char*>(output) + i * bytes + at;
        if (i != rank()) {
          std::memcpy(destination, half(i, block), length);
        } else if (destination != static_cast<const char*>(input) + at) {
          std::memcpy(destination, static_cast<const char*>(input) + at, length);
        }
      }
    }
    return absl::OkStatus();
  }

  absl::Status DoBroadcast(void* data, int64_t bytes, int root) override {
    for (int64_t at = 0; at < bytes; at += half_bytes_) {
      const int64_t block = blocks_++, length = std::min(half_bytes_, bytes - at);
      char* part = static_cast<char*>(data) + at;
      if (rank() == root) std::memcpy(half(root, block), part, length);
      MT_RETURN_IF_ERROR(Meet(Operation(Kind::kBroadcast, bytes)));
      if (rank() != root) std::memcpy(part, half(root, block), length);
    }
    return absl::OkStatus();
  }

  absl::Status DoBarrier() override { return Meet(Operation(Kind::kBarrier, 0)); }

  // ---- messages
  absl::Status DoSend(const void* data, int64_t bytes, int peer) override {
    Mailbox* box = mailbox(rank(), peer);
    const uint64_t number = box->sent.load();
    MT_RETURN_IF_ERROR(Wait([&] { return number - box->received.load() < kMailSlots; },
                            [&](int i) { return i == peer; }));
    MailSlot& slot = box->slots[number % kMailSlots];
    std::unique_ptr<SharedSegment>& memory = outgoing_[peer][number % kMailSlots];
    if (bytes > 0 && (memory == nullptr || static_cast<int64_t>(memory->bytes()) < bytes)) {
      MT_ASSIGN_OR_RETURN(memory, SharedSegment::Create((bytes + 4095) / 4096 * 4096));
    }
    slot.fd = memory == nullptr ? -1 : memory->fd();
    slot.capacity = memory == nullptr ? 0 : static_cast<int64_t>(memory->bytes());
    slot.bytes = bytes;
    slot.written.store(0);
    box->sent.store(number + 1);
    for (int64_t at = 0; at < bytes; at += kMailPieceBytes) {
      const int64_t length = std::min(kMailPieceBytes, bytes - at);
      std::memcpy(memory->data() + at, static_cast<const char*>(data) + at, length);
      slot.written.store(at + length);
      Ring(peer);
    }
    if (bytes == 0) Ring(peer);
    return absl::OkStatus();
  }

  absl::Status DoReceive(void* data, int64_t bytes, int peer) override {
    Mailbox* box = mailbox(peer, rank());
    const uint64_t number = box->received.load();
    const auto from_peer = [&](int i) { return i == peer; };
    MT_RETURN_IF_ERROR(Wait([&] { return box->sent.load() > number; }, from_peer));
    MailSlot& slot = box->slots[number % kMailSlots];
    if (slot.bytes != bytes) {
      return PeerError(absl::StatusCode::kAborted,
                       absl::StrCat(MemberName(peer), " sent ", slot.bytes, " bytes"), peer);
    }
    Incoming& memory = incoming_[peer][number % kMailSlots];
    if (bytes > 0 && (memory.segment == nullptr || memory.fd != slot.fd ||
                      static_cast<int64_t>(memory.segment->bytes()) != slot.capacity)) {
      absl::StatusOr<std::unique_ptr<SharedSegment>> segment =
          SharedSegment::Open(member(peer)->pid.load(), slot.fd, slot.capacity);
      if (!segment.ok())
        return PeerError(segment.status().code(),
                         absl::StrCat(MemberName(peer), ": ", segment.status().message()), peer);
      memory = {slot.fd, *std::move(segment)};
    }
    for (int64_t at = 0; at < bytes;) {
      MT_RETURN_IF_ERROR(Wait([&] { return slot.written.load() > at; }, from_peer));
      const int64_t written = slot.written.load();
      std::memcpy(static_cast<char*>(data) + at, memory.segment->data() + at, written - at);
      at = written;
    }
    box->received.store(number + 1);
    Ring(peer);
    return absl::OkStatus();
  }

  // ---- failure
  void DoAbort(absl::string_view reason) override { Fail(reason, rank()); }
  void OnFailure(const absl::Status& status) override {
    Fail(status.message(), BlamedMember(status).value_or(rank()));
  }
  void Fail(absl::string_view reason, int blamed) {
    if (segment_ == nullptr) return;
    uint32_t none = 0;
    if (header()->failure.compare_exchange_strong(none, 1)) {
      const size_t length = std::min(reason.size(), sizeof(Header::reason) - 1);
      std::memcpy(header()->reason, reason.data(), length);
      header()->reason[length] = '\0';
      header()->failed_member = rank();
      header()->blamed_member = blamed;
      header()->failure.store(2);
    }
    RingAll();
    Ring(rank());
  }

  struct Incoming {
    int fd = -1;
    std::unique_ptr<SharedSegment> segment;
  };
  const absl::Duration timeout_;
  const int64_t slot_bytes_, half_bytes_;
  const Geometry geometry_;
  std::unique_ptr<SharedSegment> segment_;
  std::vector<std::unique_ptr<ProcessWatch>> watches_;  // of the peers; null for this member
  std::vector<std::array<std::unique_ptr<SharedSegment>, kMailSlots>> outgoing_;
  std::vector<std::array<Incoming, kMailSlots>> incoming_;
  int64_t blocks_ = 0;  // the same in all members
  std::vector<const void*> inputs_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> NewSharedMemoryCommunicator(
    const SharedMemoryOptions& options, Rendezvous* rendezvous) {
  if (options.size == 1) return NewSelfCommunicator(options.name);
  auto communicator = std::make_unique<SharedMemoryCommunicator>(options);
  MT_RETURN_IF_ERROR(
      communicator->JoinGroup([&] { return communicator->Join(options.prefix, rendezvous); }));
  return communicator;
}

}  // namespace mt
