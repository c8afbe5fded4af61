#include "tests/simulation/sim_cluster.h"

#include <algorithm>
#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "common/check.h"
#include "common/exit_codes.h"
#include "common/hash.h"
#include "common/proto_time.h"
#include "tests/simulation/sim_datasets.h"
#include "worker/agent/dataset_cache.h"
#include "worker/agent/dataset_store.h"
#include "worker/checkpoint/loader.h"
#include "worker/checkpoint/manifest.h"

namespace mt {
namespace {

constexpr char kSharedFolder[] = "/shared";
constexpr char kStateFolder[] = "/node";
// Room for two or three of the simulated datasets, so that they drive each other out.
constexpr int64_t kDataCacheBytes = 50'000;

// A node's files: its own disk, and the shared folder under /shared.
class NodeEnv : public Env {
 public:
  NodeEnv(Env* own, Env* shared) : own_(own), shared_(shared) {}
  absl::StatusOr<std::unique_ptr<WritableFile>> NewWritableFile(const std::string& path,
                                                                WriteMode mode) override {
    return Of(path)->NewWritableFile(path, mode);
  }
  absl::StatusOr<std::unique_ptr<RandomAccessFile>> NewRandomAccessFile(
      const std::string& path) override {
    return Of(path)->NewRandomAccessFile(path);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    return Of(from)->Rename(from, to);
  }
  absl::Status Truncate(const std::string& path, uint64_t size) override {
    return Of(path)->Truncate(path, size);
  }
  absl::Status SyncDirectory(const std::string& path) override {
    return Of(path)->SyncDirectory(path);
  }
  absl::Status CreateDirectories(const std::string& path) override {
    return Of(path)->CreateDirectories(path);
  }
  absl::Status RemoveFile(const std::string& path) override { return Of(path)->RemoveFile(path); }
  absl::Status RemoveTree(const std::string& path) override { return Of(path)->RemoveTree(path); }
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    return Of(path)->List(path);
  }
  absl::StatusOr<FileInfo> Stat(const std::string& path) override { return Of(path)->Stat(path); }
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) override {
    return Of(path)->Lock(path);
  }
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override {
    return Of(path)->FreeBytes(path);
  }

 private:
  Env* Of(const std::string& path) {
    return absl::StartsWith(path, kSharedFolder) ? shared_ : own_;
  }
  Env* const own_;
  Env* const shared_;
};

bool IsWhole(Env* env, const std::string& path, const v1::CheckpointFile& file) {
  const auto contents = ReadFile(env, path);
  return contents.ok() && Xxh3Hex(*contents) == file.xxh3_128();
}

v1::JobSpec RandomSpec(Random& random, int number) {
  auto pick = [&](int n) { return static_cast<int>(random.Next() % n); };
  v1::JobSpec spec;
  const bool poison = number % 9 == 8;
  spec.set_name(absl::StrCat(poison ? SimRanks::kPoison : "job", number));
  spec.set_priority(pick(3));
  spec.mutable_parallel()->set_tensor(1 << pick(3));
  spec.mutable_parallel()->set_data(1 + pick(4));
  spec.mutable_parallel()->set_pipeline(1 + pick(2));
  spec.mutable_training()->set_steps(15 + pick(45));
  spec.mutable_checkpoint()->set_every_steps(poison ? 10 : pick(5) == 0 ? 0 : 3 + pick(10));
  spec.mutable_checkpoint()->set_keep_last(1 + pick(3));
  spec.mutable_checkpoint()->set_replicas(1 + pick(2));
  if (pick(3) == 0) spec.mutable_checkpoint()->set_path(kSharedFolder);
  spec.mutable_data()->add_train()->set_prefix("/far/" + spec.name());
  spec.mutable_data()->set_distribute(pick(2) == 0);
  // Enough that chance alone never ends a job; poisoned ones end by the default.
  spec.mutable_fault()->set_max_attempts_without_progress(poison ? 3 : 1000);
  SetDuration(spec.mutable_fault()->mutable_min_step_deadline(), absl::Seconds(10));
  SetDuration(spec.mutable_fault()->mutable_start_deadline(), absl::Minutes(5));
  SetDuration(spec.mutable_fault()->mutable_stop_grace(), absl::Seconds(5));
  return spec;
}

}  // namespace

