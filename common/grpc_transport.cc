#include "common/grpc_transport.h"

#include <deque>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/synchronization/mutex.h"
#include "common/grpc_status.h"
#include "mt/v1/worker.grpc.pb.h"

namespace mt {
namespace {

size_t BytesOf(const v1::WorkerMessage& message) { return message.ByteSizeLong(); }
size_t BytesOf(const grpc::ByteBuffer& serialized) { return serialized.Length(); }

// What both sides share: a bounded queue in front of a reactor that can write one message at a
// time. Not thread-safe.
template <typename Message>
class SendQueue {
 public:
  // False when the queue is full.
  bool Push(Message message) {
    const size_t bytes = BytesOf(message);
    if (bytes_ + bytes > kMaxQueuedBytes) return false;
    bytes_ += bytes;
    messages_.emplace_back(std::move(message), bytes);
    return true;
  }
  bool empty() const { return messages_.empty(); }
  const Message& front() const { return messages_.front().first; }
  void Pop() {
    bytes_ -= messages_.front().second;
    messages_.pop_front();
  }

 private:
  std::deque<std::pair<Message, size_t>> messages_;
  size_t bytes_ = 0;
};

absl::Status QueueFull() {
  return absl::ResourceExhaustedError(absl::StrCat("the peer reads too slowly: more than ",
                                                   kMaxQueuedBytes >> 20, " MiB wait to be sent"));
}

// ------------------------------------------------------------------------------------------------
// coordinator side
//
// The handle (CoordinatorSideStream) is shared with the handler and may outlive the call; the
// reactor is gRPC's and ends with OnDone. The handle's mutex guards the pointer to the reactor and
// everything about writing. State of the reading side (delivered_, closed_) belongs to the loop.
//
// The method is a raw one: the queues hold serialized messages, so that one that goes to every node (a checkpoint's
// manifest has megabytes) is serialized once and its bytes are there once.
class ConnectReactor;

class CoordinatorSideStream : public WorkerStream,
                              public std::enable_shared_from_this<CoordinatorSideStream> {
 public:
  CoordinatorSideStream(EventLoop* loop, WorkerStreamHandler* handler, std::string node,
                        absl::Time certificate_expiry)
      : loop_(loop),
        handler_(handler),
        node_(std::move(node)),
        certificate_expiry_(certificate_expiry) {}

  void Send(v1::CoordinatorMessage message) override;
  void SendShared(std::shared_ptr<const SharedMessage> message) override;
  void Close(absl::Status reason) override;
  std::string AuthenticatedNode() const override { return node_; }
  absl::Time CertificateExpiry() const override { return certificate_expiry_; }

 private:
  friend class ConnectReactor;
  void Queue(grpc::ByteBuffer serialized);
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void FinishIfIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  EventLoop* const loop_;
  WorkerStreamHandler* const handler_;
  const std::string node_;
  const absl::Time certificate_expiry_;

  absl::Mutex mutex_;
  ConnectReactor* reactor_ ABSL_GUARDED_BY(mutex_) = nullptr;  // null after OnDone
  SendQueue<grpc::ByteBuffer> queue_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;  // a final status is set: nothing more is queued
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status final_status_ ABSL_GUARDED_BY(mutex_);

  bool delivered_ = false;  // loop only: a message reached the handler
  bool closed_ = false;     // loop only: this side called Close, or OnClosed ran
};

class ConnectReactor : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit ConnectReactor(std::shared_ptr<CoordinatorSideStream> stream)
      : stream_(std::move(stream)) {
    absl::MutexLock lock(&stream_->mutex_);
    stream_->reactor_ = this;
  }
  void Read() { StartRead(&incoming_); }

