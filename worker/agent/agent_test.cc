// The daemon's logic against a coordinator in memory and ranks that are only names, in virtual time.
#include "worker/agent/agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/testing/mem_env.h"
#include "common/testing/sim_event_loop.h"
#include "worker/agent/rank_frame.h"
#include "worker/agent/testing/fake_coordinator.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class FakeHost : public RankHost {
 public:
  void SetHandler(RankHandler* handler) override { handler_ = handler; }
  absl::StatusOr<int32_t> Spawn(RankLaunch launch) override {
    if (!spawn_error.ok()) return spawn_error;
    spawned.push_back(launch.id);
    launches[launch.id] = launch;
    return next_pid++;
  }
  void Send(const RankId& id, v1::ToRank message) override {
    sent.emplace_back(id, std::move(message));
  }
  void Signal(const RankId& id, RankSignal signal) override { signals.emplace_back(id, signal); }
  void Sweep(const RankId& id, int32_t) override { swept.push_back(id); }

  RankHandler* handler_ = nullptr;
  absl::Status spawn_error;
  int32_t next_pid = 100;
  std::vector<RankId> spawned, swept;
  std::map<RankId, RankLaunch> launches;
  std::vector<std::pair<RankId, v1::ToRank>> sent;
  std::vector<std::pair<RankId, RankSignal>> signals;
};

class FakeFetcher : public FileFetcher {
 public:
  void Fetch(FetchRequest request, std::function<void(absl::Status)> done) override {
    fetches.emplace_back(std::move(request), std::move(done));
  }
  std::vector<std::pair<FetchRequest, std::function<void(absl::Status)>>> fetches;
};

// Answers when the test lets it.
class FakeDataChecker : public DataChecker {
 public:
  explicit FakeDataChecker(EventLoop* loop) : loop_(loop) {}
  void Check(const v1::JobSpec& spec,
             std::function<void(absl::StatusOr<DataFingerprints>)> done) override {
    specs.push_back(spec);
    waiting.push_back(std::move(done));
    if (!held) Answer();
  }
  void Answer() {
    for (auto& done : std::exchange(waiting, {}))
      loop_->Post([done = std::move(done), status = status, prints = fingerprints] {
        if (status.ok()) {
          done(prints);
        } else {
          done(status);
        }
      });
  }
  absl::Status status;
  DataFingerprints fingerprints;
  std::vector<v1::JobSpec> specs;
  bool held = false;
  std::vector<std::function<void(absl::StatusOr<DataFingerprints>)>> waiting;

 private:
  EventLoop* const loop_;
};

class FakeDatasets : public DatasetProvider {
 public:
  void Provide(DatasetRequest request,
               std::function<void(absl::StatusOr<ProvidedDatasets>)> done) override {
    requests.emplace_back(std::move(request), std::move(done));
  }
  void Release(const std::string& job_id, int32_t generation) override {
    released.emplace(job_id, generation);
  }
  std::vector<v1::DataFetch> Progress() const override { return progress; }
  int64_t CachedBytes() const override { return 7; }
  int64_t LimitBytes() const override { return 70; }
  std::vector<std::pair<DatasetRequest, std::function<void(absl::StatusOr<ProvidedDatasets>)>>>
      requests;
  std::set<std::pair<std::string, int32_t>> released;
  std::vector<v1::DataFetch> progress;
};

class AgentTest : public ::testing::Test {
 protected:
  AgentTest() {
    EXPECT_TRUE(env_.CreateDirectories("/state").ok());
    StartDaemon();
  }

  void StartDaemon() {
    AgentOptions options;
    options.node = "n0";
    options.state_folder = "/state";
    options.identity.set_slots(4);
    options.identity.set_cores(4);
    options.renew_certificate = [this](const v1::RenewCertificate& next) {
      certificates_.push_back(next.certificate_pem() + next.key_pem());
      return certificate_status_;
    };
    host_ = std::make_unique<FakeHost>();
    agent_ = std::make_unique<Agent>(options, &loop_, &env_, random_.get(), &coordinator_,
                                     host_.get(), &fetcher_, &data_checker_, &datasets_,
                                     [this](absl::Status status) { ended_.push_back(status); });
    ASSERT_TRUE(agent_->Start().ok());
    Run();
  }
  // kill -9 of the daemon.
  void CrashDaemon() {
    agent_ = nullptr;
    coordinator_.Break(absl::UnavailableError("reset"));
    env_.KillProcess();
  }

  void Run(absl::Duration time = absl::Milliseconds(10)) {
    scheduler_.RunUntil(scheduler_.now() + time);
  }