struct SimCluster::Node {
  NodeConfig config;
  MemEnv disk;
  std::unique_ptr<NodeEnv> env;
  bool machine_up = true;
  // The daemon's process.
  std::unique_ptr<SimEventLoop> loop;
  std::unique_ptr<Random> random;
  std::unique_ptr<CoordinatorDialer> dialer;
  std::unique_ptr<RankHost> host;
  std::unique_ptr<FileFetcher> fetcher;
  std::unique_ptr<DataChecker> data_checker;
  std::unique_ptr<DatasetCache> dataset_cache;
  std::unique_ptr<DatasetTransport> dataset_transport;
  std::unique_ptr<DatasetStore> datasets;
  std::unique_ptr<Agent> agent;
  uint64_t life = 0;
};

struct SimCluster::JobOfPeople {
  v1::SubmitRequest request;
  std::string id;  // once acknowledged
  bool cancel_acknowledged = false;
  bool cancel_asked = false;
};

// The simulated ranks read no data; looking at it takes a moment all the same.
class SimCluster::DataLook : public DataChecker {
 public:
  DataLook(SimCluster* cluster, EventLoop* loop) : cluster_(cluster), loop_(loop) {}
  void Check(const v1::JobSpec&,
             std::function<void(absl::StatusOr<DataFingerprints>)> done) override {
    loop_->After(absl::Milliseconds(50 * cluster_->Uniform()),
                 [done = std::move(done)] { done(DataFingerprints()); });
  }

 private:
  SimCluster* const cluster_;
  EventLoop* const loop_;
};

class SimCluster::Fetcher : public FileFetcher {
 public:
  Fetcher(SimCluster* cluster, Node* node) : cluster_(cluster), node_(node) {}
  void Fetch(FetchRequest request, std::function<void(absl::Status)> done) override {
    node_->loop->After(
        absl::Milliseconds(20 + 200 * cluster_->Uniform()),
        [this, request = std::move(request), done = std::move(done)] {
          if (VerifyFile(node_->env.get(), request.destination, request.file).ok())
            return done(absl::OkStatus());
          auto network_cut = [this](const Node& source) {
            return source.config.name != node_->config.name &&
                   (cluster_->network_.IsPartitioned(source.config.name) ||
                    cluster_->network_.IsPartitioned(node_->config.name));
          };
          // As the real one says it: lost is what every endpoint was asked for.
          absl::Status status = absl::DataLossError("no endpoint has " + request.file.name());
          if (request.endpoints.empty())
            status = absl::UnavailableError("no node is known to have " + request.file.name());
          for (const std::string& endpoint : request.endpoints) {
            Node& source = *cluster_->by_name_.at(endpoint.substr(0, endpoint.find(':')));
            if (source.agent == nullptr || network_cut(source)) {
              status = absl::UnavailableError(endpoint + " cannot be reached");
              continue;
            }
            const std::string path = *CheckpointFilePath(
                source.agent->StoreRoot(""), request.job_id, request.step, request.file.name());
            const auto contents = ReadFile(source.env.get(), path);
            if (!contents.ok() || Xxh3Hex(*contents) != request.file.xxh3_128()) continue;
            status = WriteFileAtomically(node_->env.get(), request.destination, *contents);
            if (status.ok()) break;
          }
          done(status);
        });
  }

 private:
  SimCluster* const cluster_;
  Node* const node_;
};

class SimCluster::Launcher : public NodeLauncher {
 public:
  Launcher(SimCluster* cluster, SimEventLoop* loop) : cluster_(cluster), loop_(loop) {}
  void Launch(const NodeConfig& config, Done done) override {
    Node& node = *cluster_->by_name_.at(config.name);
    auto answer = std::make_shared<Done>(std::move(done));
    // What SSH has begun goes on without the coordinator; only the answer needs it.
    cluster_->After(absl::Seconds(0.5 + 2 * cluster_->Uniform()), [cluster = cluster_, &node] {
      if (node.machine_up && !cluster->network_.IsPartitioned(node.config.name) &&
          node.agent == nullptr)
        cluster->StartDaemon(node);
    });
    loop_->After(absl::Seconds(3), [cluster = cluster_, &node, answer] {
      const bool reached = node.machine_up && !cluster->network_.IsPartitioned(node.config.name);
      (*answer)(reached ? absl::OkStatus()
                        : absl::UnavailableError(
                              absl::StrCat("ssh ", node.config.name, ": no route to host")));
    });
  }
  void Stop(const NodeConfig& config, Done done) override {
    loop_->Post([done = std::make_shared<Done>(std::move(done))] { (*done)(absl::OkStatus()); });
  }
  std::string Whereabouts(const NodeConfig&) const override { return ""; }

