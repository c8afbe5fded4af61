// The Shards service and its client over a real loopback connection, and the choice of the data interface.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/codegen/service_type.h>

#include <filesystem>
#include <fstream>
#include <future>

#include "common/hash.h"
#include "mt/v1/worker.grpc.pb.h"
#include "worker/agent/data_interface.h"
#include "worker/agent/shards_client.h"
#include "worker/agent/shards_service.h"

namespace mt {
namespace {

using ::testing::HasSubstr;

class ShardsTest : public ::testing::Test {
 protected:
  ShardsTest()
      : folder_(std::filesystem::path(::testing::TempDir()) / absl::StrCat("shards-", getpid())) {
    const auto from = folder_ / "from" / "job-1" / "step-00000020";
    std::filesystem::create_directories(from);
    std::filesystem::create_directories(folder_ / "to");
    std::string contents((3 << 20) + 17, '\0');  // more than three pieces
    for (size_t i = 0; i < contents.size(); ++i) contents[i] = static_cast<char>(i * 31 >> 3);
    std::ofstream(from / "shard-r0.safetensors", std::ios::binary) << contents;
    std::ofstream(folder_ / "secret") << "secret";
    std::filesystem::create_symlink(folder_ / "secret", from / "link");
    file_.set_name("shard-r0.safetensors");
    file_.set_size_bytes(static_cast<int64_t>(contents.size()));
    file_.set_xxh3_128(Xxh3Hex(contents));
    service_ = NewShardsService(Env::Real(), (folder_ / "from").string());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    endpoint_ = absl::StrCat("127.0.0.1:", port);
    fetcher_ = NewShardsFetcher(loop_.get(), Env::Real(), {});
  }
  ~ShardsTest() override {
    fetcher_ = nullptr;
    server_->Shutdown();
    std::filesystem::remove_all(folder_);
  }
  absl::Status Fetch(const v1::CheckpointFile& file, std::vector<std::string> endpoints) {
    FetchRequest request{"job-1", 20, file, std::move(endpoints),
                         (folder_ / "to" / "file").string()};
    std::promise<absl::Status> done;
    fetcher_->Fetch(request, [&](absl::Status status) { done.set_value(std::move(status)); });
    return done.get_future().get();
  }
  bool NothingArrived() { return std::filesystem::is_empty(folder_ / "to"); }

