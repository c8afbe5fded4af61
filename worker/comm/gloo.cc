// Ranks on several hosts, over TCP by Gloo. Gloo carries bytes between pairs of members; everything
// else is here: each collective is one or two rounds of an exchange in which members send each
// other pieces, and sums are local, in rank order.
//
//   all-reduce      send part j of my data to member j; sum my part in rank order; send the sum to
//   all. Small ones: send all
//                   to all, everyone sums everything.
//   reduce-scatter  the first half of that; all-gather the second.
//
// Gloo moves a message when both sides have posted it, on a thread of its own, so that messages
// flow while the members compute; a tag that holds kind and size pairs a send with its receive, in
// order. Send copies its message and returns.
//
// A dead peer: Gloo 0.5 forgets to fail a send that was half written when its connection broke, and a wait that runs into
// Gloo's own timeout closes every connection. So each peer has a sentinel, a receive that nobody ever sends: it fails for
// certain when the connection does. A wait is interrupted a few times a second to look at the sentinel of its peer.
//
// Loopback: with the usual MTU of 65536, writes of more than a segment can meet the peer's delayed
// acknowledgement (a ring of such writes was seen at 2 MB/s). Members of one host therefore cut
// what they send into pieces of less than one segment.
#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/tcp/device.h>
#include <gloo/transport/unbound_buffer.h>

#include <signal.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "common/check.h"
#include "worker/comm/checked_communicator.h"
#include "worker/comm/reduce.h"

namespace mt {
namespace {

constexpr int64_t kSmallBytes = 16 << 10;
constexpr std::chrono::milliseconds kLeaveTimeout(2000);
constexpr std::chrono::milliseconds kLookInterval(100);  // between looks at a sentinel
constexpr int64_t kRemotePieceBytes = 1 << 20;
constexpr int64_t kSameHostPieceBytes = 60000;  // with its header, one segment of a 65536-byte MTU
constexpr size_t kMessagesInFlight =
    4;  // per peer, copies that Gloo has not delivered yet; at least kSendAhead

// What a rendezvous error was, carried through Gloo as an exception.
struct StoreError : std::runtime_error {
  StoreError(absl::Status status, int member)
      : std::runtime_error(std::string(status.message())),
        status(std::move(status)),
        member(member) {}
  absl::Status status;
  int member;
};

// Gloo's store over a Rendezvous. Each member's value is its address blob behind the host it is on:
// "<length><host><blob>".
class RendezvousStore : public gloo::rendezvous::Store {
 public:
  RendezvousStore(Rendezvous* rendezvous, std::string prefix, std::string host,
                  absl::Duration timeout)
      : rendezvous_(rendezvous),
        prefix_(std::move(prefix)),
        host_(std::move(host)),
        timeout_(timeout) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    std::string value(1, static_cast<char>(host_.size()));
    value += host_;
    value.append(data.begin(), data.end());
    const absl::Status status = rendezvous_->Put(absl::StrCat(prefix_, "/", key), value);
    if (!status.ok()) throw StoreError(status, -1);
  }
  std::vector<char> get(const std::string& key) override {
    const auto it = values_.find(key);
    const std::string& value = it != values_.end() ? it->second : Fetch(key);
    const size_t length = value.empty() ? 0 : static_cast<unsigned char>(value[0]);
    if (value.size() < 1 + length)
      throw StoreError(absl::InternalError(absl::StrCat("rendezvous key ", key, " is malformed")),
                       Member(key));
    hosts[Member(key)] = value.substr(1, length);
    return {value.begin() + 1 + length, value.end()};
  }
  void wait(const std::vector<std::string>& keys) override {
    for (const std::string& key : keys) Fetch(key);
  }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds&) override {
    wait(keys);
  }

  std::map<int, std::string> hosts;  // of the members whose values were read

 private:
  static int Member(const std::string& key) { return std::atoi(key.c_str()); }
  const std::string& Fetch(const std::string& key) {
    const absl::StatusOr<std::string> value =
        rendezvous_->Get(absl::StrCat(prefix_, "/", key), timeout_);
    if (!value.ok()) throw StoreError(value.status(), Member(key));
    return values_[key] = *value;
  }

