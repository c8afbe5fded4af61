#include "coordinator/coordinator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_format.h"
#include "common/exit_codes.h"
#include "common/testing/mem_env.h"
#include "common/testing/sim_event_loop.h"
#include "coordinator/store/memory_store.h"

namespace mt {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// One end of a worker stream, played by the test: it says what a daemon would say.
class FakeStream : public WorkerStream {
 public:
  void Send(v1::CoordinatorMessage message) override { sent.push_back(std::move(message)); }
  void SendShared(std::shared_ptr<const SharedMessage> message) override {
    Send(message->message);
    shared.push_back(std::move(message));
  }
  void Close(absl::Status reason) override { closed = reason; }
  std::string AuthenticatedNode() const override { return authenticated; }
  absl::Time CertificateExpiry() const override { return expiry; }
  absl::Time expiry = absl::InfiniteFuture();
  std::vector<v1::CoordinatorMessage> sent;
  std::vector<std::shared_ptr<const SharedMessage>> shared;
  std::optional<absl::Status> closed;
  std::string authenticated;
};

// Says that a daemon was started.
class FakeLauncher : public NodeLauncher {
 public:
  explicit FakeLauncher(std::unique_ptr<SimEventLoop>* loop) : loop_(loop) {}
  void Launch(const NodeConfig&, Done done) override {
    ++launches;
    Stop({}, std::move(done));
  }
  void Stop(const NodeConfig&, Done done) override {
    (*loop_)->Post([done = std::move(done)]() mutable { done(absl::OkStatus()); });
  }
  std::string Whereabouts(const NodeConfig& node) const override {
    return absl::StrCat("it dials 10.0.0.1:7070; see /root/", node.name, "/worker.log there");
  }
  int launches = 0;

 private:
  std::unique_ptr<SimEventLoop>* const loop_;
};

// Answers when the test lets it.
class FakeDigester : public DatasetDigester {
 public:
  std::shared_ptr<const void> Digest(
      std::vector<std::string> prefixes, std::function<void(int64_t, int64_t)> progress,
      std::function<void(absl::StatusOr<std::vector<v1::DatasetFile>>)> done) override {
    asked.push_back(prefixes);
    this->progress = std::move(progress);
    this->done = std::move(done);
    const auto work = std::make_shared<int>();
    wanted = work;
    return work;
  }
  std::weak_ptr<int> wanted;
  std::vector<std::vector<std::string>> asked;
  std::function<void(int64_t, int64_t)> progress;
  std::function<void(absl::StatusOr<std::vector<v1::DatasetFile>>)> done;
};

class CoordinatorTest : public ::testing::Test {
 protected:
  CoordinatorTest() : random_(NewSeededRandom(1)), disk_(std::make_shared<MemoryDisk>()) {
    Restart();
  }
  ~CoordinatorTest() override { coordinator_.reset(); }

  void Restart() {
    coordinator_.reset();
    streams_.clear();
    loop_ = std::make_unique<SimEventLoop>(&scheduler_);
    store_ = NewMemoryStore(disk_);
    CoordinatorOptions options;
    options.loop = loop_.get();
    options.env = &env_;
    options.random = random_.get();
    options.store = store_.get();
    options.digester = &digester_;
    options.tunables = tunables_;
    for (const char* name : {"n1", "n2"}) {
      if (name != removed_) options.nodes.push_back({.name = name, .slots = 2});
    }
    options.state_directory = "/state";
    options.version = version_;
    options.launcher = launcher_;
    options.issue_certificate = [this](const std::string& node, absl::Duration lifetime) {
      v1::RenewCertificate next;
      next.set_certificate_pem(absl::StrCat("certificate ", ++issued_, " of ", node));
      next.set_key_pem(absl::FormatDuration(lifetime));
      return absl::StatusOr<v1::RenewCertificate>(std::move(next));
    };
    options.on_fatal = [this](absl::Status status) { fatal_ = status; };
    auto coordinator = Coordinator::Create(options);
    ASSERT_TRUE(coordinator.ok()) << coordinator.status();
    coordinator_ = std::move(*coordinator);
    coordinator_->Start();
    Run();
  }
  void Run(absl::Duration duration = absl::Milliseconds(100)) {
    scheduler_.RunUntil(scheduler_.now() + duration);
  }

  std::shared_ptr<FakeStream> Register(const std::string& node,
                                       const std::string& incarnation = "i1",
                                       std::vector<v1::RunningRank> running = {},
                                       int64_t next_sequence = 1) {
    auto stream = std::make_shared<FakeStream>();
    stream->expiry = certificate_expiry_;
    v1::WorkerMessage message;
    message.set_node(node);
    message.set_incarnation(incarnation);
    message.mutable_register_()->set_protocol_version(1);
    message.mutable_register_()->set_slots(slots_);
    message.mutable_register_()->set_shards_endpoint(node + ":1");
    message.mutable_register_()->set_next_sequence(next_sequence);
    for (const auto& rank : running) *message.mutable_register_()->add_running() = rank;
    sequence_[node] = next_sequence - 1;
    incarnation_[node] = incarnation;
    coordinator_->OnMessage(stream, message);
    Run();
    streams_[node] = stream;
    return stream;
  }
  void Say(const std::string& node, v1::WorkerMessage message) {
    message.set_node(node);
    message.set_incarnation(incarnation_[node]);
    coordinator_->OnMessage(streams_[node], message);
    Run();
  }
  v1::WorkerEvent Event(const std::string& job, int generation, int rank) {
    v1::WorkerEvent event;
    event.set_job_id(job);
    event.set_generation(generation);
    event.set_rank(rank);
    return event;
  }
  void Tell(const std::string& node, v1::WorkerEvent event) {
    v1::WorkerMessage message;
    event.set_sequence(++sequence_[node]);
    event.mutable_time()->set_seconds(absl::ToUnixSeconds(loop_->clock()->Now()));
    *message.mutable_event() = event;
    Say(node, message);
  }
  void Exit(const std::string& node, const std::string& job, int generation, int rank,
            std::function<void(v1::RankExited&)> fill) {
    v1::WorkerEvent event = Event(job, generation, rank);
    fill(*event.mutable_rank_exited());
    Tell(node, event);
  }
  void Step(const std::string& node, const std::string& job, int generation, int64_t step) {
    v1::WorkerEvent event = Event(job, generation, 0);
    event.mutable_step_report()->mutable_progress()->set_step(step);
    event.mutable_step_report()->mutable_progress()->set_step_seconds(1);
    Tell(node, event);
  }
  void Shard(const std::string& node, const std::string& job, int generation, int rank,
             int64_t step, int world) {
    v1::WorkerEvent event = Event(job, generation, rank);
    auto* shard = event.mutable_shard_written();
    shard->set_step(step);
    shard->set_world_size(world);
    shard->mutable_file()->set_name(absl::StrCat("rank-", rank));
    shard->mutable_file()->set_size_bytes(10);
    Tell(node, event);
  }
  // A checkpoint of a job of one rank, on the shared path.
  void Commit(const std::string& node, const std::string& job, int generation, int64_t step,
              int64_t consumed_samples) {
    v1::WorkerEvent event = Event(job, generation, 0);
    auto* shard = event.mutable_shard_written();
    shard->set_step(step);
    shard->set_world_size(1);
    shard->set_consumed_samples(consumed_samples);
    shard->mutable_file()->set_name("rank-0");
    shard->mutable_file()->set_size_bytes(10);
    Tell(node, event);
    v1::WorkerEvent committed = Event(job, generation, -1);
    committed.mutable_manifest_committed()->set_step(step);
    committed.mutable_manifest_committed()->set_ok(true);
    Tell(node, committed);
  }
  void Checked(const std::string& node, const std::string& job, int generation, int rank,
               const std::string& fingerprint) {
    v1::WorkerEvent event = Event(job, generation, rank);
    (*event.mutable_data_checked()->mutable_fingerprint_of_prefix())["/data/text"] = fingerprint;
    Tell(node, event);
  }
  std::string SubmitFar(int data) {
    v1::SubmitRequest request = Request(data);
    request.mutable_spec()->mutable_data()->set_distribute(true);
    request.mutable_spec()->mutable_data()->add_train()->set_prefix("/far/text");
    const auto job = coordinator_->Submit(request, "me");
    EXPECT_TRUE(job.ok()) << job.status();
    Run();
    return job.ok() ? job->id() : "";
  }
  std::vector<v1::DatasetFile> FarFiles() {
    std::vector<v1::DatasetFile> files(2);
    for (int i = 0; i < 2; ++i) {
      files[i].set_path(i == 0 ? "/far/text.idx" : "/far/text.bin");
      files[i].set_bytes(100);
      files[i].set_xxh3_128(std::string(32, i == 0 ? 'a' : 'b'));
    }
    return files;
  }
  // The newest message of a kind that was sent to the node, or null.
  const v1::CoordinatorMessage* Newest(const std::string& node,
                                       v1::CoordinatorMessage::BodyCase kind) {
    const auto& sent = streams_.at(node)->sent;
    for (auto it = sent.rbegin(); it != sent.rend(); ++it) {
      if (it->body_case() == kind) return &*it;
    }
    return nullptr;
  }
  v1::SubmitRequest Request(int data, const std::string& request_id = "") {
    v1::SubmitRequest request;
    request.set_request_id(request_id);
    v1::JobSpec& spec = *request.mutable_spec();
    spec.set_name("j");
    spec.mutable_parallel()->set_tensor(1);
    spec.mutable_parallel()->set_pipeline(1);
    spec.mutable_parallel()->set_data(data);
    spec.mutable_training()->set_steps(10);
    spec.mutable_checkpoint()->set_keep_last(1);
    spec.mutable_checkpoint()->set_path("/shared");
    spec.mutable_fault()->set_max_attempts_without_progress(3);
    return request;
  }
  std::string Submit(int data) {
    const auto job = coordinator_->Submit(Request(data), "me");
    EXPECT_TRUE(job.ok()) << job.status();
    Run();
    return job.ok() ? job->id() : "";
  }
  v1::Job Get(const std::string& id) { return coordinator_->GetJob(id).value(); }