 private:
  SimCluster* const cluster_;
  SimEventLoop* const loop_;
};

struct SimCluster::CoordinatorProcess {
  SimEventLoop loop;
  Launcher launcher;
  std::unique_ptr<Random> random;
  std::unique_ptr<StateStore> store;
  std::unique_ptr<DatasetDigester> digester;
  std::unique_ptr<Coordinator> coordinator;
  bool dying = false;
  CoordinatorProcess(SimCluster* cluster, SimScheduler* scheduler)
      : loop(scheduler), launcher(cluster, &loop) {}
};

SimCluster::SimCluster(SimOptions options)
    : options_(options),
      random_(NewSeededRandom(options.seed)),
      network_(&scheduler_, random_.get()),
      ranks_(&scheduler_, random_.get()),
      disk_(std::make_shared<MemoryDisk>()) {
  MT_CHECK_OK(shared_.CreateDirectories(kSharedFolder));
  if (options_.node_faults) ranks_.hang_at_end = 0.02;
  ranks_.on_spawn = [this](const std::string& node, const RankLaunch& launch) {
    CheckDataOfRank(node, launch);
  };
  for (int i = 0; i < options_.nodes; ++i) {
    auto node = std::make_unique<Node>();
    node->config.name = absl::StrFormat("n%03d", i);
    node->config.slots = 1 + i % 3;
    node->env = std::make_unique<NodeEnv>(&node->disk, &shared_);
    MT_CHECK_OK(node->disk.CreateDirectories(kStateFolder));
    by_name_[node->config.name] = node.get();
    nodes_.push_back(std::move(node));
  }
}

SimCluster::~SimCluster() {
  KillCoordinator();
  for (auto& node : nodes_) KillDaemon(*node);
}

void SimCluster::Violation(const std::string& what) {
  violations_.push_back(absl::StrCat("at ", absl::FormatDuration(scheduler_.now()), ": ", what));
  if (options_.verbose) std::cerr << violations_.back() << "\n";
}

void SimCluster::StartCoordinator() {
  if (coordinator_ != nullptr) return;
  coordinator_ = std::make_unique<CoordinatorProcess>(this, &scheduler_);
  CoordinatorProcess* process = coordinator_.get();
  process->random = NewSeededRandom(random_->Next());
  process->store = NewMemoryStore(disk_);
  CoordinatorOptions options;
  options.loop = &process->loop;
  options.env = &coordinator_env_;
  options.random = process->random.get();
  options.store = process->store.get();
  options.launcher = &process->launcher;
  process->digester = std::make_unique<SimDigester>(&process->loop, process->random.get());
  options.digester = process->digester.get();
  for (const auto& node : nodes_) options.nodes.push_back(node->config);
  options.state_directory = "/state";
  options.on_fatal = [this, process](absl::Status) {
    if (std::exchange(process->dying, true)) return;
    After(absl::ZeroDuration(), [this, process] {
      if (coordinator_.get() != process) return;
      ++statistics.coordinator_deaths;
      KillCoordinator();
      RestartCoordinatorAfter(absl::Seconds(1 + 20 * Uniform()));
    });
  };
  auto created = Coordinator::Create(std::move(options));
  MT_CHECK_OK(created.status());
  process->coordinator = std::move(*created);
  process->loop.Post([this, process] {
    process->coordinator->AddWatcher([this](const std::string& job) { OnJobChanged(job); });
    process->coordinator->Start();
  });
  network_.SetServer(&process->loop, process->coordinator.get());
}

void SimCluster::KillCoordinator() {
  if (coordinator_ == nullptr) return;
  network_.SetServer(nullptr, nullptr);
  coordinator_->coordinator.reset();
  coordinator_.reset();
  if (Uniform() < 0.5) {
    coordinator_env_.Crash();
  } else {
    coordinator_env_.KillProcess();
  }
}