  Rendezvous* const rendezvous_;
  const std::string prefix_, host_;
  const absl::Duration timeout_;
  std::map<std::string, std::string> values_;
};

// One device (a listening address and an I/O thread) per address and process, as long as somebody
// uses it.
std::shared_ptr<gloo::transport::Device> DeviceFor(const std::string& address) {
  static std::mutex mutex;
  static auto* devices = new std::map<std::string, std::weak_ptr<gloo::transport::Device>>;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<gloo::transport::Device> device = (*devices)[address].lock();
  if (device == nullptr) {
    gloo::transport::tcp::attr attributes;
    attributes.hostname = address;
    device = gloo::transport::tcp::CreateDevice(attributes);
    (*devices)[address] = device;
  }
  return device;
}

// Gloo writes to sockets without MSG_NOSIGNAL: a peer that has gone must be an error, not the end of this process.
void IgnoreBrokenPipes() {
  struct sigaction action = {};
  if (sigaction(SIGPIPE, nullptr, &action) == 0 && action.sa_handler == SIG_DFL)
    signal(SIGPIPE, SIG_IGN);
}

enum class Kind : uint64_t {
  kMessage = 1,
  kReduce,
  kGather,
  kSmall,
  kBroadcast,
  kBarrier,
  kSentinel,
  kLeave
};
// Members that call different operations never meet, and time out by name, instead of reading each
// other's bytes.
uint64_t Tag(Kind kind, int64_t bytes) {
  return static_cast<uint64_t>(kind) << 48 |
         (static_cast<uint64_t>(bytes) & ((uint64_t{1} << 48) - 1));
}

class GlooCommunicator : public CheckedCommunicator {
 public:
  explicit GlooCommunicator(const GlooOptions& options)
      : CheckedCommunicator(options.name, options.rank, options.size, options.ranks),
        timeout_(std::max<int64_t>(absl::ToInt64Milliseconds(options.timeout), 1)),
        piece_bytes_(options.size, kRemotePieceBytes),
        sentinels_(options.size),
        sent_(options.size) {}

  ~GlooCommunicator() override {
    // Gloo closes with a reset, which drops what a peer has not read yet: so members leave together, if they can.
    if (context_ != nullptr && !broken_.load()) {
      timeout_ = std::min(timeout_, kLeaveTimeout);
      (void)Guard([&] {
        for (int i = 0; i < size(); ++i) {
          while (!sent_[i].empty()) FinishOldest(i);
        }
        char* scratch = Scratch(size());
        Exchange(
            Kind::kLeave, 1, [&](int) { return &sentinel_byte_; },
            [&](int i) { return scratch + i; });
      });
    }
    Close();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    stop_.notify_all();
    if (interrupter_.joinable()) interrupter_.join();
  }

  absl::Status Join(const GlooOptions& options, Rendezvous* rendezvous) {
    IgnoreBrokenPipes();
    RendezvousStore store(rendezvous, options.prefix, options.address, options.timeout);
    MT_RETURN_IF_ERROR(Guard([&] {
      std::shared_ptr<gloo::transport::Device> device = DeviceFor(options.address);
      auto context = std::make_shared<gloo::rendezvous::Context>(rank(), size());
      context->setTimeout(timeout_);
      context->connectFullMesh(store, device);
      context_ = std::move(context);
    }));
    for (const auto& [member, host] : store.hosts) {
      if (host == options.address) piece_bytes_[member] = kSameHostPieceBytes;
    }
    MT_RETURN_IF_ERROR(Guard([&] {
      for (int i = 0; i < size(); ++i) {
        if (i == rank()) continue;
        at_ = i;
        sentinels_[i] = MakeBuffer(&sentinel_byte_, 1);
        sentinels_[i]->recv(i, Tag(Kind::kSentinel, 1));
      }
    }));
    interrupter_ = std::thread([this] { InterruptWaits(); });
    return absl::OkStatus();
  }

