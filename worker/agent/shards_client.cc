#include "worker/agent/shards_client.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "common/grpc_status.h"
#include "common/log.h"
#include "common/metered_env.h"
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
  ShardsFetcher(EventLoop* loop, Env* env, TlsFiles tls, absl::Duration stall_timeout)
      : loop_(loop),
        env_(env),
        tls_(std::move(tls)),
        stall_timeout_(absl::ToChronoMilliseconds(stall_timeout)) {
    for (int i = 0; i < kThreads; ++i) threads_.emplace_back([this] { Work(); });
    threads_.emplace_back([this] { WatchStalls(); });
  }

  ~ShardsFetcher() override {
    *alive_ = false;
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
      for (Reading* reading : readings_) reading->context.TryCancel();
    }
    wake_.notify_all();
    watch_.notify_all();
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

  using Time = std::chrono::steady_clock::time_point;
  // A call whose next byte is waited for. Both are guarded by mutex_; the context is gRPC's to guard.
  struct Reading {
    grpc::ClientContext context;
    Time last_byte = std::chrono::steady_clock::now();
    bool stalled = false;
  };

  void WatchStalls() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      const Time now = std::chrono::steady_clock::now();
      Time next = now + stall_timeout_;  // nothing that begins from now on is due before
      for (Reading* reading : readings_) {
        if (reading->stalled) continue;
        if (const Time due = reading->last_byte + stall_timeout_; due > now) {
          next = std::min(next, due);
        } else {
          reading->stalled = true;
          reading->context.TryCancel();
        }
      }
      watch_.wait_until(lock, next);
    }
  }

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
    MeteredEnv env(
        env_, request.moved != nullptr ? request.moved : std::make_shared<std::atomic<int64_t>>());
    if (VerifyFile(&env, request.destination, request.file).ok()) return absl::OkStatus();
    const std::string temporary =
        absl::StrCat(request.destination, ".tmp-fetch-", Random::Real()->Id(8));
    absl::Status last = absl::UnavailableError("no node is known to have it");
    absl::Status hope;  // of an endpoint that may have a whole copy all the same
    std::string tried;
    for (const std::string& endpoint : request.endpoints) {
      last = FromEndpoint(&env, request, endpoint, temporary);
      if (last.ok()) last = VerifyFile(&env, temporary, request.file);
      if (last.ok()) last = env_->Rename(temporary, request.destination);
      if (last.ok())
        return env_->SyncDirectory(request.destination.substr(0, request.destination.rfind('/')));
      (void)env_->RemoveFile(temporary);
      absl::StrAppend(&tried, tried.empty() ? "" : "; ", endpoint, ": ", last.message());
      if (!absl::IsDataLoss(last) && !absl::IsNotFound(last)) hope = last;
      if (absl::IsResourceExhausted(last)) break;  // this node's disk: another source does not help
    }
    const absl::StatusCode code = !hope.ok()                  ? hope.code()
                                  : request.endpoints.empty() ? last.code()
                                                              : absl::StatusCode::kDataLoss;
    return absl::Status(
        code, absl::StrCat("checkpoint file ", request.file.name(), " of ", request.job_id,
                           " step ", request.step, " could not be fetched: ",
                           tried.empty() ? last.message() : absl::string_view(tried)));
  }

  absl::Status FromEndpoint(Env* env, const FetchRequest& request, const std::string& endpoint,
                            const std::string& temporary) {
    MT_ASSIGN_OR_RETURN(const auto channel, NewChannel(env_, endpoint, tls_, kWorkerTargetName));
    const auto stub = v1::Shards::NewStub(channel);
    const auto created = env->NewWritableFile(temporary, Env::WriteMode::kTruncate);
    // That the folder is missing here must not read as if the file were missing there.
    if (absl::IsNotFound(created.status()))
      return absl::UnavailableError(created.status().message());
    MT_RETURN_IF_ERROR(created.status());
    WritableFile* const file = created->get();
    int64_t offset = 0;
    absl::Status status;
    for (int attempt = 0; attempt < kTriesPerEndpoint; ++attempt) {
      const int64_t before = offset;
      status = ReadFrom(*stub, request, file, &offset);
      if (status.ok() || !absl::IsUnavailable(status)) break;
      if (offset > before) attempt = 0;  // it moves: the tries count only what brings nothing
    }
    MT_RETURN_IF_ERROR(status);
    MT_RETURN_IF_ERROR(file->Sync());
    return file->Close();
  }

  absl::Status ReadFrom(v1::Shards::Stub& stub, const FetchRequest& request, WritableFile* file,
                        int64_t* offset) {
    Reading reading;
    reading.context.set_deadline(
        std::chrono::system_clock::now() +
        std::chrono::seconds(60 + request.file.size_bytes() / kSlowestBytesPerSecond));
    {
      const std::lock_guard lock(mutex_);
      if (stopping_) return absl::CancelledError("the worker daemon is ending");
      readings_.insert(&reading);
    }
    v1::ReadFileRequest read;
    read.set_job_id(request.job_id);
    read.set_step(request.step);
    read.set_file(request.file.name());
    read.set_offset(*offset);
    const auto reader = stub.Read(&reading.context, read);
    absl::Status status;
    v1::FilePiece piece;
    while (status.ok() && reader->Read(&piece)) {
      {
        const std::lock_guard lock(mutex_);
        reading.last_byte = std::chrono::steady_clock::now();
      }
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
    if (!status.ok()) reading.context.TryCancel();
    const absl::Status finished = FromGrpcStatus(reader->Finish());
    const std::lock_guard lock(mutex_);
    readings_.erase(&reading);
    if (status.ok() && !finished.ok() && reading.stalled) {
      return absl::DeadlineExceededError(absl::StrCat(
          "it sent no byte for ", absl::FormatDuration(absl::FromChrono(stall_timeout_)), " after ",
          *offset, " of ", request.file.size_bytes(), "; is the disk of that node stuck?"));
    }
    return status.ok() ? finished : status;
  }

  EventLoop* const loop_;
  Env* const env_;
  const TlsFiles tls_;
  const std::chrono::milliseconds stall_timeout_;
  std::mutex mutex_;
  std::condition_variable wake_, watch_;
  std::deque<Task> queue_;
  std::set<Reading*> readings_;
  bool stopping_ = false;
  std::shared_ptr<std::atomic<bool>> alive_ = std::make_shared<std::atomic<bool>>(true);
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<FileFetcher> NewShardsFetcher(EventLoop* loop, Env* env, TlsFiles tls,
                                              absl::Duration stall_timeout) {
  return std::make_unique<ShardsFetcher>(loop, env, std::move(tls), stall_timeout);
}

}  // namespace mt
