// mtctl against a coordinator that can be made to break where a real one cannot be told to: in the middle of a stream, between
// two chunks, with one wrong byte. What a real coordinator does is proved in tests/scenario.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <fstream>
#include <mutex>

#include "client/application.h"
#include "client/checkpoint_commands.h"
#include "client/completion.h"
#include "client/follow.h"
#include "client/submit_commands.h"
#include "client/top.h"
#include "common/checkpoint/weights_digest.h"
#include "common/env.h"
#include "common/hash.h"

namespace mt::client {
namespace {

using testing::HasSubstr;
using testing::Not;

class FakeCoordinator : public v1::Jobs::Service, public v1::Checkpoints::Service {
 public:
  explicit FakeCoordinator(int port = 0) {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:" + std::to_string(port), grpc::InsecureServerCredentials(),
                             &port_);
    builder.RegisterService(static_cast<v1::Jobs::Service*>(this));
    builder.RegisterService(static_cast<v1::Checkpoints::Service*>(this));
    server_ = builder.BuildAndStart();
  }
  ~FakeCoordinator() override {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
  }
  int port() const { return port_; }
  bool serves() const { return server_ != nullptr && port_ != 0; }

  v1::Job job;
  std::vector<v1::JobState> states;  // of one Watch stream each, which then ends
  size_t watched = 0;
  std::vector<std::string> lines;  // line i has sequence i + 1
  int break_after = -1;            // chunks of one Logs stream, then UNAVAILABLE
  std::vector<v1::LogsRequest> logs_requests;
  std::vector<v1::SubmitRequest> submits;
  int refuse_submits = 0;  // with UNAVAILABLE
  v1::CheckpointManifest manifest;
  std::map<std::string, std::string> files;
  int break_pull_after = -1;  // pieces of one Pull stream
  std::vector<v1::PullRequest> pulls;

  grpc::Status Get(grpc::ServerContext*, const v1::GetJobRequest* request,
                   v1::Job* answer) override {
    if (request->job_id() != job.id())
      return {grpc::StatusCode::NOT_FOUND, "no job " + request->job_id()};
    *answer = job;
    return grpc::Status::OK;
  }
  grpc::Status List(grpc::ServerContext*, const v1::ListJobsRequest*,
                    v1::ListJobsResponse* answer) override {
    if (!job.id().empty()) *answer->add_jobs() = job;
    return grpc::Status::OK;
  }
  grpc::Status Submit(grpc::ServerContext*, const v1::SubmitRequest* request,
                      v1::Job* answer) override {
    submits.push_back(*request);
    if (refuse_submits-- > 0) return {grpc::StatusCode::UNAVAILABLE, "stopping"};
    *answer = job;
    return grpc::Status::OK;
  }
  grpc::Status Watch(grpc::ServerContext*, const v1::GetJobRequest*,
                     grpc::ServerWriter<v1::Job>* stream) override {
    if (watched < states.size()) job.set_state(states[watched++]);
    stream->Write(job);
    return grpc::Status::OK;
  }
  grpc::Status Logs(grpc::ServerContext*, const v1::LogsRequest* request,
                    grpc::ServerWriter<v1::LogChunk>* stream) override {
    logs_requests.push_back(*request);
    int sent = 0;
    for (size_t i = 0; i < lines.size(); ++i) {
      if (static_cast<int64_t>(i) < request->after_sequence()) continue;
      if (break_after >= 0 && sent++ == break_after)
        return {grpc::StatusCode::UNAVAILABLE, "broken"};
      v1::LogChunk chunk;
      chunk.set_sequence(static_cast<int64_t>(i) + 1);
      chunk.set_rank(static_cast<int>(i % 2));
      chunk.set_data(lines[i]);
      stream->Write(chunk);
    }
    return grpc::Status::OK;
  }
  grpc::Status List(grpc::ServerContext*, const v1::ListCheckpointsRequest*,
                    v1::ListCheckpointsResponse*) override {
    return grpc::Status::OK;
  }
  grpc::Status Pull(grpc::ServerContext*, const v1::PullRequest* request,
                    grpc::ServerWriter<v1::PullPiece>* stream) override {
    pulls.push_back(*request);
    v1::PullPiece first;
    *first.mutable_manifest() = manifest;
    stream->Write(first);
    bool started = request->start_file().empty();
    int sent = 0;
    for (const auto& file : manifest.files()) {
      int64_t offset = 0;
      if (!started && file.name() != request->start_file()) continue;
      if (!started) offset = request->start_offset();
      started = true;
      const std::string& data = files[file.name()];
      for (; offset < static_cast<int64_t>(data.size()); offset += 4) {
        if (break_pull_after >= 0 && sent++ == break_pull_after)
          return {grpc::StatusCode::UNAVAILABLE, "node away"};
        v1::PullPiece piece;
        piece.set_file(file.name());
        piece.set_offset(offset);
        piece.set_data(data.substr(offset, 4));
        stream->Write(piece);
      }
    }
    return grpc::Status::OK;
  }

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

class ClientTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/mt-client-test-XXXXXX";
    folder_ = mkdtemp(name);
    setenv("MT_CONFIG_DIR", folder_.c_str(), 1);
    unsetenv("MT_ENDPOINT");
    unsetenv("MT_CONTEXT");
    session_.connect.endpoint = "127.0.0.1:" + std::to_string(fake_.port());
    session_.connect.insecure = true;
    fake_.job.set_id("tiny-1");
    fake_.job.set_state(v1::JOB_STATE_RUNNING);
  }
  void TearDown() override { (void)Env::Real()->RemoveTree(folder_); }

