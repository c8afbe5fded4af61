#include "client/follow.h"

#include <cstdio>
#include <future>

#include "absl/strings/str_cat.h"

namespace mt::client {
namespace {

constexpr auto kRetryDelay = std::chrono::milliseconds(500);
constexpr auto kLastLines = std::chrono::seconds(10);

// Codes that a coordinator which is restarting may give; all others are final.
bool IsAway(const absl::Status& status) { return absl::IsUnavailable(status); }

absl::Status Left() { return absl::CancelledError("interrupted"); }

// Tells once that the coordinator is away, and once that it is back.
class Away {
 public:
  explicit Away(bool tell) : tell_(tell) {}
  void Lost(const absl::Status& status) {
    if (tell_ && !lost_)
      Note(absl::StrCat("coordinator is away (", status.message(),
                        "); the job goes on, waiting for it"));
    lost_ = true;
  }
  void Back() {
    if (tell_ && lost_) Note("coordinator is back");
    lost_ = false;
  }

 private:
  bool tell_, lost_ = false;
};

}  // namespace

std::string PrefixLines(absl::string_view data, absl::string_view prefix) {
  if (prefix.empty()) return std::string(data);
  std::string out;
  while (!data.empty()) {
    const size_t end = data.find('\n');
    const absl::string_view line = data.substr(0, end);
    absl::StrAppend(&out, prefix, line, "\n");
    if (end == absl::string_view::npos) break;
    data.remove_prefix(end + 1);
  }
  return out;
}

absl::Status StreamLogs(Session* session, const std::string& job_id, const LogOptions& options,
                        Interrupt* interrupt) {
  v1::LogsRequest request;
  request.set_job_id(job_id);
  request.set_all_ranks(options.rank < 0);
  request.set_rank(std::max(options.rank, 0));
  request.set_attempt(options.attempt);
  request.set_follow(options.follow);
  request.set_tail_lines(options.tail_lines);
  Away away(/*tell=*/false);  // the state's follower tells
  bool first = true;
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  // A connection of its own, since two streams reconnect independently.
  ConnectOptions connect = session->connect;
  std::unique_ptr<Client> own;
  while (true) {
    absl::Status status;
    if (client != nullptr) {
      grpc::ClientContext context;
      Interrupt::Scope scope(interrupt, &context);
      auto stream = client->jobs().Logs(&context, request);
      v1::LogChunk chunk;
      while (stream->Read(&chunk)) {
        first = false;
        request.set_after_sequence(std::max(request.after_sequence(), chunk.sequence()));
        request.set_tail_lines(0);  // of a resumed stream everything is wanted
        const std::string text = PrefixLines(
            chunk.data(), options.prefix
                              ? Paint(absl::StrCat("[rank ", chunk.rank(), "]"), Colour::kDim) + " "
                              : "");
        std::fwrite(text.data(), 1, text.size(), stdout);
        std::fflush(stdout);
      }
      status = Client::FromGrpc(stream->Finish());
    }
    if (interrupt->Seen()) return Left();
    if (client != nullptr && (status.ok() || !IsAway(status) || (first && !options.follow)))
      return status;
    if (interrupt->Sleep(kRetryDelay)) return Left();
    auto again = Client::Connect(connect);
    own = again.ok() ? std::move(*again) : nullptr;
    client = own.get();
  }
}

absl::StatusOr<v1::Job> WaitForEnd(Session* session, const std::string& job_id,
                                   absl::Duration timeout, Interrupt* interrupt, bool tell) {
  const absl::Time deadline = absl::Now() + timeout;
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  std::unique_ptr<Client> own;
  Away away(tell);
  std::string told;
  while (true) {
    absl::Status status = absl::UnavailableError("not connected");
    if (client != nullptr) {
      grpc::ClientContext context;
      if (timeout != absl::InfiniteDuration()) context.set_deadline(absl::ToChronoTime(deadline));
      Interrupt::Scope scope(interrupt, &context);
      v1::GetJobRequest request;
      request.set_job_id(job_id);
      auto stream = client->jobs().Watch(&context, request);
      v1::Job job;
      while (stream->Read(&job)) {
        away.Back();
        std::string now = StateText(job.state());
        if (!job.reason().empty()) absl::StrAppend(&now, ": ", Safe(job.reason()));
        if (job.attempt() > 1) absl::StrAppend(&now, " (attempt ", job.attempt(), ")");
        if (tell && now != told && !HasEnded(job.state())) Note(absl::StrCat(job_id, " ", now));
        told = now;
        if (HasEnded(job.state())) {
          context.TryCancel();
          while (stream->Read(&job)) continue;
          (void)stream->Finish();
          return job;
        }
      }
      status = Client::FromGrpc(stream->Finish());
      // A stream that ended well without an ended job is a coordinator that is stopping.
      if (status.ok()) status = absl::UnavailableError("the coordinator ended the stream");
    }
    if (interrupt->Seen()) return Left();
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(job_id, " has not ended within ",
                                                      absl::FormatDuration(timeout),
                                                      told.empty() ? "" : "; it is " + told));
    }
    if (!IsAway(status)) return status;
    away.Lost(status);
    if (interrupt->Sleep(kRetryDelay)) return Left();
    auto again = Client::Connect(session->connect);
    own = again.ok() ? std::move(*again) : nullptr;
    client = own.get();
  }
}

