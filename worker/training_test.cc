// One node trains: the agent's logic, real rank processes (mt-worker), shared memory, real data and checkpoints; only the
// coordinator is in memory. TP2×DP2 in four processes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <future>

#include "common/checkpoint/weights_digest.h"
#include "common/spec/defaults.h"
#include "worker/agent/agent.h"
#include "worker/agent/process_host.h"
#include "worker/agent/testing/fake_coordinator.h"
#include "worker/data/indexed_dataset_writer.h"

namespace mt {
namespace {

using Kind = v1::WorkerEvent::BodyCase;
constexpr int kRanks = 4;
constexpr int kSteps = 40;

class NoFetcher : public FileFetcher {
 public:
  explicit NoFetcher(EventLoop* loop) : loop_(loop) {}
  void Fetch(FetchRequest request, std::function<void(absl::Status)> done) override {
    loop_->Post([done = std::move(done), name = request.file.name()] {
      done(absl::UnavailableError(absl::StrCat(name, ": one node only")));
    });
  }

 private:
  EventLoop* const loop_;
};

class TrainingTest : public ::testing::Test {
 protected:
  TrainingTest()
      : folder_(std::filesystem::path(::testing::TempDir()) / absl::StrCat("training-", getpid())) {
    std::filesystem::create_directories(folder_);
    MakeData();
    loop_ = NewThreadEventLoop("agent");
    coordinator_ = std::make_unique<FakeCoordinator>(loop_.get());
    fetcher_ = std::make_unique<NoFetcher>(loop_.get());
    data_checker_ = NewDataChecker(loop_.get(), Env::Real());
    OnLoop([&] {
      ProcessHostOptions process;
      process.program = MT_BINARY_DIR "/bin/mt-worker";
      process.scope = folder_.string();
      auto host = NewProcessHost(process, loop_.get());
      ASSERT_TRUE(host.ok()) << host.status();
      host_ = std::move(*host);
      AgentOptions options;
      options.node = "n0";
      options.state_folder = folder_.string();
      options.identity.set_slots(kRanks);
      options.identity.set_cores(kRanks);
      agent_ = std::make_unique<Agent>(options, loop_.get(), Env::Real(), Random::Real(),
                                       coordinator_.get(), host_.get(), fetcher_.get(),
                                       data_checker_.get(), nullptr, nullptr);
      ASSERT_TRUE(agent_->Start().ok());
    });
    EXPECT_TRUE(coordinator_->WaitFor([this] { return coordinator_->registered; }));
  }
  ~TrainingTest() override {
    OnLoop([&] {
      agent_ = nullptr;
      host_ = nullptr;
    });
    loop_ = nullptr;
    std::filesystem::remove_all(folder_);
  }

  void OnLoop(const std::function<void()>& task) {
    std::promise<void> done;
    loop_->Post([&] {
      task();
      done.set_value();
    });
    done.get_future().get();
  }

  void MakeData() {
    auto writer = IndexedDatasetWriter::Create(Env::Real(), Prefix(), TokenType::kUint16);
    ASSERT_TRUE(writer.ok()) << writer.status();
    std::vector<int32_t> document;
    for (int i = 0; i < 20000; ++i)
      document.push_back((i * 7 + (i / 13) * 3) % 61);  // regular: a small model learns it
    ASSERT_TRUE((*writer)->AddDocument(document).ok());
    ASSERT_TRUE((*writer)->Seal().ok());
    ASSERT_TRUE((*writer)->Commit().ok());
  }
  std::string Prefix() const { return (folder_ / "data").string(); }

  v1::JobSpec Spec() {
    v1::JobSpec spec;
    spec.set_name("tiny");
    auto* model = spec.mutable_model();
    model->set_layers(2);
    model->set_hidden(32);
    model->set_heads(4);
    model->set_kv_heads(2);
    model->set_ffn(64);
    model->set_vocab(64);
    spec.mutable_data()->add_train()->set_prefix(Prefix());
    spec.mutable_data()->set_tokenizer("byte");
    spec.mutable_data()->set_sequence_length(32);
    spec.mutable_training()->set_steps(kSteps);
    spec.mutable_training()->set_global_batch(8);
    spec.mutable_training()->set_micro_batch(2);
    spec.mutable_training()->mutable_optimizer()->set_lr(3e-3);
    spec.mutable_parallel()->set_tensor(2);
    spec.mutable_parallel()->set_data(2);
    spec.mutable_checkpoint()->set_every_steps(5);
    spec.mutable_fault()->mutable_min_step_deadline()->set_seconds(2);
    spec.mutable_fault()->mutable_start_deadline()->set_seconds(60);
    spec.mutable_runtime()->set_backend("cpu");
    spec.mutable_runtime()->set_threads_per_rank(1);
    EXPECT_TRUE(FillDefaults(&spec).ok());
    return spec;
  }

