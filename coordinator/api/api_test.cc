// The services over real gRPC and mTLS, in front of the coordinator's real logic; only the worker is played.
#include "coordinator/api/api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "absl/strings/str_format.h"
#include "absl/synchronization/notification.h"
#include "common/check.h"
#include "common/grpc_status.h"
#include "common/hash.h"
#include "coordinator/store/memory_store.h"
#include "mt/v1/checkpoints.grpc.pb.h"
#include "mt/v1/cluster.grpc.pb.h"
#include "mt/v1/jobs.grpc.pb.h"
#include "mt/v1/worker.grpc.pb.h"

namespace mt {
namespace {

using testing::HasSubstr;

class PlayedStream : public WorkerStream {
 public:
  explicit PlayedStream(std::function<void(const v1::CoordinatorMessage&)> on_send)
      : on_send_(std::move(on_send)) {}
  void Send(v1::CoordinatorMessage message) override { on_send_(message); }
  void Close(absl::Status) override {}
  std::string AuthenticatedNode() const override { return ""; }

 private:
  const std::function<void(const v1::CoordinatorMessage&)> on_send_;
};

class ApiTest : public testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/mt-api-XXXXXX";
    folder_ = mkdtemp(path);
    auto ca = ClusterCa::LoadOrCreate(env_, folder_);
    MT_CHECK_OK(ca.status());
    ca_ = std::move(*ca);
    loop_ = NewThreadEventLoop("coordinator");
    store_ = NewMemoryStore(std::make_shared<MemoryDisk>());
    OnLoop([&] {
      CoordinatorOptions options;
      options.loop = loop_.get();
      options.store = store_.get();
      NodeConfig node;
      node.name = "n1";
      node.slots = 2;
      options.nodes = {node};
      options.state_directory = folder_ + "/state";
      options.on_fatal = [](absl::Status status) { MT_CHECK_OK(status); };
      auto coordinator = Coordinator::Create(std::move(options));
      MT_CHECK_OK(coordinator.status());
      coordinator_ = std::move(*coordinator);
      coordinator_->Start();
    });
    const TlsFiles own = Files("coordinator", ca_->IssueCoordinator("mt"));
    services_.push_back(NewJobsService(loop_.get(), coordinator_.get()));
    services_.push_back(
        NewClusterService(loop_.get(), coordinator_.get(), [this] { stopped_.Notify(); }));
    services_.push_back(NewCheckpointsService(loop_.get(), env_, coordinator_.get(), own));
    services_.push_back(NewCoordinatorDatasetsService(loop_.get(), env_, coordinator_.get()));
    grpc::ServerBuilder builder;
    SetServerDefaults(builder);
    builder.AddListeningPort("127.0.0.1:0", *NewServerCredentials(env_, own), &port_);
    for (const auto& service : services_) builder.RegisterService(service.get());
    server_ = builder.BuildAndStart();
    MT_CHECK(server_ != nullptr);
  }
  void TearDown() override {
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
    server_->Wait();
    OnLoop([this] { coordinator_.reset(); });
    services_.clear();
    loop_.reset();
    MT_CHECK_OK(env_->RemoveTree(folder_));
  }
  void OnLoop(std::function<void()> body) {
    absl::Notification done;
    loop_->Post([&] {
      body();
      done.Notify();
    });
    done.WaitForNotification();
  }
  TlsFiles Files(const std::string& name, const absl::StatusOr<CertificateAndKey>& pair) {
    MT_CHECK_OK(pair.status());
    MT_CHECK_OK(WriteCertificate(env_, folder_, name, *pair));
    return {JoinPath(folder_, "ca.crt"), JoinPath(folder_, name + ".crt"),
            JoinPath(folder_, name + ".key")};
  }
  std::shared_ptr<grpc::Channel> As(Role role, const std::string& user = "me") {
    return Channel(Files(absl::StrCat(RoleName(role), user), ca_->IssueClient(user, role)));
  }
  std::shared_ptr<grpc::Channel> Channel(const TlsFiles& files) {
    return *NewChannel(env_, absl::StrCat("127.0.0.1:", port_), files, kCoordinatorTargetName);
  }
  static void Limit(grpc::ClientContext& context) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  }
  template <typename Stub, typename Request, typename Response>
  static absl::StatusOr<Response> Call(Stub& stub,
                                       grpc::Status (Stub::*method)(grpc::ClientContext*,
                                                                    const Request&, Response*),
                                       const Request& request) {
    grpc::ClientContext context;
    Limit(context);
    Response response;
    const grpc::Status status = (stub.*method)(&context, request, &response);
    if (!status.ok()) return FromGrpcStatus(status);
    return response;
  }
  static v1::SubmitRequest Request(const std::string& id = "r1") {
    v1::SubmitRequest request;
    request.set_request_id(id);
    v1::JobSpec& spec = *request.mutable_spec();
    spec.set_name("tiny");
    spec.mutable_model()->set_layers(2);
    spec.mutable_model()->set_hidden(64);
    spec.mutable_model()->set_heads(4);
    spec.mutable_model()->set_ffn(128);
    spec.mutable_data()->add_train()->set_prefix("/data/text");
    spec.mutable_data()->set_tokenizer("byte");
    spec.mutable_data()->set_sequence_length(64);
    spec.mutable_training()->set_steps(100);
    spec.mutable_training()->set_global_batch(4);
    return request;
  }
  static v1::JobActionRequest Action(const std::string& id) {
    v1::JobActionRequest request;
    request.set_job_id(id);
    return request;
  }

  Env* const env_ = Env::Real();
  std::string folder_;
  std::unique_ptr<ClusterCa> ca_;
  std::unique_ptr<EventLoop> loop_;
  std::unique_ptr<StateStore> store_;
  std::unique_ptr<Coordinator> coordinator_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
  absl::Notification stopped_;
  int port_ = 0;
};