  v1::CommandResult Command(v1::CoordinatorMessage message) {
    message.set_command_id(absl::StrCat("c", ++commands_));
    coordinator_.Send(std::move(message));
    Run();
    EXPECT_FALSE(coordinator_.results.empty());
    return coordinator_.results.empty() ? v1::CommandResult() : coordinator_.results.back();
  }
  v1::CommandResult StartRanks(int generation, int num_ranks = 2, bool elsewhere = true) {
    return Command(StartMessage(generation, num_ranks, elsewhere));
  }
  v1::CommandResult LaunchRanks(int generation) {
    v1::CoordinatorMessage message;
    message.mutable_launch_ranks()->set_job_id("job-1");
    message.mutable_launch_ranks()->set_generation(generation);
    return Command(std::move(message));
  }
  v1::CoordinatorMessage StartMessage(int generation, int num_ranks, bool with_elsewhere) {
    v1::CoordinatorMessage message;
    auto* start = message.mutable_start_ranks();
    start->set_job_id("job-1");
    start->set_generation(generation);
    start->mutable_spec()->mutable_fault()->mutable_min_step_deadline()->set_seconds(2);
    start->mutable_spec()->mutable_fault()->mutable_start_deadline()->set_seconds(30);
    start->mutable_spec()->mutable_fault()->mutable_stop_grace()->set_seconds(3);
    for (int rank = 0; rank < num_ranks; ++rank) {
      auto* slot = start->add_rank_table();
      slot->set_rank(rank);
      slot->set_slot(rank);
      slot->set_node("n0");
    }
    if (!with_elsewhere) return message;
    auto* elsewhere = start->add_rank_table();
    elsewhere->set_rank(num_ranks);
    elsewhere->set_node("n1");
    return message;
  }
  v1::CommandResult StopRanks(int generation) {
    v1::CoordinatorMessage message;
    message.mutable_stop_ranks()->set_job_id("job-1");
    message.mutable_stop_ranks()->set_generation(generation);
    message.mutable_stop_ranks()->set_reason("cancelled");
    return Command(std::move(message));
  }
  RankId Id(int generation, int rank) { return {"job-1", generation, rank}; }
  void Exit(int generation, int rank, int signal = 9) {
    host_->handler_->OnRankExited(Id(generation, rank),
                                  {signal != 0 ? -1 : 0, signal, {"last words"}});
    Run();
  }
  void Progress(int generation, int rank, const std::string& phase, int64_t step) {
    v1::FromRank message;
    message.mutable_progress()->set_phase(phase);
    message.mutable_progress()->set_step(step);
    message.mutable_progress()->set_where("computing");
    host_->handler_->OnRankMessage(Id(generation, rank), message);
  }
  // What the rank says before it ends; without a code: that it has done all steps.
  void Finish(int generation, int rank, const std::string& code = "",
              const std::string& message = "", const std::string& blame = "") {
    v1::FromRank last;
    v1::Finished& finished = *last.mutable_finished();
    finished.set_ok(code.empty());
    finished.set_status_code(code);
    finished.set_message(message);
    finished.set_blame_rank(blame);
    finished.set_step(20);
    host_->handler_->OnRankMessage(Id(generation, rank), last);
  }
  std::vector<v1::WorkerEvent> Exits() {
    return coordinator_.EventsOf(v1::WorkerEvent::kRankExited);
  }

  SimScheduler scheduler_;
  SimEventLoop loop_{&scheduler_};
  MemEnv env_;
  std::unique_ptr<Random> random_ = NewSeededRandom(1);
  FakeCoordinator coordinator_{&loop_};
  FakeFetcher fetcher_;
  FakeDataChecker data_checker_{&loop_};
  FakeDatasets datasets_;
  std::unique_ptr<FakeHost> host_;
  std::unique_ptr<Agent> agent_;
  std::vector<absl::Status> ended_;
  std::vector<std::string> certificates_;
  absl::Status certificate_status_;
  int commands_ = 0;
};

TEST_F(AgentTest, RegistersAndStartsItsOwnRanksOnce) {
  EXPECT_TRUE(coordinator_.registered);
  // At once, not after an interval: the coordinator waits for it before it uses a node that came back.
  EXPECT_EQ(coordinator_.heartbeats, 1);
  EXPECT_EQ(StartRanks(1).code(), 0);
  EXPECT_THAT(host_->spawned, ElementsAre(Id(1, 0), Id(1, 1)));
  EXPECT_EQ(StartRanks(1).code(), 0) << "the same command again";
  EXPECT_EQ(host_->spawned.size(), 2u);
  EXPECT_EQ(coordinator_.EventsOf(v1::WorkerEvent::kRankStarted).size(), 2u);
  EXPECT_EQ(host_->launches[Id(1, 0)].start.threads(), 1);
}

TEST_F(AgentTest, NewerGenerationEndsTheOlderAndWaitsForIt) {
  StartRanks(1);
  EXPECT_EQ(StartRanks(2).code(), 0);
  EXPECT_EQ(host_->signals.size(), 2u);
  EXPECT_EQ(host_->spawned.size(), 2u);
  Exit(1, 0);
  EXPECT_EQ(host_->spawned.size(), 2u);
  Exit(1, 1);
  EXPECT_THAT(host_->spawned, ElementsAre(Id(1, 0), Id(1, 1), Id(2, 0), Id(2, 1)));
}

TEST_F(AgentTest, StaleGenerationIsAborted) {
  StartRanks(3);
  EXPECT_EQ(StartRanks(2).code(), static_cast<int>(absl::StatusCode::kAborted));
  EXPECT_EQ(StopRanks(2).code(), static_cast<int>(absl::StatusCode::kAborted));
  EXPECT_THAT(host_->signals, IsEmpty());
  CrashDaemon();
  StartDaemon();
  EXPECT_EQ(StartRanks(2).code(), static_cast<int>(absl::StatusCode::kAborted))
      << "a restart must not forget it";
}

TEST_F(AgentTest, WhatWasStoppedBeforeItStartedNeverStarts) {
  StopRanks(2);
  EXPECT_EQ(StartRanks(2).code(), 0);
  EXPECT_THAT(host_->spawned, IsEmpty());
  StartRanks(3);
  EXPECT_EQ(host_->spawned.size(), 2u);
}

TEST_F(AgentTest, RefusedDataEndsTheRanksBeforeTheyStart) {
  data_checker_.status = absl::NotFoundError("data.train: /data/text.idx: no such file");
  EXPECT_EQ(StartRanks(1).code(), 0);
  EXPECT_THAT(host_->spawned, IsEmpty());
  const auto exits = coordinator_.EventsOf(v1::WorkerEvent::kRankExited);
  ASSERT_EQ(exits.size(), 2u);
  EXPECT_EQ(exits[1].rank(), 1);
  EXPECT_EQ(exits[1].rank_exited().cause(), "data");
  EXPECT_EQ(exits[1].rank_exited().message(), data_checker_.status.message());
  // Another node may do where a disk is broken.
  data_checker_.status = absl::InternalError("read /data/text.idx: Input/output error");
  StartRanks(2);
  EXPECT_EQ(coordinator_.EventsOf(v1::WorkerEvent::kRankExited).back().rank_exited().cause(),
            "start");
  data_checker_.status = absl::OkStatus();
  StartRanks(3);
  EXPECT_EQ(host_->spawned.size(), 2u) << "the next generation looks again";
}