  void Start(const std::string& job, int generation, const v1::JobSpec& spec,
             const v1::CheckpointManifest* restore = nullptr) {
    v1::CoordinatorMessage message;
    auto* start = message.mutable_start_ranks();
    start->set_job_id(job);
    start->set_generation(generation);
    *start->mutable_spec() = spec;
    for (int rank = 0; rank < kRanks; ++rank) {
      auto* slot = start->add_rank_table();
      slot->set_rank(rank);
      slot->set_slot(rank);
      slot->set_node("n0");
      slot->set_data_address("127.0.0.1");
    }
    if (restore != nullptr) *start->mutable_restore() = *restore;
    loop_->Post([this, message] { coordinator_->Send(message); });
  }
  void Order(bool then_stop, const std::string& job) {
    v1::CoordinatorMessage message;
    message.mutable_checkpoint_now()->set_job_id(job);
    message.mutable_checkpoint_now()->set_generation(1);
    message.mutable_checkpoint_now()->set_then_stop(then_stop);
    loop_->Post([this, message] { coordinator_->Send(message); });
  }

  // Events of one job's generation.
  std::vector<v1::WorkerEvent> Events(const std::string& job, int generation, Kind kind) {
    std::vector<v1::WorkerEvent> found;
    for (auto& event : coordinator_->EventsOf(kind)) {
      if (event.job_id() == job && event.generation() == generation) found.push_back(event);
    }
    return found;
  }
  bool WaitForExits(const std::string& job, int generation) {
    return coordinator_->WaitFor(
        [&] { return Events(job, generation, Kind::kRankExited).size() == kRanks; });
  }
  void ExpectAllFinished(const std::string& job, int generation) {
    ASSERT_TRUE(WaitForExits(job, generation));
    for (const auto& event : Events(job, generation, Kind::kRankExited)) {
      EXPECT_TRUE(event.rank_exited().finished()) << event.ShortDebugString();
    }
  }
  std::vector<double> Losses(const std::string& job, int generation) {
    std::vector<double> losses;
    for (const auto& event : Events(job, generation, Kind::kStepReport))
      losses.push_back(event.step_report().progress().loss());
    return losses;
  }
  int PidOf(const std::string& job, int generation, int rank) {
    for (const auto& event : Events(job, generation, Kind::kRankStarted)) {
      if (event.rank() == rank) return event.rank_started().pid();
    }
    return -1;
  }
  bool WaitForStep(const std::string& job, int generation, int64_t step) {
    bool there = false;
    coordinator_->WaitFor([&] {
      const auto reports = Events(job, generation, Kind::kStepReport);
      there = !reports.empty() && reports.back().step_report().progress().step() >= step;
      return there || !Events(job, generation, Kind::kRankExited).empty();
    });
    return there;
  }
  // What the coordinator would commit: the newest step of which every rank's shard is there, at most `newest`.
  v1::CheckpointManifest Manifest(const std::string& job, const v1::JobSpec& spec, int64_t newest) {
    std::map<int64_t, std::map<int, v1::ShardWritten>> shards;
    for (const auto& event : coordinator_->EventsOf(Kind::kShardWritten)) {
      if (event.job_id() == job && event.shard_written().step() <= newest) {
        shards[event.shard_written().step()][event.rank()] = event.shard_written();
      }
    }
    v1::CheckpointManifest manifest;
    for (auto it = shards.rbegin(); it != shards.rend(); ++it) {
      if (it->second.size() != kRanks) continue;
      manifest.set_format_version(1);
      manifest.set_job_id(job);
      manifest.set_step(it->first);
      manifest.set_consumed_samples(it->second[0].consumed_samples());
      manifest.set_loss(it->second[0].loss());
      *manifest.mutable_spec() = spec;
      for (auto& [rank, shard] : it->second) *manifest.add_files() = shard.file();
      break;
    }
    return manifest;
  }

