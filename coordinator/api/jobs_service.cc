#include <algorithm>

#include "common/proto_time.h"
#include "common/spec/defaults.h"
#include "common/spec/validate.h"
#include "coordinator/api/api.h"
#include "coordinator/api/call.h"
#include "mt/v1/jobs.grpc.pb.h"

namespace mt {
namespace {

constexpr absl::Duration kMaxWait = absl::Hours(1);  // then the caller asks again
constexpr int kMaxEvents = 1000;

// Answers when the job has ended, the time is over or the caller has gone, whichever is first.
class WaitReactor : public grpc::ServerUnaryReactor,
                    public std::enable_shared_from_this<WaitReactor> {
 public:
  WaitReactor(EventLoop* loop, Coordinator* coordinator, const v1::WaitRequest& request,
              v1::Job* response)
      : loop_(loop), coordinator_(coordinator), request_(request), response_(response) {}
  void Begin() {
    self_ = shared_from_this();
    loop_->Post([self = self_] { self->Start(); });
  }
  void OnCancel() override {
    loop_->Post(
        [self = shared_from_this()] { self->End(absl::CancelledError("the caller has gone")); });
  }
  void OnDone() override { self_.reset(); }

 private:
  void Start() {
    if (finished_) return;
    const absl::Duration asked = request_.has_timeout() ? ToDuration(request_.timeout()) : kMaxWait;
    watch_ = coordinator_->AddWatcher([this](const std::string& job_id) {
      if (job_id == request_.job_id()) Look(false);
    });
    timer_ =
        loop_->After(std::min(asked, kMaxWait), [self = shared_from_this()] { self->Look(true); });
    Look(false);
  }
  void Look(bool time_is_over) {
    if (finished_) return;
    absl::StatusOr<v1::Job> job = coordinator_->GetJob(request_.job_id());
    if (!job.ok()) return End(job.status());
    if (!time_is_over && !Coordinator::HasEnded(job->state())) return;
    *response_ = *std::move(job);
    End(absl::OkStatus());
  }
  void End(const absl::Status& status) {
    if (std::exchange(finished_, true)) return;
    if (watch_ != 0) coordinator_->RemoveWatcher(watch_);
    if (timer_ != 0) loop_->Cancel(timer_);
    Finish(ToGrpcStatus(status));
  }

  EventLoop* const loop_;
  Coordinator* const coordinator_;
  const v1::WaitRequest request_;
  v1::Job* const response_;
  std::shared_ptr<WaitReactor> self_;
  Coordinator::WatchId watch_ = 0;
  EventLoop::TimerId timer_ = 0;
  bool finished_ = false;
};

// The newest state of the job after every change; changes while one is being sent are taken
// together.
class WatchStream : public LoopStream<v1::Job> {
 public:
  WatchStream(EventLoop* loop, Coordinator* coordinator, std::string job_id)
      : LoopStream(loop), coordinator_(coordinator), job_id_(std::move(job_id)) {}

 private:
  void Start() override {
    watch_ = coordinator_->AddWatcher([this](const std::string& job_id) {
      if (job_id != job_id_) return;
      changed_ = true;
      Poke();
    });
  }
  void Next() override {
    if (ended_) return End(absl::OkStatus());
    if (!std::exchange(changed_, false)) return;
    absl::StatusOr<v1::Job> job = coordinator_->GetJob(job_id_);
    if (!job.ok()) return End(job.status());
    ended_ = Coordinator::HasEnded(job->state());
    Write(*std::move(job));
  }
  void Closed() override {
    if (watch_ != 0) coordinator_->RemoveWatcher(watch_);
  }

  Coordinator* const coordinator_;
  const std::string job_id_;
  Coordinator::WatchId watch_ = 0;
  bool changed_ = true;  // the first look counts as a change
  bool ended_ = false;
};

// Chunks come from the log files as fast as the caller takes them; nothing waits in memory but what
// one read gave.
class LogStream : public LoopStream<v1::LogChunk> {
 public:
  LogStream(EventLoop* loop, Coordinator* coordinator, const v1::LogsRequest& request)
      : LoopStream(loop), coordinator_(coordinator), request_(request) {}