TEST_F(AgentTest, RanksWaitForTheDataCheckOfTheirOwnGeneration) {
  data_checker_.held = true;
  StartRanks(1);
  StartRanks(2);
  EXPECT_THAT(host_->spawned, IsEmpty());
  data_checker_.Answer();
  Run();
  EXPECT_THAT(host_->spawned, ElementsAre(Id(2, 0), Id(2, 1)));
  StartRanks(3);
  Exit(2, 0);
  Exit(2, 1);
  EXPECT_EQ(host_->spawned.size(), 2u) << "the older ranks are gone, the data is not checked";
  StopRanks(3);
  data_checker_.Answer();
  Run();
  EXPECT_EQ(host_->spawned.size(), 2u) << "stopped while its data was being checked";
}

TEST_F(AgentTest, RanksOfSeveralNodesWaitUntilTheirDataIsCompared) {
  coordinator_.agree = false;
  data_checker_.held = true;
  data_checker_.fingerprints = {{"/data/text", "idx:1:aa"}};
  StartRanks(1);
  EXPECT_EQ(LaunchRanks(1).code(), 0);
  EXPECT_THAT(coordinator_.EventsOf(v1::WorkerEvent::kDataChecked), IsEmpty());
  data_checker_.Answer();
  Run();
  const auto checked = coordinator_.EventsOf(v1::WorkerEvent::kDataChecked);
  ASSERT_EQ(checked.size(), 1u);
  EXPECT_EQ(checked[0].data_checked().fingerprint_of_prefix().at("/data/text"), "idx:1:aa");
  EXPECT_THAT(host_->spawned, IsEmpty()) << "the launch came before the data was told";
  LaunchRanks(1);
  LaunchRanks(1);
  EXPECT_THAT(host_->spawned, ElementsAre(Id(1, 0), Id(1, 1)));
  EXPECT_EQ(host_->launches[Id(1, 0)].start.index_cache(), "/state/sample-index");
  EXPECT_TRUE(env_.Stat("/state/sample-index").ok());
}

TEST_F(AgentTest, AJobOnOneNodeHasNobodyToWaitFor) {
  coordinator_.agree = false;
  StartRanks(1, 2, /*elsewhere=*/false);
  EXPECT_EQ(host_->spawned.size(), 2u);
  EXPECT_EQ(coordinator_.EventsOf(v1::WorkerEvent::kDataChecked).size(), 1u);
}

TEST_F(AgentTest, AnAttemptThatWaitedWhenTheDaemonDiedIsBegunAnew) {
  StartRanks(1);
  coordinator_.agree = false;
  StartRanks(2);
  Exit(1, 0);  // writes the record of ranks while the next generation waits
  Exit(1, 1);
  CrashDaemon();
  StartDaemon();
  coordinator_.agree = true;
  EXPECT_EQ(StartRanks(1).code(), 0);
  EXPECT_THAT(host_->spawned, IsEmpty()) << "the one before never starts again";
  EXPECT_EQ(StartRanks(2).code(), 0);
  EXPECT_THAT(host_->spawned, ElementsAre(Id(2, 0), Id(2, 1)));
}

TEST_F(AgentTest, DistributedDataIsGivenToRanksByItsLocalPrefix) {
  v1::CoordinatorMessage message = StartMessage(1, 2, true);
  v1::StartRanks& start = *message.mutable_start_ranks();
  start.mutable_spec()->mutable_data()->add_train()->set_prefix("/far/text");
  start.add_dataset_files()->set_path("/far/text.bin");
  start.add_dataset_endpoints("n1:1");
  data_checker_.fingerprints = {{"/state/datasets/k/data", "idx:1:aa"}};
  Command(std::move(message));
  ASSERT_EQ(datasets_.requests.size(), 1u);
  EXPECT_THAT(datasets_.requests[0].first.endpoints, ElementsAre("n1:1"));
  EXPECT_THAT(data_checker_.specs, IsEmpty()) << "nothing to look at yet";
  datasets_.released.clear();
  datasets_.requests[0].second(ProvidedDatasets{{{"/far/text", "/state/datasets/k/data"}}, 5, 3});
  Run();
  ASSERT_EQ(data_checker_.specs.size(), 1u);
  EXPECT_EQ(data_checker_.specs[0].data().train(0).prefix(), "/state/datasets/k/data");
  const auto checked = coordinator_.EventsOf(v1::WorkerEvent::kDataChecked);
  ASSERT_EQ(checked.size(), 1u);
  EXPECT_EQ(checked[0].data_checked().fingerprint_of_prefix().count("/far/text"), 1u);
  EXPECT_EQ(checked[0].data_checked().bytes_from_nodes(), 3);
  ASSERT_EQ(host_->spawned.size(), 2u);
  EXPECT_EQ(host_->launches[Id(1, 1)].start.spec().data().train(0).prefix(),
            "/state/datasets/k/data");
  Exit(1, 0);
  EXPECT_THAT(datasets_.released, IsEmpty()) << "a rank still reads it";
  Exit(1, 1);
  EXPECT_THAT(datasets_.released, ElementsAre(std::pair<std::string, int32_t>("job-1", 1)));
}