  // Runs a whole command line; returns exit code, stdout and stderr.
  struct Result {
    int code;
    std::string out, err;
  };
  Result Mtctl(std::vector<std::string> arguments, bool connected = true) {
    if (connected) {
      arguments.push_back("--insecure");
      arguments.push_back("--endpoint=" + session_.connect.endpoint);
    }
    std::vector<const char*> argv = {"mtctl"};
    for (const std::string& argument : arguments) argv.push_back(argument.c_str());
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code = RunMtctl(static_cast<int>(argv.size()), argv.data());
    std::fflush(stdout);
    return {code, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
  }

  void MakeCheckpoint() {
    fake_.files = {{"shard-r0.safetensors", "0123456789"}, {"shard-r1.safetensors", "abcdefgh"}};
    v1::CheckpointManifest& m = fake_.manifest;
    m.set_format_version(1);
    m.set_job_id("tiny-1");
    m.set_step(20);
    m.set_parent_step(-1);
    int64_t offset = 0;
    const std::vector<float> values(6, 1.0f);
    for (const auto& [name, data] : fake_.files) {
      v1::CheckpointFile* file = m.add_files();
      file->set_name(name);
      file->set_size_bytes(static_cast<int64_t>(data.size()));
      file->set_xxh3_128(Xxh3Hex(data));
      v1::TensorSlice* slice = file->add_slices();
      slice->set_tensor("w");
      slice->add_global_shape(12);
      slice->add_offset(offset);
      slice->add_shape(6);
      slice->set_entry("w");
      slice->set_content_sum(SumOfBox("w", "F32", {12}, {offset}, {6}, 4, values.data()).Hex());
      m.set_total_bytes(m.total_bytes() + file->size_bytes());
      offset += 6;
    }
    const auto digest = WeightsDigest(m);
    ASSERT_TRUE(digest.ok()) << digest.status();
    m.set_weights_digest(*digest);
  }

  std::string folder_;
  FakeCoordinator fake_;
  Session session_;
};

TEST_F(ClientTest, ALogStreamThatBreaksGoesOnAfterTheLastLine) {
  fake_.lines = {"one\n", "two\n", "three\nfour\n", "five\n", "six\n"};
  fake_.break_after = 2;
  Interrupt interrupt;
  testing::internal::CaptureStdout();
  const absl::Status status = StreamLogs(
      &session_, "tiny-1", {.follow = true, .tail_lines = 50, .prefix = false}, &interrupt);
  EXPECT_EQ(testing::internal::GetCapturedStdout(), "one\ntwo\nthree\nfour\nfive\nsix\n");
  EXPECT_TRUE(status.ok()) << status;
  ASSERT_EQ(fake_.logs_requests.size(), 3u);
  EXPECT_EQ(fake_.logs_requests[0].tail_lines(), 50);
  EXPECT_EQ(fake_.logs_requests[1].after_sequence(), 2);
  EXPECT_EQ(fake_.logs_requests[1].tail_lines(), 0) << "a resumed stream lacks nothing";
  EXPECT_EQ(fake_.logs_requests[2].after_sequence(), 4);
}

TEST_F(ClientTest, WaitOutlivesACoordinatorThatEndsItsStreams) {
  fake_.states = {v1::JOB_STATE_RUNNING, v1::JOB_STATE_RECOVERING, v1::JOB_STATE_SUCCEEDED};
  Interrupt interrupt;
  const auto job = WaitForEnd(&session_, "tiny-1", absl::Seconds(20), &interrupt, /*tell=*/false);
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->state(), v1::JOB_STATE_SUCCEEDED);
  EXPECT_EQ(fake_.watched, 3u);
}