ExitCode ReportEnd(const v1::Job& job) {
  const v1::TrainingProgress& p = job.progress();
  std::string text = absl::StrCat(job.id(), " ", StateText(job.state()));
  if (job.has_started() && job.has_ended())
    absl::StrAppend(&text, " after ", Seconds(ToTime(job.ended()) - ToTime(job.started())));
  if (p.step() > 0)
    absl::StrAppend(&text, ", step ", p.step(), "/", p.total_steps(), ", loss ", Number(p.loss()));
  if (p.validation_step() > 0)
    absl::StrAppend(&text, ", held-out loss ", Number(p.validation_loss()));
  if (job.restarts() > 0)
    absl::StrAppend(&text, ", ", job.restarts(), job.restarts() == 1 ? " restart" : " restarts");
  if (!job.reason().empty()) absl::StrAppend(&text, ": ", Safe(job.reason()));
  Note(text);
  if (job.state() == v1::JOB_STATE_SUCCEEDED) {
    Note(absl::StrCat("next: mtctl generate ", job.id(), " --prompt \"Once upon a time\""));
    return kExitOk;
  }
  if (job.state() == v1::JOB_STATE_FAILED) {
    if (job.exit_code() != 0) Note(absl::StrCat("the job's exit code is ", job.exit_code()));
    for (const std::string& line : job.failure().last_lines()) {
      Note(absl::StrCat("  [rank ", job.failure().rank(), "] ", Safe(line)));
    }
    Note(absl::StrCat("next: mtctl describe ", job.id()));
  }
  return kExitJobFailed;
}

absl::StatusOr<ExitCode> FollowJob(Session* session, const std::string& job_id, bool with_logs,
                                   absl::Duration timeout) {
  Interrupt interrupt;
  std::future<absl::Status> logs;
  if (with_logs) {
    MT_RETURN_IF_ERROR(session->client().status());  // before two threads ask for it
    logs = std::async(std::launch::async,
                      [&] { return StreamLogs(session, job_id, {.follow = true}, &interrupt); });
  }
  const absl::StatusOr<v1::Job> job = WaitForEnd(session, job_id, timeout, &interrupt);
  absl::Status logs_status = absl::OkStatus();
  if (logs.valid()) {
    // The last lines of an ended job may come from a node that is gone: they are not waited for without end.
    if (!job.ok() || logs.wait_for(kLastLines) != std::future_status::ready) interrupt.Trigger();
    logs_status = logs.get();
  }
  if (absl::IsCancelled(job.status())) {
    Note(absl::StrCat("\ndetached; ", job_id, " goes on. Come back with: mtctl logs -f ", job_id,
                      "   stop it with: mtctl cancel ", job_id));
    return kExitInterrupted;
  }
  if (!job.ok()) return WithNext(job.status(), absl::StrCat("mtctl status ", job_id));
  if (!logs_status.ok()) Note(absl::StrCat("logs ended early: ", logs_status.message()));
  return ReportEnd(*job);
}

}  // namespace mt::client
