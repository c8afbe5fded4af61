#include "client/jobs_commands.h"

#include <cmath>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/follow.h"
#include "common/spec/yaml.h"

namespace mt::client {
namespace {

// What the options of these commands are parsed into; lives as long as the application.
struct Options {
  std::string job_id, reason, timeout;
  std::vector<std::string> states;
  bool follow = false, no_prefix = false, all = false;
  int rank = -1, attempt = 0, limit = 200;
  int64_t tail = 0;
};

absl::Status NotFoundHint(absl::Status status) {
  if (absl::IsNotFound(status)) return WithNext(std::move(status), "mtctl list");
  return status;
}

absl::StatusOr<std::vector<v1::Job>> ListJobs(Session* session,
                                              const std::vector<std::string>& states) {
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  v1::ListJobsRequest request;
  request.set_page_size(200);
  for (const std::string& state : states) {
    const auto& type = *v1::JobState_descriptor();
    bool known = false;
    std::vector<std::string> texts;
    for (int i = 1; i < type.value_count(); ++i) {
      texts.push_back(EnumToText(*type.value(i)));
      if (texts.back() != state) continue;
      request.add_states(static_cast<v1::JobState>(type.value(i)->number()));
      known = true;
    }
    if (!known) {
      const std::string nearest = NearestWord(state, texts);
      return absl::InvalidArgumentError(
          absl::StrCat("--state ", state, ": unknown; ",
                       nearest.empty() ? absl::StrCat("use one of ", absl::StrJoin(texts, ", "))
                                       : absl::StrCat("did you mean ", nearest, "?")));
    }
  }
  std::vector<v1::Job> jobs;
  do {
    MT_ASSIGN_OR_RETURN(v1::ListJobsResponse page,
                        client->Call(client->jobs(), &v1::Jobs::Stub::List, request));
    for (v1::Job& job : *page.mutable_jobs()) jobs.push_back(std::move(job));
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return jobs;
}

absl::StatusOr<v1::Job> GetJob(Session* session, const std::string& id) {
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  v1::GetJobRequest request;
  request.set_job_id(id);
  absl::StatusOr<v1::Job> job = client->Call(client->jobs(), &v1::Jobs::Stub::Get, request);
  if (!job.ok()) return NotFoundHint(job.status());
  return job;
}

ExitCode PrintJob(Session* session, const v1::Job& job) {
  if (session->json()) {
    session->Print(MessageToJson(job));
  } else {
    JobsTable({job}, absl::Now()).Print(session->wide());
  }
  return kExitOk;
}

absl::StatusOr<ExitCode> List(Session* session, const Options& options) {
  MT_ASSIGN_OR_RETURN(const std::vector<v1::Job> jobs, ListJobs(session, options.states));
  if (session->json()) {
    Json list = Json::array();
    for (const v1::Job& job : jobs) list.push_back(MessageToJson(job));
    session->Print(list);
  } else if (jobs.empty()) {
    Note("no jobs; next: mtctl submit examples/quickstart.yaml");
  } else {
    JobsTable(jobs, absl::Now()).Print(session->wide());
  }
  return kExitOk;
}

using Action = grpc::Status (v1::Jobs::Stub::*)(grpc::ClientContext*, const v1::JobActionRequest&,
                                                v1::Job*);

absl::StatusOr<ExitCode> Act(Session* session, const Options& options, Action method) {
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  v1::JobActionRequest request;
  request.set_job_id(options.job_id);
  request.set_reason(options.reason);
  const absl::StatusOr<v1::Job> job = client->Call(client->jobs(), method, request);
  if (!job.ok())
    return WithNext(NotFoundHint(job.status()), absl::StrCat("mtctl status ", options.job_id));
  if (session->json()) return PrintJob(session, *job);
  Note(absl::StrCat(job->id(), " is ", StateText(job->state()),
                    job->reason().empty() ? "" : ": " + Safe(job->reason())));
  return kExitOk;
}

absl::StatusOr<ExitCode> Wait(Session* session, const Options& options) {
  absl::Duration timeout = absl::InfiniteDuration();
  if (!options.timeout.empty()) {
    MT_ASSIGN_OR_RETURN(timeout, ParseSpecDuration(options.timeout));
  }
  return FollowJob(session, options.job_id, /*with_logs=*/false, timeout);
}

absl::StatusOr<ExitCode> Logs(Session* session, const Options& options) {
  MT_ASSIGN_OR_RETURN(const v1::Job job, GetJob(session, options.job_id));
  Interrupt interrupt;
  const LogOptions log{.rank = options.rank,
                       .attempt = options.attempt,
                       .follow = options.follow,
                       .tail_lines = options.tail,
                       .prefix = !options.no_prefix && options.rank < 0};
  const absl::Status status = StreamLogs(session, options.job_id, log, &interrupt);
  if (absl::IsCancelled(status)) {
    if (!HasEnded(job.state())) {
      Note(absl::StrCat("\ndetached; ", options.job_id, " goes on. Come back with: mtctl logs -f ",
                        options.job_id));
    }
    return kExitInterrupted;
  }
  if (!status.ok()) return WithNext(status, absl::StrCat("mtctl describe ", options.job_id));
  return kExitOk;
}

absl::StatusOr<ExitCode> Events(Session* session, const Options& options) {
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  v1::EventsRequest request;
  request.set_job_id(options.job_id);
  request.set_limit(options.limit);
  const auto events = client->Call(client->jobs(), &v1::Jobs::Stub::Events, request);
  if (!events.ok()) return NotFoundHint(events.status());
  if (session->json()) {
    Json list = Json::array();
    for (const v1::Event& event : events->events()) list.push_back(MessageToJson(event));
    session->Print(list);
    return kExitOk;
  }
  Table table({{"TIME"}, {"KIND"}, {"JOB"}, {"NODE"}, {"ATTEMPT", true, true}, {"MESSAGE"}});
  for (const v1::Event& e : events->events()) {
    table.AddRow({absl::FormatTime("%Y-%m-%d %H:%M:%S", ToTime(e.time()), absl::LocalTimeZone()),
                  Safe(e.kind()), Safe(e.job_id()), Safe(e.node()),
                  e.attempt() == 0 ? "" : absl::StrCat(e.attempt()), Safe(e.message())});
  }
  table.Print(session->wide());
  return kExitOk;
}

CLI::App* JobCommand(CLI::App* app, const std::string& name, const std::string& help,
                     Options* options) {
  CLI::App* command = app->add_subcommand(name, help);
  command->add_option("JOB", options->job_id, "Job id, as `mtctl list` shows it")->required();
  return command;
}

}  // namespace

Table JobsTable(const std::vector<v1::Job>& jobs, absl::Time now) {
  Table table({{"ID"},
               {"STATE"},
               {"STEP", false, true},
               {"LOSS", false, true},
               {"TOKENS/S", false, true},
               {"MFU", true, true},
               {"LAYOUT", true},
               {"CHECKPOINT", true, true},
               {"HELD-OUT", true, true},
               {"GOODPUT", true, true},
               {"ETA", false, true},
               {"RESTARTS", false, true},
               {"AGE", false, true},
               {"REASON"}});
  for (const v1::Job& job : jobs) {
    const v1::TrainingProgress& p = job.progress();
    const bool stepped = p.step() > 0, live = job.state() == v1::JOB_STATE_RUNNING;
    const int64_t total = p.total_steps() > 0 ? p.total_steps() : job.spec().training().steps();
    table.AddRow({Safe(job.id()), StateCell(job.state()), absl::StrCat(p.step(), "/", total),
                  stepped ? Number(p.loss()) : "",
                  stepped && live ? Count(p.tokens_per_second()) : "",
                  stepped && live ? Percent(p.mfu()) : "", Layout(job.spec().parallel()),
                  job.last_checkpoint_step() > 0 ? absl::StrCat(job.last_checkpoint_step()) : "",
                  p.validation_step() > 0 ? Number(p.validation_loss()) : "",
                  job.goodput() > 0 ? Percent(job.goodput()) : "",
                  live && p.has_eta() ? Seconds(ToDuration(p.eta())) : "",
                  absl::StrCat(job.restarts()), Age(job.submitted(), now), Safe(job.reason())});
  }
  return table;
}

std::string DescribeJob(const v1::Job& job, absl::Time now) {
  std::string out;
  const auto line = [&](absl::string_view key, const std::string& value) {
    if (!value.empty()) absl::StrAppend(&out, absl::StrFormat("%-18s", key), " ", value, "\n");
  };
  const auto time = [&](const google::protobuf::Timestamp& t) {
    return t.seconds() == 0 ? ""
                            : absl::StrCat(absl::FormatTime("%Y-%m-%d %H:%M:%S", ToTime(t),
                                                            absl::LocalTimeZone()),
                                           "  (", Age(t, now), " ago)");
  };
  const v1::TrainingProgress& p = job.progress();
  line("id", Safe(job.id()));
  line("state", StateCell(job.state()));
  line("reason", Safe(job.reason()));
  line("submitted", time(job.submitted()));
  line("started", time(job.started()));
  line("ended", time(job.ended()));
  line("submitted by", Safe(job.submitted_by()));
  line("layout", Layout(job.spec().parallel()));
  line("attempt", job.attempt() > 0
                      ? absl::StrCat(job.attempt(), "  (", job.restarts(),
                                     job.restarts() == 1 ? " restart, " : " restarts, ",
                                     job.attempts_without_progress(), " without progress)")
                      : "");
  if (HasEnded(job.state())) line("exit code", absl::StrCat(job.exit_code()));
  if (p.step() > 0) {
    line("step", absl::StrCat(p.step(), "/", p.total_steps()));
    line("loss", absl::StrCat(Number(p.loss(), 6), "  ",
                              Sparkline({p.loss_history().begin(), p.loss_history().end()}, 40)));
    std::vector<std::string> auxiliary;
    for (const auto& [name, loss] : p.auxiliary_losses())
      auxiliary.push_back(absl::StrCat(Safe(name), " ", Number(loss, 6)));
    std::sort(auxiliary.begin(), auxiliary.end());
    line("auxiliary losses", absl::StrJoin(auxiliary, ", "));
    if (const auto& ratio = p.moe().load_ratio(); !ratio.empty()) {
      line("expert load", absl::StrCat("busiest over mean at most ",
                                       Number(*std::max_element(ratio.begin(), ratio.end())),
                                       ", dropped ", Count(p.moe().dropped_tokens())));
    }
    if (p.validation_step() > 0) {
      line("held-out loss", absl::StrCat(Number(p.validation_loss(), 6), "  (perplexity ",
                                         Number(std::exp(p.validation_loss()), 6), ", after step ",
                                         p.validation_step(), ")"));
    }
    line("gradient norm", Number(p.grad_norm()));
    line("learning rate", Number(p.learning_rate()));
    line("tokens/s", absl::StrCat(Count(p.tokens_per_second()), "  (MFU ", Percent(p.mfu()), ", ",
                                  Count(p.model_flops_per_second()), "FLOP/s, ",
                                  Number(p.step_seconds() * 1000), " ms per step)"));
    line("consumed", absl::StrCat(p.consumed_samples(), " sequences, ",
                                  Count(static_cast<double>(p.consumed_tokens())), " tokens"));
    if (!HasEnded(job.state()) && p.has_eta()) line("time left", Seconds(ToDuration(p.eta())));
    std::vector<std::pair<double, std::string>> phases;
    for (const auto& [phase, seconds] : p.phase_seconds()) phases.emplace_back(-seconds, phase);
    std::sort(phases.begin(), phases.end());
    std::vector<std::string> texts;
    for (const auto& [seconds, phase] : phases)
      texts.push_back(absl::StrFormat("%s %.4g ms", Safe(phase), -seconds * 1000));
    line("step time", absl::StrJoin(texts, ", "));
    line("goodput", job.goodput() > 0 ? Percent(job.goodput()) : "");
  }
  for (const v1::DataPreparation::OfNode& node : job.data().nodes()) {
    line("data on " + Safe(node.node()),
         node.ready()
             ? "here, and checked"
             : absl::StrCat(Count(static_cast<double>(node.bytes_done())), "B of ",
                            Count(static_cast<double>(node.bytes_total())), "B",
                            node.waits_for().empty() ? "" : "; waits: ", Safe(node.waits_for())));
  }
  line("last checkpoint", job.has_last_checkpoint_time()
                              ? absl::StrCat("step ", job.last_checkpoint_step(), ", ",
                                             time(job.last_checkpoint_time()))
                              : "none");
  if (job.has_failure()) {
    const v1::FailureReport& f = job.failure();
    absl::StrAppend(&out, "\nnewest failure\n");
    line("  cause",
         absl::StrCat(Safe(f.cause()), f.rank() >= 0 ? absl::StrCat(", rank ", f.rank()) : "",
                      f.node().empty() ? "" : absl::StrCat(" on ", Safe(f.node())), ", attempt ",
                      f.attempt(), ", step ", f.step()));
    line("  message", Safe(f.message()));
    line("  exit", f.signal() != 0 ? absl::StrCat("signal ", f.signal())
                                   : absl::StrCat("code ", f.exit_code()));
    for (const std::string& last : f.last_lines()) absl::StrAppend(&out, "  | ", Safe(last), "\n");
  }
  if (job.ranks_size() > 0) {
    Table ranks({{"RANK", false, true},
                 {"NODE"},
                 {"SLOT", false, true},
                 {"PID", false, true},
                 {"TP", false, true},
                 {"DP", false, true},
                 {"PP", false, true},
                 {"ADDRESS"},
                 {"INTERFACE"}});
    for (const v1::RankPlacement& r : job.ranks()) {
      ranks.AddRow({absl::StrCat(r.rank()), Safe(r.node()), absl::StrCat(r.slot()),
                    r.pid() > 0 ? absl::StrCat(r.pid()) : "", absl::StrCat(r.tensor()),
                    absl::StrCat(r.data()), absl::StrCat(r.pipeline()), Safe(r.address()),
                    Safe(r.interface())});
    }
    absl::StrAppend(&out, "\n", ranks.Render(false));
  }
  if (job.operations_size() > 0) {
    Table operations({{"OPERATION"}, {"BACKEND"}, {"KERNEL"}});
    for (const auto& o : job.operations())
      operations.AddRow({Safe(o.operation()), Safe(o.backend()), Safe(o.kernel())});
    absl::StrAppend(&out, "\n", operations.Render(false));
  }
  absl::StrAppend(&out, "\nspec (resolved)\n", PrefixLines(JobSpecToYaml(job.spec()), "  "));
  return out;
}

void AddJobsCommands(CLI::App* app, Session* session) {
  static Options o;  // CLI11 keeps references to it
  o = Options();
  CLI::App* list = app->add_subcommand("list", "List jobs, newest first")->alias("ls");
  list->add_option("--state", o.states, "Only jobs in this state (repeatable)")->type_name("STATE");
  AddFormatOption(list, session);
  list->callback([session] { session->action = [session] { return List(session, o); }; });

  CLI::App* status = JobCommand(app, "status", "One line about a job", &o);
  AddFormatOption(status, session);
  status->callback([session] {
    session->action = [session]() -> absl::StatusOr<ExitCode> {
      MT_ASSIGN_OR_RETURN(const v1::Job job, GetJob(session, o.job_id));
      return PrintJob(session, job);
    };
  });

  CLI::App* describe = JobCommand(
      app, "describe", "Everything about a job: progress, ranks, kernels, failures, spec", &o);
  AddFormatOption(describe, session);
  describe->callback([session] {
    session->action = [session]() -> absl::StatusOr<ExitCode> {
      MT_ASSIGN_OR_RETURN(const v1::Job job, GetJob(session, o.job_id));
      if (session->json()) return PrintJob(session, job);
      const std::string text = DescribeJob(job, absl::Now());
      std::fwrite(text.data(), 1, text.size(), stdout);
      return kExitOk;
    };
  });

  const struct {
    const char *name, *help;
    Action method;
  } kActions[] = {
      {"cancel", "Stop a job for good", &v1::Jobs::Stub::Cancel},
      {"pause", "Checkpoint at the next step, then free the slots", &v1::Jobs::Stub::Pause},
      {"resume", "Queue a paused job again", &v1::Jobs::Stub::Resume}};
  for (const auto& action : kActions) {
    CLI::App* command = JobCommand(app, action.name, action.help, &o);
    command->add_option("--reason", o.reason, "Kept in the job's events");
    AddFormatOption(command, session);
    command->callback([session, method = action.method] {
      session->action = [session, method] { return Act(session, o, method); };
    });
  }

  CLI::App* wait =
      JobCommand(app, "wait", "Wait until a job has ended; exit 0 if it succeeded, 8 if not", &o);
  wait->add_option("--timeout", o.timeout, "Give up after this long, e.g. 30m (exit 7)")
      ->type_name("DURATION");
  wait->callback([session] { session->action = [session] { return Wait(session, o); }; });

  CLI::App* logs = JobCommand(app, "logs", "Lines of the ranks' output", &o);
  logs->add_flag("-f,--follow", o.follow, "Stay until the job has ended");
  logs->add_option("--rank", o.rank, "Only this rank; default all")->check(CLI::NonNegativeNumber);
  logs->add_option("--attempt", o.attempt, "Only this attempt; default the newest")
      ->check(CLI::PositiveNumber);
  logs->add_option("--tail", o.tail, "Only the last N lines")
      ->check(CLI::PositiveNumber)
      ->type_name("N");
  logs->add_flag("--no-prefix", o.no_prefix, "Lines without [rank N] before them");
  logs->callback([session] { session->action = [session] { return Logs(session, o); }; });

  CLI::App* events = app->add_subcommand("events", "What happened to a job, or to the cluster");
  events->add_option("JOB", o.job_id, "Job id; without it, of the whole cluster");
  events->add_option("--limit", o.limit, "The newest so many")->check(CLI::PositiveNumber);
  AddFormatOption(events, session);
  events->callback([session] { session->action = [session] { return Events(session, o); }; });
}

}  // namespace mt::client