  std::filesystem::path folder_;
  v1::CheckpointFile file_;
  std::unique_ptr<EventLoop> loop_ = NewThreadEventLoop("test");
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::string endpoint_;
  std::unique_ptr<FileFetcher> fetcher_;
};

TEST_F(ShardsTest, AFileArrivesWholeAndVerified) {
  ASSERT_TRUE(Fetch(file_, {endpoint_}).ok());
  EXPECT_EQ(*Xxh3HexOfFile(Env::Real(), (folder_ / "to" / "file").string()), file_.xxh3_128());
}

TEST_F(ShardsTest, AWholeFileIsNotFetchedAgainAndADamagedOneIs) {
  ASSERT_TRUE(Fetch(file_, {endpoint_}).ok());
  EXPECT_TRUE(Fetch(file_, {}).ok());
  std::ofstream(folder_ / "to" / "file", std::ios::binary) << "damaged";
  EXPECT_FALSE(Fetch(file_, {}).ok());
  EXPECT_TRUE(Fetch(file_, {endpoint_}).ok());
}

TEST_F(ShardsTest, TheNextEndpointIsTriedWhenOneIsGone) {
  EXPECT_TRUE(Fetch(file_, {"127.0.0.1:1", endpoint_}).ok());
}

TEST_F(ShardsTest, AnotherDigestOrSizeIsDataLossAndLeavesNothing) {
  v1::CheckpointFile other = file_;
  other.set_xxh3_128(std::string(32, '0'));
  EXPECT_TRUE(absl::IsDataLoss(Fetch(other, {endpoint_})));
  other = file_;
  other.set_size_bytes(5);
  EXPECT_TRUE(absl::IsDataLoss(Fetch(other, {endpoint_})));
  EXPECT_TRUE(NothingArrived());
}

// A whole copy may be where nobody answers.
TEST_F(ShardsTest, LostIsWhatEveryEndpointWasAskedFor) {
  v1::CheckpointFile other = file_;
  other.set_xxh3_128(std::string(32, '0'));
  EXPECT_TRUE(absl::IsDataLoss(Fetch(other, {endpoint_, endpoint_})));
  EXPECT_TRUE(absl::IsUnavailable(Fetch(other, {"127.0.0.1:1", endpoint_})));
  EXPECT_TRUE(absl::IsUnavailable(Fetch(other, {endpoint_, "127.0.0.1:1"})));
  EXPECT_TRUE(absl::IsUnavailable(Fetch(other, {})));
  other.set_name("no-such-file");
  EXPECT_TRUE(absl::IsDataLoss(Fetch(other, {endpoint_})));
}

TEST_F(ShardsTest, OnlyCheckpointFilesAreServed) {
  for (const char* name : {"../../../secret", "link", "/etc/passwd", ".", "no-such-file"}) {
    // Size and digest are those of the secret, so that only the service can refuse it.
    v1::CheckpointFile other;
    other.set_name(name);
    other.set_size_bytes(6);
    other.set_xxh3_128(Xxh3Hex("secret"));
    EXPECT_FALSE(Fetch(other, {endpoint_}).ok()) << name;
    EXPECT_TRUE(NothingArrived()) << name;
  }
}

// Takes calls and sends one byte, then nothing until the caller is gone.
class StuckShards final : public v1::Shards::CallbackService {
 public:
  grpc::ServerWriteReactor<v1::FilePiece>* Read(grpc::CallbackServerContext*,
                                                const v1::ReadFileRequest*) override {
    class Reactor : public grpc::ServerWriteReactor<v1::FilePiece> {
     public:
      explicit Reactor(int64_t total_bytes) {
        piece_.set_total_bytes(total_bytes);
        piece_.set_data("x");
        StartWrite(&piece_);
      }
      void OnCancel() override { Finish(grpc::Status::CANCELLED); }
      void OnDone() override { delete this; }

     private:
      v1::FilePiece piece_;
    };
    return new Reactor(total_bytes);
  }
  int64_t total_bytes = 0;
};

TEST_F(ShardsTest, ASourceThatSendsNothingMoreIsGivenUpAndTheNextOneTried) {
  StuckShards stuck;
  stuck.total_bytes = file_.size_bytes();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&stuck);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  const std::string endpoint = absl::StrCat("127.0.0.1:", port);
  fetcher_ = NewShardsFetcher(loop_.get(), Env::Real(), {}, absl::Milliseconds(300));
  const absl::Status status = Fetch(file_, {endpoint});
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_THAT(std::string(status.message()),
              HasSubstr(absl::StrCat(endpoint, ": it sent no byte for 300ms after 1 of ")));
  EXPECT_TRUE(NothingArrived());
  EXPECT_TRUE(Fetch(file_, {endpoint, endpoint_}).ok());
  fetcher_ = nullptr;
  server->Shutdown();
}

TEST_F(ShardsTest, NoSourceIsSaid) {
  EXPECT_THAT(std::string(Fetch(file_, {}).message()), HasSubstr("no node is known to have it"));
}

TEST(DataInterfaceTest, GivenOrRoutedAndAlwaysWithAReason) {
  const auto routed = ChooseDataInterface("", "", "127.0.0.1:7070");
  ASSERT_TRUE(routed.ok()) << routed.status();
  EXPECT_EQ(routed->interface, "lo");
  EXPECT_THAT(routed->reason, HasSubstr("routes to the coordinator at 127.0.0.1"));
  const auto named = ChooseDataInterface("", "lo", "127.0.0.1:7070");
  ASSERT_TRUE(named.ok()) << named.status();
  EXPECT_EQ(named->address, "127.0.0.1");
  const auto unknown = ChooseDataInterface("", "no-such-if", "127.0.0.1:7070");
  EXPECT_TRUE(absl::IsNotFound(unknown.status()));
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("lo 127.0.0.1"));
  EXPECT_FALSE(ChooseDataInterface("", "", "no port").ok());
}

}  // namespace
}  // namespace mt