  void OnReadDone(bool ok) override {
    if (!ok) {  // the worker closed its half, or the connection broke
      absl::MutexLock lock(&stream_->mutex_);
      if (!stream_->finishing_) {
        stream_->finishing_ = true;
        stream_->final_status_ = absl::OkStatus();
      }
      stream_->FinishIfIdle();
      return;
    }
    v1::WorkerMessage message;
    const grpc::Status parsed =
        grpc::SerializationTraits<v1::WorkerMessage>::Deserialize(&incoming_, &message);
    if (!parsed.ok()) {
      absl::MutexLock lock(&stream_->mutex_);
      if (!stream_->finishing_) {
        stream_->finishing_ = true;
        stream_->final_status_ = absl::InvalidArgumentError(
            absl::StrCat("a message of the worker cannot be parsed: ", parsed.error_message()));
      }
      stream_->FinishIfIdle();
      return;
    }
    stream_->loop_->Post([stream = stream_, message = std::move(message)]() mutable {
      if (stream->closed_) return;
      stream->delivered_ = true;
      stream->handler_->OnMessage(stream, std::move(message));
      absl::MutexLock lock(&stream->mutex_);
      if (stream->reactor_ != nullptr && !stream->finished_) stream->reactor_->Read();
    });
  }
  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&stream_->mutex_);
    stream_->writing_ = false;
    stream_->queue_.Pop();
    if (!ok && !stream_->finishing_) {
      stream_->finishing_ = true;
      stream_->final_status_ = absl::UnavailableError("connection lost");
    }
    stream_->WriteNext();
  }
  void OnCancel() override {
    absl::MutexLock lock(&stream_->mutex_);
    if (!stream_->finishing_) {
      stream_->finishing_ = true;
      stream_->final_status_ =
          absl::CancelledError("the worker closed the stream, or its connection was lost");
    }
    stream_->FinishIfIdle();
  }
  void OnDone() override {
    absl::Status reason;
    {
      absl::MutexLock lock(&stream_->mutex_);
      stream_->reactor_ = nullptr;
      reason = stream_->final_status_;
    }
    stream_->loop_->Post([stream = stream_, reason]() {
      if (std::exchange(stream->closed_, true) || !stream->delivered_) return;
      stream->handler_->OnClosed(
          stream, reason.ok() ? absl::UnavailableError("the worker closed the stream") : reason);
    });
    delete this;
  }

 private:
  const std::shared_ptr<CoordinatorSideStream> stream_;
  grpc::ByteBuffer incoming_;
};

void CoordinatorSideStream::Send(v1::CoordinatorMessage message) {
  grpc::ByteBuffer serialized;
  bool owned = false;
  const grpc::Status status =
      grpc::SerializationTraits<v1::CoordinatorMessage>::Serialize(message, &serialized, &owned);
  if (status.ok()) return Queue(std::move(serialized));
  absl::MutexLock lock(&mutex_);
  if (finishing_) return;
  finishing_ = true;
  final_status_ = FromGrpcStatus(status);
  FinishIfIdle();
}

void CoordinatorSideStream::SendShared(std::shared_ptr<const SharedMessage> message) {
  auto* const keep = new std::shared_ptr<const SharedMessage>(std::move(message));
  const std::string& bytes = (*keep)->bytes;
  const grpc::Slice slice(
      const_cast<char*>(bytes.data()), bytes.size(),
      [](void* user_data) { delete static_cast<std::shared_ptr<const SharedMessage>*>(user_data); },
      keep);
  Queue(grpc::ByteBuffer(&slice, 1));
}

void CoordinatorSideStream::Queue(grpc::ByteBuffer serialized) {
  absl::MutexLock lock(&mutex_);
  if (finishing_ || reactor_ == nullptr) return;
  if (!queue_.Push(std::move(serialized))) {
    finishing_ = true;
    final_status_ = QueueFull();
  }
  WriteNext();
}

void CoordinatorSideStream::Close(absl::Status reason) {
  closed_ = true;
  absl::MutexLock lock(&mutex_);
  if (finishing_) return;
  finishing_ = true;
  final_status_ = std::move(reason);
  FinishIfIdle();
}

void CoordinatorSideStream::WriteNext() {
  if (finishing_) return FinishIfIdle();
  if (writing_ || queue_.empty() || reactor_ == nullptr) return;
  writing_ = true;
  reactor_->StartWrite(&queue_.front());
}

