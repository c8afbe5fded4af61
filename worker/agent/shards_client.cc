#include "worker/agent/shards_client.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "common/grpc_status.h"
#include "common/log.h"
#include "common/random.h"
#include "mt/v1/worker.grpc.pb.h"
#include "worker/checkpoint/loader.h"

namespace mt {
namespace {

constexpr int kThreads = 2;
constexpr int kTriesPerEndpoint = 3;
constexpr int64_t kSlowestBytesPerSecond =
    256 << 10;  // a transfer that is slower than this is given up

class ShardsFetcher : public FileFetcher {
 public:
  ShardsFetcher(EventLoop* loop, Env* env, TlsFiles tls)
      : loop_(loop), env_(env), tls_(std::move(tls)) {
    for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { Work(); });
  }

  ~ShardsFetcher() override {
    *alive_ = false;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      for (grpc::ClientContext* context : contexts_) context->TryCancel();
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  void Fetch(FetchRequest request, std::function<void(absl::Status)> done) override {
    {
      const std::lock_guard lock(mutex_);
      queue_.push_back({std::move(request), std::move(done)});
    }
    wake_.notify_one();
  }

 private:
  struct Task {
    FetchRequest request;
    std::function<void(absl::Status)> done;
  };

  void Work() {
    while (true) {
      Task task;
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
        if (stopping_) return;
        task = std::move(queue_.front());
        queue_.pop_front();
      }
      absl::Status status = Transfer(task.request);
      loop_->Post([alive = alive_, done = std::move(task.done), status = std::move(status)] {
        if (*alive) done(status);
      });
    }
  }

  absl::Status Transfer(const FetchRequest& request) {
    if (VerifyFile(env_, request.destination, request.file).ok()) return absl::OkStatus();
    const std::string temporary =
        absl::StrCat(request.destination, ".tmp-fetch-", Random::Real()->Id(8));
    absl::Status last = absl::UnavailableError("no node is known to have it");
    std::string tried;
    for (const std::string& endpoint : request.endpoints) {
      last = FromEndpoint(request, endpoint, temporary);
      if (last.ok()) last = VerifyFile(env_, temporary, request.file);
      if (last.ok()) last = env_->Rename(temporary, request.destination);
      if (last.ok())
        return env_->SyncDirectory(request.destination.substr(0, request.destination.rfind('/')));
      (void)env_->RemoveFile(temporary);
      absl::StrAppend(&tried, tried.empty() ? "" : "; ", endpoint, ": ", last.message());
      if (absl::IsResourceExhausted(last)) break;  // this node's disk: another source does not help
    }
    return absl::Status(
        last.code(), absl::StrCat("checkpoint file ", request.file.name(), " of ", request.job_id,
                                  " step ", request.step, " could not be fetched: ",
                                  tried.empty() ? last.message() : absl::string_view(tried)));
  }

  absl::Status FromEndpoint(const FetchRequest& request, const std::string& endpoint,
                            const std::string& temporary) {
    MT_ASSIGN_OR_RETURN(const auto channel, NewChannel(env_, endpoint, tls_, kWorkerTargetName));
    const auto stub = v1::Shards::NewStub(channel);
    MT_ASSIGN_OR_RETURN(const auto file,
                        env_->NewWritableFile(temporary, Env::WriteMode::kTruncate));
    int64_t offset = 0;
    absl::Status status;
    for (int attempt = 0; attempt < kTriesPerEndpoint; ++attempt) {
      const int64_t before = offset;
      status = ReadFrom(*stub, request, file.get(), &offset);
      if (status.ok() || !absl::IsUnavailable(status)) break;
      if (offset > before) attempt = 0;  // it moves: the tries count only what brings nothing
    }
    MT_RETURN_IF_ERROR(status);
    MT_RETURN_IF_ERROR(file->Sync());
    return file->Close();
  }

  absl::Status ReadFrom(v1::Shards::Stub& stub, const FetchRequest& request, WritableFile* file,
                        int64_t* offset) {
    grpc::ClientContext context;
    context.set_deadline(
        std::chrono::system_clock::now() +
        std::chrono::seconds(60 + request.file.size_bytes() / kSlowestBytesPerSecond));
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return absl::CancelledError("the worker daemon is ending");
      contexts_.insert(&context);
    }
    v1::ReadFileRequest read;
    read.set_job_id(request.job_id);
    read.set_step(request.step);
    read.set_file(request.file.name());
    read.set_offset(*offset);
    const auto reader = stub.Read(&context, read);
    absl::Status status;
    v1::FilePiece piece;
    while (status.ok() && reader->Read(&piece)) {
      if (piece.offset() != *offset || piece.total_bytes() != request.file.size_bytes() ||
          *offset + static_cast<int64_t>(piece.data().size()) > piece.total_bytes()) {
        status = absl::DataLossError(absl::StrCat("the file there has ", piece.total_bytes(),
                                                  " bytes, the manifest says ",
                                                  request.file.size_bytes()));
        break;
      }
      status = file->Append(piece.data());
      *offset += static_cast<int64_t>(piece.data().size());
    }
    if (!status.ok()) context.TryCancel();
    const absl::Status finished = FromGrpcStatus(reader->Finish());
    const std::lock_guard lock(mutex_);
    contexts_.erase(&context);
    return status.ok() ? finished : status;
  }

  EventLoop* const loop_;
  Env* const env_;
  const TlsFiles tls_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Task> queue_;
  std::set<grpc::ClientContext*> contexts_;
  bool stopping_ = false;
  std::shared_ptr<std::atomic<bool>> alive_ = std::make_shared<std::atomic<bool>>(true);
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<FileFetcher> NewShardsFetcher(EventLoop* loop, Env* env, TlsFiles tls) {
  return std::make_unique<ShardsFetcher>(loop, env, std::move(tls));
}

}  // namespace mt