  SimScheduler scheduler_;
  MemEnv env_;
  FakeDigester digester_;
  std::unique_ptr<Random> random_;
  std::shared_ptr<MemoryDisk> disk_;
  std::unique_ptr<SimEventLoop> loop_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<Coordinator> coordinator_;
  std::map<std::string, std::shared_ptr<FakeStream>> streams_;
  std::map<std::string, int64_t> sequence_;
  std::map<std::string, std::string> incarnation_;
  absl::Status fatal_;
  int issued_ = 0;                                          // certificates
  absl::Time certificate_expiry_ = absl::InfiniteFuture();  // of the streams to come
  std::string removed_;                                     // from the hostfile
  CoordinatorTunables tunables_;
  int slots_ = 2;  // of a node that registers
  std::string version_;
  NodeLauncher* launcher_ = nullptr;
};

using Body = v1::CoordinatorMessage;

TEST_F(CoordinatorTest, SubmitIsIdempotentByRequestId) {
  const auto first = coordinator_->Submit(Request(1, "r"), "me");
  const auto again = coordinator_->Submit(Request(1, "r"), "me");
  ASSERT_TRUE(first.ok() && again.ok());
  EXPECT_EQ(first->id(), again->id());
  EXPECT_EQ(coordinator_->Submit(Request(2, "r"), "me").status().code(),
            absl::StatusCode::kAlreadyExists);
  const auto never = coordinator_->Submit(Request(5, "s"), "me");
  EXPECT_EQ(never.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(never.status().message()), HasSubstr("needs 5 slots, the cluster has 4"));
  Restart();
  EXPECT_EQ(coordinator_->Submit(Request(1, "r"), "me")->id(), first->id());
}

TEST_F(CoordinatorTest, FullStateDiskRefusesSubmitAndKeepsRunningJobs) {
  Register("n1");
  const std::string id = Submit(1);
  Step("n1", id, 1, 1);
  disk_->full = true;
  EXPECT_EQ(coordinator_->Submit(Request(1, "r"), "me").status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(coordinator_->ListJobs({})->jobs_size(), 1);
  v1::JobActionRequest cancel;
  cancel.set_job_id(id);
  EXPECT_EQ(coordinator_->Cancel(cancel).status().code(), absl::StatusCode::kResourceExhausted);
  const size_t sent = streams_["n1"]->sent.size();
  Step("n1", id, 1, 2);
  EXPECT_EQ(streams_["n1"]->sent.size(), sent) << "nothing may be acknowledged that is not durable";
  disk_->full = false;
  Run(absl::Seconds(3));
  EXPECT_EQ(Newest("n1", Body::kAcknowledge)->acknowledge().sequence(), 2);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RUNNING);
  EXPECT_TRUE(coordinator_->Submit(Request(1, "r"), "me").ok());
}

TEST_F(CoordinatorTest, NothingIsSentBeforeItIsDurable) {
  Register("n1");
  disk_->death = [] { return MemoryDisk::Death::kBefore; };
  (void)coordinator_->Submit(Request(1), "me");
  Run();
  EXPECT_EQ(fatal_.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(Newest("n1", Body::kStartRanks), nullptr);
}

TEST_F(CoordinatorTest, GangStartsWholeOrWaitsAndSaysWhy) {
  Register("n1");
  const std::string id = Submit(3);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_QUEUED);
  EXPECT_THAT(Get(id).reason(), HasSubstr("needs 3 slots; 2 are free; not usable now: n2"));
  EXPECT_EQ(Newest("n1", Body::kStartRanks), nullptr);
  Register("n2");
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_STARTING);
  ASSERT_NE(Newest("n1", Body::kStartRanks), nullptr);
  ASSERT_NE(Newest("n2", Body::kStartRanks), nullptr);
  EXPECT_EQ(Newest("n2", Body::kStartRanks)->start_ranks().rank_table_size(), 3);
  EXPECT_EQ(Newest("n2", Body::kStartRanks)->start_ranks().rank_table(2).node(), "n2");
}

TEST_F(CoordinatorTest, LargeJobIsNotStarvedAndPriorityGoesFirst) {
  Register("n1");
  Register("n2");
  const std::string small = Submit(3);
  const std::string large = Submit(4);
  const std::string behind = Submit(1);
  EXPECT_EQ(Get(behind).state(), v1::JOB_STATE_QUEUED);
  EXPECT_THAT(Get(behind).reason(), HasSubstr("behind " + large));
  v1::SubmitRequest urgent = Request(1);
  urgent.mutable_spec()->set_priority(5);
  EXPECT_EQ(coordinator_->Submit(urgent, "me")->state(), v1::JOB_STATE_STARTING);
}

TEST_F(CoordinatorTest, FailedRankStopsAllThenStartsFromTheNewestCheckpoint) {
  Register("n1");
  Register("n2");
  const std::string id = Submit(3);
  Step("n1", id, 1, 4);
  for (int rank = 0; rank < 3; ++rank) Shard(rank < 2 ? "n1" : "n2", id, 1, rank, 4, 3);
  ASSERT_NE(Newest("n1", Body::kCommitManifest), nullptr);
  v1::WorkerEvent committed = Event(id, 1, -1);
  committed.mutable_manifest_committed()->set_step(4);
  committed.mutable_manifest_committed()->set_ok(true);
  Tell("n1", committed);
  EXPECT_EQ(Get(id).last_checkpoint_step(), 4);

  // Communicator errors arrive first; the culprit is the rank that a signal killed.
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) {
    exit.set_exit_code(1);
    exit.set_status_code("UNAVAILABLE");
    exit.set_blame_rank("2");
  });
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RECOVERING);
  ASSERT_NE(Newest("n2", Body::kStopRanks), nullptr);
  Exit("n1", id, 1, 1, [](v1::RankExited& exit) { exit.set_stopped(true); });
  EXPECT_EQ(Newest("n1", Body::kStartRanks)->start_ranks().generation(), 1)
      << "not before every rank has ended";
  Exit("n2", id, 1, 2, [](v1::RankExited& exit) {
    exit.set_exit_code(-1);
    exit.set_signal(9);
    exit.add_last_lines("the end");
  });
  const auto& start = Newest("n2", Body::kStartRanks)->start_ranks();
  EXPECT_EQ(start.generation(), 2);
  EXPECT_EQ(start.restore().step(), 4);
  EXPECT_EQ(Get(id).failure().rank(), 2);
  EXPECT_EQ(Get(id).failure().cause(), "signal");
  EXPECT_EQ(Get(id).failure().last_lines(0), "the end");
  for (const auto& rank : disk_->state.attempts.at({id, 1}).ranks())
    EXPECT_EQ(rank.exit().last_lines_size(), 0);
  EXPECT_EQ(Get(id).attempts_without_progress(), 0);
}

TEST_F(CoordinatorTest, ThreeAttemptsWithoutProgressEndTheJob) {
  tunables_.retry_waits = {};
  Restart();
  Register("n1");
  const std::string id = Submit(1);
  for (int attempt = 1; attempt <= 3; ++attempt) {
    ASSERT_FALSE(Coordinator::HasEnded(Get(id).state())) << attempt;
    Exit("n1", id, attempt, 0, [](v1::RankExited& exit) {
      exit.set_exit_code(7);
      exit.add_last_lines("no such file");
    });
  }
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_FAILED);
  EXPECT_EQ(Get(id).exit_code(), kExitNoProgress);
  EXPECT_EQ(Get(id).failure().last_lines(0), "no such file");
  EXPECT_EQ(Get(id).attempts_without_progress(), 3);
}

// A node that came back with fewer slots, say because a device died: the job moves to where it fits.
TEST_F(CoordinatorTest, ANodeThatLostASlotDoesNotEndTheJob) {
  auto play = [&](const std::string& id, int rounds) {  // n1 as a daemon with one slot
    for (int round = 0; round < rounds; ++round) {
      for (const char* node : {"n1", "n2"}) {
        if (!streams_.contains(node)) continue;
        for (const auto& command : std::exchange(streams_[node]->sent, {})) {
          bool refused = false;
          for (const auto& rank : command.start_ranks().rank_table())
            refused |= node == std::string("n1") && rank.node() == node && rank.slot() >= 1;
          if (command.command_id().empty()) continue;
          v1::WorkerMessage answer;
          answer.mutable_command_result()->set_command_id(command.command_id());
          answer.mutable_command_result()->set_code(refused ? 3 : 0);
          answer.mutable_command_result()->set_message(refused ? "n1 has 1 slots" : "");
          Say(node, answer);
        }
      }
      for (const auto& [node, stream] : streams_) {
        v1::WorkerMessage beat;
        beat.mutable_heartbeat();
        Say(node, beat);
      }
      Run(absl::Seconds(2));
      if (Coordinator::HasEnded(Get(id).state())) break;
    }
  };
  Register("n1");
  const std::string id = Submit(2);
  EXPECT_EQ(Get(id).ranks(1).node(), "n1");
  slots_ = 1;
  Register("n1", "i2");
  play(id, 60);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RECOVERING) << "there is no other node yet";
  EXPECT_EQ(Get(id).attempts_without_progress(), 0);
  EXPECT_THAT(Get(id).reason(), HasSubstr("needs 2 slots; 1 is free"));
  slots_ = 2;
  Register("n2");
  play(id, 20);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_STARTING);
  EXPECT_EQ(Get(id).ranks(0).node(), "n2");
}

