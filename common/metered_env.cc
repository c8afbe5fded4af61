#include "common/metered_env.h"

namespace mt {
namespace {

using Counter = std::shared_ptr<std::atomic<int64_t>>;

constexpr int64_t kSyncBytes = 256 << 20;

class MeteredWritableFile : public WritableFile {
 public:
  MeteredWritableFile(std::unique_ptr<WritableFile> inner, Counter moved)
      : inner_(std::move(inner)), moved_(std::move(moved)) {}

  absl::Status Append(absl::string_view data) override {
    MT_RETURN_IF_ERROR(inner_->Append(data));
    moved_->fetch_add(static_cast<int64_t>(data.size()), std::memory_order_relaxed);
    unsynced_ += static_cast<int64_t>(data.size());
    return unsynced_ < kSyncBytes ? absl::OkStatus() : Sync();
  }
  absl::Status Sync() override {
    unsynced_ = 0;
    return inner_->Sync();
  }
  absl::Status Close() override { return inner_->Close(); }

 private:
  const std::unique_ptr<WritableFile> inner_;
  const Counter moved_;
  int64_t unsynced_ = 0;
};

class MeteredRandomAccessFile : public RandomAccessFile {
 public:
  MeteredRandomAccessFile(std::unique_ptr<RandomAccessFile> inner, Counter moved)
      : inner_(std::move(inner)), moved_(std::move(moved)) {}

  absl::StatusOr<size_t> Read(uint64_t offset, size_t size, char* buffer) const override {
    absl::StatusOr<size_t> count = inner_->Read(offset, size, buffer);
    if (count.ok()) moved_->fetch_add(static_cast<int64_t>(*count), std::memory_order_relaxed);
    return count;
  }
  absl::StatusOr<uint64_t> Size() const override { return inner_->Size(); }

 private:
  const std::unique_ptr<RandomAccessFile> inner_;
  const Counter moved_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<WritableFile>> MeteredEnv::NewWritableFile(const std::string& path,
                                                                          WriteMode mode) {
  MT_ASSIGN_OR_RETURN(auto file, inner_->NewWritableFile(path, mode));
  return std::make_unique<MeteredWritableFile>(std::move(file), moved_);
}

absl::StatusOr<std::unique_ptr<RandomAccessFile>> MeteredEnv::NewRandomAccessFile(
    const std::string& path) {
  MT_ASSIGN_OR_RETURN(auto file, inner_->NewRandomAccessFile(path));
  return std::make_unique<MeteredRandomAccessFile>(std::move(file), moved_);
}

}  // namespace mt