TEST_F(AgentTest, DataThatDoesNotComeIsRefusedAndAStopEndsTheFetch) {
  v1::CoordinatorMessage message = StartMessage(1, 2, true);
  message.mutable_start_ranks()->add_dataset_files()->set_path("/far/text.bin");
  Command(message);
  datasets_.requests[0].second(absl::ResourceExhaustedError("too small"));
  Run();
  ASSERT_EQ(Exits().size(), 2u);
  EXPECT_EQ(Exits()[0].rank_exited().cause(), "data");
  message.mutable_start_ranks()->set_generation(2);
  Command(message);
  datasets_.released.clear();
  StopRanks(2);
  EXPECT_THAT(datasets_.released, ElementsAre(std::pair<std::string, int32_t>("job-1", 2)));
  datasets_.requests[1].second(ProvidedDatasets());
  Run();
  EXPECT_THAT(host_->spawned, IsEmpty());
}

TEST_F(AgentTest, HeartbeatsTellOfFetches) {
  v1::DataFetch fetch;
  fetch.set_job_id("job-1");
  fetch.set_bytes_done(5);
  datasets_.progress = {fetch};
  Run(absl::Seconds(2));
  ASSERT_EQ(coordinator_.last_heartbeat.data_fetches_size(), 1);
  EXPECT_EQ(coordinator_.last_heartbeat.data_fetches(0).bytes_done(), 5);
  EXPECT_EQ(coordinator_.last_heartbeat.data_cache_bytes(), 7);
  EXPECT_EQ(coordinator_.registrations[0].data_cache_limit_bytes(), 70);
}

TEST_F(AgentTest, RankThatIgnoresTerminateIsKilledAfterTheGrace) {
  StartRanks(1, 1);
  StopRanks(1);
  ASSERT_EQ(host_->signals.size(), 1u);
  EXPECT_EQ(host_->signals[0].second, RankSignal::kTerminate);
  Run(absl::Milliseconds(2900));
  EXPECT_EQ(host_->signals.size(), 1u);
  Run(absl::Milliseconds(200));
  ASSERT_EQ(host_->signals.size(), 2u);
  EXPECT_EQ(host_->signals[1].second, RankSignal::kKill);
  Exit(1, 0);
  ASSERT_EQ(Exits().size(), 1u);
  EXPECT_TRUE(Exits()[0].rank_exited().stopped());
  EXPECT_EQ(Exits()[0].rank_exited().message(), "cancelled");
}

TEST_F(AgentTest, ARankThatDoesNotEndAfterItsLastWordIsKilledAndEndsAsItSaid) {
  v1::CoordinatorMessage message = StartMessage(1, 2, true);
  auto* fault = message.mutable_start_ranks()->mutable_spec()->mutable_fault();
  fault->mutable_min_step_deadline()->set_seconds(20);
  Command(std::move(message));
  Finish(1, 0);
  Finish(1, 1, "UNAVAILABLE", "connection closed", "0");
  Run(absl::Milliseconds(2900));
  EXPECT_THAT(host_->signals, IsEmpty());
  Run(absl::Milliseconds(200));
  ASSERT_EQ(host_->signals.size(), 1u);
  EXPECT_EQ(host_->signals[0], std::pair(Id(1, 1), RankSignal::kKill)) << "after the stop grace";
  Run(absl::Milliseconds(16800));
  EXPECT_EQ(host_->signals.size(), 1u) << "what is done may wait for its peers";
  Run(absl::Milliseconds(200));
  ASSERT_EQ(host_->signals.size(), 2u);
  EXPECT_EQ(host_->signals[1], std::pair(Id(1, 0), RankSignal::kKill));
  Exit(1, 0);
  Exit(1, 1);
  ASSERT_EQ(Exits().size(), 2u);
  const v1::RankExited done = Exits()[0].rank_exited(), failed = Exits()[1].rank_exited();
  EXPECT_TRUE(done.finished());
  EXPECT_EQ(done.exit_code(), 0);
  EXPECT_EQ(done.signal(), 0);
  EXPECT_EQ(done.step(), 20);
  EXPECT_FALSE(failed.finished());
  EXPECT_EQ(failed.exit_code(), 1);
  EXPECT_EQ(failed.signal(), 0) << "else the job's cause would be our signal";
  EXPECT_EQ(failed.status_code(), "UNAVAILABLE");
  EXPECT_EQ(failed.blame_rank(), "0");
  EXPECT_THAT(failed.last_lines(), ElementsAre("last words"));
  EXPECT_EQ(coordinator_.EventsOf(v1::WorkerEvent::kRankHung).size(), 0u);
}

TEST_F(AgentTest, ARankThatEndsInTimeAfterItsLastWordIsLeftAlone) {
  StartRanks(1, 1);
  Finish(1, 0);
  Run(absl::Seconds(1));
  Exit(1, 0, 0);
  StartRanks(2, 1);
  Run(absl::Seconds(5));
  EXPECT_THAT(host_->signals, IsEmpty());
  // A signal that is not ours is an end of its own.
  Finish(2, 0);
  Exit(2, 0, 11);
  ASSERT_EQ(Exits().size(), 2u);
  EXPECT_TRUE(Exits()[0].rank_exited().finished());
  EXPECT_FALSE(Exits()[1].rank_exited().finished());
  EXPECT_EQ(Exits()[1].rank_exited().signal(), 11);
}

TEST_F(AgentTest, AStopDoesNotChangeWhatARankHasSaid) {
  StartRanks(1, 2);
  Finish(1, 0, "INTERNAL", "loss is not finite");
  StopRanks(1);
  ASSERT_EQ(host_->signals.size(), 1u);
  EXPECT_EQ(host_->signals[0], std::pair(Id(1, 1), RankSignal::kTerminate));
  Finish(1, 0, "CANCELLED", "stopped by SIGTERM");
  Run(absl::Seconds(4));
  EXPECT_EQ(host_->signals.size(), 3u) << "neither has ended";
  Exit(1, 0);
  Exit(1, 1);
  ASSERT_EQ(Exits().size(), 2u);
  EXPECT_EQ(Exits()[0].rank_exited().status_code(), "INTERNAL");
  EXPECT_EQ(Exits()[0].rank_exited().message(), "loss is not finite");
  EXPECT_FALSE(Exits()[0].rank_exited().stopped());
  EXPECT_TRUE(Exits()[1].rank_exited().stopped());
}