TEST_F(CoordinatorTest, AnAttemptWithoutProgressIsFollowedByOneOnAnotherNode) {
  Register("n1");
  Register("n2");
  const std::string id = Submit(2);
  auto fail = [&](const std::string& node, int attempt) {
    Exit(node, id, attempt, 1, [](v1::RankExited& exit) { exit.set_signal(11); });
    Exit(node, id, attempt, 0, [](v1::RankExited& exit) { exit.set_stopped(true); });
  };
  Step("n1", id, 1, 3);
  fail("n1", 1);
  EXPECT_EQ(Get(id).ranks(0).node(), "n1") << "it had made progress there";
  fail("n1", 2);
  for (int second = 0; second < 16; ++second) {
    for (const char* node : {"n1", "n2"}) {
      v1::WorkerMessage beat;
      beat.mutable_heartbeat();
      Say(node, beat);
    }
    Run(absl::Seconds(1));
  }
  EXPECT_EQ(Get(id).attempt(), 3);
  EXPECT_EQ(Get(id).ranks(0).node(), "n2");
  EXPECT_EQ(Get(id).ranks(1).node(), "n2");
}

// A minute without a network must not end a run of weeks.
TEST_F(CoordinatorTest, AttemptsWithoutProgressWaitLongerEachTime) {
  Register("n1");
  const std::string id = Submit(1);
  Step("n1", id, 1, 4);
  auto fail = [&](int attempt) {
    EXPECT_EQ(Get(id).attempt(), attempt);
    Exit("n1", id, attempt, 0, [](v1::RankExited& exit) {
      exit.set_exit_code(1);
      exit.set_status_code("UNAVAILABLE");
      exit.set_message("network is unreachable");
    });
  };
  auto pass = [&](absl::Duration time) {
    for (absl::Duration passed; passed < time; passed += absl::Seconds(1)) {
      v1::WorkerMessage beat;
      beat.mutable_heartbeat();
      Say("n1", beat);
      Run(absl::Milliseconds(900));
    }
  };
  fail(1);
  fail(2);  // the first restart was at once
  EXPECT_EQ(Get(id).attempt(), 2);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RECOVERING);
  EXPECT_THAT(Get(id).reason(), HasSubstr("next attempt in 15 s: rank 0 on n1"));
  EXPECT_THAT(Get(id).reason(), HasSubstr("network is unreachable"));
  pass(absl::Seconds(10));
  EXPECT_EQ(Get(id).attempt(), 2);
  EXPECT_THAT(Get(id).reason(), Not(HasSubstr("next attempt in 15 s"))) << "it counts down";
  pass(absl::Seconds(6));
  fail(3);
  pass(absl::Seconds(50));
  EXPECT_EQ(Get(id).attempt(), 3);
  pass(absl::Seconds(12));
  fail(4);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_FAILED);
}

// Nothing of the job was tried, so it does not fail; but it is not asked for every few seconds for ever.
TEST_F(CoordinatorTest, AStartThatIsRefusedAgainAndAgainIsAskedForLessAndLess) {
  Register("n1");
  const std::string id = Submit(1);
  for (const int seconds : {15, 60, 300, 300}) {
    const int attempt = Get(id).attempt();
    v1::WorkerMessage answer;
    answer.mutable_command_result()->set_command_id(Newest("n1", Body::kStartRanks)->command_id());
    answer.mutable_command_result()->set_code(static_cast<int>(absl::StatusCode::kInternal));
    answer.mutable_command_result()->set_message("the disk does not answer");
    Say("n1", answer);
    Run(absl::Milliseconds(100));
    EXPECT_THAT(Get(id).reason(), HasSubstr(absl::StrCat("next attempt in ", seconds, " s: ")));
    for (int beat = 0; beat < 400 && Get(id).attempt() == attempt; ++beat) {
      v1::WorkerMessage alive;
      alive.mutable_heartbeat();
      Say("n1", alive);
      Run(absl::Seconds(1));
    }
    ASSERT_EQ(Get(id).attempt(), attempt + 1);
  }
  EXPECT_EQ(Get(id).attempts_without_progress(), 0);
}

TEST_F(CoordinatorTest, AJobThatWaitsForItsNextAttemptCanBeSteered) {
  Register("n1");
  v1::JobActionRequest action;
  for (const bool cancel : {false, true}) {
    const std::string id = Submit(1);
    for (int attempt = 1; attempt <= 2; ++attempt)
      Exit("n1", id, attempt, 0, [](v1::RankExited& exit) { exit.set_exit_code(7); });
    ASSERT_THAT(Get(id).reason(), HasSubstr("next attempt in 15 s"));
    action.set_job_id(id);
    if (cancel) {
      ASSERT_TRUE(coordinator_->Cancel(action).ok());
      EXPECT_EQ(Get(id).state(), v1::JOB_STATE_CANCELLED);
    } else {
      ASSERT_TRUE(coordinator_->Pause(action).ok());
      EXPECT_EQ(Get(id).state(), v1::JOB_STATE_PAUSED);
    }
  }
}

TEST_F(CoordinatorTest, TheWaitEndsWhenANodeOfTheJobChangesAndBeginsAnewWithACoordinator) {
  Register("n1");
  const std::string id = Submit(1);
  for (int attempt = 1; attempt <= 2; ++attempt)
    Exit("n1", id, attempt, 0, [](v1::RankExited& exit) { exit.set_exit_code(7); });
  ASSERT_THAT(Get(id).reason(), HasSubstr("next attempt in 15 s"));
  coordinator_->OnClosed(streams_["n1"], absl::UnavailableError("gone"));
  Run();
  EXPECT_THAT(Get(id).reason(), HasSubstr("needs 1 slots"));
  Register("n1", "i1", {}, sequence_["n1"] + 1);
  v1::WorkerMessage beat;
  beat.mutable_heartbeat();
  Say("n1", beat);
  EXPECT_EQ(Get(id).attempt(), 3);
  const std::string other = Submit(1);
  for (int attempt = 1; attempt <= 2; ++attempt)
    Exit("n1", other, attempt, 0, [](v1::RankExited& exit) { exit.set_exit_code(7); });
  ASSERT_THAT(Get(other).reason(), HasSubstr("next attempt in 15 s"));
  ASSERT_TRUE(coordinator_
                  ->Cancel([&] {
                    v1::JobActionRequest action;
                    action.set_job_id(id);
                    return action;
                  }())
                  .ok());
  Restart();
  Register("n1", "i2");
  Say("n1", beat);
  for (int second = 0; second < 20; ++second) {
    Say("n1", beat);
    Run(absl::Seconds(1));
  }
  EXPECT_EQ(Get(other).attempt(), 3);
}

TEST_F(CoordinatorTest, RefusedDataEndsTheJobAtOnce) {
  Register("n1");
  const std::string id = Submit(1);
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) {
    exit.set_exit_code(kExitPrecondition);
    exit.set_cause("data");
    exit.set_status_code("NOT_FOUND");
    exit.set_message("data.train: /data/text.idx: no such file");
  });
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_FAILED);
  EXPECT_EQ(Get(id).exit_code(), kExitPrecondition);
  EXPECT_EQ(Get(id).failure().cause(), "data");
  EXPECT_THAT(Get(id).failure().message(), HasSubstr("was not started: NOT_FOUND data.train"));
}

TEST_F(CoordinatorTest, RanksRunWhenAllNodesHaveTheSameData) {
  Register("n1");
  Register("n2");
  const std::string id = Submit(4);
  Checked("n1", id, 1, 0, "idx:8:aa bin:64:bb");
  EXPECT_EQ(Newest("n1", Body::kLaunchRanks), nullptr) << "the other node has not told yet";
  Checked("n2", id, 1, 2, "idx:8:aa bin:64:bb");
  for (const char* node : {"n1", "n2"}) {
    ASSERT_NE(Newest(node, Body::kLaunchRanks), nullptr) << node;
    EXPECT_EQ(Newest(node, Body::kLaunchRanks)->launch_ranks().generation(), 1);
  }
}

TEST_F(CoordinatorTest, DifferentDataEndsTheJobNamingNodeAndFile) {
  Register("n1");
  Register("n2");
  const std::string id = Submit(4);
  Checked("n2", id, 1, 2, "idx:8:aa bin:64:cc");
  Checked("n1", id, 1, 0, "idx:8:aa bin:64:bb");
  EXPECT_EQ(Newest("n1", Body::kLaunchRanks), nullptr);
  ASSERT_NE(Newest("n1", Body::kStopRanks), nullptr);
  v1::WorkerMessage stopped;
  stopped.mutable_command_result()->set_command_id(Newest("n1", Body::kStopRanks)->command_id());
  Say("n1", stopped);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_FAILED);
  EXPECT_EQ(Get(id).exit_code(), kExitPrecondition);
  EXPECT_EQ(Get(id).failure().cause(), "data");
  EXPECT_EQ(Get(id).failure().node(), "n2");
  EXPECT_THAT(Get(id).reason(),
              HasSubstr("the data /data/text on node n2 is not that of n1: /data/text.bin has 64 "
                        "bytes on both, but not the same (XXH3 cc here, bb there); copy the same"));
}

