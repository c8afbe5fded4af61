#include "coordinator/jobs/dataset_digester.h"

#include <atomic>
#include <map>
#include <tuple>

#include "common/hash.h"

namespace mt {
namespace {

constexpr size_t kBlockBytes = 8 << 20;
constexpr int64_t kProgressBytes = 256 << 20;

class ThreadDatasetDigester : public DatasetDigester {
 public:
  ThreadDatasetDigester(EventLoop* loop, Env* env)
      : loop_(loop), env_(env), reader_(NewThreadEventLoop("digests")) {}
  ~ThreadDatasetDigester() override {
    *alive_ = false;
    stopping_ = true;
  }

  std::shared_ptr<const void> Digest(
      std::vector<std::string> prefixes, std::function<void(int64_t, int64_t)> progress,
      std::function<void(absl::StatusOr<std::vector<v1::DatasetFile>>)> done) override {
    const auto wanted = std::make_shared<const char>();
    reader_->Post([this, wanted = std::weak_ptr(wanted), prefixes = std::move(prefixes),
                   progress = std::move(progress), done = std::move(done)] {
      auto files = DigestAll(prefixes, wanted, progress);
      loop_->Post([alive = alive_, done, files = std::move(files)]() mutable {
        if (*alive) done(std::move(files));
      });
    });
    return wanted;
  }

 private:
  using Progress = std::function<void(int64_t, int64_t)>;
  using Wanted = std::weak_ptr<const char>;
  struct Running {
    int64_t done = 0, total = 0, told = 0;
  };

  absl::StatusOr<std::vector<v1::DatasetFile>> DigestAll(const std::vector<std::string>& prefixes,
                                                         const Wanted& wanted,
                                                         const Progress& progress) {
    std::vector<v1::DatasetFile> files;
    Running running;
    for (const std::string& prefix : prefixes) {
      for (const char* suffix : {".idx", ".bin", ".loss"}) {
        const std::string path = prefix + suffix;
        const auto file = env_->NewRandomAccessFile(path);
        if (absl::IsNotFound(file.status()) && absl::string_view(suffix) == ".loss") continue;
        if (!file.ok()) return Unreadable(file.status());
        const auto size = (*file)->Size();
        if (!size.ok()) return Unreadable(size.status());
        v1::DatasetFile& entry = files.emplace_back();
        entry.set_path(path);
        entry.set_bytes(static_cast<int64_t>(*size));
        running.total += entry.bytes();
      }
    }
    for (v1::DatasetFile& file : files) {
      auto digest = DigestOne(file, wanted, progress, running);
      if (absl::IsCancelled(digest.status())) return digest.status();
      if (!digest.ok()) return Unreadable(digest.status());
      file.set_xxh3_128(*std::move(digest));
    }
    return files;
  }

  absl::StatusOr<std::string> DigestOne(const v1::DatasetFile& entry, const Wanted& wanted,
                                        const Progress& progress, Running& running) {
    MT_ASSIGN_OR_RETURN(const FileInfo info, env_->Stat(entry.path()));
    const auto known = known_.find({entry.path(), entry.bytes(), info.modified_ns});
    if (known != known_.end() && !info.is_symlink) {
      running.done += entry.bytes();
      return known->second;
    }
    MT_ASSIGN_OR_RETURN(const auto file, env_->NewRandomAccessFile(entry.path()));
    Xxh3Stream digest;
    std::string block(kBlockBytes, '\0');
    int64_t offset = 0;
    while (offset < entry.bytes()) {
      if (stopping_ || wanted.expired()) return absl::CancelledError("nobody wants its digest");
      MT_ASSIGN_OR_RETURN(const size_t count, file->Read(offset, block.size(), block.data()));
      if (count == 0) return absl::DataLossError(absl::StrCat(entry.path(), " became shorter"));
      digest.Update(block.data(), count);
      offset += static_cast<int64_t>(count);
      running.done += static_cast<int64_t>(count);
      if (running.done - running.told < kProgressBytes) continue;
      running.told = running.done;
      loop_->Post([alive = alive_, progress, done = running.done, total = running.total] {
        if (*alive) progress(done, total);
      });
    }
    if (offset != entry.bytes())
      return absl::DataLossError(absl::StrCat(entry.path(), " grew while it was digested"));
    known_[{entry.path(), entry.bytes(), info.modified_ns}] = digest.Hex();
    return digest.Hex();
  }

  static absl::Status Unreadable(const absl::Status& why) {
    return absl::FailedPreconditionError(
        absl::StrCat("data.distribute: ", why.message(),
                     "; the coordinator reads the files where it runs: put them there, or unset "
                     "data.distribute if every node has them"));
  }

  EventLoop* const loop_;
  Env* const env_;
  std::atomic<bool> stopping_{false};
  std::map<std::tuple<std::string, int64_t, int64_t>, std::string>
      known_;                                                   // of the reader's thread
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // read and written on loop_
  const std::unique_ptr<EventLoop> reader_;
};

}  // namespace

std::unique_ptr<DatasetDigester> NewDatasetDigester(EventLoop* loop, Env* env) {
  return std::make_unique<ThreadDatasetDigester>(loop, env);
}

}  // namespace mt