TEST_F(ClientTest, WaitEndsAtItsTimeoutAndOnInterrupt) {
  Interrupt interrupt;
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      WaitForEnd(&session_, "tiny-1", absl::Milliseconds(1), &interrupt, false).status()));
  interrupt.Trigger();
  EXPECT_TRUE(absl::IsCancelled(
      WaitForEnd(&session_, "tiny-1", absl::Hours(1), &interrupt, false).status()));
}

TEST_F(ClientTest, AFailedJobIsExitCode8WithItsLastLines) {
  fake_.job.set_state(v1::JOB_STATE_FAILED);
  fake_.job.set_exit_code(93);
  fake_.job.mutable_failure()->set_rank(3);
  fake_.job.mutable_failure()->add_last_lines("out of memory\033[2J");
  const Result result = Mtctl({"wait", "tiny-1"});
  EXPECT_EQ(result.code, kExitJobFailed);
  EXPECT_THAT(result.err, HasSubstr("the job's exit code is 93"));
  EXPECT_THAT(result.err, HasSubstr("[rank 3] out of memory [2J\n"))
      << "control characters are shown, not obeyed";
  EXPECT_THAT(result.err, HasSubstr("next: mtctl describe tiny-1"));
  EXPECT_EQ(result.out, "");
}

TEST_F(ClientTest, ASubmitWhoseAnswerWasLostIsAskedAgainWithTheSameId) {
  fake_.refuse_submits = 1;
  const Result result = Mtctl({"submit", MT_SOURCE_DIR "/examples/quickstart.yaml"});
  EXPECT_EQ(result.code, kExitOk) << result.err;
  EXPECT_EQ(result.out, "tiny-1\n") << "only the id is data";
  ASSERT_EQ(fake_.submits.size(), 2u);
  EXPECT_EQ(fake_.submits[0].request_id(), fake_.submits[1].request_id());
  EXPECT_EQ(fake_.submits[0].request_id().size(), 20u);
}

TEST_F(ClientTest, ListsAreListsAlsoWhenEmpty) {
  Result result = Mtctl({"list", "-o", "json"});
  const Json jobs = Json::parse(result.out);
  ASSERT_EQ(jobs.size(), 1u);
  EXPECT_EQ(jobs[0]["id"], "tiny-1");
  EXPECT_EQ(jobs[0]["state"], "running");
  result = Mtctl({"list", "-o", "yaml"});
  EXPECT_THAT(result.out, HasSubstr("- id: tiny-1\n"));
  fake_.job.Clear();
  EXPECT_EQ(Mtctl({"list", "-o", "json"}).out, "[]\n");
  EXPECT_EQ(Mtctl({"checkpoint", "list", "tiny-1", "-o", "json"}).out, "[]\n");
  result = Mtctl({"list"});
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("no jobs"));
}