 private:
  void Start() override {
    const absl::StatusOr<v1::Job> job = coordinator_->GetJob(request_.job_id());
    if (!job.ok()) return End(job.status());
    const v1::ParallelSpec& parallel = job->spec().parallel();
    const int64_t world = static_cast<int64_t>(std::max(1, parallel.tensor())) *
                          std::max(1, parallel.pipeline()) * std::max(1, parallel.data());
    if (!request_.all_ranks() && (request_.rank() < 0 || request_.rank() >= world)) {
      return End(
          absl::OutOfRangeError(absl::StrCat("rank ", request_.rank(), " does not exist; job ",
                                             job->id(), " has ranks 0 to ", world - 1)));
    }
    if (request_.attempt() < 0 || request_.attempt() > job->attempt()) {
      return End(absl::OutOfRangeError(
          absl::StrCat("attempt ", request_.attempt(), " does not exist; job ", job->id(),
                       " has been started ", job->attempt(), " times")));
    }
    filter_.all_ranks = request_.all_ranks();
    filter_.rank = request_.rank();
    filter_.attempt = request_.attempt() != 0 ? request_.attempt()
                      : request_.follow()     ? 0
                                              : job->attempt();
    // Who resumes goes on where it was; who begins begins with the newest attempt.
    if (request_.attempt() == 0 && request_.after_sequence() == 0) first_attempt_ = job->attempt();
    filter_.after_sequence = request_.after_sequence();
    tail_.lines = request_.tail_lines();
    tail_.done = request_.tail_lines() <= 0;
    if (!request_.follow()) return;
    subscription_ = coordinator_->logs().Subscribe(request_.job_id(), [this] { Poke(); });
    watch_ = coordinator_->AddWatcher([this](const std::string& job_id) {
      if (job_id == request_.job_id()) Poke();
    });
  }
  void Next() override {
    if (!tail_.done) {
      const absl::Status status =
          coordinator_->logs().SearchTail(request_.job_id(), filter_, tail_);
      if (!status.ok()) return End(status);
      if (!tail_.done) return GoOnLater();
      filter_.after_sequence = std::max(filter_.after_sequence, tail_.after_sequence);
    }
    if (chunks_.empty()) {
      // Whether it has ended is asked before the read: what came until then is read.
      bool ended = !request_.follow();
      if (!ended) {
        const absl::StatusOr<v1::Job> job = coordinator_->GetJob(request_.job_id());
        if (!job.ok()) return End(job.status());
        ended = Coordinator::HasEnded(job->state());
      }
      absl::StatusOr<LogStore::Page> page = coordinator_->logs().Read(request_.job_id(), filter_);
      if (!page.ok()) return End(page.status());
      filter_.after_sequence = page->scanned_to;
      for (v1::LogChunk& chunk : page->chunks) {
        if (chunk.attempt() >= first_attempt_) chunks_.push_back(std::move(chunk));
      }
      if (chunks_.empty()) {
        if (!page->at_end) return GoOnLater();
        if (ended) End(absl::OkStatus());
        return;
      }
    }
    v1::LogChunk chunk = std::move(chunks_.front());
    chunks_.pop_front();
    Write(std::move(chunk));
  }
  // One read is bounded; what else waits on the loop comes before the next one.
  void GoOnLater() {
    loop_->Post([self = this->shared_from_this()] { static_cast<LogStream&>(*self).Poke(); });
  }
  void Closed() override {
    if (subscription_ != 0) coordinator_->logs().Unsubscribe(subscription_);
    if (watch_ != 0) coordinator_->RemoveWatcher(watch_);
  }

  Coordinator* const coordinator_;
  const v1::LogsRequest request_;
  LogStore::Filter filter_;
  LogStore::Tail tail_;
  int first_attempt_ = 0;
  std::deque<v1::LogChunk> chunks_;
  LogStore::SubscriptionId subscription_ = 0;
  Coordinator::WatchId watch_ = 0;
};

class JobsService final : public v1::Jobs::CallbackService {
 public:
  JobsService(EventLoop* loop, Coordinator* coordinator) : loop_(loop), coordinator_(coordinator) {}