// A write in flight must end before Finish; its OnWriteDone comes back here.
void CoordinatorSideStream::FinishIfIdle() {
  if (!finishing_ || finished_ || writing_ || reactor_ == nullptr) return;
  finished_ = true;
  reactor_->Finish(ToGrpcStatus(final_status_));
}

class RefusedReactor : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  explicit RefusedReactor(const absl::Status& status) { Finish(ToGrpcStatus(status)); }
  void OnDone() override { delete this; }
};

class WorkerControlService final
    : public v1::WorkerControl::WithRawCallbackMethod_Connect<v1::WorkerControl::Service> {
 public:
  WorkerControlService(EventLoop* loop, WorkerStreamHandler* handler)
      : loop_(loop), handler_(handler) {}

  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* Connect(
      grpc::CallbackServerContext* context) override {
    const absl::StatusOr<PeerIdentity> peer = PeerOf(*context->auth_context());
    if (!peer.ok()) return new RefusedReactor(peer.status());
    std::string node;
    if (peer->kind == PeerIdentity::Kind::kNode) {
      node = peer->name;
    } else if (peer->kind != PeerIdentity::Kind::kAnonymous) {
      return new RefusedReactor(absl::PermissionDeniedError(
          absl::StrCat("certificate \"", peer->common_name,
                       "\" is not a node's; only worker daemons open this stream")));
    }
    auto* reactor = new ConnectReactor(
        std::make_shared<CoordinatorSideStream>(loop_, handler_, std::move(node), peer->expiry));
    reactor->Read();
    return reactor;
  }

 private:
  EventLoop* const loop_;
  WorkerStreamHandler* const handler_;
};

// -----------------------------------------------------------------------------------------------------
// worker side
//
// The call keeps itself alive until OnDone. `open_` belongs to the loop: once the connection is
// destroyed nothing that was posted before reaches its callbacks.
class WorkerSideCall : public grpc::ClientBidiReactor<v1::WorkerMessage, v1::CoordinatorMessage>,
                       public std::enable_shared_from_this<WorkerSideCall> {
 public:
  WorkerSideCall(EventLoop* loop, std::function<void(v1::CoordinatorMessage)> on_message,
                 std::function<void(absl::Status)> on_closed)
      : loop_(loop), on_message_(std::move(on_message)), on_closed_(std::move(on_closed)) {}

  void Start(std::shared_ptr<grpc::Channel> channel) {
    channel_ = std::move(channel);
    stub_ = v1::WorkerControl::NewStub(channel_);
    self_ = shared_from_this();
    stub_->async()->Connect(&context_, this);
    AddHold();  // the loop, too, starts reads and writes: released when this side is done with the
                // call
    StartRead(&incoming_);
    StartCall();
  }
  void FailToStart(absl::Status reason) {
    {
      absl::MutexLock lock(&mutex_);
      over_ = true;  // there is no call to cancel
    }
    loop_->Post([self = shared_from_this(), reason] { self->Closed(reason); });
  }

  void Send(v1::WorkerMessage message) {
    absl::MutexLock lock(&mutex_);
    if (over_) return;
    if (!queue_.Push(std::move(message))) {
      queue_error_ = QueueFull();
      Release();
      return;
    }
    WriteNext();
  }
  // On the loop.
  void Destroy() {
    open_ = false;
    absl::MutexLock lock(&mutex_);
    Release();
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      absl::MutexLock lock(&mutex_);
      Release();
      return;
    }
    loop_->Post([self = shared_from_this(), message = std::move(incoming_)]() mutable {
      if (!self->open_) return;
      self->on_message_(std::move(message));
      absl::MutexLock lock(&self->mutex_);
      if (!self->over_) self->StartRead(&self->incoming_);
    });
  }
  void OnWriteDone(bool ok) override {
    absl::MutexLock lock(&mutex_);
    writing_ = false;
    queue_.Pop();
    if (!ok) return Release();
    WriteNext();
  }
  void OnDone(const grpc::Status& status) override {
    absl::Status reason;
    {
      absl::MutexLock lock(&mutex_);
      over_ = true;
      reason = queue_error_.ok() ? FromGrpcStatus(status) : queue_error_;
    }
    if (reason.ok()) reason = absl::UnavailableError("the coordinator closed the stream");
    loop_->Post([self = std::move(self_), reason]() { self->Closed(reason); });
  }

 private:
  void Closed(const absl::Status& reason) {
    if (!std::exchange(open_, false)) return;
    on_closed_(reason);
  }
  void WriteNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || over_ || queue_.empty()) return;
    writing_ = true;
    StartWrite(&queue_.front());
  }
  // No more reads or writes from the loop; the call ends with what is in flight.
  void Release() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (std::exchange(over_, true)) return;
    context_.TryCancel();
    RemoveHold();
  }

  EventLoop* const loop_;
  const std::function<void(v1::CoordinatorMessage)> on_message_;
  const std::function<void(absl::Status)> on_closed_;
  bool open_ = true;  // loop only

  std::shared_ptr<WorkerSideCall> self_;  // until OnDone
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::WorkerControl::Stub> stub_;
  grpc::ClientContext context_;
  v1::CoordinatorMessage incoming_;

  absl::Mutex mutex_;
  SendQueue<v1::WorkerMessage> queue_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status queue_error_ ABSL_GUARDED_BY(mutex_);
};

