#include "coordinator/coordinator.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "common/log.h"
#include "common/proto_time.h"
#include "coordinator/jobs/checkpoint_catalogue.h"
#include "coordinator/jobs/job_manager.h"
#include "coordinator/nodes/node_table.h"
#include "coordinator/store/ledger.h"

namespace mt {

// Owns the managers and passes each message to the one whose noun it is about.
class CoordinatorCore : public NodeListener {
 public:
  explicit CoordinatorCore(CoordinatorOptions given)
      : options(std::move(given)),
        logs(options.env, JoinPath(options.state_directory, "logs"), options.log_limits),
        ledger(LedgerOptionsOf()) {
    logs.SetOnDropped([this](const std::string& job_id, const std::string& message) {
      ledger.AddEvent("logs_dropped", job_id, "", 0, message);
    });
  }

  absl::Status Load() {
    std::set<std::string> names;
    for (const NodeConfig& node : options.nodes) {
      if (!names.insert(node.name).second)
        return absl::InvalidArgumentError(absl::StrCat("node \"", node.name, "\" is listed twice"));
    }
    MT_RETURN_IF_ERROR(ledger.Load());
    nodes = std::make_unique<NodeTable>(
        NodeTable::Options{.loop = options.loop,
                           .random = options.random,
                           .ledger = &ledger,
                           .launcher = options.launcher,
                           .listener = this,
                           .nodes = options.nodes,
                           .version = options.version,
                           .bundle_digest = options.bundle_digest,
                           .issue_certificate = options.issue_certificate,
                           .tunables = options.tunables});
    checkpoints =
        std::make_unique<CheckpointCatalogue>(options.loop, &ledger, nodes.get(), options.version);
    jobs = std::make_unique<JobManager>(
        JobManager::Options{.loop = options.loop,
                            .random = options.random,
                            .ledger = &ledger,
                            .nodes = nodes.get(),
                            .checkpoints = checkpoints.get(),
                            .logs = &logs,
                            .digester = options.digester,
                            .down_after = options.tunables.down_after,
                            .retry_waits = options.tunables.retry_waits});
    return absl::OkStatus();
  }

  // NodeListener.
  std::vector<v1::RunningRank> RanksToKeep(const std::string& node) override {
    return jobs->RanksToKeep(node);
  }
  void OnNodeConnected(const std::string& node) override {}
  void OnNodeSettled(const std::string& node,
                     const std::vector<v1::RunningRank>& running) override {
    jobs->OnNodeSettled(node, running);
    checkpoints->OnNodeSettled(node, std::exchange(held[node], {}));
  }
  void OnNodeDisconnected(const std::string& node) override {
    checkpoints->OnNodeDisconnected(node);
  }
  void OnNodeChanged(const std::string& node) override { jobs->OnNodeChanged(node); }
  void OnWorkerEvent(const std::string& node, const v1::WorkerEvent& event) override {
    jobs->OnWorkerEvent(node, event);
  }
  void OnWorkerRequest(const std::string& node, const v1::WorkerMessage& message) override {
    if (message.has_rendezvous_put()) jobs->OnRendezvousPut(node, message.rendezvous_put());
    if (message.has_rendezvous_get()) jobs->OnRendezvousGet(node, message.rendezvous_get());
  }
  void Settle() override {
    jobs->Settle();
    if (when_idle && !jobs->HasActiveJobs()) std::exchange(when_idle, nullptr)();
  }