void SimCluster::RestartCoordinatorAfter(absl::Duration delay) {
  After(delay, [this] { StartCoordinator(); });
}

bool SimCluster::StartDaemon(Node& node) {
  node.loop = std::make_unique<SimEventLoop>(&scheduler_);
  node.random = NewSeededRandom(random_->Next());
  node.dialer = network_.NewDialer(node.config.name, node.loop.get());
  node.host = ranks_.NewHost(node.config.name, node.loop.get(), node.env.get());
  node.fetcher = std::make_unique<Fetcher>(this, &node);
  node.data_checker = std::make_unique<DataLook>(this, node.loop.get());
  // What a disk that was full or cut off left behind is put away by the real daemon's successor too: it tries until it starts.
  auto cache =
      DatasetCache::Open(node.env.get(), JoinPath(kStateFolder, "datasets"), kDataCacheBytes);
  if (!cache.ok()) Violation(absl::StrCat("cache of datasets: ", cache.status().ToString()));
  MT_CHECK_OK(cache.status());
  node.dataset_cache = std::move(*cache);
  node.dataset_transport = std::make_unique<SimDatasetTransport>(
      node.loop.get(), node.random.get(),
      [this, &node](const std::string& endpoint, const std::string& digest) {
        return GiveDatasetFile(node, endpoint, digest);
      });
  node.datasets = std::make_unique<DatasetStore>(node.loop.get(), node.loop.get(), node.env.get(),
                                                 node.random.get(), node.dataset_transport.get(),
                                                 node.dataset_cache.get());
  AgentOptions options;
  options.node = node.config.name;
  options.state_folder = kStateFolder;
  options.identity.set_slots(node.config.slots);
  options.identity.set_cores(4);
  options.identity.set_shards_endpoint(node.config.name + ":1");
  const uint64_t life = ++node.life;
  node.agent = std::make_unique<Agent>(options, node.loop.get(), node.env.get(), node.random.get(),
                                       node.dialer.get(), node.host.get(), node.fetcher.get(),
                                       node.data_checker.get(), node.datasets.get(),
                                       [this, &node, life](absl::Status) {
                                         After(absl::ZeroDuration(), [this, &node, life] {
                                           if (node.life == life) KillDaemon(node);
                                         });
                                       });
  node.loop->Post([this, &node, life] {
    if (node.agent->Start().ok()) return;
    After(absl::ZeroDuration(), [this, &node, life] {
      if (node.life == life) KillDaemon(node);
    });
  });
  return true;
}

void SimCluster::KillDaemon(Node& node) {
  if (node.agent == nullptr) return;
  ++node.life;
  ranks_.KillNode(node.config.name);
  network_.WorkerDied(node.config.name);
  node.agent.reset();
  node.datasets.reset();
  node.dataset_transport.reset();
  node.dataset_cache.reset();
  node.fetcher.reset();
  node.data_checker.reset();
  node.host.reset();
  node.dialer.reset();
  node.loop.reset();
  node.disk.KillProcess();
}

// What `endpoint` gives `reader` now: the coordinator is reached as the worker streams are, nodes always see each other.
absl::StatusOr<std::string> SimCluster::GiveDatasetFile(const Node& reader,
                                                        const std::string& endpoint,
                                                        const std::string& digest) {
  if (endpoint.empty()) {
    if (coordinator_ == nullptr || coordinator_->coordinator == nullptr ||
        network_.IsPartitioned(reader.config.name))
      return absl::UnavailableError("no route to host");
    MT_ASSIGN_OR_RETURN(const v1::DatasetFile file,
                        coordinator_->coordinator->FindDatasetFile(digest));
    statistics.data_from_coordinator += 1;
    return SimDatasetFile(file.path());
  }
  Node& source = *by_name_.at(endpoint.substr(0, endpoint.find(':')));
  if (source.agent == nullptr) return absl::UnavailableError("connection refused");
  const std::string path = source.dataset_cache->FindServed(digest);
  if (path.empty()) return absl::NotFoundError("not in the cache of this node");
  statistics.data_from_nodes += 1;
  return ReadFile(source.env.get(), path);
}