TEST_F(ApiTest, RolesAllowWhatTheySay) {
  v1::Jobs::Stub viewer(As(Role::kViewer)), submitter(As(Role::kSubmitter, "alice")),
      other(As(Role::kSubmitter, "bob"));
  v1::Cluster::Stub viewer_cluster(As(Role::kViewer)), submitter_cluster(As(Role::kSubmitter)),
      operator_cluster(As(Role::kOperator));
  EXPECT_TRUE(Call(viewer, &v1::Jobs::Stub::List, v1::ListJobsRequest()).ok());
  EXPECT_EQ(Call(viewer, &v1::Jobs::Stub::Submit, Request()).status().code(),
            absl::StatusCode::kPermissionDenied);
  const auto job = Call(submitter, &v1::Jobs::Stub::Submit, Request());
  ASSERT_TRUE(job.ok()) << job.status();
  EXPECT_EQ(job->submitted_by(), "alice");
  EXPECT_GT(job->spec().model().vocab(), 0) << "the stored spec is resolved";
  const auto refused = Call(other, &v1::Jobs::Stub::Cancel, Action(job->id()));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("belongs to alice"));
  EXPECT_TRUE(Call(submitter, &v1::Jobs::Stub::Cancel, Action(job->id())).ok());
  v1::DrainRequest drain;
  drain.set_node("n1");
  EXPECT_TRUE(Call(viewer_cluster, &v1::Cluster::Stub::ListNodes, v1::ListNodesRequest()).ok());
  EXPECT_EQ(Call(submitter_cluster, &v1::Cluster::Stub::Drain, drain).status().code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_TRUE(Call(operator_cluster, &v1::Cluster::Stub::Drain, drain).ok());
}

TEST_F(ApiTest, NodesCertificateIsNoClient) {
  v1::Jobs::Stub node(Channel(Files("node", ca_->IssueNode("n1"))));
  EXPECT_EQ(Call(node, &v1::Jobs::Stub::List, v1::ListJobsRequest()).status().code(),
            absl::StatusCode::kPermissionDenied);
}