TEST_F(AgentTest, SilentRankIsNamedAndKilled) {
  StartRanks(1, 1);
  for (int step = 0; step < 12; ++step) {
    Progress(1, 0, "step", step);
    Run(absl::Milliseconds(100));
  }
  Run(absl::Milliseconds(1500));
  EXPECT_THAT(host_->signals, IsEmpty());
  Run(absl::Seconds(1));
  const auto hung = coordinator_.EventsOf(v1::WorkerEvent::kRankHung);
  ASSERT_EQ(hung.size(), 1u);
  EXPECT_EQ(hung[0].rank(), 0);
  EXPECT_EQ(hung[0].rank_hung().step(), 11);
  EXPECT_EQ(hung[0].rank_hung().phase(), "step");
  EXPECT_EQ(hung[0].rank_hung().deadline().seconds(), 2);
  ASSERT_EQ(host_->signals.size(), 1u);
  EXPECT_EQ(host_->signals[0].second, RankSignal::kKill);
  Exit(1, 0);
  EXPECT_EQ(Exits()[0].rank_exited().status_code(), "DEADLINE_EXCEEDED");
}

TEST_F(AgentTest, RanksGoOnWithoutACoordinatorAndEventsAreReplayedInOrder) {
  StartRanks(1);
  coordinator_.up = false;
  coordinator_.Break(absl::UnavailableError("reset"));
  const size_t before = coordinator_.events.size();
  for (int i = 0; i < 5; ++i)
    host_->handler_->OnRankOutput(Id(1, 0), absl::StrCat("line ", i, "\n"), false, i * 7);
  for (int second = 0; second < 600; ++second) {
    for (int rank = 0; rank < 2; ++rank) Progress(1, rank, "step", second);
    Run(absl::Seconds(1));
  }
  Exit(1, 1);
  EXPECT_THAT(host_->signals, IsEmpty()) << "nobody is stopped because the coordinator is away";
  EXPECT_GT(coordinator_.dials, 20);
  EXPECT_LT(coordinator_.dials, 120) << "back-off";
  coordinator_.up = true;
  for (int second = 600; second < 620; ++second) {
    Progress(1, 0, "step", second);
    Run(absl::Seconds(1));
  }
  ASSERT_EQ(coordinator_.events.size(), before + 6);
  for (int i = 0; i < 5; ++i)
    EXPECT_EQ(coordinator_.events[before + i].log_lines().data(), absl::StrCat("line ", i, "\n"));
  EXPECT_TRUE(coordinator_.events.back().has_rank_exited());
  EXPECT_EQ(coordinator_.incarnations.front(), coordinator_.incarnations.back());
  EXPECT_THAT(agent_->spool().Pending(), IsEmpty());
}

TEST_F(AgentTest, WhatIsNotAcknowledgedIsSentAgain) {
  coordinator_.acknowledge = false;
  StartRanks(1);
  const std::vector<v1::WorkerEvent> first = coordinator_.events;
  ASSERT_EQ(first.size(), 3u) << "the data, and two ranks";
  coordinator_.acknowledged_sequence = first[1].sequence();
  coordinator_.Break(absl::UnavailableError("reset"));
  Run(absl::Seconds(5));
  ASSERT_EQ(coordinator_.events.size(), 4u);
  EXPECT_EQ(coordinator_.events[3].sequence(), first[2].sequence());
}

TEST_F(AgentTest, ARestartedDaemonReportsTheRanksThatEndedWithIt) {
  StartRanks(1);
  Exit(1, 1);
  const std::string incarnation = agent_->incarnation();
  CrashDaemon();
  StartDaemon();
  EXPECT_NE(agent_->incarnation(), incarnation);
  EXPECT_THAT(host_->swept, ElementsAre(Id(1, 0)));
  Run(absl::Seconds(1));
  ASSERT_EQ(Exits().size(), 2u);
  EXPECT_EQ(Exits()[1].rank(), 0);
  EXPECT_EQ(Exits()[1].rank_exited().status_code(), "ABORTED");
  EXPECT_THAT(Exits()[1].rank_exited().message(), HasSubstr("daemon of node n0 ended"));
  CrashDaemon();
  StartDaemon();
  Run(absl::Seconds(1));
  EXPECT_EQ(Exits().size(), 2u) << "told once";
}

TEST_F(AgentTest, ARestartedDaemonRemovesUnfinishedFilesOfItsStore) {
  const std::string folder = "/state/checkpoints/job-1/step-00000020";
  ASSERT_TRUE(env_.CreateDirectories(folder).ok());
  for (const char* name : {"/shard-r0.safetensors", "/shard-r1.safetensors.tmp",
                           "/shard-r2.safetensors.tmp-fetch-1"}) {
    ASSERT_TRUE(env_.NewWritableFile(folder + name, Env::WriteMode::kTruncate).ok());
  }
  CrashDaemon();
  StartDaemon();
  EXPECT_THAT(*env_.List(folder), ElementsAre("shard-r0.safetensors"));
}