TEST_F(ClientTest, ErrorsHaveTheirExitCodeAndTheNextCommand) {
  Result result = Mtctl({"status", "nobody"});
  EXPECT_EQ(result.code, kExitNotFound);
  EXPECT_THAT(result.err, HasSubstr("mtctl: no job nobody\nnext: mtctl list\n"));

  result = Mtctl({"lst"}, /*connected=*/false);
  EXPECT_EQ(result.code, kExitUsage);
  EXPECT_EQ(result.err, "mtctl: there is no command lst\nnext: did you mean `list`?\n");
  result = Mtctl({"checkpoint", "lst"}, /*connected=*/false);
  EXPECT_THAT(result.err, HasSubstr("mtctl checkpoint: there is no command lst"));
  result = Mtctl({"logs", "job-1", "--rnak", "0"}, /*connected=*/false);
  EXPECT_EQ(result.code, kExitUsage);
  EXPECT_THAT(result.err, HasSubstr("did you mean `--rank`?"));
  result = Mtctl({"logs"}, /*connected=*/false);
  EXPECT_EQ(result.err, "mtctl: JOB is required\nnext: mtctl logs --help\n");

  result = Mtctl({"list"}, /*connected=*/false);
  EXPECT_EQ(result.code, kExitUnavailable);
  EXPECT_THAT(result.err, HasSubstr("mtctl dev up"));

  result = Mtctl({"list", "--endpoint=127.0.0.1:1", "--insecure"}, false);
  EXPECT_EQ(result.code, kExitUnavailable);
  EXPECT_THAT(result.err, HasSubstr("no coordinator answers at 127.0.0.1:1"));

  result = Mtctl({"list", "--endpoint=127.0.0.1:1"}, false);
  EXPECT_EQ(result.code, kExitPrecondition);
  EXPECT_THAT(result.err, HasSubstr("--tls-dir"));

  result = Mtctl({"submit", MT_SOURCE_DIR "/examples/quickstart.yaml", "--set", "training.step=3"});
  EXPECT_EQ(result.code, kExitPrecondition);
  EXPECT_THAT(result.err, HasSubstr("training.step: unknown key; did you mean `steps`?"));
  EXPECT_TRUE(fake_.submits.empty());

  result = Mtctl({"submit", "/nowhere/job.yaml"});
  EXPECT_EQ(result.code, kExitNotFound);
}

TEST_F(ClientTest, PlanShowsMemoryByKindWithoutACoordinator) {
  const Result table =
      Mtctl({"plan", MT_SOURCE_DIR "/examples/quickstart.yaml", "--offline"}, false);
  EXPECT_EQ(table.code, kExitOk) << table.err;
  EXPECT_THAT(table.out, HasSubstr("TP2×PP1×DP2, sequence parallel, ZeRO-1, fp32"));
  EXPECT_THAT(table.out, HasSubstr("OPTIMIZER"));
  const Result refused = Mtctl(
      {"plan", MT_SOURCE_DIR "/examples/quickstart.yaml", "--offline", "--slots", "2"}, false);
  EXPECT_EQ(refused.code, kExitPrecondition);
  EXPECT_THAT(refused.err,
              HasSubstr("needs 4 slots and the cluster has 2; nearest layouts that fit: "));
  const Result json =
      Mtctl({"plan", MT_SOURCE_DIR "/examples/quickstart.yaml", "--offline", "-o", "json"}, false);
  EXPECT_EQ(Json::parse(json.out)["ranks"].size(), 4u);
}

