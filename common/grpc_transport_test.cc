#include "common/grpc_transport.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <future>

#include "absl/synchronization/notification.h"
#include "common/check.h"

namespace mt {
namespace {

class RecordingHandler : public WorkerStreamHandler {
 public:
  void OnMessage(std::shared_ptr<WorkerStream> stream, v1::WorkerMessage message) override {
    node = stream->AuthenticatedNode();
    expiry = stream->CertificateExpiry();
    received.push_back(message.heartbeat().disk_free_bytes());
    if (on_message) on_message(stream, message);
  }
  void OnClosed(std::shared_ptr<WorkerStream>, absl::Status reason) override {
    close_reason = reason;
    if (!closed.HasBeenNotified()) closed.Notify();
  }
  std::function<void(std::shared_ptr<WorkerStream>, const v1::WorkerMessage&)> on_message;
  std::string node;
  absl::Time expiry;
  std::vector<int64_t> received;
  absl::Status close_reason;
  absl::Notification closed;
};

v1::WorkerMessage Number(int64_t value) {
  v1::WorkerMessage message;
  message.mutable_heartbeat()->set_disk_free_bytes(value);
  return message;
}
v1::CoordinatorMessage Epoch(int64_t value) {
  v1::CoordinatorMessage message;
  message.set_epoch(value);
  return message;
}

class GrpcTransportTest : public testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/mt-transport-XXXXXX";
    folder_ = mkdtemp(path);
    auto ca = ClusterCa::LoadOrCreate(env_, folder_);
    MT_CHECK_OK(ca.status());
    ca_ = std::move(*ca);
    server_files_ = Files("coordinator", ca_->IssueCoordinator("c"));
    node_files_ = Files("node", ca_->IssueNode("gpu01"));
    StartServer(server_files_);
  }
  void TearDown() override {
    Run(worker_loop_.get(), [this] { connection_.reset(); });
    StopServer();
    MT_CHECK_OK(env_->RemoveTree(folder_));
  }
  void StartServer(const TlsFiles& files) {
    service_ = NewWorkerControlService(loop_.get(), &handler_);
    grpc::ServerBuilder builder;
    SetServerDefaults(builder);
    builder.AddListeningPort(absl::StrCat("127.0.0.1:", port_), *NewServerCredentials(env_, files),
                             &port_);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    MT_CHECK(server_ != nullptr);
  }
  void StopServer() {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
    Run(loop_.get(), [] {});
  }
  static void Run(EventLoop* loop, std::function<void()> task) {
    absl::Notification done;
    loop->Post([&] {
      task();
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
  void Dial(const TlsFiles& files,
            std::function<void(v1::CoordinatorMessage)> on_message = nullptr) {
    dialer_ = NewGrpcCoordinatorDialer(worker_loop_.get(), env_, absl::StrCat("127.0.0.1:", port_),
                                       files);
    Run(worker_loop_.get(), [&] {
      connection_ = dialer_->Dial(
          on_message ? on_message : [](v1::CoordinatorMessage) {},
          [this](absl::Status reason) { dial_closed_.set_value(reason); });
    });
  }
  absl::Status DialClosed() {
    auto future = dial_closed_.get_future();
    MT_CHECK(future.wait_for(std::chrono::seconds(30)) == std::future_status::ready);
    return future.get();
  }

  Env* env_ = Env::Real();
  std::string folder_;
  std::unique_ptr<ClusterCa> ca_;
  TlsFiles server_files_, node_files_;
  RecordingHandler handler_;
  std::unique_ptr<EventLoop> loop_ = NewThreadEventLoop("coordinator");
  std::unique_ptr<EventLoop> worker_loop_ = NewThreadEventLoop("worker");
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
  std::unique_ptr<CoordinatorDialer> dialer_;
  std::unique_ptr<CoordinatorConnection> connection_;
  std::promise<absl::Status> dial_closed_;
};

TEST_F(GrpcTransportTest, MessagesArriveInOrderBothWays) {
  constexpr int kCount = 500;
  absl::Notification echoed;
  std::vector<int64_t> echoes;
  handler_.on_message = [](std::shared_ptr<WorkerStream> stream, const v1::WorkerMessage& message) {
    stream->Send(Epoch(message.heartbeat().disk_free_bytes()));
  };
  Dial(node_files_, [&](v1::CoordinatorMessage message) {
    echoes.push_back(message.epoch());
    if (echoes.size() == kCount) echoed.Notify();
  });
  for (int i = 0; i < kCount; ++i) connection_->Send(Number(i));
  ASSERT_TRUE(echoed.WaitForNotificationWithTimeout(absl::Seconds(30)));
  for (int i = 0; i < kCount; ++i) ASSERT_EQ(echoes[i], i);
  EXPECT_EQ(handler_.node, "gpu01");
  EXPECT_EQ(handler_.expiry,
            CertificateExpiry(ReadFile(env_, node_files_.certificate).value()).value());
}

TEST_F(GrpcTransportTest, ASharedMessageArrivesInItsPlaceAndIsNotKept) {
  absl::Notification all;
  std::vector<int64_t> epochs;
  std::weak_ptr<const SharedMessage> kept;
  handler_.on_message = [&](std::shared_ptr<WorkerStream> stream, const v1::WorkerMessage&) {
    const auto shared = std::make_shared<const SharedMessage>(Epoch(2));
    kept = shared;
    stream->Send(Epoch(1));
    stream->SendShared(shared);
    stream->SendShared(shared);
    stream->Send(Epoch(3));
  };
  Dial(node_files_, [&](v1::CoordinatorMessage message) {
    epochs.push_back(message.epoch());
    if (epochs.size() == 4) all.Notify();
  });
  connection_->Send(Number(1));
  ASSERT_TRUE(all.WaitForNotificationWithTimeout(absl::Seconds(30)));
  EXPECT_THAT(epochs, testing::ElementsAre(1, 2, 2, 3));
  Run(worker_loop_.get(), [this] { connection_.reset(); });
  StopServer();
  EXPECT_TRUE(kept.expired());
}

TEST_F(GrpcTransportTest, ClosingReachesTheWorkerWithCodeAndMessage) {
  handler_.on_message = [](std::shared_ptr<WorkerStream> stream, const v1::WorkerMessage&) {
    stream->Send(Epoch(1));
    stream->Close(absl::AbortedError("another incarnation is registered"));
    stream->Send(Epoch(2));
  };
  Dial(node_files_);
  connection_->Send(Number(1));
  const absl::Status reason = DialClosed();
  EXPECT_EQ(reason.code(), absl::StatusCode::kAborted);
  EXPECT_EQ(reason.message(), "another incarnation is registered");
  EXPECT_FALSE(handler_.closed.HasBeenNotified());  // this side closed
}

TEST_F(GrpcTransportTest, HandlerHearsOfALostConnectionOnce) {
  absl::Notification first;
  handler_.on_message = [&](std::shared_ptr<WorkerStream>, const v1::WorkerMessage&) {
    first.Notify();
  };
  Dial(node_files_);
  connection_->Send(Number(1));
  ASSERT_TRUE(first.WaitForNotificationWithTimeout(absl::Seconds(30)));
  Run(worker_loop_.get(), [this] { connection_.reset(); });
  ASSERT_TRUE(handler_.closed.WaitForNotificationWithTimeout(absl::Seconds(30)));
  EXPECT_FALSE(handler_.close_reason.ok());
}

TEST_F(GrpcTransportTest, WorkerHearsOfALostCoordinatorAndMayDialAgain) {
  absl::Notification first, second;
  handler_.on_message = [&](std::shared_ptr<WorkerStream>, const v1::WorkerMessage& message) {
    (message.heartbeat().disk_free_bytes() == 1 ? first : second).Notify();
  };
  Dial(node_files_);
  connection_->Send(Number(1));
  ASSERT_TRUE(first.WaitForNotificationWithTimeout(absl::Seconds(30)));
  StopServer();
  EXPECT_FALSE(DialClosed().ok());
  StartServer(server_files_);
  Run(worker_loop_.get(), [this] { connection_.reset(); });
  dial_closed_ = {};
  Dial(node_files_);
  connection_->Send(Number(2));
  EXPECT_TRUE(second.WaitForNotificationWithTimeout(absl::Seconds(30)));
}

TEST_F(GrpcTransportTest, AddressMayLieInAFile) {
  const std::string path = JoinPath(folder_, "address");
  MT_CHECK_OK(WriteFileAtomically(env_, path, absl::StrCat("127.0.0.1:", port_, "\n")));
  absl::Notification first;
  handler_.on_message = [&](std::shared_ptr<WorkerStream>, const v1::WorkerMessage&) {
    first.Notify();
  };
  dialer_ = NewGrpcCoordinatorDialer(worker_loop_.get(), env_, "@" + path, node_files_);
  Run(worker_loop_.get(), [&] {
    connection_ = dialer_->Dial([](v1::CoordinatorMessage) {}, [](absl::Status) {});
    connection_->Send(Number(1));
  });
  EXPECT_TRUE(first.WaitForNotificationWithTimeout(absl::Seconds(30)));
}

TEST_F(GrpcTransportTest, OnlyNodesAreLetIn) {
  Dial(Files("operator", ca_->IssueClient("me", Role::kOperator)));
  EXPECT_EQ(DialClosed().code(), absl::StatusCode::kPermissionDenied);
}

TEST_F(GrpcTransportTest, UnreadableCertificateClosesTheDial) {
  TlsFiles files = node_files_;
  files.certificate += ".absent";
  Dial(files);
  EXPECT_EQ(DialClosed().code(), absl::StatusCode::kNotFound);
}

TEST_F(GrpcTransportTest, NobodyThereClosesTheDial) {
  StopServer();
  Dial(node_files_);
  EXPECT_EQ(DialClosed().code(), absl::StatusCode::kUnavailable);
}

TEST_F(GrpcTransportTest, WithoutTlsTheNodeHasNoName) {
  StopServer();
  StartServer({});
  absl::Notification first;
  handler_.on_message = [&](std::shared_ptr<WorkerStream>, const v1::WorkerMessage&) {
    first.Notify();
  };
  Dial({});
  connection_->Send(Number(1));
  ASSERT_TRUE(first.WaitForNotificationWithTimeout(absl::Seconds(30)));
  EXPECT_EQ(handler_.node, "");
}

}  // namespace
}  // namespace mt
