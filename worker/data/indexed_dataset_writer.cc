#include "worker/data/indexed_dataset_writer.h"

#include <cstring>
#include <filesystem>
#include <limits>

#include "common/check.h"

namespace mt {
namespace {

constexpr size_t kBufferBytes = 1 << 20;

template <typename T>
void AppendRaw(T value, std::string* out) {
  char raw[sizeof(T)];
  std::memcpy(raw, &value, sizeof(T));
  out->append(raw, sizeof(T));
}

std::string FolderOf(const std::string& prefix) {
  const std::string folder = std::filesystem::path(prefix).parent_path().string();
  return folder.empty() ? "." : folder;
}

absl::Status RemoveIfThere(Env* env, const std::string& path) {
  const absl::Status status = env->RemoveFile(path);
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

// A file that is hashed on its way out, in large writes.
class HashedFile {
 public:
  explicit HashedFile(std::unique_ptr<WritableFile> file) : file_(std::move(file)) {}
  template <typename T>
  absl::Status Put(T value) {
    AppendRaw(value, &buffer_);
    return buffer_.size() < kBufferBytes ? absl::OkStatus() : Flush();
  }
  absl::Status PutBytes(absl::string_view bytes) {
    buffer_.append(bytes.data(), bytes.size());
    return absl::OkStatus();
  }
  absl::Status Finish() {
    MT_RETURN_IF_ERROR(Flush());
    MT_RETURN_IF_ERROR(file_->Sync());
    return file_->Close();
  }
  uint64_t bytes() const { return bytes_; }
  std::string Hex() const { return digest_.Hex(); }

 private:
  absl::Status Flush() {
    digest_.Update(buffer_.data(), buffer_.size());
    bytes_ += buffer_.size();
    MT_RETURN_IF_ERROR(file_->Append(buffer_));
    buffer_.clear();
    return absl::OkStatus();
  }
  std::unique_ptr<WritableFile> file_;
  std::string buffer_;
  Xxh3Stream digest_;
  uint64_t bytes_ = 0;
};

}  // namespace

IndexedDatasetWriter::IndexedDatasetWriter(Env* env, std::string prefix, TokenType type)
    : env_(env), prefix_(std::move(prefix)), type_(type) {}

absl::StatusOr<std::unique_ptr<IndexedDatasetWriter>> IndexedDatasetWriter::Create(
    Env* env, const std::string& prefix, TokenType type) {
  MT_RETURN_IF_ERROR(env->CreateDirectories(FolderOf(prefix)));
  absl::StatusOr<std::unique_ptr<FileLock>> lock = env->Lock(prefix + ".lock");
  if (absl::IsFailedPrecondition(lock.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat(prefix, ": another process is building this dataset"));
  }
  if (!lock.ok()) return lock.status();
  auto writer = std::unique_ptr<IndexedDatasetWriter>(new IndexedDatasetWriter(env, prefix, type));
  writer->lock_ = *std::move(lock);
  MT_ASSIGN_OR_RETURN(writer->bin_,
                      env->NewWritableFile(prefix + ".bin.partial", Env::WriteMode::kTruncate));
  MT_ASSIGN_OR_RETURN(writer->lengths_,
                      env->NewWritableFile(prefix + ".lengths.partial", Env::WriteMode::kTruncate));
  return writer;
}

IndexedDatasetWriter::~IndexedDatasetWriter() {
  // Without the lock the files belong to someone else. Errors have nowhere to go: a leftover
  // .partial is harmless.
  if (lock_ == nullptr) return;
  bin_.reset();
  lengths_.reset();
  for (absl::string_view name : {".bin.partial", ".idx.partial", ".lengths.partial", ".lock"}) {
    env_->RemoveFile(absl::StrCat(prefix_, name)).IgnoreError();
  }
}

absl::Status IndexedDatasetWriter::AddDocument(std::span<const int32_t> tokens) {
  MT_CHECK(bin_ != nullptr) << "AddDocument after Seal";
  if (tokens.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    return absl::InvalidArgumentError(
        absl::StrCat("document ", summary_.num_documents, " has ", tokens.size(),
                     " tokens; one document holds at most 2147483647"));
  }
  for (const int32_t token : tokens) {
    if (token < 0 ||
        (type_ == TokenType::kUint16 && token > std::numeric_limits<uint16_t>::max())) {
      return absl::InvalidArgumentError(absl::StrCat("document ", summary_.num_documents,
                                                     ": token id ", token, " does not fit ",
                                                     TokenTypeName(type_)));
    }
    if (type_ == TokenType::kUint16) {
      AppendRaw(static_cast<uint16_t>(token), &bin_buffer_);
    } else {
      AppendRaw(token, &bin_buffer_);
    }
    if (bin_buffer_.size() >= kBufferBytes) MT_RETURN_IF_ERROR(WriteBuffered());
  }
  AppendRaw(static_cast<int32_t>(tokens.size()), &lengths_buffer_);
  if (lengths_buffer_.size() >= kBufferBytes) MT_RETURN_IF_ERROR(WriteBuffered());
  ++summary_.num_documents;
  summary_.num_tokens += static_cast<int64_t>(tokens.size());
  return absl::OkStatus();
}

absl::Status IndexedDatasetWriter::WriteBuffered() {
  bin_digest_.Update(bin_buffer_.data(), bin_buffer_.size());
  summary_.bin_bytes += bin_buffer_.size();
  MT_RETURN_IF_ERROR(bin_->Append(bin_buffer_));
  bin_buffer_.clear();
  MT_RETURN_IF_ERROR(lengths_->Append(lengths_buffer_));
  lengths_buffer_.clear();
  return absl::OkStatus();
}

absl::StatusOr<IndexedDatasetSummary> IndexedDatasetWriter::Seal() {
  MT_CHECK(bin_ != nullptr) << "Seal twice";
  MT_RETURN_IF_ERROR(WriteBuffered());
  MT_RETURN_IF_ERROR(bin_->Sync());
  MT_RETURN_IF_ERROR(bin_->Close());
  MT_RETURN_IF_ERROR(lengths_->Close());
  bin_.reset();
  lengths_.reset();
  summary_.bin_xxh3 = bin_digest_.Hex();
  MT_RETURN_IF_ERROR(WriteIndex());
  MT_RETURN_IF_ERROR(env_->SyncDirectory(FolderOf(prefix_)));
  return summary_;
}

absl::Status IndexedDatasetWriter::WriteIndex() {
  MT_ASSIGN_OR_RETURN(auto raw,
                      env_->NewWritableFile(prefix_ + ".idx.partial", Env::WriteMode::kTruncate));
  MT_ASSIGN_OR_RETURN(const auto lengths, env_->NewRandomAccessFile(prefix_ + ".lengths.partial"));
  HashedFile index(std::move(raw));
  const auto for_each_length = [&](const auto& visit) -> absl::Status {
    std::string buffer(kBufferBytes, '\0');
    for (uint64_t offset = 0;; offset += buffer.size()) {
      MT_ASSIGN_OR_RETURN(const size_t bytes, lengths->Read(offset, buffer.size(), buffer.data()));
      for (size_t i = 0; i + sizeof(int32_t) <= bytes; i += sizeof(int32_t)) {
        int32_t length;
        std::memcpy(&length, buffer.data() + i, sizeof(length));
        MT_RETURN_IF_ERROR(visit(length));
      }
      if (bytes < buffer.size()) return absl::OkStatus();
    }
  };
  MT_RETURN_IF_ERROR(index.PutBytes(kIndexMagic));
  MT_RETURN_IF_ERROR(index.Put(kIndexVersion));
  MT_RETURN_IF_ERROR(index.Put(static_cast<uint8_t>(type_)));
  MT_RETURN_IF_ERROR(index.Put(static_cast<uint64_t>(summary_.num_documents)));
  MT_RETURN_IF_ERROR(index.Put(static_cast<uint64_t>(summary_.num_documents + 1)));
  MT_RETURN_IF_ERROR(for_each_length([&](int32_t length) { return index.Put(length); }));
  int64_t pointer = 0;
  MT_RETURN_IF_ERROR(for_each_length([&](int32_t length) {
    const absl::Status status = index.Put(pointer);
    pointer += int64_t{length} * TokenBytes(type_);
    return status;
  }));
  for (int64_t document = 0; document <= summary_.num_documents; ++document)
    MT_RETURN_IF_ERROR(index.Put(document));
  MT_RETURN_IF_ERROR(index.Finish());
  summary_.idx_bytes = index.bytes();
  summary_.idx_xxh3 = index.Hex();
  return absl::OkStatus();
}

absl::Status IndexedDatasetWriter::Commit() {
  const std::string folder = FolderOf(prefix_);
  MT_RETURN_IF_ERROR(RemoveIfThere(env_, prefix_ + ".idx"));
  MT_RETURN_IF_ERROR(env_->SyncDirectory(folder));
  MT_RETURN_IF_ERROR(env_->Rename(prefix_ + ".bin.partial", prefix_ + ".bin"));
  MT_RETURN_IF_ERROR(env_->SyncDirectory(folder));
  MT_RETURN_IF_ERROR(env_->Rename(prefix_ + ".idx.partial", prefix_ + ".idx"));
  return env_->SyncDirectory(folder);
}

}  // namespace mt
