#include <gmock/gmock.h>
#include <grpcpp/generic/async_generic_service.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "common/check.h"
#include "common/tls/credentials.h"

namespace mt {
namespace {

class TlsTest : public testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/mt-tls-XXXXXX";
    folder_ = mkdtemp(path);
    auto ca = ClusterCa::LoadOrCreate(env_, JoinPath(folder_, "tls"));
    ASSERT_TRUE(ca.ok()) << ca.status();
    ca_ = std::move(*ca);
  }
  void TearDown() override { MT_CHECK_OK(env_->RemoveTree(folder_)); }

  TlsFiles Files(const std::string& name, const absl::StatusOr<CertificateAndKey>& pair) {
    MT_CHECK_OK(pair.status());
    const std::string tls = JoinPath(folder_, "tls");
    MT_CHECK_OK(WriteCertificate(env_, tls, name, *pair));
    return {JoinPath(tls, "ca.crt"), JoinPath(tls, name + ".crt"), JoinPath(tls, name + ".key")};
  }

  // Only does handshakes.
  struct Server {
    ~Server() {
      running->Shutdown(std::chrono::system_clock::now());
      queue->Shutdown();
      void* tag;
      bool ok;
      while (queue->Next(&tag, &ok)) {
      }
    }
    int port = 0;
    grpc::AsyncGenericService service;
    std::unique_ptr<grpc::ServerCompletionQueue> queue;
    std::unique_ptr<grpc::Server> running;
  };
  std::unique_ptr<Server> Serve(const TlsFiles& files, int refresh_seconds = 60) {
    auto server = std::make_unique<Server>();
    grpc::ServerBuilder builder;
    auto credentials = NewServerCredentials(env_, files, refresh_seconds);
    MT_CHECK_OK(credentials.status());
    builder.AddListeningPort("127.0.0.1:0", *credentials, &server->port);
    builder.RegisterAsyncGenericService(&server->service);
    server->queue = builder.AddCompletionQueue();
    SetServerDefaults(builder);
    server->running = builder.BuildAndStart();
    return server;
  }
  bool Reaches(int port, const TlsFiles& client, const std::string& target) {
    auto channel = NewChannel(env_, absl::StrCat("127.0.0.1:", port), client, target);
    MT_CHECK_OK(channel.status());
    // A refused client certificate shows only after the handshake (TLS 1.3): ask until connected,
    // then whether it stays.
    grpc_connectivity_state state = (*channel)->GetState(true);
    const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(10);
    while (state != GRPC_CHANNEL_TRANSIENT_FAILURE &&
           (*channel)->WaitForStateChange(state, deadline)) {
      state = (*channel)->GetState(true);
      if (state == GRPC_CHANNEL_READY) return true;
    }
    return false;
  }
  // Whether `client` reaches a server with these files.
  bool Connects(const TlsFiles& server, const TlsFiles& client, const std::string& target) {
    return Reaches(Serve(server)->port, client, target);
  }

  Env* env_ = Env::Real();
  std::string folder_;
  std::unique_ptr<ClusterCa> ca_;
};