TEST(ShapeOf, TakesTheMemoryOfTheDevicesThatTheJobRunsOn) {
  v1::Node node;
  node.set_state(v1::NODE_STATE_READY);
  node.set_slots(2);
  node.set_memory_bytes(int64_t{2000} << 30);
  EXPECT_EQ(client::ShapeOf({node}, "").memory_per_slot_bytes, int64_t{1000} << 30);
  for (const int64_t gibibytes : {141, 80}) {
    node.add_devices()->set_memory_total_bytes(gibibytes << 30);
  }
  // The poorest counts, less what CUDA needs itself.
  EXPECT_EQ(client::ShapeOf({node}, "").memory_per_slot_bytes, int64_t{77} << 30);
  EXPECT_EQ(client::ShapeOf({node}, "cuda").slots, 2);
  EXPECT_FALSE(client::ShapeOf({node}, "cuda").computes_on_hosts);
  EXPECT_EQ(client::ShapeOf({node}, "").host_memory_per_slot_bytes, int64_t{1000} << 30);
  EXPECT_TRUE(client::ShapeOf({node}, "cpu").computes_on_hosts);
  EXPECT_EQ(client::ShapeOf({node}, "cpu").memory_per_slot_bytes, int64_t{1000} << 30);
  node.set_slots(4);  // two share a device
  EXPECT_EQ(client::ShapeOf({node}, "auto").memory_per_slot_bytes, (int64_t{77} << 30) / 2);
  node.mutable_devices(0)->clear_memory_total_bytes();  // it does not answer
  node.mutable_devices(1)->clear_memory_total_bytes();
  EXPECT_EQ(client::ShapeOf({node}, "").memory_per_slot_bytes, int64_t{500} << 30);
}

TEST_F(ClientTest, APullThatBreaksGoesOnWhereItWas) {
  MakeCheckpoint();
  fake_.break_pull_after = 2;
  v1::CheckpointRef reference;
  reference.set_job_id("tiny-1");
  reference.set_step(-1);
  SetQuiet(true);
  const auto folder = PullCheckpoint(&session_, reference, folder_ + "/pulled");
  SetQuiet(false);
  ASSERT_TRUE(folder.ok()) << folder.status();
  EXPECT_EQ(*folder, folder_ + "/pulled/tiny-1/step-00000020");
  EXPECT_EQ(*ReadFile(Env::Real(), *folder + "/shard-r0.safetensors"), "0123456789");
  EXPECT_EQ(*ReadFile(Env::Real(), *folder + "/shard-r1.safetensors"), "abcdefgh");
  EXPECT_TRUE(Exists(Env::Real(), *folder + "/manifest.json"));
  ASSERT_GE(fake_.pulls.size(), 2u);
  EXPECT_EQ(fake_.pulls[1].start_file(), "shard-r0.safetensors");
  EXPECT_EQ(fake_.pulls[1].start_offset(), 8);
  EXPECT_EQ(fake_.pulls[1].checkpoint().step(), 20) << "the newest may be another one by now";
}

TEST_F(ClientTest, ACorruptPieceIsNeverCommitted) {
  MakeCheckpoint();
  fake_.files["shard-r1.safetensors"][3] = 'X';
  const Result result = Mtctl({"checkpoint", "pull", "tiny-1", "--to", folder_});
  EXPECT_NE(result.code, kExitOk);
  EXPECT_THAT(result.err, HasSubstr("shard-r1.safetensors: the digest"));
  EXPECT_FALSE(Exists(Env::Real(), folder_ + "/tiny-1/step-00000020/manifest.json"));
  EXPECT_FALSE(Exists(Env::Real(), folder_ + "/tiny-1/step-00000020/shard-r1.safetensors"));
}

TEST(ExitCodes, FollowTheOneTable) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeOf(absl::InternalError("")), 1);
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("")), 3);
  EXPECT_EQ(ExitCodeOf(absl::PermissionDeniedError("")), 4);
  EXPECT_EQ(ExitCodeOf(absl::FailedPreconditionError("")), 5);
  EXPECT_EQ(ExitCodeOf(absl::InvalidArgumentError("")), 5);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("")), 6);
  EXPECT_EQ(ExitCodeOf(absl::DeadlineExceededError("")), 7);
}