class GrpcCoordinatorConnection : public CoordinatorConnection {
 public:
  explicit GrpcCoordinatorConnection(std::shared_ptr<WorkerSideCall> call)
      : call_(std::move(call)) {}
  ~GrpcCoordinatorConnection() override { call_->Destroy(); }
  void Send(v1::WorkerMessage message) override { call_->Send(std::move(message)); }

 private:
  const std::shared_ptr<WorkerSideCall> call_;
};

class GrpcCoordinatorDialer : public CoordinatorDialer {
 public:
  GrpcCoordinatorDialer(EventLoop* loop, Env* env, std::string address, TlsFiles files)
      : loop_(loop), env_(env), address_(std::move(address)), files_(std::move(files)) {}

  std::unique_ptr<CoordinatorConnection> Dial(
      std::function<void(v1::CoordinatorMessage)> on_message,
      std::function<void(absl::Status)> on_closed) override {
    auto call =
        std::make_shared<WorkerSideCall>(loop_, std::move(on_message), std::move(on_closed));
    const absl::StatusOr<std::string> address = CoordinatorAddress(env_, address_);
    const absl::StatusOr<std::shared_ptr<grpc::Channel>> channel =
        address.ok() ? NewChannel(env_, *address, files_, kCoordinatorTargetName)
                     : absl::StatusOr<std::shared_ptr<grpc::Channel>>(address.status());
    if (channel.ok()) {
      call->Start(*channel);
    } else {
      call->FailToStart(channel.status());
    }
    return std::make_unique<GrpcCoordinatorConnection>(std::move(call));
  }

 private:
  EventLoop* const loop_;
  Env* const env_;
  const std::string address_;
  const TlsFiles files_;
};

}  // namespace

absl::StatusOr<std::string> CoordinatorAddress(Env* env, const std::string& address) {
  if (address.empty() || address[0] != '@') return address;
  MT_ASSIGN_OR_RETURN(const std::string text, ReadFile(env, address.substr(1), 4096));
  return std::string(absl::StripAsciiWhitespace(text));
}

std::unique_ptr<grpc::Service> NewWorkerControlService(EventLoop* loop,
                                                       WorkerStreamHandler* handler) {
  return std::make_unique<WorkerControlService>(loop, handler);
}

std::unique_ptr<CoordinatorDialer> NewGrpcCoordinatorDialer(EventLoop* loop, Env* env,
                                                            std::string address, TlsFiles files) {
  return std::make_unique<GrpcCoordinatorDialer>(loop, env, std::move(address), std::move(files));
}

}  // namespace mt