  std::filesystem::path folder_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<FakeCoordinator> coordinator_;
  std::unique_ptr<FileFetcher> fetcher_;
  std::unique_ptr<DataChecker> data_checker_;
  std::unique_ptr<RankHost> host_;
  std::unique_ptr<Agent> agent_;
};

TEST_F(TrainingTest, FourProcessesTrainAndAKillLosesNothing) {
  const v1::JobSpec spec = Spec();
  Start("calm", 1, spec);
  ExpectAllFinished("calm", 1);
  const std::vector<double> calm = Losses("calm", 1);
  ASSERT_EQ(calm.size(), static_cast<size_t>(kSteps));
  EXPECT_LT(calm.back(), 0.8 * calm.front()) << "the loss falls";
  const v1::CheckpointManifest last = Manifest("calm", spec, kSteps);
  EXPECT_EQ(last.step(), kSteps);
  const auto digest = WeightsDigest(last);
  ASSERT_TRUE(digest.ok()) << digest.status();

  Start("shot", 1, spec);
  ASSERT_TRUE(WaitForStep("shot", 1, 12));
  kill(PidOf("shot", 1, 2), SIGKILL);
  ASSERT_TRUE(WaitForExits("shot", 1));
  bool named = false;
  for (const auto& event : Events("shot", 1, Kind::kRankExited)) {
    if (event.rank() == 2) {
      EXPECT_EQ(event.rank_exited().signal(), SIGKILL);
    } else {
      EXPECT_FALSE(event.rank_exited().finished());
      named |= event.rank_exited().blame_rank() == "2";
    }
  }
  EXPECT_TRUE(named) << "a survivor names the rank that died";
  const v1::CheckpointManifest restore = Manifest("shot", spec, kSteps);
  ASSERT_GE(restore.step(), 5);
  Start("shot", 2, spec, &restore);
  ExpectAllFinished("shot", 2);
  const auto after = WeightsDigest(Manifest("shot", spec, kSteps));
  ASSERT_TRUE(after.ok()) << after.status();
  EXPECT_EQ(*after, *digest) << "the same bits as the run that was never disturbed";
  const std::vector<double> resumed = Losses("shot", 2);
  ASSERT_EQ(resumed.size(), kSteps - restore.step());
  for (size_t i = 0; i < resumed.size(); ++i) EXPECT_EQ(resumed[i], calm[restore.step() + i]);
}

TEST_F(TrainingTest, StoppedRankIsFoundHungAndNamed) {
  v1::JobSpec spec = Spec();
  spec.mutable_training()->set_steps(100000);
  spec.mutable_checkpoint()->set_every_steps(0);
  Start("hang", 1, spec);
  ASSERT_TRUE(WaitForStep("hang", 1, 20));
  kill(PidOf("hang", 1, 1), SIGSTOP);
  ASSERT_TRUE(coordinator_->WaitFor([&] { return !Events("hang", 1, Kind::kRankHung).empty(); }));
  const auto hung = Events("hang", 1, Kind::kRankHung);
  EXPECT_EQ(hung[0].rank(), 1);
  EXPECT_GE(hung[0].rank_hung().step(), 19);
  EXPECT_EQ(hung[0].rank_hung().phase(), "step");
  ASSERT_TRUE(WaitForExits("hang", 1)) << "the others see their peer die";
}

TEST_F(TrainingTest, AllRanksPauseAtTheSameStepWithACheckpoint) {
  v1::JobSpec spec = Spec();
  spec.mutable_training()->set_steps(100000);
  spec.mutable_checkpoint()->set_every_steps(0);
  Start("pause", 1, spec);
  ASSERT_TRUE(WaitForStep("pause", 1, 10));
  Order(/*then_stop=*/true, "pause");
  ASSERT_TRUE(WaitForExits("pause", 1));
  const v1::CheckpointManifest manifest = Manifest("pause", spec, 100000);
  EXPECT_GE(manifest.step(), 10);
  for (const auto& event : Events("pause", 1, Kind::kRankExited)) {
    EXPECT_TRUE(event.rank_exited().paused()) << event.ShortDebugString();
    EXPECT_EQ(event.rank_exited().step(), manifest.step());
  }
}

TEST_F(TrainingTest, MissingDataIsAClearError) {
  v1::JobSpec spec = Spec();
  spec.mutable_data()->mutable_train(0)->set_prefix((folder_ / "nothing").string());
  Start("nodata", 1, spec);
  ASSERT_TRUE(WaitForExits("nodata", 1));
  bool said = false;
  for (const auto& event : Events("nodata", 1, Kind::kRankExited)) {
    EXPECT_FALSE(event.rank_exited().finished());
    said |= event.rank_exited().message().find("nothing") != std::string::npos;
  }
  EXPECT_TRUE(said);
}

}  // namespace
}  // namespace mt