TEST(Output, TablesAlignByCharactersAndHideWideColumns) {
  Table table({{"A"}, {"B", true}, {"C", false, true}});
  table.AddRow({"TP2×DP2", "x", "1"});
  table.AddRow({"", "y", "22"});
  EXPECT_EQ(table.Render(false), "A         C\nTP2×DP2   1\n-        22\n");
  EXPECT_EQ(table.Render(true), "A        B   C\nTP2×DP2  x   1\n-        y  22\n");
}

TEST(Output, NumbersHaveUnits) {
  EXPECT_EQ(Bytes(1536), "1.50 KiB");
  EXPECT_EQ(Bytes(12), "12 B");
  EXPECT_EQ(Count(12345), "12.3k");
  EXPECT_EQ(Count(7.2e6), "7.2M");
  EXPECT_EQ(Seconds(absl::Seconds(7500)), "2h05m");
  EXPECT_EQ(Sparkline({1, 2, 3}, 8), "▁▄█");
  EXPECT_EQ(Sparkline({5, 5, NAN}, 8), "▁▁!");
  EXPECT_EQ(PrefixLines("a\nb", "> "), "> a\n> b\n");
}

TEST(TopFrame, FitsTheScreenAndTellsWhatMatters) {
  v1::ClusterStatus status;
  status.set_slots(4);
  status.set_slots_used(4);
  auto* node = status.add_nodes();
  node->set_name("node0");
  node->set_state(v1::NODE_STATE_SUSPECT);
  node->set_reason("stream lost");
  v1::Job job;
  job.set_id("tiny-1");
  job.set_state(v1::JOB_STATE_RUNNING);
  job.mutable_progress()->set_step(5);
  job.mutable_progress()->set_total_steps(10);
  job.mutable_progress()->set_loss(2.5);
  job.mutable_progress()->set_tokens_per_second(12345);
  for (float loss : {5.f, 4.f, 2.5f}) job.mutable_progress()->add_loss_history(loss);
  const std::string frame = TopFrame(status, {job}, absl::UnixEpoch(), 0, 0);
  for (const char* text : {"slots 4/4", "tiny-1", "5/10", "12.3k", "█▅▁", "suspect", "stream lost"})
    EXPECT_THAT(frame, HasSubstr(text));
  const std::string small = TopFrame(status, {job}, absl::UnixEpoch(), 20, 3);
  EXPECT_EQ(std::count(small.begin(), small.end(), '\n'), 3);
  for (absl::string_view line : {absl::string_view(small).substr(0, small.find('\n'))})
    EXPECT_LE(DisplayWidth(line), 20u);
  // Many ended jobs, newest first: the running one and the node stay in sight.
  v1::Job ended;
  ended.set_id("old-1");
  ended.set_state(v1::JOB_STATE_SUCCEEDED);
  std::vector<v1::Job> jobs(40, ended);
  jobs.push_back(job);
  const std::string full = TopFrame(status, jobs, absl::UnixEpoch(), 120, 12);
  EXPECT_LT(full.find("tiny-1"), full.find("old-1"));
  EXPECT_THAT(full, HasSubstr("stream lost"));
}

TEST(Completion, KnowsEveryCommandAndBashAcceptsIt) {
  Session session;
  const auto app = NewApplication(&session);
  for (const char* shell : {"bash", "zsh", "fish"}) {
    const std::string script = CompletionScript(*app, shell);
    for (const CLI::App* sub : app->get_subcommands(nullptr))
      EXPECT_THAT(script, HasSubstr(sub->get_name())) << shell;
    EXPECT_THAT(script, HasSubstr("validate-only")) << shell;
  }
  const std::string path = testing::TempDir() + "/mtctl-completion.bash";
  std::ofstream(path)
      << CompletionScript(*app, "bash")
      << "COMP_WORDS=(mtctl checkpoint sh); COMP_CWORD=2; _mtctl; [ \"${COMPREPLY[*]}\" = show ]\n";
  EXPECT_EQ(std::system(("bash " + path).c_str()), 0);
}

}  // namespace
}  // namespace mt::client