TEST_F(CoordinatorTest, DistributedDataIsDigestedOnceThenToldToNodes) {
  Register("n1");
  Register("n2");
  const std::string id = SubmitFar(4);
  EXPECT_EQ(digester_.asked.size(), 1u);
  digester_.progress(50, 200);
  Run();
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_QUEUED);
  EXPECT_THAT(Get(id).reason(), HasSubstr("its data is being digested: 25 % of 200 bytes"));
  EXPECT_EQ(Get(id).data().digested_bytes(), 50);
  EXPECT_EQ(Newest("n1", Body::kStartRanks), nullptr);
  digester_.done(FarFiles());
  Run();
  ASSERT_NE(Newest("n1", Body::kStartRanks), nullptr);
  const v1::StartRanks& start = Newest("n1", Body::kStartRanks)->start_ranks();
  EXPECT_EQ(start.dataset_files_size(), 2);
  ASSERT_EQ(start.dataset_endpoints_size(), 1);
  EXPECT_EQ(start.dataset_endpoints(0), "n2:1");
  // What the coordinator gives, and what is told to people meanwhile.
  ASSERT_TRUE(coordinator_->FindDatasetFile(std::string(32, 'b')).ok());
  EXPECT_TRUE(absl::IsNotFound(coordinator_->FindDatasetFile(std::string(32, 'c')).status()));
  v1::WorkerMessage beat;
  v1::DataFetch& fetch = *beat.mutable_heartbeat()->add_data_fetches();
  fetch.set_job_id(id);
  fetch.set_generation(1);
  fetch.set_bytes_done(60);
  fetch.set_bytes_total(200);
  fetch.set_waits_for("n2:1: busy");
  Say("n1", beat);
  Checked("n2", id, 1, 2, "idx:8:aa bin:64:bb");
  EXPECT_EQ(Get(id).reason(),
            "1 of 2 nodes have its data; n1 has 30 % of 200 bytes and waits: n2:1: busy");
  // A coordinator that starts again knows the digests.
  Restart();
  Register("n1", "i1", {}, 1);
  EXPECT_EQ(digester_.asked.size(), 1u);
  EXPECT_EQ(Newest("n1", Body::kStartRanks)->start_ranks().dataset_files_size(), 2);
  v1::JobActionRequest request;
  request.set_job_id(id);
  ASSERT_TRUE(coordinator_->Cancel(request).ok());
}

TEST_F(CoordinatorTest, DataThatTheCoordinatorCannotReadEndsTheJob) {
  Register("n1");
  const std::string id = SubmitFar(1);
  digester_.done(absl::FailedPreconditionError("data.distribute: /far/text.idx: no such file"));
  Run();
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_FAILED);
  EXPECT_EQ(Get(id).exit_code(), kExitPrecondition);
  EXPECT_THAT(Get(id).reason(), HasSubstr("/far/text.idx"));
}

TEST_F(CoordinatorTest, AJobCancelledWhileItsDataIsDigestedStaysCancelled) {
  Register("n1");
  const std::string id = SubmitFar(1);
  v1::JobActionRequest request;
  request.set_job_id(id);
  EXPECT_FALSE(digester_.wanted.expired());
  ASSERT_TRUE(coordinator_->Cancel(request).ok());
  EXPECT_TRUE(digester_.wanted.expired()) << "nothing is read for nobody";
  digester_.done(FarFiles());
  Run();
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_CANCELLED);
  EXPECT_EQ(Newest("n1", Body::kStartRanks), nullptr);
  EXPECT_TRUE(absl::IsNotFound(coordinator_->FindDatasetFile(std::string(32, 'b')).status()));
}

TEST_F(CoordinatorTest, ADaemonThatStartedAnewIsComparedAnew) {
  Register("n1");
  Register("n2");
  const std::string id = Submit(4);
  Checked("n1", id, 1, 0, "idx:8:aa bin:64:bb");
  Checked("n2", id, 1, 2, "idx:8:aa bin:64:bb");
  Register("n2", "i2");  // before its ranks had started
  EXPECT_NE(Newest("n2", Body::kStartRanks), nullptr);
  Checked("n2", id, 1, 2, "idx:8:aa bin:64:cc");
  ASSERT_NE(Newest("n1", Body::kStopRanks), nullptr);
  EXPECT_THAT(Newest("n1", Body::kStopRanks)->stop_ranks().reason(), HasSubstr("on node n2"));
}

TEST_F(CoordinatorTest, WhoHasNotLookedAtItsDataIsNamed) {
  Register("n1");
  Register("n2");
  const std::string id = Submit(4);
  Checked("n1", id, 1, 0, "idx:8:aa bin:64:bb");
  EXPECT_EQ(Get(id).reason(), "waits for n2 to look at its data");
  Checked("n2", id, 1, 2, "idx:8:aa bin:64:bb");
  EXPECT_THAT(Get(id).reason(), Not(HasSubstr("look at its data")));
}

TEST_F(CoordinatorTest, DataThatChangedBehindACheckpointEndsTheJob) {
  for (const bool changed : {false, true}) {
    Register("n1", absl::StrCat("i", changed));
    const std::string id = Submit(1);
    Checked("n1", id, 1, 0, "idx:8:aa bin:64:bb");
    Step("n1", id, 1, 3);
    Commit("n1", id, 1, 3, 30);
    Exit("n1", id, 1, 0, [](v1::RankExited& exit) { exit.set_signal(9); });
    Run(absl::Seconds(2));
    ASSERT_EQ(Newest("n1", Body::kStartRanks)->start_ranks().generation(), 2);
    Checked("n1", id, 2, 0, changed ? "idx:8:aa bin:72:cc" : "idx:8:aa bin:64:bb");
    if (!changed) {
      EXPECT_EQ(Newest("n1", Body::kLaunchRanks)->launch_ranks().generation(), 2);
      v1::JobActionRequest request;
      request.set_job_id(id);
      ASSERT_TRUE(coordinator_->Cancel(request).ok());
    } else {
      EXPECT_NE(Newest("n1", Body::kLaunchRanks)->launch_ranks().generation(), 2);
    }
    Run();
    v1::WorkerMessage stopped;
    stopped.mutable_command_result()->set_command_id(Newest("n1", Body::kStopRanks)->command_id());
    Say("n1", stopped);
    if (!changed) continue;
    EXPECT_EQ(Get(id).state(), v1::JOB_STATE_FAILED);
    EXPECT_THAT(Get(id).reason(),
                HasSubstr("the data /data/text has changed since attempt 1 of this job: "
                          "/data/text.bin has 72 bytes here and 64 there"));
  }
}

TEST_F(CoordinatorTest, AResumeThatWouldRunOutOfSamplesIsRefusedAndANewOrderIsTold) {
  Register("n1");
  v1::SubmitRequest first = Request(1);
  first.mutable_spec()->mutable_data()->add_train()->set_prefix("/data/text");
  first.mutable_spec()->mutable_training()->set_global_batch(10);
  const std::string id = coordinator_->Submit(first, "me")->id();
  Run();
  Checked("n1", id, 1, 0, "idx:8:aa bin:64:bb");
  Step("n1", id, 1, 3);
  Commit("n1", id, 1, 3, 30);
  v1::SubmitRequest second = first;
  second.mutable_spec()->mutable_checkpoint()->set_resume_from(id);
  second.mutable_spec()->mutable_training()->set_global_batch(5);
  EXPECT_THAT(std::string(coordinator_->Submit(second, "me").status().message()),
              HasSubstr(id + "@3 has consumed 30 samples, and step 10 would end at 65, but "
                             "training.steps: 10 of this global_batch and batch_rampup order 50"));
  const auto told = [&] {
    const v1::EventsResponse events = coordinator_->ListEvents({}).value();
    for (const v1::Event& event : events.events()) {
      if (event.kind() == "data_order_changed") return event.message();
    }
    return std::string();
  };
  second.mutable_spec()->mutable_training()->set_global_batch(10);
  ASSERT_TRUE(coordinator_->Submit(second, "me").ok());
  EXPECT_EQ(told(), "");
  second.mutable_spec()->mutable_training()->set_steps(12);
  second.mutable_spec()->mutable_data()->set_seed(7);
  ASSERT_TRUE(coordinator_->Submit(second, "me").ok());
  EXPECT_THAT(told(), HasSubstr("data.seed, the number of samples"));
}

TEST_F(CoordinatorTest, AResumeIsOfTheSameModelAndATraitThatChangedIsTold) {
  Register("n1");
  v1::SubmitRequest first = Request(1);
  v1::ModelSpec& model = *first.mutable_spec()->mutable_model();
  model.set_layers(2);
  model.set_heads(4);
  model.set_rope_theta(10000);
  const std::string id = coordinator_->Submit(first, "me")->id();
  Run();
  Checked("n1", id, 1, 0, "idx:8:aa bin:64:bb");
  Step("n1", id, 1, 3);
  Commit("n1", id, 1, 3, 30);
  v1::SubmitRequest second = first;
  second.mutable_spec()->mutable_checkpoint()->set_resume_from(id + "@3");
  // Also where every tensor of the new job is in the checkpoint: what is left over would be thrown away.
  second.mutable_spec()->mutable_model()->set_layers(1);
  second.mutable_spec()->mutable_model()->set_heads(2);
  const absl::Status refused = coordinator_->Submit(second, "me").status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr(id + "@3 is of another model: model.layers is 1, not 2; "
                             "model.heads is 2, not 4"));
  const auto told = [&] {
    const v1::EventsResponse events = coordinator_->ListEvents({}).value();
    for (const v1::Event& event : events.events()) {
      if (event.kind() == "model_changed") return event.message();
    }
    return std::string();
  };
  *second.mutable_spec()->mutable_model() = model;
  ASSERT_TRUE(coordinator_->Submit(second, "me").ok());
  EXPECT_EQ(told(), "");
  second.mutable_spec()->mutable_model()->set_rope_theta(500000);
  ASSERT_TRUE(coordinator_->Submit(second, "me").ok());
  EXPECT_THAT(told(), HasSubstr("model.rope_theta is 500000.0, not 10000.0"));
}

TEST_F(CoordinatorTest, ALostLaunchIsSentAgain) {
  Register("n1");
  const std::string id = Submit(1);
  Checked("n1", id, 1, 0, "idx:8:aa bin:64:bb");
  Register("n1", "i1", {}, 2);
  ASSERT_NE(Newest("n1", Body::kLaunchRanks), nullptr);
}

TEST_F(CoordinatorTest, PauseBeforeRanksRunStopsThem) {
  Register("n1");
  const std::string id = Submit(2);
  v1::JobActionRequest request;
  request.set_job_id(id);
  ASSERT_TRUE(coordinator_->Pause(request).ok());
  Run();
  EXPECT_EQ(Newest("n1", Body::kCheckpointNow), nullptr);
  ASSERT_NE(Newest("n1", Body::kStopRanks), nullptr);
  v1::WorkerMessage stopped;
  stopped.mutable_command_result()->set_command_id(Newest("n1", Body::kStopRanks)->command_id());
  Say("n1", stopped);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_PAUSED);
  EXPECT_EQ(Get(id).attempts_without_progress(), 0);
  EXPECT_FALSE(Get(id).has_failure());
}