TEST_F(AgentTest, RanksThatTheCoordinatorDoesNotKeepAreStopped) {
  StartRanks(1);
  coordinator_.keep_all = false;
  v1::RunningRank kept;
  kept.set_job_id("job-1");
  kept.set_generation(1);
  kept.set_rank(1);
  coordinator_.keep = {kept};
  coordinator_.Break(absl::UnavailableError("reset"));
  Run(absl::Seconds(2));
  ASSERT_EQ(host_->signals.size(), 1u);
  EXPECT_EQ(host_->signals[0].first, Id(1, 0));
}

TEST_F(AgentTest, AnOlderEpochIsNotObeyed) {
  coordinator_.epoch = 5;
  StartRanks(1);
  coordinator_.epoch = 4;
  v1::CoordinatorMessage message;
  message.mutable_stop_ranks()->set_job_id("job-1");
  message.mutable_stop_ranks()->set_generation(1);
  coordinator_.Send(message);
  Run();
  EXPECT_THAT(host_->signals, IsEmpty());
  EXPECT_FALSE(agent_->registered());
  coordinator_.epoch = 6;
  Run(absl::Seconds(30));
  EXPECT_TRUE(agent_->registered());
}

TEST_F(AgentTest, AnotherIncarnationEndsThisOne) {
  StartRanks(1, 1);
  coordinator_.Break(absl::AbortedError("incarnation xyz is registered"));
  Run();
  ASSERT_EQ(host_->signals.size(), 1u);
  EXPECT_THAT(ended_, IsEmpty());
  Exit(1, 0);
  ASSERT_EQ(ended_.size(), 1u);
  EXPECT_TRUE(absl::IsAborted(ended_[0]));
}

TEST_F(AgentTest, RendezvousGoesThroughAndSurvivesABrokenStream) {
  StartRanks(1);
  v1::FromRank get;
  get.mutable_rendezvous_get()->set_key("k");
  host_->handler_->OnRankMessage(Id(1, 0), get);
  Run();
  EXPECT_THAT(host_->sent, IsEmpty());
  coordinator_.Break(absl::UnavailableError("reset"));
  coordinator_.values["k"] = "from elsewhere";
  Run(absl::Seconds(2));
  ASSERT_EQ(host_->sent.size(), 1u);
  EXPECT_EQ(host_->sent[0].second.rendezvous_value().value(), "from elsewhere");
  v1::FromRank put;
  put.mutable_rendezvous_put()->set_key("own");
  put.mutable_rendezvous_put()->set_value("v");
  host_->handler_->OnRankMessage(Id(1, 0), put);
  get.mutable_rendezvous_get()->set_key("own");
  host_->handler_->OnRankMessage(Id(1, 1), get);
  Run();
  EXPECT_EQ(host_->sent.back().second.rendezvous_value().value(), "v");
  EXPECT_EQ(coordinator_.values["own"], "v");
}

TEST_F(AgentTest, FastOutputIsLimitedAndCounted) {
  StartRanks(1, 1);
  const std::string chunk = std::string(1023, 'x') + "\n";
  for (int i = 0; i < 2000; ++i) host_->handler_->OnRankOutput(Id(1, 0), chunk, false, i * 1024);
  Run(absl::Seconds(1));
  host_->handler_->OnRankOutput(Id(1, 0), "end\n", false, 2000 * 1024);
  Run();
  const auto lines = coordinator_.EventsOf(v1::WorkerEvent::kLogLines);
  ASSERT_GT(lines.size(), 500u);
  ASSERT_LT(lines.size(), 600u);
  EXPECT_THAT(lines[lines.size() - 2].log_lines().data(),
              HasSubstr(absl::StrCat(2000 - (lines.size() - 2), " lines")));
  EXPECT_EQ(lines.back().log_lines().data(), "end\n");
}

TEST_F(AgentTest, SpawnFailureIsAnExit) {
  host_->spawn_error = absl::ResourceExhaustedError("fork: no memory");
  StartRanks(1, 1);
  ASSERT_EQ(Exits().size(), 1u);
  EXPECT_THAT(Exits()[0].rank_exited().message(), HasSubstr("fork: no memory"));
  EXPECT_EQ(agent_->num_ranks(), 0u);
}

TEST_F(AgentTest, NeededFilesAreFetchedOnceForAllRanks) {
  coordinator_.agree = false;
  v1::CoordinatorMessage message;
  auto* start = message.mutable_start_ranks();
  start->set_job_id("job-1");
  start->set_generation(1);
  for (int rank = 0; rank < 2; ++rank) {
    auto* slot = start->add_rank_table();
    slot->set_rank(rank);
    slot->set_slot(rank);
    slot->set_node("n0");
  }
  start->mutable_restore()->set_job_id("job-0");
  start->mutable_restore()->set_step(20);
  start->mutable_restore()->add_files()->set_name("shard-r0.safetensors");
  auto* source = start->add_sources();
  source->set_file("shard-r0.safetensors");
  source->add_endpoints("10.0.0.2:7000");
  Command(std::move(message));
  EXPECT_THAT(host_->spawned, IsEmpty()) << "its data is compared with that of before";
  LaunchRanks(1);
  v1::FromRank need;
  need.mutable_need_file()->set_file("shard-r0.safetensors");
  host_->handler_->OnRankMessage(Id(1, 0), need);
  host_->handler_->OnRankMessage(Id(1, 1), need);
  ASSERT_EQ(fetcher_.fetches.size(), 1u);
  const FetchRequest& request = fetcher_.fetches[0].first;
  EXPECT_EQ(request.job_id, "job-0");
  EXPECT_EQ(request.step, 20);
  EXPECT_THAT(request.endpoints, ElementsAre("10.0.0.2:7000"));
  EXPECT_EQ(request.destination, "/state/checkpoints/job-0/step-00000020/shard-r0.safetensors");
  fetcher_.fetches[0].second(absl::OkStatus());
  ASSERT_EQ(host_->sent.size(), 2u);
  EXPECT_TRUE(host_->sent[0].second.file_ready().ok());
  EXPECT_EQ(host_->sent[1].second.file_ready().path(), request.destination);
  need.mutable_need_file()->set_file("../../etc/passwd");
  host_->handler_->OnRankMessage(Id(1, 0), need);
  EXPECT_FALSE(host_->sent.back().second.file_ready().ok());
}

