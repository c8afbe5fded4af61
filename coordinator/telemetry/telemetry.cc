#include "coordinator/telemetry/telemetry.h"

#include <prometheus/collectable.h>
#include <prometheus/exposer.h>
#include <prometheus/histogram.h>
#include <prometheus/text_serializer.h>

#include <cmath>
#include <map>
#include <set>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

namespace mt {
namespace {

using Labels = std::vector<prometheus::ClientMetric::Label>;
using prometheus::MetricType;

constexpr absl::Duration kScrapeTimeout = absl::Seconds(2);
constexpr absl::Duration kKeepEndedJobs = absl::Hours(1);

// Buckets double from 1 ms to 1024 s.
class DoublingHistogram {
 public:
  void Observe(double seconds, int64_t times = 1) {
    if (!(seconds >= 0) || times <= 0) return;
    int bucket = 0;
    for (double bound = kFirst; bucket < kBuckets && seconds > bound; bound *= 2) ++bucket;
    counts_[bucket] += times;
    sum_ += seconds * static_cast<double>(times);
    total_ += times;
  }
  prometheus::ClientMetric::Histogram Collect() const {
    prometheus::ClientMetric::Histogram histogram;
    histogram.sample_count = static_cast<uint64_t>(total_);
    histogram.sample_sum = sum_;
    uint64_t cumulative = 0;
    double bound = kFirst;
    for (int i = 0; i <= kBuckets; ++i, bound *= 2) {
      cumulative += static_cast<uint64_t>(counts_[i]);
      prometheus::ClientMetric::Bucket bucket;
      bucket.cumulative_count = cumulative;
      bucket.upper_bound = i < kBuckets ? bound : std::numeric_limits<double>::infinity();
      histogram.bucket.push_back(bucket);
    }
    return histogram;
  }

 private:
  static constexpr double kFirst = 0.001;
  static constexpr int kBuckets = 21;  // 0.001 * 2^20 is 1048.576
  int64_t counts_[kBuckets + 1] = {};
  double sum_ = 0;
  int64_t total_ = 0;
};

// Families in the order of docs/spec/metrics.md.
class Families {
 public:
  void Gauge(const char* name, const char* help, const Labels& labels, double value) {
    Add(name, help, MetricType::Gauge, labels).gauge.value = value;
  }
  void Counter(const char* name, const char* help, const Labels& labels, double value) {
    Add(name, help, MetricType::Counter, labels).counter.value = value;
  }
  void Histogram(const char* name, const char* help, const Labels& labels,
                 const DoublingHistogram& value) {
    Add(name, help, MetricType::Histogram, labels).histogram = value.Collect();
  }
  std::vector<prometheus::MetricFamily> Take() { return std::move(families_); }