TEST_F(CoordinatorTest, ProgressResetsTheCountOfAttempts) {
  tunables_.retry_waits = {};
  Restart();
  Register("n1");
  const std::string id = Submit(1);
  auto die = [](v1::RankExited& exit) { exit.set_exit_code(7); };
  Exit("n1", id, 1, 0, die);
  Exit("n1", id, 2, 0, die);
  Step("n1", id, 3, 1);
  Exit("n1", id, 3, 0, die);
  EXPECT_EQ(Get(id).attempts_without_progress(), 0);
  Step("n1", id, 4, 1);  // the same step again is none
  Exit("n1", id, 4, 0, die);
  EXPECT_EQ(Get(id).attempts_without_progress(), 1);
}

// The disk may fill up between a checkpoint's last shard and its manifest.
TEST_F(CoordinatorTest, ManifestThatDoesNotFitCountsAsAFullDisk) {
  Register("n1");
  const std::string id = Submit(1);
  Step("n1", id, 1, 2);
  Shard("n1", id, 1, 0, 2, 1);
  v1::WorkerEvent failed = Event(id, 1, -1);
  failed.mutable_manifest_committed()->set_step(2);
  failed.mutable_manifest_committed()->set_message("RESOURCE_EXHAUSTED: No space left on device");
  failed.mutable_manifest_committed()->set_reason("disk_full");
  Tell("n1", failed);
  EXPECT_EQ(Get(id).last_checkpoint_step(), -1);
  const MetricsSnapshot metrics = coordinator_->Metrics();
  ASSERT_EQ(metrics.jobs.size(), 1u);
  EXPECT_THAT(metrics.jobs[0].checkpoint_failures_by_reason,
              ::testing::ElementsAre(::testing::Pair("disk_full", 1)));
}

TEST_F(CoordinatorTest, BadCheckpointIsMarkedAndTheOneBeforeIsUsed) {
  Register("n1");
  v1::SubmitRequest request = Request(1);
  request.mutable_spec()->mutable_checkpoint()->set_keep_last(2);
  const std::string id = coordinator_->Submit(request, "me")->id();
  Run();
  for (const int64_t step : {2, 4}) {
    Step("n1", id, 1, step);
    Shard("n1", id, 1, 0, step, 1);
    v1::WorkerEvent committed = Event(id, 1, -1);
    committed.mutable_manifest_committed()->set_step(step);
    committed.mutable_manifest_committed()->set_ok(true);
    Tell("n1", committed);
  }
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) { exit.set_signal(9); });
  EXPECT_EQ(Newest("n1", Body::kStartRanks)->start_ranks().restore().step(), 4);
  Exit("n1", id, 2, 0, [](v1::RankExited& exit) {
    exit.set_exit_code(1);
    exit.set_status_code("DATA_LOSS");
  });
  EXPECT_EQ(Newest("n1", Body::kStartRanks)->start_ranks().restore().step(), 2);
  EXPECT_EQ(coordinator_->ListCheckpoints(id)->checkpoints(0).state(),
            v1::CheckpointInfo::STATE_BAD);
}

TEST_F(CoordinatorTest, AJobWhoseCheckpointsAreAllBadIsPausedAndNeverBeginsAgain) {
  Register("n1");
  v1::SubmitRequest request = Request(1);
  request.mutable_spec()->mutable_checkpoint()->set_keep_last(2);
  const std::string id = coordinator_->Submit(request, "me")->id();
  Run();
  for (const int64_t step : {2, 4}) {
    Step("n1", id, 1, step);
    Commit("n1", id, 1, step, 0);
  }
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) { exit.set_signal(9); });
  for (int attempt = 2; attempt <= 3; ++attempt) {
    EXPECT_EQ(Get(id).attempt(), attempt);
    Exit("n1", id, attempt, 0, [](v1::RankExited& exit) { exit.set_status_code("DATA_LOSS"); });
  }
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_PAUSED);
  EXPECT_EQ(Get(id).attempt(), 3);
  EXPECT_THAT(Get(id).reason(), HasSubstr("none of its checkpoints could be read (step 2, 4)"));
  EXPECT_THAT(Get(id).reason(), HasSubstr("mtctl checkpoint verify"));
  v1::JobActionRequest resume;
  resume.set_job_id(id);
  EXPECT_EQ(coordinator_->Resume(resume)->state(), v1::JOB_STATE_PAUSED);
  EXPECT_EQ(Get(id).attempt(), 3);
  // A verification finds one whole: the job goes on from there.
  v1::CheckpointRef ref;
  ref.set_job_id(id);
  ref.set_step(2);
  ASSERT_TRUE(coordinator_->MarkCheckpointGood(ref).ok());
  EXPECT_EQ(Get(id).last_checkpoint_step(), 2);
  EXPECT_EQ(coordinator_->Resume(resume)->attempt(), 4);
  Run();
  EXPECT_EQ(Newest("n1", Body::kStartRanks)->start_ranks().restore().step(), 2);
}

TEST_F(CoordinatorTest, ABadCheckpointIsKeptUntilKeepLastNewerOnesAre) {
  Register("n1");
  v1::SubmitRequest request = Request(1);
  request.mutable_spec()->mutable_checkpoint()->set_keep_last(2);
  const std::string id = coordinator_->Submit(request, "me")->id();
  Run();
  for (const int64_t step : {1, 2}) {
    Step("n1", id, 1, step);
    Commit("n1", id, 1, step, 0);
  }
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) { exit.set_signal(9); });
  Exit("n1", id, 2, 0, [](v1::RankExited& exit) { exit.set_status_code("DATA_LOSS"); });
  auto state_of_step_2 = [&] {
    v1::CheckpointRef ref;
    ref.set_job_id(id);
    ref.set_step(2);
    const auto found = coordinator_->GetCheckpoint(ref);
    return found.ok() ? found->state() : v1::CheckpointInfo::STATE_UNSPECIFIED;
  };
  Step("n1", id, 3, 5);
  Commit("n1", id, 3, 5, 0);
  EXPECT_EQ(state_of_step_2(), v1::CheckpointInfo::STATE_BAD);
  Commit("n1", id, 3, 6, 0);
  EXPECT_NE(state_of_step_2(), v1::CheckpointInfo::STATE_BAD);
}

TEST_F(CoordinatorTest, AFileThatCannotBeFetchedNowDoesNotMakeItsCheckpointBad) {
  Register("n1");
  const std::string id = Submit(1);
  Step("n1", id, 1, 4);
  Commit("n1", id, 1, 4, 0);
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) { exit.set_signal(9); });
  Exit("n1", id, 2, 0, [](v1::RankExited& exit) {
    exit.set_exit_code(1);
    exit.set_status_code("UNAVAILABLE");
    exit.set_message("checkpoint file rank-0: connection refused");
  });
  EXPECT_EQ(Newest("n1", Body::kStartRanks)->start_ranks().restore().step(), 4);
  EXPECT_EQ(Get(id).attempts_without_progress(), 1);
  EXPECT_THAT(Get(id).failure().message(), HasSubstr("connection refused"));
}

TEST_F(CoordinatorTest, HoldersThatAreAwayAreNamedToWhoFetches) {
  Register("n1");
  Register("n2");
  v1::SubmitRequest request = Request(1);
  request.mutable_spec()->mutable_checkpoint()->clear_path();
  request.mutable_spec()->mutable_checkpoint()->set_replicas(1);
  const std::string id = coordinator_->Submit(request, "me")->id();
  Run();
  Shard("n1", id, 1, 0, 5, 1);
  auto fetched = Event(id, 0, -1);
  fetched.mutable_file_fetched()->set_step(5);
  fetched.mutable_file_fetched()->set_file("rank-0");
  fetched.mutable_file_fetched()->set_ok(true);
  Tell("n2", fetched);
  ASSERT_EQ(Get(id).last_checkpoint_step(), 5);
  coordinator_->OnClosed(streams_["n2"], absl::UnavailableError("gone"));
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) { exit.set_signal(9); });
  const v1::FileSource& source = Newest("n1", Body::kStartRanks)->start_ranks().sources(0);
  EXPECT_THAT(source.nodes(), ::testing::ElementsAre("n1"));
  EXPECT_THAT(source.unreachable_nodes(), ::testing::ElementsAre("n2"));
}

TEST_F(CoordinatorTest, JobThatEndedWhileTheCoordinatorWasDownEndsRight) {
  Register("n1");
  const std::string id = Submit(1);
  Step("n1", id, 1, 1);
  Restart();
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RUNNING);
  Run(absl::Seconds(10));
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RUNNING) << "absence of workers is not failure";
  // The daemon is back: it kept three events; nothing runs any more.
  Register("n1", "i1", {}, 5);
  sequence_["n1"] = 1;
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_RUNNING) << "not judged before its events are replayed";
  Shard("n1", id, 1, 0, 10, 1);
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) {
    exit.set_finished(true);
    exit.set_step(10);
  });
  v1::WorkerEvent committed = Event(id, 1, -1);
  committed.mutable_manifest_committed()->set_step(10);
  committed.mutable_manifest_committed()->set_ok(true);
  Tell("n1", committed);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(Get(id).attempt(), 1);
}

TEST_F(CoordinatorTest, StaleIncarnationIsAborted) {
  Register("n1", "old");
  auto old = streams_["n1"];
  Register("n1", "new");
  ASSERT_TRUE(old->closed.has_value());
  EXPECT_EQ(old->closed->code(), absl::StatusCode::kAborted);
  auto back = Register("n1", "old");
  ASSERT_TRUE(back->closed.has_value());
  EXPECT_EQ(back->closed->code(), absl::StatusCode::kAborted);
  EXPECT_EQ(coordinator_->ListNodes()[0].incarnation(), "new");
}