  LedgerOptions LedgerOptionsOf() {
    LedgerOptions result;
    result.loop = options.loop;
    result.store = options.store;
    result.group_commit = options.tunables.group_commit;
    result.full_disk_retry = options.tunables.full_disk_retry;
    result.before_commit = [this] {
      if (const absl::Status status = logs.Sync(); !status.ok()) {
        MT_LOG(Warning) << "syncing logs: " << status.ToString();
      }
      // Subscribers hear of lines when they are on disk.
      if (notify_timer == 0) {
        notify_timer = options.loop->After(absl::ZeroDuration(), [this] {
          notify_timer = 0;
          logs.Notify();
        });
      }
    };
    result.after_commit = [this](const std::set<std::string>& changed) {
      for (const std::string& job : changed) {
        std::vector<Coordinator::WatchId> ids;
        for (const auto& [id, watcher] : watchers) ids.push_back(id);
        for (const Coordinator::WatchId id : ids) {
          const auto it = watchers.find(id);
          if (it == watchers.end()) continue;
          const auto callback = it->second;
          callback(job);
        }
      }
    };
    result.on_fatal = [this](const absl::Status& status) {
      if (options.on_fatal) options.on_fatal(status);
    };
    return result;
  }

  void Tick() {
    checkpoints->OnNodeChanged();
    jobs->TouchAll();  // decisions that depend on time alone: ranks to be given up
    Settle();
    tick = options.loop->After(absl::Seconds(1), [this] { Tick(); });
  }

  const CoordinatorOptions options;
  std::map<Coordinator::WatchId, std::function<void(const std::string&)>> watchers;
  Coordinator::WatchId last_watch = 0;
  LogStore logs;
  Ledger ledger;
  std::unique_ptr<NodeTable> nodes;
  std::unique_ptr<CheckpointCatalogue> checkpoints;
  std::unique_ptr<JobManager> jobs;
  std::map<std::string, std::vector<v1::HeldCheckpoint>>
      held;  // by node, from its registration until it is settled
  std::function<void()> when_idle;
  std::vector<std::function<void()>> shutdown_done;  // answers of Shutdown calls
  absl::Time started;
  EventLoop::TimerId tick = 0, notify_timer = 0, shutdown_timer = 0;