// A rank of a job that distributes its data finds all of it, as it is.
void SimCluster::CheckDataOfRank(const std::string& node, const RankLaunch& launch) {
  const v1::JobSpec& spec = launch.start.spec();
  if (!spec.data().distribute()) return;
  for (const char* suffix : {".idx", ".bin"}) {
    const auto contents =
        ReadFile(by_name_.at(node)->env.get(), spec.data().train(0).prefix() + suffix);
    if (!contents.ok() || *contents != SimDatasetFile("/far/" + spec.name() + suffix)) {
      Violation(absl::StrCat(
          launch.id.ToString(), " on ", node, " was started on data that is not its own: ",
          spec.data().train(0).prefix(), suffix, " ", contents.status().ToString()));
    }
  }
}

// Somebody writes to a cached file while no daemon holds it for a job.
void SimCluster::TamperWithCache(Node& node) {
  if (node.agent != nullptr) return;
  const auto folders = node.env->List(JoinPath(kStateFolder, "datasets"));
  if (!folders.ok() || folders->empty()) return;
  const std::string& folder = (*folders)[Pick(static_cast<int>(folders->size()))];
  const std::string path = absl::StrCat(kStateFolder, "/datasets/", folder, "/data.bin");
  auto contents = ReadFile(node.env.get(), path);
  if (!contents.ok() || contents->empty()) return;
  (*contents)[contents->size() / 2] ^= 1;
  if (WriteFileAtomically(node.env.get(), path, *contents).ok()) ++statistics.corruptions;
}

void SimCluster::ScheduleFaults() {
  const absl::Duration until = scheduler_.now() + options_.fault_time;
  for (absl::Duration at = absl::Seconds(15); at < until; at += absl::Seconds(1 + 7 * Uniform())) {
    scheduler_.At(at, [this] {
      const double dice = Uniform();
      if (options_.coordinator_faults && (dice < 0.25 || !options_.node_faults)) {
        InjectCoordinatorFault();
      } else if (options_.node_faults) {
        InjectNodeFault();
      }
    });
  }
  if (options_.coordinator_faults) {
    // In the middle of a commit, before or after it is durable.
    disk_->death = [this] {
      if (faults_over_ || Uniform() > 0.0005) return MemoryDisk::Death::kNo;
      return Uniform() < 0.5 ? MemoryDisk::Death::kBefore : MemoryDisk::Death::kAfter;
    };
  }
  scheduler_.At(until, [this] {
    faults_over_ = true;
    disk_->full = false;
    disk_->death = nullptr;
    shared_.SetCapacity(std::nullopt);
    for (const auto& node : nodes_) {
      network_.SetPartitioned(node->config.name, false);
      node->machine_up = true;
      node->disk.SetCapacity(std::nullopt);
    }
  });
}

void SimCluster::InjectCoordinatorFault() {
  if (faults_over_) return;
  switch (Pick(4)) {
    case 0:
      if (coordinator_ == nullptr) return;
      ++statistics.coordinator_deaths;
      KillCoordinator();
      RestartCoordinatorAfter(absl::Seconds(0.1 + 60 * Uniform() * Uniform()));
      break;
    case 1: {  // SIGSTOP
      if (coordinator_ == nullptr) return;
      CoordinatorProcess* process = coordinator_.get();
      process->loop.SetStopped(true);
      After(absl::Seconds(1 + 60 * Uniform()), [this, process] {
        if (coordinator_.get() == process) process->loop.SetStopped(false);
      });
      break;
    }
    case 2:
      ++statistics.full_disks;
      disk_->full = true;
      After(absl::Seconds(1 + 30 * Uniform()), [this] { disk_->full = false; });
      break;
    case 3:  // it is cut off from everybody; the nodes still see each other
      ++statistics.partitions;
      for (const auto& node : nodes_) network_.SetPartitioned(node->config.name, true);
      After(absl::Seconds(1 + 90 * Uniform()), [this] {
        for (const auto& node : nodes_) network_.SetPartitioned(node->config.name, false);
      });
      break;
  }
}