TEST_F(CoordinatorTest, SameIncarnationMayRegisterAgainAndKeepsItsRanks) {
  Register("n1");
  const std::string id = Submit(1);
  Tell("n1", [&] {
    auto event = Event(id, 1, 0);
    event.mutable_rank_started()->set_pid(7);
    return event;
  }());
  v1::RankExited unused;
  v1::RunningRank running;
  running.set_job_id(id);
  running.set_generation(1);
  Register("n1", "i1", {running}, 2);
  EXPECT_EQ(Newest("n1", Body::kRegistered)->registered().keep_size(), 1);
  EXPECT_EQ(Newest("n1", Body::kStartRanks), nullptr);
  EXPECT_EQ(Get(id).attempt(), 1);
}

TEST_F(CoordinatorTest, LostStartCommandIsSentAgain) {
  Register("n1");
  const std::string id = Submit(1);
  Register("n1");  // its stream broke before the command arrived
  ASSERT_NE(Newest("n1", Body::kStartRanks), nullptr);
  EXPECT_EQ(Newest("n1", Body::kStartRanks)->start_ranks().generation(), 1);
}

TEST_F(CoordinatorTest, RestartedDaemonMeansLostRanks) {
  Register("n1");
  const std::string id = Submit(1);
  auto started = Event(id, 1, 0);
  started.mutable_rank_started()->set_pid(7);
  Tell("n1", started);
  Register("n1", "i2");
  EXPECT_EQ(Get(id).attempt(), 2);
  EXPECT_EQ(Get(id).failure().cause(), "node_lost");
}

TEST_F(CoordinatorTest, NodeThatLeftTheHostfileIsGivenUpAndTheJobMoves) {
  Register("n2");
  const std::string id = Submit(1);
  Step("n2", id, 1, 1);
  removed_ = "n2";
  Restart();
  Register("n1");
  for (int i = 0; i < 40; ++i) {
    v1::WorkerMessage beat;
    beat.mutable_heartbeat();
    Say("n1", beat);
    Run(absl::Seconds(1));
  }
  EXPECT_EQ(Get(id).attempt(), 2);
  EXPECT_EQ(Get(id).ranks(0).node(), "n1");
  auto stranger = Register("n2");
  EXPECT_EQ(stranger->closed->code(), absl::StatusCode::kPermissionDenied);
  // The attempt there is over, and its ranks are told so: another one runs elsewhere.
  ASSERT_NE(Newest("n2", Body::kRegistered), nullptr);
  EXPECT_EQ(Newest("n2", Body::kRegistered)->registered().keep_size(), 0);
  EXPECT_GT(Newest("n2", Body::kRegistered)->epoch(), 0);
}

TEST_F(CoordinatorTest, CommittedLastStepIsSuccessAlsoIfARankDiesOnItsWayOut) {
  Register("n1");
  const std::string id = Submit(1);
  Step("n1", id, 1, 10);
  Shard("n1", id, 1, 0, 10, 1);
  auto committed = Event(id, 1, -1);
  committed.mutable_manifest_committed()->set_step(10);
  committed.mutable_manifest_committed()->set_ok(true);
  Tell("n1", committed);
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) { exit.set_signal(9); });
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(Get(id).attempt(), 1);
}

TEST_F(CoordinatorTest, CertificateForAnotherNodeIsRefused) {
  auto stream = std::make_shared<FakeStream>();
  stream->authenticated = "n2";
  v1::WorkerMessage message;
  message.set_node("n1");
  message.mutable_register_();
  coordinator_->OnMessage(stream, message);
  EXPECT_EQ(stream->closed->code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(CoordinatorTest, StoppedCoordinatorKillsNothing) {
  Register("n1");
  const std::string id = Submit(1);
  Step("n1", id, 1, 1);
  loop_->SetStopped(true);
  Run(absl::Minutes(5));
  loop_->SetStopped(false);
  Run();
  EXPECT_EQ(coordinator_->ListNodes()[0].state(), v1::NODE_STATE_READY);
  EXPECT_EQ(Get(id).attempt(), 1);
}

TEST_F(CoordinatorTest, DownNodeIsGivenUpWhenTheJobStandsStillAndPlacedElsewhere) {
  Register("n1");
  Register("n2");
  const std::string id = Submit(2);
  EXPECT_EQ(Get(id).ranks(0).node(), "n1");
  coordinator_->OnClosed(streams_["n1"], absl::UnavailableError("gone"));
  Run(absl::Seconds(5));
  EXPECT_EQ(coordinator_->ListNodes()[0].state(), v1::NODE_STATE_SUSPECT);
  EXPECT_EQ(Get(id).attempt(), 1);
  for (int i = 0; i < 70; ++i) {
    v1::WorkerMessage beat;
    beat.mutable_heartbeat();
    Say("n2", beat);
    Run(absl::Seconds(1));
  }
  EXPECT_EQ(coordinator_->ListNodes()[0].state(), v1::NODE_STATE_DOWN);
  EXPECT_EQ(Get(id).attempt(), 2);
  EXPECT_EQ(Get(id).ranks(0).node(), "n2");
  // It was only cut off: what still runs there is not among what is to be kept.
  v1::RunningRank zombie;
  zombie.set_job_id(id);
  zombie.set_generation(1);
  Register("n1", "i1", {zombie});
  EXPECT_EQ(Newest("n1", Body::kRegistered)->registered().keep_size(), 0);
}

TEST_F(CoordinatorTest, ReplicasAreMadeBeforeTheCommit) {
  Register("n1");
  Register("n2");
  v1::SubmitRequest request = Request(1);
  request.mutable_spec()->mutable_checkpoint()->clear_path();
  request.mutable_spec()->mutable_checkpoint()->set_replicas(1);
  const std::string id = coordinator_->Submit(request, "me")->id();
  Run();
  Shard("n1", id, 1, 0, 5, 1);
  EXPECT_EQ(Get(id).last_checkpoint_step(), -1);
  ASSERT_NE(Newest("n2", Body::kFetchFiles), nullptr);
  EXPECT_EQ(Newest("n2", Body::kFetchFiles)->fetch_files().sources(0).endpoints(0), "n1:1");
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) { exit.set_exit_code(1); });
  EXPECT_THAT(Get(id).reason(),
              HasSubstr("copying the checkpoint of step 5 to other nodes: rank-0 from n1 to n2"));
  auto fetched = Event(id, 0, -1);
  fetched.mutable_file_fetched()->set_step(5);
  fetched.mutable_file_fetched()->set_file("rank-0");
  fetched.mutable_file_fetched()->set_ok(true);
  Tell("n2", fetched);
  EXPECT_EQ(Get(id).last_checkpoint_step(), 5);
  v1::CheckpointRef ref;
  ref.set_job_id(id);
  ref.set_step(-1);
  EXPECT_EQ(coordinator_->GetCheckpoint(ref)->manifest().files(0).nodes_size(), 2);
  ASSERT_NE(Newest("n2", Body::kCommitManifest), nullptr);
}

// A cluster of a size, whose job has checkpoints on the nodes' own stores with one copy more.
class LargeCluster {
 public:
  LargeCluster(int nodes, int slots) : slots_(slots), streams_(nodes), sequences_(nodes) {
    CoordinatorOptions options;
    options.loop = &loop_;
    options.env = &env_;
    options.random = random_.get();
    options.store = store_.get();
    options.state_directory = "/state";
    for (int i = 0; i < nodes; ++i)
      options.nodes.push_back({.name = absl::StrFormat("node%04d", i), .slots = slots});
    coordinator_ = *Coordinator::Create(options);
    coordinator_->Start();
    for (int node = 0; node < nodes; ++node) {
      streams_[node] = std::make_shared<FakeStream>();
      v1::WorkerMessage message;
      message.mutable_register_()->set_protocol_version(1);
      message.mutable_register_()->set_slots(slots);
      message.mutable_register_()->set_next_sequence(1);
      message.mutable_register_()->set_shards_endpoint(absl::StrCat("node", node, ":1"));
      Say(node, message);
    }
    Run();
    v1::SubmitRequest request;
    v1::JobSpec& spec = *request.mutable_spec();
    spec.set_name("large");
    spec.mutable_parallel()->set_tensor(1);
    spec.mutable_parallel()->set_pipeline(1);
    spec.mutable_parallel()->set_data(nodes * slots);
    spec.mutable_training()->set_steps(10);
    spec.mutable_checkpoint()->set_keep_last(1);
    spec.mutable_checkpoint()->set_replicas(1);
    job_ = coordinator_->Submit(request, "me")->id();
    Run();
  }
  int nodes() const { return static_cast<int>(streams_.size()); }
  int ranks() const { return nodes() * slots_; }
  Coordinator& coordinator() { return *coordinator_; }
  FakeStream& stream(int node) { return *streams_[node]; }
  v1::Job Job() { return coordinator_->GetJob(job_).value(); }
  void Run(absl::Duration duration = absl::Milliseconds(30)) {
    scheduler_.RunUntil(scheduler_.now() + duration);
  }
  // Every rank says that its shard is written; the copies are asked for.
  void WriteShards() {
    for (int rank = 0; rank < ranks(); ++rank) {
      v1::WorkerEvent event;
      event.set_rank(rank);
      auto* shard = event.mutable_shard_written();
      shard->set_step(5);
      shard->set_world_size(ranks());
      shard->mutable_file()->set_name(absl::StrCat("shard-r", rank, ".safetensors"));
      shard->mutable_file()->set_size_bytes(10);
      Tell(rank / slots_, event);
    }
    Run();
  }
  // Every node answers what it was asked to fetch since the last call. Returns how many files that were.
  int AnswerFetches(const std::string& error = "") {
    int answers = 0;
    for (int node = 0; node < nodes(); ++node) {
      for (const auto& message : std::exchange(streams_[node]->sent, {})) {
        for (const auto& file : message.fetch_files().files()) {
          v1::WorkerEvent event;
          event.set_rank(-1);
          event.mutable_file_fetched()->set_step(message.fetch_files().step());
          event.mutable_file_fetched()->set_file(file.name());
          event.mutable_file_fetched()->set_ok(error.empty());
          event.mutable_file_fetched()->set_message(error);
          Tell(node, event);
          ++answers;
        }
      }
    }
    Run();
    return answers;
  }

