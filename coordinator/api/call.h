// What the services share: who calls, and calls that run on the coordinator's loop.
#pragma once

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <string>
#include <utility>

#include "common/event_loop.h"
#include "common/grpc_status.h"
#include "common/log.h"
#include "common/tls/credentials.h"

namespace mt {

struct Caller {
  Role role = Role::kViewer;
  std::string name;  // of the certificate; "anonymous" without TLS
};

// PERMISSION_DENIED unless the caller is a client (or TLS is off) whose role is at least `needed`.
absl::StatusOr<Caller> CheckCaller(const grpc::AuthContext& context, Role needed);

// One line per call that changes something.
void Audit(const Caller& caller, absl::string_view what, absl::string_view object,
           const absl::Status& result);

// Runs `body(caller)` on the loop, which answers StatusOr<Response>. What `body` refers to
// (request, service) lives until the call has been finished.
template <typename Response, typename Body>
grpc::ServerUnaryReactor* RunOnLoop(EventLoop* loop, grpc::CallbackServerContext* context,
                                    Role needed, Response* response, Body body) {
  grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
  const absl::StatusOr<Caller> caller = CheckCaller(*context->auth_context(), needed);
  if (!caller.ok()) {
    reactor->Finish(ToGrpcStatus(caller.status()));
    return reactor;
  }
  loop->Post([reactor, response, caller = *caller, body = std::move(body)]() mutable {
    absl::StatusOr<Response> result = body(caller);
    if (result.ok()) *response = *std::move(result);
    reactor->Finish(ToGrpcStatus(result.status()));
  });
  return reactor;
}

// A stream of answers whose logic runs on the loop. Invariant: one message is under way at a time,
// and Next is asked for another only when it has left; so a slow reader costs one message of
// memory, and what it misses is read again from where it is kept. Keeps itself alive until gRPC is
// done with it.
template <typename T>
class LoopStream : public grpc::ServerWriteReactor<T>,
                   public std::enable_shared_from_this<LoopStream<T>> {
 public:
  // Begins: Start and then Next run on the loop.
  static grpc::ServerWriteReactor<T>* Run(std::shared_ptr<LoopStream> stream) {
    stream->self_ = stream;
    stream->loop_->Post([stream] {
      if (stream->finished_) return;
      stream->Start();
      stream->Poke();
    });
    return stream.get();
  }

  void OnWriteDone(bool ok) final {
    loop_->Post([self = this->shared_from_this(), ok] {
      self->writing_ = false;
      if (!ok) return self->End(absl::CancelledError("the caller has gone"));
      self->Poke();
    });
  }
  void OnCancel() final {
    loop_->Post([self = this->shared_from_this()] {
      self->End(absl::CancelledError("the caller has gone"));
    });
  }
  void OnDone() final { self_.reset(); }

 protected:
  explicit LoopStream(EventLoop* loop) : loop_(loop) {}
  // All on the loop.
  virtual void Start() = 0;
  virtual void Next() = 0;  // calls Write or End, or neither (then somebody calls Poke later)
  virtual void Closed() {}  // once, before the call is finished: drop subscriptions
  // Also from within Next: what it reads may be what tells the subscribers. Holds the stream: once
  // Next has ended it, gRPC may call OnDone on a thread of its own.
  void Poke() {
    const auto self = this->shared_from_this();
    poked_ = true;
    if (in_next_) return;
    in_next_ = true;
    while (!writing_ && !finished_ && std::exchange(poked_, false)) Next();
    in_next_ = false;
  }
  void Write(T message) {
    writing_ = true;
    message_ = std::move(message);
    this->StartWrite(&message_);
  }
  void End(const absl::Status& status) {
    if (std::exchange(finished_, true)) return;
    Closed();
    this->Finish(ToGrpcStatus(status));
  }
  bool finished() const { return finished_; }

  EventLoop* const loop_;

 private:
  std::shared_ptr<LoopStream> self_;
  bool poked_ = false;
  bool in_next_ = false;
  bool writing_ = false;
  bool finished_ = false;
  T message_;
};

// A stream that is refused at once.
template <typename T>
class RefusedStream : public grpc::ServerWriteReactor<T> {
 public:
  explicit RefusedStream(const absl::Status& status) { this->Finish(ToGrpcStatus(status)); }
  void OnDone() override { delete this; }
};

}  // namespace mt