void SimCluster::InjectNodeFault() {
  if (faults_over_) return;
  Node& node = *nodes_[Pick(static_cast<int>(nodes_.size()))];
  switch (Pick(8)) {
    case 0:
    case 1:
      statistics.rank_kills += ranks_.KillRandomRank();
      break;
    case 2:
      statistics.hangs += ranks_.HangRandomRank();
      break;
    case 3:
    case 4: {  // of a node that has ranks, so that it hurts
      const auto alive = ranks_.alive();
      Node& victim =
          alive.empty() ? node : *by_name_.at(alive[Pick(static_cast<int>(alive.size()))].node);
      if (Uniform() < 0.5) {
        ++statistics.daemon_kills;
        KillDaemon(victim);
      } else {
        ++statistics.machine_crashes;
        KillDaemon(victim);
        victim.disk.Crash();
        victim.machine_up = false;
        After(absl::Seconds(1 + 120 * Uniform()), [&victim] { victim.machine_up = true; });
      }
      break;
    }
    case 5: {
      const auto alive = ranks_.alive();
      Node& victim =
          alive.empty() ? node : *by_name_.at(alive[Pick(static_cast<int>(alive.size()))].node);
      ++statistics.partitions;
      network_.SetPartitioned(victim.config.name, true);
      After(absl::Seconds(1 + 100 * Uniform() * Uniform()),
            [this, &victim] { network_.SetPartitioned(victim.config.name, false); });
      break;
    }
    case 6: {
      ++statistics.full_disks;
      MemEnv& disk = Uniform() < 0.2 ? shared_ : node.disk;
      disk.SetCapacity(disk.UsedBytes() + Pick(2000));
      After(absl::Seconds(1 + 30 * Uniform()), [&disk] { disk.SetCapacity(std::nullopt); });
      break;
    }
    case 7:
      if (Uniform() < 0.3) {
        for (const auto& each : nodes_) TamperWithCache(*each);
      } else if (Uniform() < 0.5) {
        network_.Break(node.config.name, absl::UnavailableError("connection reset"));
      } else {
        Corrupt();
      }
      break;
  }
}

// One copy of one file of a committed checkpoint rots; another copy is whole.
void SimCluster::Corrupt() {
  if (coordinator_ == nullptr || !coordinator_->coordinator) return;
  for (const auto& job : jobs_) {
    if (job->id.empty() || Uniform() < 0.7) continue;
    v1::CheckpointRef ref;
    ref.set_job_id(job->id);
    ref.set_step(-1);
    const auto info = coordinator_->coordinator->GetCheckpoint(ref);
    if (!info.ok() || info->location() == kSharedFolder) continue;
    for (const v1::CheckpointFile& file : info->manifest().files()) {
      if (file.nodes_size() < 2) continue;
      const auto path = [&](const std::string& node) {
        return *CheckpointFilePath(JoinPath(kStateFolder, "checkpoints"), job->id,
                                   info->manifest().step(), file.name());
      };
      int whole = 0;
      for (const std::string& holder : file.nodes())
        whole += IsWhole(by_name_.at(holder)->env.get(), path(holder), file);
      if (whole < 2) continue;
      const std::string holder = file.nodes(0);
      if (by_name_.at(holder)->disk.CorruptByte(path(holder), 3).ok()) ++statistics.corruptions;
      return;
    }
  }
}

void SimCluster::SubmitLater(JobOfPeople& job, absl::Duration at) {
  scheduler_.At(at, [this, &job] { TrySubmit(job); });
}

// A person with a client that tries again, with the same request_id, until it is answered.
void SimCluster::TrySubmit(JobOfPeople& job) {
  if (!job.id.empty()) return;
  After(absl::Seconds(1 + 3 * Uniform()), [this, &job] { TrySubmit(job); });
  if (coordinator_ == nullptr) return;
  coordinator_->loop.Post([this, process = coordinator_.get(), &job] {
    if (!job.id.empty()) return;
    const auto submitted = process->coordinator->Submit(job.request, "somebody");
    if (submitted.ok()) {
      job.id = submitted->id();
    } else if (!absl::IsResourceExhausted(submitted.status()) &&
               !absl::IsFailedPrecondition(submitted.status())) {
      Violation(absl::StrCat("submit: ", submitted.status().ToString()));
    }
  });
}