TEST_F(ApiTest, DatasetsAreForNodesOnly) {
  const auto status_of = [](std::shared_ptr<grpc::Channel> channel) {
    grpc::ClientContext context;
    Limit(context);
    v1::ReadDatasetRequest request;
    request.set_xxh3_128(std::string(32, 'a'));
    v1::FilePiece piece;
    const auto reader = v1::Datasets::NewStub(channel)->Read(&context, request);
    while (reader->Read(&piece)) continue;
    return FromGrpcStatus(reader->Finish()).code();
  };
  EXPECT_EQ(status_of(As(Role::kOperator)), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(status_of(Channel(Files("node", ca_->IssueNode("n1")))), absl::StatusCode::kNotFound);
}

TEST_F(ApiTest, SpecThatDoesNotValidateIsRefused) {
  v1::Jobs::Stub jobs(As(Role::kSubmitter));
  v1::SubmitRequest request = Request();
  request.mutable_spec()->mutable_model()->set_heads(7);
  const auto job = Call(jobs, &v1::Jobs::Stub::Submit, request);
  EXPECT_EQ(job.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(job.status().message()), HasSubstr("heads"));
  EXPECT_EQ(Call(jobs, &v1::Jobs::Stub::List, v1::ListJobsRequest())->jobs_size(), 0);
}

TEST_F(ApiTest, WaitAnswersAtItsTimeAndAtTheEnd) {
  v1::Jobs::Stub jobs(As(Role::kSubmitter));
  const std::string id = Call(jobs, &v1::Jobs::Stub::Submit, Request())->id();
  v1::WaitRequest wait;
  wait.set_job_id("absent");
  EXPECT_EQ(Call(jobs, &v1::Jobs::Stub::Wait, wait).status().code(), absl::StatusCode::kNotFound);
  wait.set_job_id(id);
  wait.mutable_timeout()->set_nanos(1000000);
  EXPECT_EQ(Call(jobs, &v1::Jobs::Stub::Wait, wait)->state(), v1::JOB_STATE_QUEUED);
  wait.clear_timeout();
  std::thread canceller(
      [&] { MT_CHECK_OK(Call(jobs, &v1::Jobs::Stub::Cancel, Action(id)).status()); });
  const auto ended = Call(jobs, &v1::Jobs::Stub::Wait, wait);
  canceller.join();
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_EQ(ended->state(), v1::JOB_STATE_CANCELLED);
}

TEST_F(ApiTest, WatchShowsTheJobUntilItHasEnded) {
  v1::Jobs::Stub jobs(As(Role::kSubmitter));
  v1::GetJobRequest get;
  get.set_job_id(Call(jobs, &v1::Jobs::Stub::Submit, Request())->id());
  grpc::ClientContext context;
  Limit(context);
  const auto reader = jobs.Watch(&context, get);
  v1::Job job;
  ASSERT_TRUE(reader->Read(&job));
  EXPECT_EQ(job.state(), v1::JOB_STATE_QUEUED);
  ASSERT_TRUE(Call(jobs, &v1::Jobs::Stub::Cancel, Action(get.job_id())).ok());
  while (reader->Read(&job)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(job.state(), v1::JOB_STATE_CANCELLED);
}

TEST_F(ApiTest, AbandonedStreamsAreForgotten) {
  v1::Jobs::Stub jobs(As(Role::kSubmitter));
  v1::LogsRequest logs;
  logs.set_job_id(Call(jobs, &v1::Jobs::Stub::Submit, Request())->id());
  logs.set_follow(true);
  logs.set_all_ranks(true);
  grpc::ClientContext context;
  Limit(context);
  const auto reader = jobs.Logs(&context, logs);
  context.TryCancel();
  v1::LogChunk chunk;
  EXPECT_FALSE(reader->Read(&chunk));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  // What was subscribed is gone: this change would otherwise reach a stream that has ended.
  EXPECT_TRUE(Call(jobs, &v1::Jobs::Stub::Cancel, Action(logs.job_id())).ok());
}

TEST_F(ApiTest, LogsOfAQuietRankAreFoundThoughOneReadDoesNotReachThem) {
  v1::Jobs::Stub jobs(As(Role::kSubmitter));
  v1::LogsRequest logs;
  logs.set_job_id(Call(jobs, &v1::Jobs::Stub::Submit, Request())->id());
  OnLoop([&] {
    const auto say = [&](int rank, const std::string& data) {
      v1::LogChunk chunk;
      chunk.set_rank(rank);
      chunk.set_data(data);
      const auto stored = coordinator_->logs().Append(logs.job_id(), chunk, -1);
      EXPECT_TRUE(stored.ok()) << stored.status();
    };
    const std::string loud = std::string((64 << 10) - 1, 'x') + "\n";
    for (int i = 0; i < 64; ++i) say(7, loud);
    say(0, "quiet\n");
    for (int i = 0; i < 64; ++i) say(7, loud);
  });
  const auto read = [&] {
    grpc::ClientContext context;
    Limit(context);
    const auto reader = jobs.Logs(&context, logs);
    v1::LogChunk chunk;
    std::string text;
    while (reader->Read(&chunk)) text += chunk.data();
    EXPECT_TRUE(reader->Finish().ok());
    return text;
  };
  EXPECT_EQ(read(), "quiet\n");
  logs.set_tail_lines(1);
  EXPECT_EQ(read(), "quiet\n");
}

TEST_F(ApiTest, LogsOfARankThatDoesNotExistAreOutOfRange) {
  v1::Jobs::Stub jobs(As(Role::kSubmitter));
  v1::LogsRequest logs;
  logs.set_job_id(Call(jobs, &v1::Jobs::Stub::Submit, Request())->id());
  const auto code = [&] {
    grpc::ClientContext context;
    Limit(context);
    const auto reader = jobs.Logs(&context, logs);
    v1::LogChunk chunk;
    while (reader->Read(&chunk)) {
    }
    return reader->Finish().error_code();
  };
  EXPECT_EQ(code(), grpc::StatusCode::OK);
  logs.set_rank(1);
  EXPECT_EQ(code(), grpc::StatusCode::OUT_OF_RANGE);
  logs.set_rank(0);
  logs.set_attempt(9);
  EXPECT_EQ(code(), grpc::StatusCode::OUT_OF_RANGE);
  logs.set_job_id("absent");
  EXPECT_EQ(code(), grpc::StatusCode::NOT_FOUND);
}

// A worker that writes one shard and commits, so that there is a checkpoint on the shared path.
class ApiCheckpointTest : public ApiTest {
 protected:
  void SetUp() override {
    ApiTest::SetUp();
    v1::SubmitRequest request = Request();
    request.mutable_spec()->mutable_checkpoint()->set_path(folder_ + "/shared");
    contents_.assign(2500000, '\0');
    for (size_t i = 0; i < contents_.size(); ++i)
      contents_[i] = static_cast<char>(i * 2654435761u >> 9);
    OnLoop([&] {
      stream_ = std::make_shared<PlayedStream>([this](const v1::CoordinatorMessage& message) {
        if (message.has_start_ranks()) {
          job_id_ = message.start_ranks().job_id();
          if (!started_.HasBeenNotified()) started_.Notify();
        }
        if (!message.has_commit_manifest()) return;
        v1::WorkerEvent event = Event();
        event.mutable_manifest_committed()->set_step(10);
        event.mutable_manifest_committed()->set_ok(true);
        loop_->Post([this, event] { Tell(event); });
      });
      v1::WorkerMessage message;
      message.set_node("n1");
      message.set_incarnation("i1");
      message.mutable_register_()->set_protocol_version(1);
      message.mutable_register_()->set_slots(2);
      message.mutable_register_()->set_next_sequence(1);
      coordinator_->OnMessage(stream_, message);
    });
    jobs_ = std::make_unique<v1::Jobs::Stub>(As(Role::kSubmitter));
    checkpoints_ = std::make_unique<v1::Checkpoints::Stub>(As(Role::kSubmitter));
    ASSERT_TRUE(Call(*jobs_, &v1::Jobs::Stub::Submit, request).ok());
    ASSERT_TRUE(started_.WaitForNotificationWithTimeout(absl::Seconds(30)));
    file_ = absl::StrFormat("%s/shared/%s/step-%08d/shard-0", folder_, job_id_, 10);
    MT_CHECK_OK(env_->CreateDirectories(file_.substr(0, file_.rfind('/'))));
    MT_CHECK_OK(WriteFileAtomically(env_, file_, contents_));
    v1::WorkerEvent event = Event();
    v1::ShardWritten& shard = *event.mutable_shard_written();
    shard.set_step(10);
    shard.set_world_size(1);
    shard.mutable_file()->set_name("shard-0");
    shard.mutable_file()->set_size_bytes(static_cast<int64_t>(contents_.size()));
    shard.mutable_file()->set_xxh3_128(Xxh3Hex(contents_));
    OnLoop([&] { Tell(event); });
    ref_.set_job_id(job_id_);
    ref_.set_step(10);
    // It is there after a change of the job: watch until then.
    grpc::ClientContext context;
    Limit(context);
    v1::GetJobRequest get;
    get.set_job_id(job_id_);
    const auto reader = jobs_->Watch(&context, get);
    v1::Job job;
    while (reader->Read(&job) && job.last_checkpoint_step() != 10) {
    }
    ASSERT_EQ(job.last_checkpoint_step(), 10);
    context.TryCancel();
  }
  void TearDown() override {
    jobs_.reset();
    checkpoints_.reset();
    ApiTest::TearDown();
  }
  v1::WorkerEvent Event() {
    v1::WorkerEvent event;
    event.set_job_id(job_id_);
    event.set_generation(1);
    event.set_rank(0);
    return event;
  }
  void Tell(v1::WorkerEvent event) {
    event.set_sequence(++sequence_);
    v1::WorkerMessage message;
    message.set_node("n1");
    message.set_incarnation("i1");
    *message.mutable_event() = std::move(event);
    coordinator_->OnMessage(stream_, message);
  }
  grpc::Status Pull(const v1::PullRequest& request, std::string* data,
                    v1::CheckpointManifest* manifest = nullptr) {
    grpc::ClientContext context;
    Limit(context);
    const auto reader = checkpoints_->Pull(&context, request);
    v1::PullPiece piece;
    bool first = true;
    while (reader->Read(&piece)) {
      EXPECT_LE(piece.data().size(), 1u << 20);
      EXPECT_EQ(piece.has_manifest(), first);
      if (first && manifest != nullptr) *manifest = piece.manifest();
      first = false;
      data->append(piece.data());
    }
    return reader->Finish();
  }

  std::shared_ptr<PlayedStream> stream_;
  absl::Notification started_;
  std::string job_id_, contents_, file_;
  int64_t sequence_ = 0;
  v1::CheckpointRef ref_;
  std::unique_ptr<v1::Jobs::Stub> jobs_;
  std::unique_ptr<v1::Checkpoints::Stub> checkpoints_;
};

TEST_F(ApiCheckpointTest, PullBringsEveryByteAndResumes) {
  v1::PullRequest request;
  *request.mutable_checkpoint() = ref_;
  request.mutable_checkpoint()->set_step(-1);
  std::string data;
  v1::CheckpointManifest manifest;
  grpc::Status status = Pull(request, &data, &manifest);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(manifest.step(), 10);
  EXPECT_TRUE(data == contents_);
  request.set_start_file("shard-0");
  request.set_start_offset(1234567);
  data.clear();
  status = Pull(request, &data);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_TRUE(data == contents_.substr(1234567));
  request.set_start_offset(99999999);
  EXPECT_EQ(Pull(request, &data).error_code(), grpc::StatusCode::OUT_OF_RANGE);
  request.set_start_file("other");
  EXPECT_EQ(Pull(request, &data).error_code(), grpc::StatusCode::NOT_FOUND);
  v1::Checkpoints::Stub viewer(As(Role::kViewer));
  EXPECT_TRUE(Call(viewer, &v1::Checkpoints::Stub::Show, ref_).ok());
}

TEST_F(ApiCheckpointTest, CorruptFileIsSeenAndNeverSent) {
  auto verified = Call(*checkpoints_, &v1::Checkpoints::Stub::Verify, ref_);
  ASSERT_TRUE(verified.ok()) << verified.status();
  EXPECT_TRUE(verified->ok());
  std::string corrupt = contents_;
  corrupt[2000000] ^= 1;
  MT_CHECK_OK(WriteFileAtomically(env_, file_, corrupt));
  v1::PullRequest request;
  *request.mutable_checkpoint() = ref_;
  std::string data;
  const grpc::Status status = Pull(request, &data);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_THAT(status.error_message(), HasSubstr("shard-0"));
  EXPECT_EQ(data, "");
  EXPECT_EQ(Call(*checkpoints_, &v1::Checkpoints::Stub::Verify, ref_).status().code(),
            absl::StatusCode::kDataLoss);
  const auto shown = Call(*checkpoints_, &v1::Checkpoints::Stub::Show, ref_);
  ASSERT_TRUE(shown.ok()) << shown.status();
  EXPECT_EQ(shown->state(), v1::CheckpointInfo::STATE_BAD);
}

// A folder that is not mounted here says nothing of the checkpoint.
TEST_F(ApiCheckpointTest, AFolderThatIsNotThereDoesNotMakeTheCheckpointBad) {
  MT_CHECK_OK(env_->Rename(folder_ + "/shared", folder_ + "/elsewhere"));
  const auto verified = Call(*checkpoints_, &v1::Checkpoints::Stub::Verify, ref_);
  ASSERT_TRUE(verified.ok()) << verified.status();
  EXPECT_FALSE(verified->ok());
  EXPECT_THAT(verified->files(0).message(), HasSubstr("mount the shared path"));
  const auto shown = Call(*checkpoints_, &v1::Checkpoints::Stub::Show, ref_);
  ASSERT_TRUE(shown.ok()) << shown.status();
  EXPECT_EQ(shown->state(), v1::CheckpointInfo::STATE_COMMITTED);
  // The file alone is gone: that is a loss.
  MT_CHECK_OK(env_->Rename(folder_ + "/elsewhere", folder_ + "/shared"));
  MT_CHECK_OK(
      WriteFileAtomically(env_, file_.substr(0, file_.rfind('/')) + "/manifest.json", "{}"));
  MT_CHECK_OK(env_->RemoveFile(file_));
  EXPECT_EQ(Call(*checkpoints_, &v1::Checkpoints::Stub::Verify, ref_).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST_F(ApiTest, ShutdownStopsTheProcess) {
  v1::Cluster::Stub submitter(As(Role::kSubmitter)), operators(As(Role::kOperator));
  EXPECT_EQ(Call(submitter, &v1::Cluster::Stub::Shutdown, v1::ShutdownRequest()).status().code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_FALSE(stopped_.HasBeenNotified());
  EXPECT_TRUE(Call(operators, &v1::Cluster::Stub::Shutdown, v1::ShutdownRequest()).ok());
  EXPECT_TRUE(stopped_.WaitForNotificationWithTimeout(absl::Seconds(30)));
}

}  // namespace
}  // namespace mt
