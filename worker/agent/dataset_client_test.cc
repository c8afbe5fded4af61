// Datasets.Read over a real loopback connection: the service that coordinator and daemons share, and the transport that reads it.
#include "worker/agent/dataset_client.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/service_type.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>

#include "common/dataset/datasets_service.h"

namespace mt {
namespace {

using ::testing::HasSubstr;

class DatasetClientTest : public ::testing::Test {
 protected:
  DatasetClientTest()
      : folder_(std::filesystem::path(::testing::TempDir()) / absl::StrCat("datasets-", getpid())) {
    std::filesystem::create_directories(folder_);
    for (size_t i = 0; i < (3 << 20) + 17; ++i) contents_.push_back(static_cast<char>(i * 31 >> 3));
    std::ofstream(folder_ / "file", std::ios::binary) << contents_;
    Serve(kDatasetStreams);
  }
  ~DatasetClientTest() override {
    transport_ = nullptr;
    loop_ = nullptr;
    server_->Shutdown();
    std::filesystem::remove_all(folder_);
  }
  void Serve(int max_streams) {
    if (server_ != nullptr) server_->Shutdown();
    service_ = NewDatasetsService(
        Env::Real(),
        [this](const std::string& digest) -> absl::StatusOr<ServedFile> {
          const std::string path = (folder_ / "file").string();
          if (digest == "whole") return ServedFile{path, static_cast<int64_t>(contents_.size())};
          if (digest == "changed") return ServedFile{path, 5};
          if (digest == "gone") return ServedFile{path + "-gone", 5};
          return absl::NotFoundError("not in the cache of this node");
        },
        max_streams);
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    endpoint_ = absl::StrCat("127.0.0.1:", port);
    // The coordinator's address is in a file, as daemons have it.
    std::ofstream(folder_ / "coordinator") << endpoint_ << "\n";
    transport_ = NewGrpcDatasetTransport(loop_.get(), Env::Real(),
                                         "@" + (folder_ / "coordinator").string(), {});
  }
  // What came, and how it ended.
  std::pair<std::string, absl::Status> Read(const std::string& endpoint, const std::string& digest,
                                            int64_t offset) {
    std::string received;
    std::promise<absl::Status> ended;
    std::unique_ptr<DatasetStream> stream;
    loop_->Post([&] {
      stream = transport_->Read(
          endpoint, digest, offset,
          [&](const v1::FilePiece& piece) {
            EXPECT_EQ(piece.offset(), offset + static_cast<int64_t>(received.size()));
            EXPECT_EQ(piece.total_bytes(), static_cast<int64_t>(contents_.size()));
            received += piece.data();
          },
          [&](absl::Status status) { ended.set_value(std::move(status)); });
    });
    absl::Status status = ended.get_future().get();
    OnLoop([&] { stream = nullptr; });
    return {received, status};
  }
  void OnLoop(const std::function<void()>& task) {
    std::promise<void> done;
    loop_->Post([&] {
      task();
      done.set_value();
    });
    done.get_future().get();
  }

  std::filesystem::path folder_;
  std::string contents_;
  std::unique_ptr<EventLoop> loop_ = NewThreadEventLoop("test");
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::string endpoint_;
  std::unique_ptr<DatasetTransport> transport_;
};

TEST_F(DatasetClientTest, AFileComesWholeOrFromAnOffset) {
  const auto [whole, status] = Read(endpoint_, "whole", 0);
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(whole == contents_);
  EXPECT_TRUE(Read("", "whole", 1'500'000).first == contents_.substr(1'500'000))
      << "from the coordinator";
}

TEST_F(DatasetClientTest, WhatIsNotThereIsSaid) {
  EXPECT_TRUE(absl::IsNotFound(Read(endpoint_, "another", 0).second));
  EXPECT_TRUE(absl::IsOutOfRange(Read(endpoint_, "whole", 1 << 30).second));
  EXPECT_TRUE(absl::IsDataLoss(Read(endpoint_, "gone", 0).second));
  const absl::Status changed = Read(endpoint_, "changed", 0).second;
  EXPECT_TRUE(absl::IsDataLoss(changed));
  EXPECT_THAT(std::string(changed.message()), HasSubstr("and had 5 when it was digested"));
  EXPECT_TRUE(absl::IsUnavailable(Read("127.0.0.1:1", "whole", 0).second));
}

TEST_F(DatasetClientTest, MoreStreamsThanItServesAreTurnedAway) {
  Serve(/*max_streams=*/0);
  EXPECT_TRUE(absl::IsResourceExhausted(Read(endpoint_, "whole", 0).second));
}

TEST_F(DatasetClientTest, ADestroyedStreamSaysNothingMore) {
  std::unique_ptr<DatasetStream> stream;
  std::promise<void> first;
  int pieces = 0;
  OnLoop([&] {
    stream = transport_->Read(
        endpoint_, "whole", 0,
        [&](const v1::FilePiece&) {
          if (++pieces == 1) first.set_value();
        },
        [](absl::Status) {});
  });
  first.get_future().get();
  int before = 0;
  OnLoop([&] {
    stream = nullptr;
    before = pieces;
  });
  OnLoop([&] { EXPECT_EQ(pieces, before); });
}

}  // namespace
}  // namespace mt