void SimCluster::Act(JobOfPeople& job, const std::string& what) {
  if (job.id.empty() || coordinator_ == nullptr) return;
  coordinator_->loop.Post([this, process = coordinator_.get(), &job, what] {
    v1::JobActionRequest request;
    request.set_job_id(job.id);
    if (what == "pause") (void)process->coordinator->Pause(request);
    if (what == "resume") (void)process->coordinator->Resume(request);
    if (what == "cancel") {
      job.cancel_asked = true;
      if (process->coordinator->Cancel(request).ok()) job.cancel_acknowledged = true;
    }
  });
}

void SimCluster::OnJobChanged(const std::string& job_id) {
  const auto it = disk_->state.jobs.find(job_id);  // what is durable, not what is thought
  if (it == disk_->state.jobs.end()) return;
  const v1::JobState state = it->second.job().state();
  if (const auto known = terminal_.find(job_id); known != terminal_.end()) {
    if (known->second != state)
      Violation(absl::StrCat(job_id, " left its terminal state ", known->second, " for ", state));
  } else if (Coordinator::HasEnded(state)) {
    terminal_[job_id] = state;
  }
}

void SimCluster::Monitor() {
  for (const std::string& what : std::exchange(ranks_.violations, {})) Violation(what);
  // Two generations side by side where the coordinator reaches both.
  std::map<std::string, absl::Duration> overdue;
  const auto alive = ranks_.alive();
  for (const auto& rank : alive) {
    int& newest = newest_generation_[rank.id.job_id];
    newest = std::max(newest, static_cast<int>(rank.id.generation));
  }
  for (const auto& rank : alive) {
    const Node& node = *by_name_.at(rank.node);
    if (rank.id.generation == newest_generation_[rank.id.job_id] || node.agent == nullptr ||
        !node.agent->registered() || network_.IsPartitioned(rank.node) || coordinator_ == nullptr ||
        disk_->full) {
      continue;
    }
    const auto before = overdue_.find(rank.id.ToString());
    overdue[rank.id.ToString()] =
        (before == overdue_.end() ? absl::ZeroDuration() : before->second) + absl::Seconds(5);
    if (overdue[rank.id.ToString()] > absl::Seconds(90))
      Violation(absl::StrCat(rank.id.ToString(), " runs beside a newer generation"));
  }
  overdue_ = std::move(overdue);
  if (coordinator_ != nullptr && coordinator_->coordinator) {
    for (const auto& job : jobs_) {
      if (job->id.empty()) continue;
      const auto stored = disk_->state.jobs.find(job->id);
      if (stored == disk_->state.jobs.end()) {
        Violation("an acknowledged job is lost: " + job->id);
        continue;
      }
      CheckLoadable(stored->second.job(), false);
    }
  }
  if (violations_.empty() && !(faults_over_ && AllEnded()))
    After(absl::Seconds(5), [this] { Monitor(); });
}

void SimCluster::CheckLoadable(const v1::Job& job, bool at_end) {
  const store::CheckpointRecord* newest = nullptr;
  for (const auto& [key, record] : disk_->state.checkpoints) {
    if (key.first == job.id() && record.state() == store::CheckpointRecord::STATE_COMMITTED)
      newest = &record;
  }
  if (newest == nullptr) return;
  const bool shared = !newest->path().empty();
  const int world = job.spec().parallel().tensor() * job.spec().parallel().data() *
                    job.spec().parallel().pipeline();
  const auto expected = UndisturbedStates(job.spec().name(), world, newest->step());
  for (const v1::CheckpointFile& file : newest->manifest().files()) {
    const auto path =
        CheckpointFilePath(shared ? kSharedFolder : JoinPath(kStateFolder, "checkpoints"), job.id(),
                           newest->step(), file.name());
    std::vector<Env*> copies;
    if (shared) copies.push_back(&shared_);
    for (const std::string& holder : file.nodes()) copies.push_back(&by_name_.at(holder)->disk);
    const auto whole = std::find_if(copies.begin(), copies.end(),
                                    [&](Env* env) { return IsWhole(env, *path, file); });
    if (whole == copies.end()) {
      Violation(absl::StrCat("newest committed checkpoint of ", job.id(), ", step ", newest->step(),
                             ": no whole copy of ", file.name()));
      continue;
    }
    const int rank = static_cast<int>(file.slices(0).offset(0));
    const auto state = DecodeShard(*ReadFile(*whole, *path), newest->step(), rank);
    if (!state.ok() || *state != expected[rank]) {
      Violation(absl::StrCat("checkpoint of ", job.id(), ", step ", newest->step(), ": rank ", rank,
                             " differs from the undisturbed run"));
    }
  }
  if (at_end && (newest->step() != job.spec().training().steps() ||
                 newest->manifest().files_size() != world)) {
    Violation(
        absl::StrCat(job.id(), " succeeded with its newest checkpoint at step ", newest->step()));
  }
}