TEST_F(TlsTest, AuthorityIsKeptAndItsFilesArePrivate) {
  auto again = ClusterCa::LoadOrCreate(env_, JoinPath(folder_, "tls"));
  ASSERT_TRUE(again.ok());
  EXPECT_EQ((*again)->certificate_pem(), ca_->certificate_pem());
  struct stat info;
  ASSERT_EQ(stat(JoinPath(folder_, "tls/ca.key").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  ASSERT_EQ(stat(JoinPath(folder_, "tls").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
}

TEST_F(TlsTest, ReadableOrForeignKeyIsRefused) {
  const std::string key = JoinPath(folder_, "tls/ca.key");
  ASSERT_EQ(chmod(key.c_str(), 0644), 0);
  EXPECT_EQ(ClusterCa::LoadOrCreate(env_, JoinPath(folder_, "tls")).status().code(),
            absl::StatusCode::kFailedPrecondition);
  ASSERT_EQ(chmod(key.c_str(), 0600), 0);
  ASSERT_TRUE(WriteFileAtomically(env_, key, ca_->IssueNode("a")->key_pem).ok());
  EXPECT_EQ(ClusterCa::LoadOrCreate(env_, JoinPath(folder_, "tls")).status().code(),
            absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(env_->RemoveFile(key).ok());
  EXPECT_EQ(ClusterCa::LoadOrCreate(env_, JoinPath(folder_, "tls")).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(TlsTest, NodesCertificateLivesSevenDays) {
  auto expiry = CertificateExpiry(ca_->IssueNode("gpu01")->certificate_pem);
  ASSERT_TRUE(expiry.ok());
  EXPECT_GT(*expiry, absl::Now() + absl::Hours(24 * 7 - 1));
  EXPECT_LT(*expiry, absl::Now() + absl::Hours(24 * 7 + 1));
}

TEST_F(TlsTest, NameTooLongForACertificateIsRefused) {
  EXPECT_EQ(ca_->IssueNode(std::string(63, 'a')).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(TlsTest, OnlyTheExpectedServerIsAccepted) {
  const TlsFiles coordinator = Files("coordinator", ca_->IssueCoordinator("c1"));
  const TlsFiles node = Files("node", ca_->IssueNode("gpu01"));
  const TlsFiles client = Files("operator", ca_->IssueClient("me", Role::kOperator));
  EXPECT_TRUE(Connects(coordinator, client, kCoordinatorTargetName));
  EXPECT_TRUE(Connects(coordinator, node, kCoordinatorTargetName));
  EXPECT_TRUE(Connects(node, coordinator, kWorkerTargetName));
  EXPECT_FALSE(
      Connects(node, client, kCoordinatorTargetName));  // a node cannot pass for the coordinator
  EXPECT_FALSE(Connects(client, node, kCoordinatorTargetName));             // a client is no server
  EXPECT_FALSE(Connects(coordinator, TlsFiles{}, kCoordinatorTargetName));  // no certificate
}

TEST_F(TlsTest, ExpiredCertificateIsNeitherClientNorServer) {
  const TlsFiles coordinator = Files("coordinator", ca_->IssueCoordinator("c1"));
  const TlsFiles node = Files("node", ca_->IssueNode("a", -absl::Minutes(1)));
  EXPECT_FALSE(Connects(coordinator, node, kCoordinatorTargetName));
  EXPECT_FALSE(Connects(node, coordinator, kWorkerTargetName));
  Files("node", ca_->IssueNode("a"));  // the same files
  EXPECT_TRUE(Connects(coordinator, node, kCoordinatorTargetName)) << "the next dial has it";
}

// As a daemon whose certificate is renewed while it runs.
TEST_F(TlsTest, RunningServerTakesOverARenewedCertificate) {
  const TlsFiles coordinator = Files("coordinator", ca_->IssueCoordinator("c1"));
  const TlsFiles node = Files("node", ca_->IssueNode("a", -absl::Minutes(1)));
  auto server = Serve(node, /*refresh_seconds=*/1);
  EXPECT_FALSE(Reaches(server->port, coordinator, kWorkerTargetName));
  Files("node", ca_->IssueNode("a"));
  while (!Reaches(server->port, coordinator, kWorkerTargetName)) {
  }  // a server that never does is ended by the test's own time limit
}

TEST_F(TlsTest, AnotherClustersAuthorityIsNotTrusted) {
  const TlsFiles coordinator = Files("coordinator", ca_->IssueCoordinator("c1"));
  auto other = ClusterCa::LoadOrCreate(env_, JoinPath(folder_, "other"));
  ASSERT_TRUE(other.ok());
  const std::string tls = JoinPath(folder_, "other");
  ASSERT_TRUE(
      WriteCertificate(env_, tls, "me", *(*other)->IssueClient("me", Role::kOperator)).ok());
  EXPECT_FALSE(Connects(coordinator, {tls + "/ca.crt", tls + "/me.crt", tls + "/me.key"},
                        kCoordinatorTargetName));
}

TEST_F(TlsTest, BrokenCertificateFileIsNamed) {
  const TlsFiles files = Files("operator", ca_->IssueClient("me", Role::kOperator));
  ASSERT_TRUE(WriteFileAtomically(env_, files.certificate, "nonsense").ok());
  EXPECT_THAT(std::string(NewChannelCredentials(env_, files).status().message()),
              testing::HasSubstr("operator.crt"));
}

TEST(CommonNameTest, SaysWhoThePeerIs) {
  EXPECT_EQ(ParseCommonName("node:gpu01")->kind, PeerIdentity::Kind::kNode);
  EXPECT_EQ(ParseCommonName("node:gpu01")->name, "gpu01");
  EXPECT_EQ(ParseCommonName("submitter:alice")->role, Role::kSubmitter);
  EXPECT_EQ(ParseCommonName("root:alice").status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(ParseCommonName("operator").status().code(), absl::StatusCode::kUnauthenticated);
  EXPECT_EQ(ParseCommonName("").status().code(), absl::StatusCode::kUnauthenticated);
}

}  // namespace
}  // namespace mt