 private:
  prometheus::ClientMetric& Add(const char* name, const char* help, MetricType type,
                                const Labels& labels) {
    const auto [it, fresh] = index_.emplace(name, families_.size());
    if (fresh) families_.push_back({name, help, type, {}});
    std::vector<prometheus::ClientMetric>& metrics = families_[it->second].metric;
    metrics.emplace_back();
    metrics.back().label = labels;
    return metrics.back();
  }
  std::vector<prometheus::MetricFamily> families_;
  std::map<std::string, size_t> index_;
};

// What is counted, because a snapshot shows only the newest. Feeding starts with this process:
// Prometheus knows resets.
struct JobCounters {
  bool seen = false;
  int64_t step = 0;
  int64_t consumed_tokens = 0, consumed_samples = 0;
  double tokens_total = 0, samples_total = 0;
  int64_t nonfinite = 0;
  int64_t restarts = 0;
  int64_t checkpoints = 0;
  double recovery_seconds = 0;
  bool queue_wait_counted = false;
  std::map<std::string, double> phase_seconds;
  double dropped_tokens = 0;
  DoublingHistogram step_seconds, stall_seconds, persist_seconds, recovery;
};

double UnixSeconds(const google::protobuf::Timestamp& time) {
  return static_cast<double>(time.seconds()) + time.nanos() * 1e-9;
}

// "JOB_STATE_RUNNING" -> "running"
template <typename Name>
std::string LowerState(const Name& name, absl::string_view prefix) {
  return absl::AsciiStrToLower(absl::string_view(name).substr(prefix.size()));
}

class TelemetryImpl : public Telemetry,
                      public prometheus::Collectable,
                      public std::enable_shared_from_this<TelemetryImpl> {
 public:
  TelemetryImpl(EventLoop* loop, TelemetryOptions options)
      : loop_(loop), options_(std::move(options)), started_(absl::Now()) {}
  ~TelemetryImpl() override = default;

  std::unique_ptr<NodeLauncher> Observe(std::unique_ptr<NodeLauncher> inner) override;

  void Attach(Coordinator* coordinator) override {
    coordinator_ = coordinator;
    watch_ = coordinator->AddWatcher([this](const std::string& job_id) { OnJob(job_id); });
  }
  void Detach() override {
    if (coordinator_ == nullptr) return;
    coordinator_->RemoveWatcher(watch_);
    coordinator_ = nullptr;
  }

  absl::StatusOr<std::string> Serve(const std::string& address) override {
    try {
      exposer_ = std::make_unique<prometheus::Exposer>(address, 2);
    } catch (const std::exception& error) {
      return absl::UnavailableError(absl::StrCat("cannot serve metrics at ", address, ": ",
                                                 error.what(),
                                                 "; choose another by --metrics-listen"));
    }
    exposer_->RegisterCollectable(shared_from_this());
    const std::vector<int> ports = exposer_->GetListeningPorts();
    const size_t colon = address.rfind(':');
    return absl::StrCat(address.substr(0, colon), ":", ports.empty() ? 0 : ports[0]);
  }

  std::string Scrape() override {
    std::ostringstream text;
    prometheus::TextSerializer().Serialize(text, Collect());
    return text.str();
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    struct Pending {
      absl::Notification done;
      std::vector<prometheus::MetricFamily> families;
    };
    const auto pending = std::make_shared<Pending>();
    auto* const self = const_cast<TelemetryImpl*>(this);
    loop_->Post([weak = self->weak_from_this(), pending] {
      if (const auto telemetry = weak.lock(); telemetry != nullptr)
        pending->families = telemetry->Build();
      pending->done.Notify();
    });
    const bool answered = pending->done.WaitForNotificationWithTimeout(kScrapeTimeout);
    absl::MutexLock lock(&mutex_);
    if (answered) last_ = pending->families;
    return last_;
  }

  void OnLaunch(absl::Duration took, bool ok) {
    launches_[ok ? "ok" : "failed"].Observe(absl::ToDoubleSeconds(took));
  }
  EventLoop* loop() const { return loop_; }

 private:
  // After every durable change of a job. Several steps may have been committed together: they count
  // with the newest's time.
  void OnJob(const std::string& job_id) {
    const absl::StatusOr<v1::Job> job = coordinator_->GetJob(job_id);
    if (!job.ok() || !job->has_progress()) return;
    const v1::TrainingProgress& progress = job->progress();
    JobCounters& counters = counters_[job_id];
    const bool first = !std::exchange(counters.seen, true);
    // After a restart the run goes on from an earlier step: what is repeated counts again.
    const bool rolled_back =
        !first && (progress.step() < counters.step || job->restarts() > counters.restarts);
    if (rolled_back) {
      counters.step = std::min(counters.step, progress.step() - 1);
      counters.consumed_tokens = std::min(counters.consumed_tokens, progress.consumed_tokens());
      counters.consumed_samples = std::min(counters.consumed_samples, progress.consumed_samples());
    }
    counters.restarts = job->restarts();
    const int64_t steps = first ? 1 : progress.step() - counters.step;
    if (steps <= 0) return;
    if (!first) {
      counters.tokens_total +=
          std::max<double>(0, progress.consumed_tokens() - counters.consumed_tokens);
      counters.samples_total +=
          std::max<double>(0, progress.consumed_samples() - counters.consumed_samples);
    }
    counters.step = progress.step();
    counters.consumed_tokens = progress.consumed_tokens();
    counters.consumed_samples = progress.consumed_samples();
    counters.step_seconds.Observe(progress.step_seconds(), steps);
    for (const auto& [phase, seconds] : progress.phase_seconds()) {
      counters.phase_seconds[phase] += seconds * static_cast<double>(steps);
    }
    counters.dropped_tokens += progress.moe().dropped_tokens() * static_cast<double>(steps);
    if (!std::isfinite(progress.loss())) ++counters.nonfinite;
  }

  std::vector<prometheus::MetricFamily> Build() {
    Families out;
    if (coordinator_ != nullptr) {
      const MetricsSnapshot snapshot = coordinator_->Metrics();
      BuildJobs(snapshot, out);
      BuildCluster(snapshot, out);
    }
    for (const char* result : {"ok", "failed"}) {
      out.Histogram("mt_ssh_bootstrap_duration_seconds", "Bringing a worker daemon onto a node",
                    {{"result", result}}, launches_[result]);
    }
    if (options_.certificate_expiry) {
      out.Gauge("mt_certificate_expiry_timestamp_seconds",
                "End of the coordinator's own certificate", {},
                absl::ToDoubleSeconds(options_.certificate_expiry() - absl::UnixEpoch()));
    }
    out.Gauge("mt_build_info", "Always 1; the version is the label",
              {{"version", options_.version}}, 1);
    out.Gauge("mt_coordinator_start_timestamp_seconds", "When this coordinator process started", {},
              absl::ToDoubleSeconds(started_ - absl::UnixEpoch()));
    return out.Take();
  }

  void BuildJobs(const MetricsSnapshot& snapshot, Families& out) {
    std::map<std::string, int> by_state;
    for (int i = v1::JOB_STATE_QUEUED; i <= v1::JOB_STATE_CANCELLED; ++i) {
      by_state[LowerState(v1::JobState_Name(i), "JOB_STATE_")] = 0;
    }
    std::set<std::string> alive;
    for (const MetricsSnapshot::JobMetrics& metrics : snapshot.jobs) {
      const v1::Job& job = metrics.job;
      ++by_state[LowerState(v1::JobState_Name(job.state()), "JOB_STATE_")];
      JobCounters& counters = counters_[job.id()];
      CountNews(metrics, counters);
      if (job.has_ended() &&
          absl::FromUnixSeconds(job.ended().seconds()) + kKeepEndedJobs < absl::Now())
        continue;
      alive.insert(job.id());
      BuildJob(metrics, counters, out);
    }
    for (const auto& [state, count] : by_state)
      out.Gauge("mt_jobs", "Jobs by state", {{"state", state}}, count);
    out.Histogram("mt_job_queue_wait_seconds", "Submitted (or resumed) to started", {},
                  queue_wait_);
    for (auto it = counters_.begin(); it != counters_.end();) {
      it = alive.count(it->first) != 0 || !it->second.queue_wait_counted ? std::next(it)
                                                                         : counters_.erase(it);
    }
  }

  void CountNews(const MetricsSnapshot::JobMetrics& metrics, JobCounters& counters) {
    if (metrics.checkpoints_committed > counters.checkpoints) {
      const int64_t news = metrics.checkpoints_committed - counters.checkpoints;
      counters.stall_seconds.Observe(metrics.checkpoint_stall_seconds, news);
      counters.persist_seconds.Observe(metrics.checkpoint_persist_seconds, news);
      counters.checkpoints = metrics.checkpoints_committed;
    }
    if (metrics.recovery_seconds > 0 && metrics.recovery_seconds != counters.recovery_seconds) {
      counters.recovery.Observe(metrics.recovery_seconds);
      counters.recovery_seconds = metrics.recovery_seconds;
    }
    if (metrics.job.has_started() && !std::exchange(counters.queue_wait_counted, true)) {
      queue_wait_.Observe(metrics.queue_seconds);
    }
  }

  static void BuildExperts(const v1::TrainingProgress& p, const JobCounters& counters,
                           const std::string& job, Families& out) {
    for (const auto& [loss, value] : p.auxiliary_losses()) {
      out.Gauge("mt_train_auxiliary_loss", "What the gradient contains besides the loss",
                {{"job", job}, {"loss", loss}}, value);
    }
    if (!p.has_moe()) return;
    for (int i = 0; i < p.moe().load_ratio_size(); ++i) {
      out.Gauge("mt_moe_load_ratio", "Choices of the busiest expert over the mean",
                {{"job", job}, {"layer", absl::StrCat(p.moe().first_layer() + i)}},
                p.moe().load_ratio(i));
    }
    out.Counter("mt_moe_dropped_tokens_total", "Choices that met a full expert", {{"job", job}},
                counters.dropped_tokens);
  }

  static void BuildJob(const MetricsSnapshot::JobMetrics& metrics, const JobCounters& counters,
                       Families& out) {
    const v1::Job& job = metrics.job;
    const Labels labels = {{"job", job.id()}};
    if (job.has_progress()) {
      const v1::TrainingProgress& p = job.progress();
      out.Gauge("mt_train_step", "Optimizer steps done", labels, static_cast<double>(p.step()));
      out.Gauge("mt_train_loss", "Mean loss of the newest step", labels, p.loss());
      if (p.validation_step() > 0) {
        out.Gauge("mt_validation_loss", "Mean held-out loss of the newest evaluation", labels,
                  p.validation_loss());
        out.Gauge("mt_validation_perplexity", "Its exponential", labels,
                  std::exp(p.validation_loss()));
        out.Gauge("mt_validation_step", "Optimizer steps done at the newest evaluation", labels,
                  static_cast<double>(p.validation_step()));
      }
      out.Gauge("mt_train_grad_norm", "Norm of the gradient before clipping", labels,
                p.grad_norm());
      out.Gauge("mt_train_learning_rate", "Learning rate of the newest step", labels,
                p.learning_rate());
      out.Counter("mt_train_tokens_total", "Tokens trained on, repeated steps included", labels,
                  counters.tokens_total);
      out.Counter("mt_train_samples_total", "Samples trained on, repeated steps included", labels,
                  counters.samples_total);
      out.Gauge("mt_train_tokens_per_second", "Of the whole job, newest step", labels,
                p.tokens_per_second());
      out.Gauge("mt_train_mfu_ratio", "Model FLOPs against the devices' peak", labels, p.mfu());
      out.Histogram("mt_train_step_duration_seconds", "Wall time of a step", labels,
                    counters.step_seconds);
      for (const auto& [phase, seconds] : counters.phase_seconds) {
        out.Counter("mt_train_phase_seconds_total", "Time by phase of a step",
                    {{"job", job.id()}, {"phase", phase}}, seconds);
      }
      if (p.has_time()) {
        out.Gauge("mt_train_last_step_timestamp_seconds", "When the newest step was reported",
                  labels, UnixSeconds(p.time()));
      }
      BuildExperts(p, counters, job.id(), out);
      out.Counter("mt_train_nonfinite_loss_total", "Steps whose loss was not a finite number",
                  labels, static_cast<double>(counters.nonfinite));
    }
    out.Gauge("mt_train_steps", "Optimizer steps in the whole run", labels,
              static_cast<double>(job.spec().training().steps()));
    if (job.last_checkpoint_step() >= 0 && job.has_last_checkpoint_time()) {
      out.Gauge("mt_checkpoint_last_success_timestamp_seconds",
                "When the newest checkpoint was committed", labels,
                UnixSeconds(job.last_checkpoint_time()));
      out.Gauge("mt_checkpoint_last_step", "Step of the newest checkpoint", labels,
                static_cast<double>(job.last_checkpoint_step()));
      out.Gauge("mt_checkpoint_bytes", "Size of the newest checkpoint", labels,
                static_cast<double>(metrics.checkpoint_bytes));
      out.Histogram("mt_checkpoint_stall_seconds", "How long a checkpoint held up training", labels,
                    counters.stall_seconds);
      out.Histogram("mt_checkpoint_persist_seconds", "How long writing a shard took", labels,
                    counters.persist_seconds);
    }
    for (const auto& [reason, count] : metrics.checkpoint_failures_by_reason) {
      out.Counter("mt_checkpoint_failures_total", "Checkpoints that were not committed",
                  {{"job", job.id()}, {"reason", reason}}, static_cast<double>(count));
    }
    const bool active = job.state() == v1::JOB_STATE_STARTING ||
                        job.state() == v1::JOB_STATE_RUNNING ||
                        job.state() == v1::JOB_STATE_RECOVERING;
    out.Gauge("mt_job_active", "1 while starting, running or recovering", labels, active ? 1 : 0);
    static const std::set<std::string> kCauses = {"exit",       "signal",        "hang",
                                                  "node_lost",  "start_timeout", "data",
                                                  "checkpoint", "communicator"};
    std::map<std::string, int64_t> by_reason;
    for (const auto& [cause, count] : metrics.failures_by_cause) {
      by_reason[kCauses.count(cause) != 0 ? cause : "other"] += count;
    }
    for (const auto& [reason, count] : by_reason) {
      out.Counter("mt_job_restarts_total", "Restarts by cause of the failure",
                  {{"job", job.id()}, {"reason", reason}}, static_cast<double>(count));
    }
    out.Gauge("mt_job_attempts_without_progress", "Failed in a row without progress", labels,
              job.attempts_without_progress());
    if (job.has_started()) {
      const double end = job.has_ended() ? UnixSeconds(job.ended())
                                         : absl::ToDoubleSeconds(absl::Now() - absl::UnixEpoch());
      const double wall = std::max(0.0, end - UnixSeconds(job.started()));
      out.Gauge("mt_job_goodput_ratio", "Productive seconds over wall seconds", labels,
                job.goodput());
      out.Counter("mt_job_productive_seconds_total", "In steps that were kept", labels,
                  wall * job.goodput());
      out.Counter("mt_job_wall_seconds_total", "Since the first start", labels, wall);
      out.Histogram("mt_job_recovery_seconds", "Failure seen to the next completed step", labels,
                    counters.recovery);
    }
  }

  void BuildCluster(const MetricsSnapshot& snapshot, Families& out) {
    std::map<std::string, int> by_state;
    for (int i = v1::NODE_STATE_STARTING; i <= v1::NODE_STATE_DRAINING; ++i) {
      by_state[LowerState(v1::NodeState_Name(i), "NODE_STATE_")] = 0;
    }
    int64_t slots = 0, used = 0;
    const absl::Time now = absl::Now();
    for (const v1::Node& node : snapshot.nodes) {
      ++by_state[LowerState(v1::NodeState_Name(node.state()), "NODE_STATE_")];
      slots += node.slots();
      used += node.slots_used();
      if (!node.has_last_heartbeat()) continue;
      const Labels labels = {{"node", node.name()}};
      out.Gauge("mt_heartbeat_age_seconds", "Since the newest heartbeat", labels,
                std::max(0.0, absl::ToDoubleSeconds(now - absl::UnixEpoch()) -
                                  UnixSeconds(node.last_heartbeat())));
      out.Gauge("mt_node_disk_free_bytes", "Where the node keeps checkpoints and logs", labels,
                static_cast<double>(node.disk_free_bytes()));
      out.Gauge("mt_node_data_cache_bytes", "Distributed datasets in the node's cache", labels,
                static_cast<double>(node.data_cache_bytes()));
      out.Gauge("mt_node_data_cache_limit_bytes", "What its cache may hold", labels,
                static_cast<double>(node.data_cache_limit_bytes()));
      if (const auto expiry = snapshot.certificate_expiry.find(node.name());
          expiry != snapshot.certificate_expiry.end()) {
        out.Gauge("mt_node_certificate_expiry_timestamp_seconds", "End of the node's certificate",
                  labels, absl::ToDoubleSeconds(expiry->second - absl::UnixEpoch()));
      }
      for (const v1::Device& device : node.devices()) BuildDevice(node, device, out);
    }
    for (const auto& [state, count] : by_state)
      out.Gauge("mt_nodes", "Nodes by state", {{"state", state}}, count);
    const std::pair<const char*, int64_t> fetched[] = {
        {"coordinator", snapshot.data_bytes_from_coordinator},
        {"node", snapshot.data_bytes_from_nodes}};
    for (const auto& [source, bytes] : fetched) {
      out.Counter("mt_data_fetched_bytes_total", "Data of jobs that nodes fetched, by who gave it",
                  {{"source", source}}, static_cast<double>(bytes));
    }
    out.Gauge("mt_slots", "Slots of all nodes", {}, static_cast<double>(slots));
    out.Gauge("mt_slots_used", "Slots with a rank", {}, static_cast<double>(used));
  }

  // A figure that the device does not give is no series, rather than a zero.
  static void BuildDevice(const v1::Node& node, const v1::Device& device, Families& out) {
    const Labels labels = {{"node", node.name()}, {"device", absl::StrCat(device.index())}};
    Labels info = labels;
    info.push_back({"name", device.name()});
    info.push_back({"uuid", device.uuid()});
    out.Gauge("mt_gpu_info", "Always 1; what the device is, is in the labels", info, 1);
    out.Gauge("mt_gpu_up", "1 if the device answers its driver's monitor", labels,
              device.error().empty() ? 1 : 0);
    if (device.has_memory_used_bytes())
      out.Gauge("mt_gpu_memory_used_bytes", "Memory in use, of all processes", labels,
                static_cast<double>(device.memory_used_bytes()));
    if (device.has_memory_total_bytes())
      out.Gauge("mt_gpu_memory_total_bytes", "Memory of the device", labels,
                static_cast<double>(device.memory_total_bytes()));
    if (device.has_utilization())
      out.Gauge("mt_gpu_utilization_ratio", "Share of the time in which a kernel ran", labels,
                device.utilization());
    if (device.has_temperature_celsius())
      out.Gauge("mt_gpu_temperature_celsius", "Of the chip", labels, device.temperature_celsius());
    if (device.has_power_watts())
      out.Gauge("mt_gpu_power_watts", "Drawn by the whole device", labels, device.power_watts());
    if (device.has_sm_clock_hertz())
      out.Gauge("mt_gpu_sm_clock_hertz", "Of the multiprocessors, now", labels,
                device.sm_clock_hertz());
    for (const bool corrected : {true, false}) {
      if (corrected ? !device.has_ecc_corrected_errors() : !device.has_ecc_uncorrected_errors())
        continue;
      Labels kind = labels;
      kind.push_back({"kind", corrected ? "corrected" : "uncorrected"});
      out.Counter("mt_gpu_ecc_errors_total", "Memory errors since the driver was loaded", kind,
                  static_cast<double>(corrected ? device.ecc_corrected_errors()
                                                : device.ecc_uncorrected_errors()));
    }
  }

  EventLoop* const loop_;
  const TelemetryOptions options_;
  const absl::Time started_;
  // On the loop.
  Coordinator* coordinator_ = nullptr;
  Coordinator::WatchId watch_ = 0;
  std::map<std::string, JobCounters> counters_;
  std::map<std::string, DoublingHistogram> launches_;
  DoublingHistogram queue_wait_;

  mutable absl::Mutex mutex_;
  mutable std::vector<prometheus::MetricFamily> last_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<prometheus::Exposer> exposer_;
};

class ObservedLauncher : public NodeLauncher {
 public:
  ObservedLauncher(TelemetryImpl* telemetry, std::unique_ptr<NodeLauncher> inner)
      : telemetry_(telemetry), inner_(std::move(inner)) {}
  void Launch(const NodeConfig& node, Done done) override {
    Clock* const clock = telemetry_->loop()->clock();
    inner_->Launch(node, [this, clock, begin = clock->Monotonic(),
                          done = std::move(done)](absl::Status status) mutable {
      telemetry_->OnLaunch(clock->Monotonic() - begin, status.ok());
      done(std::move(status));
    });
  }
  void Stop(const NodeConfig& node, Done done) override { inner_->Stop(node, std::move(done)); }
  std::string Whereabouts(const NodeConfig& node) const override {
    return inner_->Whereabouts(node);
  }

 private:
  TelemetryImpl* const telemetry_;
  const std::unique_ptr<NodeLauncher> inner_;
};

std::unique_ptr<NodeLauncher> TelemetryImpl::Observe(std::unique_ptr<NodeLauncher> inner) {
  return std::make_unique<ObservedLauncher>(this, std::move(inner));
}

}  // namespace

std::shared_ptr<Telemetry> Telemetry::Create(EventLoop* loop, TelemetryOptions options) {
  return std::make_shared<TelemetryImpl>(loop, std::move(options));
}

}  // namespace mt