// Written once for all ranks of the node, and gone with them.
TEST_F(AgentTest, AManifestThatIsTooLargeForAMessageGoesByAFile) {
  v1::CoordinatorMessage message;
  auto* start = message.mutable_start_ranks();
  start->set_job_id("job-1");
  start->set_generation(1);
  for (int rank = 0; rank < 2; ++rank) {
    auto* slot = start->add_rank_table();
    slot->set_rank(rank);
    slot->set_slot(rank);
    slot->set_node("n0");
  }
  start->mutable_restore()->set_job_id("job-1");
  while (start->restore().files_size() < 20)
    start->mutable_restore()->add_files()->set_name(std::string(1 << 20, 'a'));
  const std::string manifest = start->restore().SerializeAsString();
  Command(std::move(message));
  ASSERT_EQ(host_->spawned.size(), 2u);
  const std::string path = host_->launches[Id(1, 0)].start.restore_file();
  for (const auto& [id, launch] : host_->launches) {
    EXPECT_EQ(launch.start.restore_file(), path);
    v1::ToRank first;
    *first.mutable_start() = launch.start;
    std::string frame;
    EXPECT_TRUE(AppendFrame(first, &frame).ok());
    EXPECT_FALSE(launch.start.restore_root().empty());
  }
  EXPECT_TRUE(ReadFile(&env_, path).value_or("") == manifest);
  Exit(1, 0, 9);
  Exit(1, 1, 9);
  EXPECT_EQ(ReadFile(&env_, path).status().code(), absl::StatusCode::kNotFound);
}

// A rank must learn why a file does not come: only what nobody has is a reason to give the checkpoint up.
TEST_F(AgentTest, AFileIsLostOnlyIfEveryNodeThatHoldsItWasAsked) {
  coordinator_.agree = false;
  v1::CoordinatorMessage message;
  auto* start = message.mutable_start_ranks();
  start->set_job_id("job-1");
  start->set_generation(1);
  start->add_rank_table()->set_node("n0");
  start->mutable_restore()->set_job_id("job-1");
  start->mutable_restore()->set_step(20);
  for (const char* name : {"shard-r0.safetensors", "shard-r1.safetensors"}) {
    start->mutable_restore()->add_files()->set_name(name);
    auto* source = start->add_sources();
    source->set_file(name);
    source->add_endpoints("10.0.0.2:7000");
  }
  start->mutable_sources(1)->add_unreachable_nodes("n3");
  Command(std::move(message));
  LaunchRanks(1);
  auto code = [&](const char* file, absl::Status fetched) {
    v1::FromRank need;
    need.mutable_need_file()->set_file(file);
    host_->handler_->OnRankMessage(Id(1, 0), need);
    fetcher_.fetches.back().second(std::move(fetched));
    const v1::FileReady& ready = host_->sent.back().second.file_ready();
    EXPECT_FALSE(ready.ok());
    return static_cast<absl::StatusCode>(ready.code());
  };
  const absl::Status corrupt = absl::DataLossError("it is corrupt");
  EXPECT_EQ(code("shard-r0.safetensors", corrupt), absl::StatusCode::kDataLoss);
  EXPECT_EQ(code("shard-r1.safetensors", corrupt), absl::StatusCode::kUnavailable);
  EXPECT_THAT(host_->sent.back().second.file_ready().message(), HasSubstr("n3"));
  for (const auto& passing : {absl::UnavailableError("x"), absl::ResourceExhaustedError("x"),
                              absl::DeadlineExceededError("x")}) {
    EXPECT_EQ(code("shard-r0.safetensors", passing), passing.code());
  }
}

TEST_F(AgentTest, ShutdownStopsRanksThenEnds) {
  StartRanks(1, 1);
  v1::CoordinatorMessage message;
  message.mutable_shutdown_worker()->set_reason("cluster down");
  Command(std::move(message));
  EXPECT_THAT(ended_, IsEmpty());
  EXPECT_EQ(StartRanks(2, 1).code(), static_cast<int>(absl::StatusCode::kUnavailable));
  Exit(1, 0, 15);
  ASSERT_EQ(ended_.size(), 1u);
  EXPECT_TRUE(ended_[0].ok());
}