bool SimCluster::AllEnded() {
  for (const auto& job : jobs_) {
    if (job->id.empty()) return false;
    const auto it = disk_->state.jobs.find(job->id);
    if (it == disk_->state.jobs.end() || !Coordinator::HasEnded(it->second.job().state()))
      return false;
  }
  return true;
}

void SimCluster::CheckEnd() {
  for (const auto& job : jobs_) {
    const auto it = disk_->state.jobs.find(job->id);
    if (it == disk_->state.jobs.end()) {
      Violation("an acknowledged job is lost: " + job->id);
      continue;
    }
    const v1::Job& stored = it->second.job();
    statistics.restarts += std::max(0, stored.attempt() - 1);
    const bool poison = absl::StartsWith(stored.spec().name(), SimRanks::kPoison);
    switch (stored.state()) {
      case v1::JOB_STATE_SUCCEEDED:
        ++statistics.succeeded;
        if (job->cancel_acknowledged)
          Violation(job->id + " succeeded after its cancellation was acknowledged");
        if (poison) Violation(job->id + " succeeded though it cannot");
        CheckLoadable(stored, true);
        break;
      case v1::JOB_STATE_CANCELLED:
        ++statistics.cancelled;
        if (!job->cancel_asked) Violation(job->id + " was cancelled though nobody asked");
        break;
      case v1::JOB_STATE_FAILED:
        ++statistics.failed;
        if (!poison) Violation(absl::StrCat(job->id, " failed: ", stored.reason()));
        if (stored.exit_code() != kExitNoProgress)
          Violation(job->id + " failed with another exit code");
        break;
      default: {
        std::string ranks;
        for (const auto& rank : disk_->state.attempts[{job->id, stored.attempt()}].ranks()) {
          absl::StrAppend(&ranks, " ", rank.placement().node(), ":",
                          store::RankRecord::State_Name(rank.state()));
        }
        Violation(absl::StrCat(job->id, " has not ended: ", v1::JobState_Name(stored.state()), ", ",
                               stored.reason(), ranks));
      }
    }
    if (!options_.node_faults && !options_.people && !poison && stored.attempt() != 1) {
      Violation(absl::StrCat(job->id,
                             " was restarted although only the coordinator was disturbed: ",
                             stored.failure().message()));
    }
  }
}

std::vector<std::string> SimCluster::Run() {
  for (int i = 0; i < options_.jobs; ++i) {
    auto job = std::make_unique<JobOfPeople>();
    job->request.set_request_id(absl::StrCat("request-", i));
    *job->request.mutable_spec() = RandomSpec(*random_, i);
    SubmitLater(*job, absl::Seconds(5 + 40 * Uniform()));
    if (options_.people && i % 4 == 1) {
      // Paused and resumed again and again, the last thing being a resume.
      for (double at = 30; at < 400; at += 40) {
        scheduler_.At(absl::Seconds(at), [this, &job = *job] { Act(job, "pause"); });
        scheduler_.At(absl::Seconds(at + 5 + 25 * Uniform()),
                      [this, &job = *job] { Act(job, "resume"); });
      }
      for (double at = 420; at < 3600; at += 20)
        scheduler_.At(absl::Seconds(at), [this, &job = *job] { Act(job, "resume"); });
    }
    if (options_.people && i % 7 == 2)
      scheduler_.At(absl::Seconds(30 + 100 * Uniform()),
                    [this, &job = *job] { Act(job, "cancel"); });
    jobs_.push_back(std::move(job));
  }
  StartCoordinator();
  ScheduleFaults();
  Monitor();
  const bool ended = scheduler_.RunUntil(
      [this] { return !violations_.empty() || (faults_over_ && AllEnded()); }, options_.limit);
  if (violations_.empty() || !ended) CheckEnd();
  for (const std::string& what : ranks_.violations) Violation(what);
  return violations_;
}

}  // namespace mt