 private:
  void Say(int node, v1::WorkerMessage message) {
    message.set_node(absl::StrFormat("node%04d", node));
    message.set_incarnation("i");
    coordinator_->OnMessage(streams_[node], std::move(message));
  }
  void Tell(int node, v1::WorkerEvent event) {
    event.set_job_id(job_);
    event.set_generation(1);
    event.set_sequence(++sequences_[node]);
    v1::WorkerMessage message;
    *message.mutable_event() = std::move(event);
    Say(node, std::move(message));
  }

  const int slots_;
  SimScheduler scheduler_;
  MemEnv env_;
  std::unique_ptr<Random> random_ = NewSeededRandom(1);
  SimEventLoop loop_{&scheduler_};
  std::unique_ptr<StateStore> store_ = NewMemoryStore(std::make_shared<MemoryDisk>());
  std::unique_ptr<Coordinator> coordinator_;
  std::vector<std::shared_ptr<FakeStream>> streams_;
  std::vector<int64_t> sequences_;
  std::string job_;
};

TEST(LargeClusterTest, CopyingLooksAtEachFileAFewTimesAndQueuesOneManifestForAllNodes) {
  LargeCluster cluster(125, 8);
  cluster.WriteShards();
  EXPECT_EQ(cluster.AnswerFetches(), cluster.ranks());
  EXPECT_EQ(cluster.Job().last_checkpoint_step(), 5);
  // Once to ask, once for the answer, and the ticks that came meanwhile.
  EXPECT_LE(cluster.coordinator().Metrics().checkpoint_copy_visits, 4 * cluster.ranks());
  std::set<const SharedMessage*> manifests;
  for (int node = 0; node < cluster.nodes(); ++node) {
    int of_node = 0;
    for (const auto& message : cluster.stream(node).sent) of_node += message.has_commit_manifest();
    ASSERT_EQ(of_node, 1) << "node " << node;
    ASSERT_EQ(cluster.stream(node).shared.size(), 1u) << "node " << node;
    manifests.insert(cluster.stream(node).shared[0].get());
  }
  EXPECT_EQ(manifests.size(), 1u);
}

TEST(LargeClusterTest, AFileThatThreeNodesCouldNotCopyIsGivenUpAndTheCheckpointCommitted) {
  LargeCluster cluster(20, 4);
  cluster.WriteShards();
  int tried = 0;
  for (int answers; (answers = cluster.AnswerFetches("UNAVAILABLE: handshake failed")) > 0;)
    tried += answers;
  EXPECT_EQ(tried, 3 * cluster.ranks());
  EXPECT_EQ(cluster.Job().last_checkpoint_step(), 5);
  v1::EventsRequest request;
  request.set_job_id(cluster.Job().id());
  std::string degraded;
  const v1::EventsResponse events = cluster.coordinator().ListEvents(request).value();
  for (const v1::Event& event : events.events()) {
    if (event.kind() == "checkpoint_degraded") degraded = event.message();
  }
  EXPECT_THAT(degraded, HasSubstr("for 80 of its 80 files: shard-r0.safetensors could not be "
                                  "copied to node0001, node0002, node0003"));
}

TEST_F(CoordinatorTest, HeldCheckpointsOfAJobThatIsNotKnownAreKeptAndToldOnce) {
  const auto hold = [this](const std::string& incarnation) {
    streams_["n1"] = std::make_shared<FakeStream>();
    incarnation_["n1"] = incarnation;
    v1::WorkerMessage message;
    message.mutable_register_()->set_protocol_version(1);
    message.mutable_register_()->set_slots(2);
    message.mutable_register_()->set_next_sequence(1);
    for (const int64_t step : {5, 10}) {
      auto* held = message.mutable_register_()->add_held();
      held->set_job_id("of-a-newer-state-1");
      held->set_step(step);
    }
    Say("n1", message);
    v1::WorkerMessage heartbeat;
    heartbeat.mutable_heartbeat();
    Say("n1", heartbeat);
  };
  hold("i1");
  EXPECT_EQ(Newest("n1", Body::kDeleteCheckpoint), nullptr);
  hold("i2");
  EXPECT_EQ(Newest("n1", Body::kDeleteCheckpoint), nullptr);
  std::vector<std::string> told;
  const v1::EventsResponse events = coordinator_->ListEvents({}).value();
  for (const v1::Event& event : events.events()) {
    if (event.kind() == "unknown_checkpoints") told.push_back(event.node() + " " + event.message());
  }
  ASSERT_EQ(told.size(), 1u);
  EXPECT_THAT(told[0], HasSubstr("n1 files of job of-a-newer-state-1"));
  EXPECT_THAT(told[0], HasSubstr("(steps 5, 10); they are kept"));
}

TEST_F(CoordinatorTest, PauseWritesACheckpointFreesTheSlotsAndResumeGoesOn) {
  Register("n1");
  const std::string id = Submit(1);
  Step("n1", id, 1, 3);
  v1::JobActionRequest request;
  request.set_job_id(id);
  EXPECT_EQ(coordinator_->Pause(request)->state(), v1::JOB_STATE_PAUSING);
  Run();
  ASSERT_NE(Newest("n1", Body::kCheckpointNow), nullptr);
  Shard("n1", id, 1, 0, 3, 1);
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) { exit.set_paused(true); });
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_PAUSING) << "the checkpoint is not committed yet";
  auto committed = Event(id, 1, -1);
  committed.mutable_manifest_committed()->set_step(3);
  committed.mutable_manifest_committed()->set_ok(true);
  Tell("n1", committed);
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_PAUSED);
  EXPECT_EQ(Get(id).reason(), "at step 3");
  EXPECT_EQ(coordinator_->ClusterStatus().slots_used(), 0);
  // Another job that starts from there must have something left to do.
  v1::SubmitRequest another;
  *another.mutable_spec() = Get(id).spec();
  another.mutable_spec()->mutable_checkpoint()->set_resume_from(id);
  another.mutable_spec()->mutable_training()->set_steps(3);
  EXPECT_THAT(std::string(coordinator_->Submit(another, "").status().message()),
              HasSubstr(id + "@3 has done all of training.steps: 3"));
  ASSERT_TRUE(coordinator_->Resume(request).ok());
  Run();
  EXPECT_EQ(Newest("n1", Body::kStartRanks)->start_ranks().restore().step(), 3);
  EXPECT_EQ(Get(id).attempts_without_progress(), 0);
}

// Asked of a daemon that has no ranks yet, a checkpoint is asked for again when they run.
TEST_F(CoordinatorTest, APauseIsNotForgottenWhenTheDaemonRestartsBeforeTheLaunch) {
  Register("n1");
  const std::string id = Submit(1);
  Checked("n1", id, 1, 0, "f");
  ASSERT_NE(Newest("n1", Body::kLaunchRanks), nullptr);
  v1::JobActionRequest action;
  action.set_job_id(id);
  ASSERT_TRUE(coordinator_->Pause(action).ok());
  Run();
  Register("n1", "i2");  // it died before it obeyed
  v1::WorkerMessage beat;
  beat.mutable_heartbeat();
  Say("n1", beat);
  Checked("n1", id, 1, 0, "f");
  for (const bool started : {false, true}) {
    if (started) {
      v1::WorkerEvent event = Event(id, 1, 0);
      event.mutable_rank_started()->set_pid(1);
      Tell("n1", event);
    }
    EXPECT_EQ(streams_["n1"]->sent.back().body_case(), Body::kCheckpointNow) << started;
    streams_["n1"]->sent.clear();
    streams_["n1"]->sent.emplace_back();
  }
}