  grpc::ServerUnaryReactor* Submit(grpc::CallbackServerContext* context,
                                   const v1::SubmitRequest* request, v1::Job* response) override {
    return RunOnLoop(
        loop_, context, Role::kSubmitter, response,
        [this, request](const Caller& caller) -> absl::StatusOr<v1::Job> {
          v1::SubmitRequest resolved = *request;
          absl::Status status = FillDefaults(resolved.mutable_spec());
          if (status.ok()) status = ValidateSpec(resolved.spec());
          absl::StatusOr<v1::Job> job = status.ok() ? coordinator_->Submit(resolved, caller.name)
                                                    : absl::StatusOr<v1::Job>(status);
          Audit(caller, request->validate_only() ? "validate" : "submit",
                absl::StrCat(request->spec().name(), " request ", request->request_id(),
                             job.ok() ? absl::StrCat(" as ", job->id()) : ""),
                job.status());
          return job;
        });
  }
  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context,
                                const v1::GetJobRequest* request, v1::Job* response) override {
    return RunOnLoop(loop_, context, Role::kViewer, response, [this, request](const Caller&) {
      return coordinator_->GetJob(request->job_id());
    });
  }
  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context,
                                 const v1::ListJobsRequest* request,
                                 v1::ListJobsResponse* response) override {
    return RunOnLoop(loop_, context, Role::kViewer, response,
                     [this, request](const Caller&) { return coordinator_->ListJobs(*request); });
  }
  grpc::ServerUnaryReactor* Cancel(grpc::CallbackServerContext* context,
                                   const v1::JobActionRequest* request,
                                   v1::Job* response) override {
    return Act(context, request, response, "cancel", &Coordinator::Cancel);
  }
  grpc::ServerUnaryReactor* Pause(grpc::CallbackServerContext* context,
                                  const v1::JobActionRequest* request, v1::Job* response) override {
    return Act(context, request, response, "pause", &Coordinator::Pause);
  }
  grpc::ServerUnaryReactor* Resume(grpc::CallbackServerContext* context,
                                   const v1::JobActionRequest* request,
                                   v1::Job* response) override {
    return Act(context, request, response, "resume", &Coordinator::Resume);
  }
  grpc::ServerUnaryReactor* Wait(grpc::CallbackServerContext* context,
                                 const v1::WaitRequest* request, v1::Job* response) override {
    const absl::StatusOr<Caller> caller = CheckCaller(*context->auth_context(), Role::kViewer);
    if (!caller.ok()) {
      grpc::ServerUnaryReactor* const reactor = context->DefaultReactor();
      reactor->Finish(ToGrpcStatus(caller.status()));
      return reactor;
    }
    const auto reactor = std::make_shared<WaitReactor>(loop_, coordinator_, *request, response);
    reactor->Begin();
    return reactor.get();
  }
  grpc::ServerWriteReactor<v1::Job>* Watch(grpc::CallbackServerContext* context,
                                           const v1::GetJobRequest* request) override {
    const absl::StatusOr<Caller> caller = CheckCaller(*context->auth_context(), Role::kViewer);
    if (!caller.ok()) return new RefusedStream<v1::Job>(caller.status());
    return WatchStream::Run(std::make_shared<WatchStream>(loop_, coordinator_, request->job_id()));
  }
  grpc::ServerWriteReactor<v1::LogChunk>* Logs(grpc::CallbackServerContext* context,
                                               const v1::LogsRequest* request) override {
    const absl::StatusOr<Caller> caller = CheckCaller(*context->auth_context(), Role::kViewer);
    if (!caller.ok()) return new RefusedStream<v1::LogChunk>(caller.status());
    return LogStream::Run(std::make_shared<LogStream>(loop_, coordinator_, *request));
  }
  grpc::ServerUnaryReactor* Events(grpc::CallbackServerContext* context,
                                   const v1::EventsRequest* request,
                                   v1::EventsResponse* response) override {
    return RunOnLoop(loop_, context, Role::kViewer, response, [this, request](const Caller&) {
      v1::EventsRequest bounded = *request;
      if (bounded.limit() <= 0 || bounded.limit() > kMaxEvents) bounded.set_limit(kMaxEvents);
      return coordinator_->ListEvents(bounded);
    });
  }

 private:
  using Action = absl::StatusOr<v1::Job> (Coordinator::*)(const v1::JobActionRequest&);

  grpc::ServerUnaryReactor* Act(grpc::CallbackServerContext* context,
                                const v1::JobActionRequest* request, v1::Job* response,
                                const char* what, Action action) {
    return RunOnLoop(
        loop_, context, Role::kSubmitter, response,
        [this, request, what, action](const Caller& caller) -> absl::StatusOr<v1::Job> {
          absl::StatusOr<v1::Job> job = coordinator_->GetJob(request->job_id());
          if (job.ok() && caller.role < Role::kOperator && job->submitted_by() != caller.name) {
            job = absl::PermissionDeniedError(
                absl::StrCat("job ", job->id(), " belongs to ", job->submitted_by(),
                             "; steering another's job needs a certificate of role operator"));
          }
          if (job.ok()) job = (coordinator_->*action)(*request);
          Audit(caller, what, request->job_id(), job.status());
          return job;
        });
  }

  EventLoop* const loop_;
  Coordinator* const coordinator_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewJobsService(EventLoop* loop, Coordinator* coordinator) {
  return std::make_unique<JobsService>(loop, coordinator);
}

}  // namespace mt
