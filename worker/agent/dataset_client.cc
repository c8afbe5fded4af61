#include "worker/agent/dataset_client.h"

#include <condition_variable>
#include <mutex>
#include <thread>

#include "common/grpc_status.h"
#include "common/grpc_transport.h"
#include "mt/v1/worker.grpc.pb.h"

namespace mt {
namespace {

constexpr int kPiecesUnderWay = 4;  // read, and not written by the store yet

class GrpcDatasetStream : public DatasetStream {
 public:
  GrpcDatasetStream(EventLoop* loop, std::function<void(const v1::FilePiece&)> on_piece,
                    std::function<void(absl::Status)> on_end)
      : loop_(loop), on_piece_(std::move(on_piece)), on_end_(std::move(on_end)) {}

  ~GrpcDatasetStream() override {
    *alive_ = false;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    context_.TryCancel();
    taken_.notify_all();
    thread_.join();
  }

  void Start(absl::StatusOr<std::shared_ptr<grpc::Channel>> channel,
             v1::ReadDatasetRequest request) {
    thread_ = std::thread([this, channel = std::move(channel), request = std::move(request)] {
      const absl::Status status = channel.ok() ? Run(*channel, request) : channel.status();
      loop_->Post([this, alive = alive_, status] {
        if (*alive) on_end_(status);
      });
    });
  }

 private:
  absl::Status Run(const std::shared_ptr<grpc::Channel>& channel,
                   const v1::ReadDatasetRequest& request) {
    const auto stub = v1::Datasets::NewStub(channel);
    const auto reader = stub->Read(&context_, request);
    v1::FilePiece piece;
    while (reader->Read(&piece)) {
      {
        std::unique_lock lock(mutex_);
        taken_.wait(lock, [this] { return stopping_ || under_way_ < kPiecesUnderWay; });
        if (stopping_) break;
        ++under_way_;
      }
      loop_->Post([this, alive = alive_, piece = std::move(piece)] {
        if (!*alive) return;
        on_piece_(piece);
        if (!*alive) return;
        {
          const std::lock_guard lock(mutex_);
          --under_way_;
        }
        taken_.notify_all();
      });
      piece.Clear();
    }
    return FromGrpcStatus(reader->Finish());
  }

  EventLoop* const loop_;
  const std::function<void(const v1::FilePiece&)> on_piece_;
  const std::function<void(absl::Status)> on_end_;
  grpc::ClientContext context_;
  std::mutex mutex_;
  std::condition_variable taken_;
  int under_way_ = 0;                                           // guarded by mutex_
  bool stopping_ = false;                                       // guarded by mutex_
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // read and written on the loop
  std::thread thread_;
};

class GrpcDatasetTransport : public DatasetTransport {
 public:
  GrpcDatasetTransport(EventLoop* loop, Env* env, std::string coordinator, TlsFiles tls)
      : loop_(loop), env_(env), coordinator_(std::move(coordinator)), tls_(std::move(tls)) {}

  std::unique_ptr<DatasetStream> Read(const std::string& endpoint, const std::string& digest,
                                      int64_t offset,
                                      std::function<void(const v1::FilePiece&)> on_piece,
                                      std::function<void(absl::Status)> on_end) override {
    v1::ReadDatasetRequest request;
    request.set_xxh3_128(digest);
    request.set_offset(offset);
    auto stream =
        std::make_unique<GrpcDatasetStream>(loop_, std::move(on_piece), std::move(on_end));
    stream->Start(Channel(endpoint), std::move(request));
    return stream;
  }

 private:
  absl::StatusOr<std::shared_ptr<grpc::Channel>> Channel(const std::string& endpoint) const {
    if (!endpoint.empty()) return NewChannel(env_, endpoint, tls_, kWorkerTargetName);
    MT_ASSIGN_OR_RETURN(const std::string address, CoordinatorAddress(env_, coordinator_));
    return NewChannel(env_, address, tls_, kCoordinatorTargetName);
  }

  EventLoop* const loop_;
  Env* const env_;
  const std::string coordinator_;
  const TlsFiles tls_;
};

}  // namespace

std::unique_ptr<DatasetTransport> NewGrpcDatasetTransport(EventLoop* loop, Env* env,
                                                          std::string coordinator, TlsFiles tls) {
  return std::make_unique<GrpcDatasetTransport>(loop, env, std::move(coordinator), std::move(tls));
}

}  // namespace mt