  ~CoordinatorCore() override {
    options.loop->Cancel(tick);
    options.loop->Cancel(notify_timer);
    options.loop->Cancel(shutdown_timer);
  }
};

Coordinator::Coordinator(std::unique_ptr<CoordinatorCore> core) : core_(std::move(core)) {}
Coordinator::~Coordinator() = default;

absl::StatusOr<std::unique_ptr<Coordinator>> Coordinator::Create(CoordinatorOptions options) {
  auto core = std::make_unique<CoordinatorCore>(std::move(options));
  MT_RETURN_IF_ERROR(core->Load());
  return std::unique_ptr<Coordinator>(new Coordinator(std::move(core)));
}

void Coordinator::Start() {
  core_->started = core_->options.loop->clock()->Now();
  core_->jobs->Start();
  core_->nodes->Start();
  core_->Tick();
}

void Coordinator::OnMessage(std::shared_ptr<WorkerStream> stream, v1::WorkerMessage message) {
  if (core_->ledger.broken()) return;
  if (message.has_register_()) {
    core_->held[message.node()].assign(message.register_().held().begin(),
                                       message.register_().held().end());
  }
  core_->nodes->OnMessage(std::move(stream), std::move(message));
}

void Coordinator::OnClosed(std::shared_ptr<WorkerStream> stream, absl::Status reason) {
  if (core_->ledger.broken()) return;
  core_->nodes->OnClosed(stream, reason);
}

bool Coordinator::HasEnded(v1::JobState state) { return mt::HasEnded(state); }

absl::StatusOr<v1::Job> Coordinator::Submit(const v1::SubmitRequest& request,
                                            const std::string& submitted_by) {
  return core_->jobs->Submit(request, submitted_by);
}

absl::StatusOr<v1::Job> Coordinator::GetJob(const std::string& job_id) {
  // What is shown is durable, except on a full disk: then the job still runs and people still want to see it.
  (void)core_->ledger.Flush();
  return core_->jobs->Get(job_id);
}

absl::StatusOr<v1::ListJobsResponse> Coordinator::ListJobs(const v1::ListJobsRequest& request) {
  (void)core_->ledger.Flush();
  int64_t before = INT64_MAX;
  if (!request.page_token().empty() && !absl::SimpleAtoi(request.page_token(), &before)) {
    return absl::InvalidArgumentError(
        absl::StrCat("page_token \"", request.page_token(), "\" is not one that List returned"));
  }
  std::vector<const store::JobRecord*> jobs;
  for (const auto& [id, job] : core_->ledger.state().jobs) {
    const bool wanted =
        request.states().empty() ||
        std::count(request.states().begin(), request.states().end(), job.job().state()) > 0;
    if (wanted && job.order() < before) jobs.push_back(&job);
  }
  std::sort(jobs.begin(), jobs.end(),
            [](const auto* a, const auto* b) { return a->order() > b->order(); });
  const size_t size = request.page_size() > 0 ? std::min(request.page_size(), 1000) : 1000;
  v1::ListJobsResponse response;
  for (size_t i = 0; i < jobs.size() && i < size; ++i)
    *response.add_jobs() = core_->jobs->Describe(*jobs[i], false);
  if (jobs.size() > size) response.set_next_page_token(absl::StrCat(jobs[size - 1]->order()));
  return response;
}

absl::StatusOr<v1::Job> Coordinator::Cancel(const v1::JobActionRequest& request) {
  return core_->jobs->Cancel(request);
}
absl::StatusOr<v1::Job> Coordinator::Pause(const v1::JobActionRequest& request) {
  return core_->jobs->Pause(request);
}
absl::StatusOr<v1::Job> Coordinator::Resume(const v1::JobActionRequest& request) {
  return core_->jobs->Resume(request);
}

absl::StatusOr<v1::EventsResponse> Coordinator::ListEvents(const v1::EventsRequest& request) {
  (void)core_->ledger.Flush();
  if (!request.job_id().empty()) MT_RETURN_IF_ERROR(core_->jobs->Get(request.job_id()).status());
  const int limit = request.limit() > 0 ? std::min(request.limit(), 10000) : 10000;
  MT_ASSIGN_OR_RETURN(const auto events, core_->options.store->ListEvents(
                                             request.job_id(), request.after_sequence(), limit));
  v1::EventsResponse response;
  for (const v1::Event& event : events) *response.add_events() = event;
  return response;
}

Coordinator::WatchId Coordinator::AddWatcher(std::function<void(const std::string&)> callback) {
  core_->watchers[++core_->last_watch] = std::move(callback);
  return core_->last_watch;
}

void Coordinator::RemoveWatcher(WatchId id) { core_->watchers.erase(id); }

LogStore& Coordinator::logs() { return core_->logs; }

v1::ClusterStatus Coordinator::ClusterStatus() {
  v1::ClusterStatus status;
  status.set_cluster_id(core_->ledger.state().cluster_id);
  status.set_version(core_->options.version);
  SetTime(status.mutable_started(), core_->started);
  for (v1::Node& node : ListNodes()) {
    status.set_slots(status.slots() + node.slots());
    status.set_slots_used(status.slots_used() + node.slots_used());
    *status.add_nodes() = std::move(node);
  }
  for (const auto& [id, job] : core_->ledger.state().jobs) {
    ++(*status.mutable_jobs_by_state())[StateText(job.job().state())];
  }
  status.set_metrics_address(core_->options.metrics_address);
  status.set_epoch(core_->ledger.state().epoch);
  return status;
}

std::vector<v1::Node> Coordinator::ListNodes() {
  const auto usage = core_->jobs->Usage();
  std::vector<v1::Node> nodes;
  for (const std::string& name : core_->nodes->names()) {
    v1::Node& node = nodes.emplace_back(core_->nodes->Describe(name));
    if (const auto used = usage.find(name); used != usage.end()) {
      node.set_slots_used(used->second.first);
      for (const std::string& job : used->second.second) node.add_jobs(job);
    }
  }
  return nodes;
}

namespace {

absl::StatusOr<v1::Node> SetDraining(Coordinator& coordinator, CoordinatorCore& core,
                                     const v1::DrainRequest& request, bool draining) {
  if (!core.nodes->Knows(request.node())) {
    return absl::NotFoundError(
        absl::StrCat("no node \"", request.node(), "\"; `mtctl nodes` shows all"));
  }
  MT_RETURN_IF_ERROR(core.ledger.Try([&] {
    store::NodeRecord& node = core.ledger.EditNode(request.node());
    node.set_name(request.node());
    node.set_draining(draining);
    node.set_drain_stops_jobs(draining && request.stop_jobs());
    core.ledger.AddEvent(draining ? "node_drained" : "node_undrained", "", request.node(), 0, "");
  }));
  core.jobs->OnNodeChanged(request.node());
  core.Settle();
  for (v1::Node& node : coordinator.ListNodes()) {
    if (node.name() == request.node()) return node;
  }
  return absl::InternalError("the node vanished");
}

}  // namespace

absl::StatusOr<v1::Node> Coordinator::Drain(const v1::DrainRequest& request) {
  return SetDraining(*this, *core_, request, true);
}
absl::StatusOr<v1::Node> Coordinator::Undrain(const v1::DrainRequest& request) {
  return SetDraining(*this, *core_, request, false);
}

void Coordinator::Shutdown(bool graceful, std::function<void()> done) {
  const absl::Status status = core_->jobs->BeginShutdown(graceful);
  if (!status.ok()) {
    MT_LOG(Warning) << "shutting down without pausing jobs: " << status.ToString();
  }
  // All calls so far are answered together, by whichever comes to its end first.
  core_->shutdown_done.push_back(std::move(done));
  auto end_workers = [core = core_.get()] {
    core->when_idle = nullptr;
    core->nodes->ShutdownWorkers([core] {
      for (const auto& answer : std::exchange(core->shutdown_done, {})) answer();
    });
  };
  if (graceful && status.ok() && core_->jobs->HasActiveJobs()) {
    if (core_->when_idle) return;  // asked again: jobs are being paused
    core_->when_idle = std::move(end_workers);
    core_->options.loop->Cancel(core_->shutdown_timer);
    core_->shutdown_timer =
        core_->options.loop->After(core_->options.tunables.pause_grace, [core = core_.get()] {
          if (core->when_idle) std::exchange(core->when_idle, nullptr)();
        });
  } else {
    end_workers();
  }
}

absl::StatusOr<v1::ListCheckpointsResponse> Coordinator::ListCheckpoints(
    const std::string& job_id) {
  MT_RETURN_IF_ERROR(core_->jobs->Get(job_id).status());
  v1::ListCheckpointsResponse response;
  for (const auto* record : core_->checkpoints->List(job_id))
    *response.add_checkpoints() = CheckpointCatalogue::Describe(*record);
  return response;
}

namespace {

absl::StatusOr<const store::CheckpointRecord*> FindCheckpoint(CoordinatorCore& core,
                                                              const v1::CheckpointRef& ref) {
  MT_RETURN_IF_ERROR(core.jobs->Get(ref.job_id()).status());
  const auto* record = ref.step() < 0 ? core.checkpoints->NewestCommitted(ref.job_id())
                                      : core.checkpoints->Find(ref.job_id(), ref.step());
  if (record == nullptr || !record->has_committed()) {
    return absl::NotFoundError(
        ref.step() < 0
            ? absl::StrCat("job ", ref.job_id(), " has no committed checkpoint")
            : absl::StrCat("job ", ref.job_id(), " has no checkpoint of step ", ref.step(),
                           "; `mtctl checkpoint list ", ref.job_id(), "` shows all"));
  }
  return record;
}

}  // namespace

absl::StatusOr<v1::CheckpointInfo> Coordinator::GetCheckpoint(const v1::CheckpointRef& ref) {
  MT_ASSIGN_OR_RETURN(const auto* record, FindCheckpoint(*core_, ref));
  return CheckpointCatalogue::Describe(*record);
}

absl::StatusOr<std::vector<v1::FileSource>> Coordinator::CheckpointSources(
    const v1::CheckpointRef& ref) {
  MT_ASSIGN_OR_RETURN(const auto* record, FindCheckpoint(*core_, ref));
  return core_->checkpoints->Sources(*record);
}

std::string Coordinator::ShardsEndpoint(const std::string& node) {
  return core_->nodes->ShardsEndpoint(node);
}

absl::Status Coordinator::MarkCheckpointBad(const v1::CheckpointRef& ref,
                                            const std::string& reason) {
  MT_ASSIGN_OR_RETURN(const auto* record, FindCheckpoint(*core_, ref));
  core_->checkpoints->MarkBad(ref.job_id(), record->step(), reason);
  core_->Settle();
  return core_->ledger.Flush();
}

absl::Status Coordinator::MarkCheckpointGood(const v1::CheckpointRef& ref) {
  MT_ASSIGN_OR_RETURN(const auto* record, FindCheckpoint(*core_, ref));
  const v1::JobState state = core_->ledger.state().jobs.at(ref.job_id()).job().state();
  if (state != v1::JOB_STATE_PAUSED && !mt::HasEnded(state)) return absl::OkStatus();
  core_->checkpoints->MarkGood(ref.job_id(), record->step());
  core_->Settle();
  return core_->ledger.Flush();
}

absl::StatusOr<v1::DatasetFile> Coordinator::FindDatasetFile(const std::string& digest) {
  return core_->jobs->FindDatasetFile(digest);
}

MetricsSnapshot Coordinator::Metrics() {
  MetricsSnapshot snapshot;
  snapshot.nodes = ListNodes();
  snapshot.epoch = core_->ledger.state().epoch;
  snapshot.queued_jobs = core_->jobs->queued();
  snapshot.store_commits = core_->ledger.commits();
  snapshot.store_full_errors = core_->ledger.full_errors();
  snapshot.stale_messages = core_->nodes->stale_messages() + core_->jobs->stale_events();
  snapshot.node_restarts = core_->nodes->restarts();
  for (const std::string& name : core_->nodes->names()) {
    const absl::Time expiry = core_->nodes->CertificateExpiry(name);
    if (expiry != absl::InfiniteFuture()) snapshot.certificate_expiry[name] = expiry;
  }
  snapshot.checkpoint_copy_visits = core_->checkpoints->copy_visits();
  snapshot.data_bytes_from_coordinator = core_->jobs->data_metrics().bytes_from_coordinator;
  snapshot.data_bytes_from_nodes = core_->jobs->data_metrics().bytes_from_nodes;
  for (const auto& [id, record] : core_->ledger.state().jobs) {
    MetricsSnapshot::JobMetrics& job = snapshot.jobs.emplace_back();
    job.job = core_->jobs->Describe(record, false);
    const v1::ParallelSpec& parallel = record.job().spec().parallel();
    job.world_size = parallel.tensor() * parallel.data() * parallel.pipeline();
    job.failures = record.failures();
    const auto checkpoint = core_->checkpoints->MetricsOf(id);
    job.checkpoints_committed = checkpoint.committed;
    job.checkpoint_failures_by_reason = checkpoint.failed_by_reason;
    job.checkpoint_stall_seconds = checkpoint.stall_seconds;
    job.checkpoint_persist_seconds = checkpoint.persist_seconds;
    if (const auto* newest = core_->checkpoints->NewestCommitted(id))
      job.checkpoint_bytes = newest->manifest().total_bytes();
    if (const auto* metrics = core_->jobs->MetricsOf(id)) {
      job.failures_by_cause = metrics->failures_by_cause;
      job.recovery_seconds = metrics->recovery_seconds;
      job.queue_seconds = metrics->queue_seconds;
      job.start_seconds = metrics->start_seconds;
      job.ranks = metrics->ranks;
      job.hangs = metrics->hangs;
    }
  }
  return snapshot;
}

}  // namespace mt