TEST_F(CoordinatorTest, CancelIsIdempotentAndFinal) {
  Register("n1");
  const std::string id = Submit(1);
  v1::JobActionRequest request;
  request.set_job_id(id);
  EXPECT_EQ(coordinator_->Cancel(request)->state(), v1::JOB_STATE_CANCELLING);
  EXPECT_TRUE(coordinator_->Cancel(request).ok());
  Run();
  const auto* stop = Newest("n1", Body::kStopRanks);
  ASSERT_NE(stop, nullptr);
  v1::WorkerMessage answer;
  answer.mutable_command_result()->set_command_id(stop->command_id());
  Say("n1", answer);  // nothing had started
  EXPECT_EQ(Get(id).state(), v1::JOB_STATE_CANCELLED);
  EXPECT_TRUE(coordinator_->Cancel(request).ok());
  EXPECT_EQ(coordinator_->Pause(request).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(coordinator_->Pause(request).status().message()),
              HasSubstr("cancelled: cancelled"));
  EXPECT_EQ(coordinator_->Resume(request).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(CoordinatorTest, RendezvousAnswersWhenTheKeyExists) {
  Register("n1");
  Register("n2");
  const std::string id = Submit(3);
  v1::WorkerMessage get, put;
  get.mutable_rendezvous_get()->set_job_id(id);
  get.mutable_rendezvous_get()->set_generation(1);
  get.mutable_rendezvous_get()->set_key("k");
  Say("n2", get);
  EXPECT_EQ(Newest("n2", Body::kRendezvousValue), nullptr);
  put.mutable_rendezvous_put()->set_job_id(id);
  put.mutable_rendezvous_put()->set_generation(1);
  put.mutable_rendezvous_put()->set_key("k");
  put.mutable_rendezvous_put()->set_value("v");
  Say("n1", put);
  EXPECT_EQ(Newest("n2", Body::kRendezvousValue)->rendezvous_value().value(), "v");
  put.mutable_rendezvous_put()->set_generation(9);
  get.mutable_rendezvous_get()->set_generation(9);
  streams_["n1"]->sent.clear();
  Say("n1", put);
  Say("n1", get);
  EXPECT_EQ(Newest("n1", Body::kRendezvousValue), nullptr) << "another generation has no say";
}

TEST_F(CoordinatorTest, WatchersHearOfDurableChangesAndLogsAreNumbered) {
  Register("n1");
  int calls = 0;
  const auto watch = coordinator_->AddWatcher([&](const std::string&) { ++calls; });
  const std::string id = Submit(1);
  EXPECT_GT(calls, 0);
  coordinator_->RemoveWatcher(watch);
  const int before = calls;
  auto lines = Event(id, 1, 0);
  lines.mutable_log_lines()->set_data("hello\n");
  int notified = 0;
  coordinator_->logs().Subscribe(id, [&] { ++notified; });
  Tell("n1", lines);
  EXPECT_EQ(notified, 1);
  EXPECT_EQ(calls, before);
  const auto page = coordinator_->logs().Read(id, {});
  ASSERT_TRUE(page.ok()) << page.status();
  ASSERT_EQ(page->chunks.size(), 1u);
  EXPECT_EQ(page->chunks[0].data(), "hello\n");
}

TEST_F(CoordinatorTest, LogLinesAreNotStoredWhileTheDiskIsNearlyFullAndThatIsSaidOnce) {
  Register("n1");
  const std::string id = Submit(1);
  const auto say = [&](int64_t offset) {
    v1::WorkerEvent lines = Event(id, 1, 0);
    lines.mutable_log_lines()->set_data("line\n");
    lines.mutable_log_lines()->set_offset(offset);
    Tell("n1", lines);
  };
  say(0);
  env_.SetCapacity(env_.UsedBytes() + (100 << 20));
  say(5);
  say(10);
  env_.SetCapacity(std::nullopt);
  say(15);
  say(20);
  EXPECT_EQ(coordinator_->logs().LastSequence(id), 3);
  v1::EventsRequest request;
  request.set_job_id(id);
  std::vector<std::string> told;
  const v1::EventsResponse events = coordinator_->ListEvents(request).value();
  for (const v1::Event& event : events.events()) {
    if (event.kind().starts_with("logs_")) told.push_back(event.kind());
  }
  EXPECT_THAT(told, ::testing::ElementsAre("logs_lost", "logs_stored_again"));
}

TEST_F(CoordinatorTest, GracefulShutdownPausesAndTheNextStartResumes) {
  Register("n1");
  const std::string id = Submit(1);
  Step("n1", id, 1, 3);
  bool done = false;
  coordinator_->Shutdown(true, [&] { done = true; });
  Run();
  ASSERT_NE(Newest("n1", Body::kCheckpointNow), nullptr);
  EXPECT_EQ(Newest("n1", Body::kShutdownWorker), nullptr);
  Shard("n1", id, 1, 0, 3, 1);
  Exit("n1", id, 1, 0, [](v1::RankExited& exit) { exit.set_paused(true); });
  auto committed = Event(id, 1, -1);
  committed.mutable_manifest_committed()->set_step(3);
  committed.mutable_manifest_committed()->set_ok(true);
  Tell("n1", committed);
  ASSERT_NE(Newest("n1", Body::kShutdownWorker), nullptr);
  coordinator_->OnClosed(streams_["n1"], absl::UnavailableError("ended"));
  Run();
  EXPECT_TRUE(done);
  Restart();
  Register("n1", "i2");
  EXPECT_EQ(Get(id).attempt(), 2);
  EXPECT_EQ(Newest("n1", Body::kStartRanks)->start_ranks().restore().step(), 3);
}

// Nothing else notices that it ends: the stream stays open, and the node's other connections fail.
TEST_F(CoordinatorTest, NodesCertificateIsRenewedAtHalfItsLife) {
  certificate_expiry_ = loop_->clock()->Now() + absl::Hours(24 * 7);
  Register("n1");
  const auto renewals = [&] {
    std::vector<v1::CoordinatorMessage> found;
    for (const auto& message : streams_["n1"]->sent) {
      if (message.has_renew_certificate()) found.push_back(message);
    }
    return found;
  };
  const auto beat_for = [&](absl::Duration duration) {
    for (absl::Duration passed; passed < duration; passed += absl::Minutes(20)) {
      v1::WorkerMessage heartbeat;
      heartbeat.mutable_heartbeat();
      Say("n1", heartbeat);
      scheduler_.RunUntil(scheduler_.now() + absl::Seconds(20));
      loop_->sim_clock()->wall_offset += absl::Minutes(20) - absl::Seconds(20);
    }
  };
  const auto answer = [&](absl::Status status) {
    v1::WorkerMessage result;
    result.mutable_command_result()->set_command_id(renewals().back().command_id());
    result.mutable_command_result()->set_code(status.raw_code());
    Say("n1", result);
  };
  beat_for(absl::Hours(83));
  EXPECT_TRUE(renewals().empty());
  beat_for(absl::Hours(2));
  ASSERT_EQ(renewals().size(), 1u);
  EXPECT_EQ(renewals()[0].renew_certificate().certificate_pem(), "certificate 1 of n1");
  EXPECT_EQ(renewals()[0].renew_certificate().key_pem(), "168h");
  // The node's disk is full.
  answer(absl::ResourceExhaustedError("no space"));
  EXPECT_EQ(coordinator_->Metrics().certificate_expiry.at("n1"), certificate_expiry_);
  scheduler_.RunUntil(scheduler_.now() + absl::Seconds(5));
  EXPECT_EQ(renewals().size(), 1u) << "not at once again";
  for (int i = 0; i < 360; ++i) {
    v1::WorkerMessage heartbeat;
    heartbeat.mutable_heartbeat();
    Say("n1", heartbeat);
    Run(absl::Seconds(10));
  }
  ASSERT_EQ(renewals().size(), 2u);
  answer(absl::OkStatus());
  EXPECT_GT(coordinator_->Metrics().certificate_expiry.at("n1"),
            loop_->clock()->Now() + absl::Hours(24 * 6));
  beat_for(absl::Hours(80));
  EXPECT_EQ(renewals().size(), 2u) << "the new one counts";
}

TEST_F(CoordinatorTest, NodeThatRegistersWithAnOldCertificateIsSentTheNext) {
  certificate_expiry_ = loop_->clock()->Now() + absl::Hours(80);
  Register("n1");
  ASSERT_NE(Newest("n1", Body::kRenewCertificate), nullptr);
  Register("n1");  // it was lost with the stream
  EXPECT_NE(Newest("n1", Body::kRenewCertificate), nullptr);
  certificate_expiry_ = loop_->clock()->Now() + absl::Hours(90);
  Register("n1");
  EXPECT_EQ(Newest("n1", Body::kRenewCertificate), nullptr);
}

// `mtctl cluster down` is retried, then followed by --now: every call is answered.
TEST_F(CoordinatorTest, EveryShutdownCallIsAnswered) {
  Register("n1");
  const std::string id = Submit(1);
  Step("n1", id, 1, 1);
  std::vector<int> done;
  coordinator_->Shutdown(true, [&] { done.push_back(1); });
  coordinator_->Shutdown(true, [&] { done.push_back(2); });
  Run();
  EXPECT_EQ(Newest("n1", Body::kShutdownWorker), nullptr) << "the job writes a checkpoint first";
  coordinator_->Shutdown(false, [&] { done.push_back(3); });
  Run();
  EXPECT_NE(Newest("n1", Body::kShutdownWorker), nullptr);
  coordinator_->Shutdown(false, [&] { done.push_back(4); });
  Run();
  EXPECT_TRUE(done.empty()) << "the worker has not ended";
  coordinator_->OnClosed(streams_["n1"], absl::UnavailableError("it has ended"));
  Run();
  EXPECT_EQ(done, (std::vector<int>{1, 2, 3, 4}));
  coordinator_->Shutdown(true, [&] { done.push_back(5); });
  Run(absl::Minutes(6));
  EXPECT_EQ(done.size(), 5u);
}

TEST_F(CoordinatorTest, OldDaemonWithRanksIsNamedAndHowToEndIt) {
  version_ = "2";
  Restart();
  v1::RunningRank rank;
  rank.set_job_id("j");
  auto stream = Register("n1", "i1", {rank});
  EXPECT_EQ(stream->closed->code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(coordinator_->ListNodes()[0].reason(),
              ::testing::AllOf(HasSubstr("worker has version , the coordinator 2; 1 rank(s) run"),
                               HasSubstr("daemon.pid"), HasSubstr("/n1")));
  stream = Register("n1");
  EXPECT_THAT(std::string(stream->closed->message()), HasSubstr("it is being replaced"));
}

// A firewall, a clock that is behind, an authority that has changed: the launch goes well, and nobody comes.
TEST_F(CoordinatorTest, DaemonThatRunsButDoesNotConnectIsAReason) {
  FakeLauncher launcher(&loop_);
  launcher_ = &launcher;
  Restart();
  Run(absl::Seconds(5));
  EXPECT_EQ(launcher.launches, 2) << "one per node";
  EXPECT_EQ(coordinator_->ListNodes()[0].reason(), "") << "it may be on its way";
  Run(absl::Minutes(2));
  const v1::Node node = coordinator_->ListNodes()[0];
  EXPECT_EQ(node.state(), v1::NODE_STATE_DOWN);
  EXPECT_EQ(node.reason(),
            "its daemon runs but does not reach this coordinator: it dials 10.0.0.1:7070; see "
            "/root/n1/worker.log there");
  Register("n1");
  EXPECT_EQ(coordinator_->ListNodes()[0].reason(), "");
  coordinator_.reset();  // before the launcher
}

}  // namespace
}  // namespace mt