TEST_F(AgentTest, TakesItsNextCertificateAndSaysWhenItCannot) {
  v1::CoordinatorMessage message;
  message.mutable_renew_certificate()->set_certificate_pem("certificate");
  message.mutable_renew_certificate()->set_key_pem("key");
  EXPECT_EQ(Command(message).code(), 0);
  EXPECT_THAT(certificates_, ElementsAre("certificatekey"));
  certificate_status_ = absl::ResourceExhaustedError("the disk is full");
  EXPECT_EQ(Command(message).code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
}

// A disk holds the daemon's thread up for longer than a step may take, while its ranks go on and say so.
TEST_F(AgentTest, DaemonThatStoodStillDoesNotTakeItsRanksForHung) {
  StartRanks(1, 2);
  for (int step = 0; step < 12; ++step) {
    for (int rank = 0; rank < 2; ++rank) Progress(1, rank, "step", step);
    Run(absl::Milliseconds(100));
  }
  loop_.SetStopped(true);
  for (int second = 0; second < 10; ++second) {
    scheduler_.RunUntil(scheduler_.now() + absl::Seconds(1));
    // Rank 1 hangs.
    loop_.Post([this, second] { Progress(1, 0, "step", 12 + second); });
  }
  loop_.SetStopped(false);
  Run(absl::Milliseconds(500));
  EXPECT_THAT(coordinator_.EventsOf(v1::WorkerEvent::kRankHung), IsEmpty());
  EXPECT_THAT(host_->signals, IsEmpty());
  for (int i = 0; i < 20; ++i) {
    Progress(1, 0, "step", 22 + i);
    Run(absl::Milliseconds(100));
  }
  const auto hung = coordinator_.EventsOf(v1::WorkerEvent::kRankHung);
  ASSERT_EQ(hung.size(), 1u);
  EXPECT_EQ(hung[0].rank(), 1) << "who is silent while it is listened to";
}

// It is the one that can be told to remove checkpoints.
TEST_F(AgentTest, StartsOnAFullDiskAndGoesOnWhenThereIsRoom) {
  StartRanks(1);
  CrashDaemon();
  coordinator_.acknowledge = false;
  env_.SetCapacity(env_.UsedBytes());
  StartDaemon();
  EXPECT_TRUE(coordinator_.registered);
  EXPECT_EQ(Exits().size(), 2u) << "told from memory";
  EXPECT_EQ(StartRanks(2).code(), 0);
  EXPECT_THAT(host_->spawned, IsEmpty()) << "without a record nothing may run";
  env_.SetCapacity(env_.UsedBytes() + (1 << 20));
  StartRanks(3);
  EXPECT_EQ(host_->spawned.size(), 2u);
  const size_t told = agent_->spool().Pending().size();
  CrashDaemon();
  StartDaemon();
  EXPECT_GE(agent_->spool().Pending().size(), told) << "the spool is on disk again";
}

TEST_F(AgentTest, StateFolderThatCannotBeWrittenForAnotherReasonIsAnError) {
  CrashDaemon();
  ASSERT_TRUE(env_.RemoveFile("/state/events.spool").ok());
  ASSERT_TRUE(env_.CreateDirectories("/state/events.spool/in the way").ok());
  AgentOptions options;
  options.node = "n0";
  options.state_folder = "/state";
  Agent agent(options, &loop_, &env_, random_.get(), &coordinator_, host_.get(), &fetcher_,
              &data_checker_, &datasets_, nullptr);
  EXPECT_FALSE(agent.Start().ok());
}

// After an upgrade of the coordinator: the launcher leaves a living daemon alone, so that only its end lets the new one in.
TEST_F(AgentTest, DaemonOfAnotherVersionEndsWhenItsLastRankHas) {
  StartRanks(1, 1);
  const auto refused = absl::FailedPreconditionError("worker has version 1, the coordinator 2");
  coordinator_.Break(refused);
  Run(absl::Seconds(1));
  EXPECT_THAT(ended_, IsEmpty()) << "its ranks go on";
  EXPECT_THAT(host_->signals, IsEmpty());
  coordinator_.Break(refused);
  Exit(1, 0);
  ASSERT_EQ(ended_.size(), 1u);
  EXPECT_EQ(ended_[0].code(), absl::StatusCode::kFailedPrecondition);
  const int dials = coordinator_.dials;
  Run(absl::Minutes(5));
  EXPECT_EQ(coordinator_.dials, dials);
}

TEST_F(AgentTest, RefusalThatWasTakenBackEndsNothing) {
  StartRanks(1, 1);
  coordinator_.Break(absl::FailedPreconditionError("worker has version 1, the coordinator 2"));
  Run(absl::Seconds(1));
  EXPECT_TRUE(coordinator_.registered) << "dialled again";
  Exit(1, 0);
  EXPECT_THAT(ended_, IsEmpty());
  coordinator_.Break(absl::FailedPreconditionError("worker has version 1, the coordinator 2"));
  Run();
  EXPECT_EQ(ended_.size(), 1u) << "nothing runs here";
}

// What a coordinator does with a node that has left its hostfile.
TEST_F(AgentTest, RanksEndWhenTheNodeIsDismissed) {
  StartRanks(1);
  coordinator_.keep_all = false;
  coordinator_.Break(absl::UnavailableError("reset"));
  Run(absl::Seconds(1));
  coordinator_.Break(absl::PermissionDeniedError("node \"n0\" is not in the hostfile"));
  Run();
  EXPECT_EQ(host_->signals.size(), 2u) << "each rank is told to end";
}

// A spare that brings a large checkpoint over: the start deadline is 30 s.
TEST_F(AgentTest, RankWhoseFileComesIsNotHung) {
  v1::CoordinatorMessage start = StartMessage(1, 2, /*with_elsewhere=*/false);
  start.mutable_start_ranks()->mutable_restore()->set_job_id("job-1");
  start.mutable_start_ranks()->mutable_restore()->set_step(4);
  for (const char* name : {"shard-r0.safetensors", "shard-r1.safetensors"})
    start.mutable_start_ranks()->mutable_restore()->add_files()->set_name(name);
  Command(start);
  for (int rank = 0; rank < 2; ++rank) {
    Progress(1, rank, "load", 4);
    v1::FromRank need;
    need.mutable_need_file()->set_file(absl::StrCat("shard-r", rank, ".safetensors"));
    host_->handler_->OnRankMessage(Id(1, rank), need);
  }
  ASSERT_EQ(fetcher_.fetches.size(), 2u);
  for (int i = 0; i < 20; ++i) {  // the other file waits for this one
    *fetcher_.fetches[0].first.moved += 1 << 20;
    Run(absl::Seconds(20));
  }
  EXPECT_THAT(coordinator_.EventsOf(v1::WorkerEvent::kRankHung), IsEmpty());
  Run(absl::Seconds(31));
  EXPECT_EQ(coordinator_.EventsOf(v1::WorkerEvent::kRankHung).size(), 2u)
      << "nothing comes any more";
}

}  // namespace
}  // namespace mt