 private:
  // ---- errors
  // Gloo throws; here that becomes a Status, blaming the member that `at_` says we dealt with.
  template <typename Body>
  absl::Status Guard(Body body) {
    at_ = -1;
    try {
      body();
      return absl::OkStatus();
    } catch (const StoreError& error) {
      return error.member < 0
                 ? error.status
                 : PeerError(error.status.code(),
                             absl::StrCat(MemberName(error.member), ": ", error.what()),
                             error.member);
    } catch (const Aborted&) {
      return absl::AbortedError("aborted");
    } catch (const std::exception& error) {
      const bool timeout = absl::StrContains(absl::AsciiStrToLower(error.what()), "timeout") ||
                           absl::StrContains(absl::AsciiStrToLower(error.what()), "timed out");
      const absl::StatusCode code =
          timeout ? absl::StatusCode::kDeadlineExceeded : absl::StatusCode::kUnavailable;
      if (at_ < 0) return absl::Status(code, absl::StrCat("gloo: ", error.what()));
      return PeerError(code, absl::StrCat("gloo, with ", MemberName(at_), ": ", error.what()), at_);
    }
  }
  struct Aborted {};

  void DoAbort(absl::string_view) override { Close(); }
  void OnFailure(const absl::Status&) override { Close(); }
  // Wakes what waits here; the peers find their connections closed.
  void Close() {
    broken_.store(true);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      Interrupt();
    }
    if (context_ == nullptr || closed_.exchange(true)) return;
    try {  // not Guard: `at_` belongs to the thread that waits here, this may be another
      context_->closeConnections();
    } catch (const std::exception&) {  // it is closed either way
    }
  }

  // ---- buffers
  using Buffer = std::unique_ptr<gloo::transport::UnboundBuffer>;
  Buffer MakeBuffer(void* data, int64_t bytes) {
    return context_->createUnboundBuffer(data, bytes);
  }
  int64_t Pieces(int peer, int64_t bytes) const {
    return bytes == 0 ? 1 : (bytes + piece_bytes_[peer] - 1) / piece_bytes_[peer];
  }
  template <typename Post>
  void ForPieces(int peer, int64_t bytes, Post post) {
    int64_t at = 0;
    do {
      const int64_t length = std::min(piece_bytes_[peer], bytes - at);
      post(at, length);
      at += length;
    } while (at < bytes);
  }
  // Until the destructor: makes waits return a few times a second, so that they look around.
  void InterruptWaits() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!stop_.wait_for(lock, kLookInterval, [&] { return stopping_; })) Interrupt();
  }
  void Interrupt() {  // with mutex_ held
    for (gloo::transport::UnboundBuffer* buffer : waiting_) {
      buffer->abortWaitRecv();
      buffer->abortWaitSend();
    }
  }
  // Throws what broke the connection to `peer`, if something did.
  void LookAtSentinel(int peer) {
    sentinels_[peer]->abortWaitRecv();  // so that the wait returns at once
    (void)sentinels_[peer]->waitRecv(timeout_);
  }
  // Waits `count` times for the completion of one piece.
  void WaitFor(gloo::transport::UnboundBuffer* buffer, int peer, int64_t count, bool receive) {
    at_ = peer;
    const auto deadline = std::chrono::steady_clock::now() + timeout_;
    const Listed listed(this, buffer);
    for (int64_t i = 0; i < count;) {
      if (broken_.load()) throw Aborted();
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          deadline - std::chrono::steady_clock::now());
      const auto limit = std::max(left, std::chrono::milliseconds(1));
      if (receive ? buffer->waitRecv(limit) : buffer->waitSend(limit)) {
        ++i;
      } else {
        LookAtSentinel(peer);
      }
    }
  }
  // Keeps a buffer among those that Interrupt reaches.
  class Listed {
   public:
    Listed(GlooCommunicator* owner, gloo::transport::UnboundBuffer* buffer)
        : owner_(owner), buffer_(buffer) {
      const std::lock_guard<std::mutex> lock(owner_->mutex_);
      owner_->waiting_.insert(buffer_);
    }
    ~Listed() {
      const std::lock_guard<std::mutex> lock(owner_->mutex_);
      owner_->waiting_.erase(buffer_);
    }

   private:
    GlooCommunicator* const owner_;
    gloo::transport::UnboundBuffer* const buffer_;
  };

  // One round: to each other member i goes to(i), from it comes from(i), `bytes` each. Zero
  // pointers: nothing that way.
  template <typename To, typename From>
  void Exchange(Kind kind, int64_t bytes, To to, From from) {
    const uint64_t tag = Tag(kind, bytes);
    std::vector<Buffer> receives(size()), sends(size());
    for (int distance = 1; distance < size(); ++distance) {
      const int peer = (rank() + distance) % size();
      at_ = peer;
      if (void* data = from(peer); data != nullptr) {
        receives[peer] = MakeBuffer(data, bytes);
        ForPieces(peer, bytes,
                  [&](int64_t at, int64_t length) { receives[peer]->recv(peer, tag, at, length); });
      }
    }
    for (int distance = 1; distance < size(); ++distance) {
      const int peer = (rank() + size() - distance) % size();
      at_ = peer;
      if (const void* data = to(peer); data != nullptr) {
        sends[peer] = MakeBuffer(const_cast<void*>(data), bytes);
        ForPieces(peer, bytes,
                  [&](int64_t at, int64_t length) { sends[peer]->send(peer, tag, at, length); });
      }
    }
    for (int peer = 0; peer < size(); ++peer) {
      if (receives[peer] != nullptr) WaitFor(receives[peer].get(), peer, Pieces(peer, bytes), true);
    }
    for (int peer = 0; peer < size(); ++peer) {
      if (sends[peer] != nullptr) WaitFor(sends[peer].get(), peer, Pieces(peer, bytes), false);
    }
  }

  char* Scratch(int64_t bytes) {
    if (static_cast<int64_t>(scratch_.size()) < bytes) scratch_.resize(bytes);
    return scratch_.data();
  }
  // destination = sum in rank order of own data and what came from the others, which lies in
  // scratch by member.
  void SumInRankOrder(const char* own, int64_t stride, int64_t count, mt_dtype dtype, ReduceOp op,
                      char* destination) {
    inputs_.clear();
    for (int i = 0; i < size(); ++i)
      inputs_.push_back(i == rank() ? own : scratch_.data() + i * stride);
    Reduce(inputs_, destination, count, dtype, op);
  }

  // ---- collectives
  absl::Status DoAllReduce(void* data, int64_t count, mt_dtype dtype, ReduceOp op) override {
    return Guard([&] {
      const int64_t element = ElementSize(dtype), total = count * element;
      char* bytes = static_cast<char*>(data);
      if (total <= kSmallBytes) {
        char* scratch = Scratch(total * size());
        Exchange(
            Kind::kSmall, total, [&](int) { return bytes; },
            [&](int i) { return scratch + i * total; });
        SumInRankOrder(bytes, total, count, dtype, op, bytes);
        return;
      }
      // Equal parts; the last is filled up with zeros, in copies.
      const int64_t part = (count + size() - 1) / size(), part_bytes = part * element;
      padded_.resize(part_bytes * size());
      std::memcpy(padded_.data(), bytes, total);
      std::memset(padded_.data() + total, 0, padded_.size() - total);
      char* scratch = Scratch(part_bytes * size());
      Exchange(
          Kind::kReduce, part_bytes, [&](int i) { return padded_.data() + i * part_bytes; },
          [&](int i) { return scratch + i * part_bytes; });
      char* mine = padded_.data() + rank() * part_bytes;
      SumInRankOrder(mine, part_bytes, part, dtype, op, mine);
      Exchange(
          Kind::kGather, part_bytes, [&](int) { return mine; },
          [&](int i) { return padded_.data() + i * part_bytes; });
      std::memcpy(bytes, padded_.data(), total);
    });
  }
  absl::Status DoReduceScatter(const void* input, void* output, int64_t count,
                               mt_dtype dtype) override {
    return Guard([&] {
      const int64_t part = count * ElementSize(dtype);
      const char* bytes = static_cast<const char*>(input);
      char* scratch = Scratch(part * size());
      Exchange(
          Kind::kReduce, part, [&](int i) { return bytes + i * part; },
          [&](int i) { return scratch + i * part; });
      SumInRankOrder(bytes + rank() * part, part, count, dtype, ReduceOp::kSum,
                     static_cast<char*>(output));
    });
  }
  absl::Status DoAllGather(const void* input, void* output, int64_t bytes) override {
    return Guard([&] {
      char* all = static_cast<char*>(output);
      if (all + rank() * bytes != input) std::memcpy(all + rank() * bytes, input, bytes);
      Exchange(
          Kind::kGather, bytes, [&](int) { return input; }, [&](int i) { return all + i * bytes; });
    });
  }
  absl::Status DoBroadcast(void* data, int64_t bytes, int root) override {
    return Guard([&] {
      Exchange(
          Kind::kBroadcast, bytes, [&](int) { return rank() == root ? data : nullptr; },
          [&](int i) { return i == root ? data : nullptr; });
    });
  }
  absl::Status DoBarrier() override {
    return Guard([&] {
      char mark = 0;
      char* scratch = Scratch(size());
      Exchange(
          Kind::kBarrier, 1, [&](int) { return &mark; }, [&](int i) { return scratch + i; });
    });
  }

  // ---- messages
  struct Message {
    std::vector<char> data;
    Buffer buffer;
    int64_t pieces = 0;
  };
  void FinishOldest(int peer) {
    WaitFor(sent_[peer].front()->buffer.get(), peer, sent_[peer].front()->pieces, false);
    sent_[peer].front()->buffer.reset();
    spare_.push_back(std::move(sent_[peer].front()));
    sent_[peer].pop_front();
  }
  absl::Status DoSend(const void* data, int64_t bytes, int peer) override {
    return Guard([&] {
      while (sent_[peer].size() >= kMessagesInFlight) FinishOldest(peer);
      std::unique_ptr<Message> message = std::make_unique<Message>();
      if (!spare_.empty()) {
        message = std::move(spare_.back());
        spare_.pop_back();
      }
      message->data.assign(static_cast<const char*>(data), static_cast<const char*>(data) + bytes);
      message->buffer = MakeBuffer(message->data.data(), bytes);
      message->pieces = Pieces(peer, bytes);
      at_ = peer;
      ForPieces(peer, bytes, [&](int64_t at, int64_t length) {
        message->buffer->send(peer, Tag(Kind::kMessage, bytes), at, length);
      });
      sent_[peer].push_back(std::move(message));
    });
  }
  absl::Status DoReceive(void* data, int64_t bytes, int peer) override {
    return Guard([&] {
      const Buffer buffer = MakeBuffer(data, bytes);
      at_ = peer;
      ForPieces(peer, bytes, [&](int64_t at, int64_t length) {
        buffer->recv(peer, Tag(Kind::kMessage, bytes), at, length);
      });
      WaitFor(buffer.get(), peer, Pieces(peer, bytes), true);
    });
  }

  std::chrono::milliseconds timeout_;
  std::shared_ptr<gloo::rendezvous::Context> context_;
  std::vector<int64_t> piece_bytes_;  // by peer
  char sentinel_byte_ = 0;
  std::vector<Buffer> sentinels_;  // by peer
  std::vector<std::deque<std::unique_ptr<Message>>> sent_;
  std::vector<std::unique_ptr<Message>> spare_;
  std::vector<char> scratch_, padded_;
  std::vector<const void*> inputs_;
  int at_ = -1;  // the peer we deal with, for errors
  std::atomic<bool> broken_{false}, closed_{false};
  std::mutex mutex_;
  std::set<gloo::transport::UnboundBuffer*> waiting_;  // guarded by mutex_, as is stopping_
  bool stopping_ = false;
  std::condition_variable stop_;
  std::thread interrupter_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> NewGlooCommunicator(const GlooOptions& options,
                                                                  Rendezvous* rendezvous) {
  if (options.size == 1) return NewSelfCommunicator(options.name);
  auto communicator = std::make_unique<GlooCommunicator>(options);
  MT_RETURN_IF_ERROR(
      communicator->JoinGroup([&] { return communicator->Join(options, rendezvous); }));
  return communicator;
}

}  // namespace mt
