#include "worker/data/spool_file.h"

#include <algorithm>

namespace mt {
namespace {

constexpr size_t kBufferBytes = 1 << 20;

// Up to `bytes` of the file; returns how many there were.
absl::StatusOr<uint64_t> DigestBeginning(Env* env, const std::string& path, uint64_t bytes,
                                         Xxh3Stream* digest) {
  MT_ASSIGN_OR_RETURN(const auto file, env->NewRandomAccessFile(path));
  std::string buffer(kBufferBytes, '\0');
  for (uint64_t at = 0; at < bytes;) {
    const size_t wanted = std::min<uint64_t>(buffer.size(), bytes - at);
    MT_ASSIGN_OR_RETURN(const size_t count, file->Read(at, wanted, buffer.data()));
    if (count == 0) return at;
    digest->Update(buffer.data(), count);
    at += count;
  }
  return bytes;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SpoolFile>> SpoolFile::Open(Env* env, const std::string& path,
                                                           const State* state) {
  auto spool = std::unique_ptr<SpoolFile>(new SpoolFile);
  if (state == nullptr) {
    MT_ASSIGN_OR_RETURN(spool->file_, env->NewWritableFile(path, Env::WriteMode::kTruncate));
    return spool;
  }
  const absl::StatusOr<uint64_t> found = DigestBeginning(env, path, state->bytes, &spool->digest_);
  if (!found.ok() && !absl::IsNotFound(found.status())) return found.status();
  if (!found.ok() || *found < state->bytes || spool->digest_.Hex() != state->xxh3) {
    return absl::DataLossError(
        absl::StrCat(path, ": its first ", state->bytes, " bytes are not what was written before"));
  }
  MT_RETURN_IF_ERROR(env->Truncate(path, state->bytes));
  MT_ASSIGN_OR_RETURN(spool->file_, env->NewWritableFile(path, Env::WriteMode::kAppend));
  spool->bytes_ = state->bytes;
  return spool;
}

absl::Status SpoolFile::Append(absl::string_view data) {
  bytes_ += data.size();
  if (buffer_.size() + data.size() >= kBufferBytes) {
    MT_RETURN_IF_ERROR(Flush());
    if (data.size() >= kBufferBytes) {
      digest_.Update(data.data(), data.size());
      return file_->Append(data);
    }
  }
  buffer_.append(data.data(), data.size());
  return absl::OkStatus();
}

absl::Status SpoolFile::Flush() {
  digest_.Update(buffer_.data(), buffer_.size());
  MT_RETURN_IF_ERROR(file_->Append(buffer_));
  buffer_.clear();
  return absl::OkStatus();
}

absl::StatusOr<SpoolFile::State> SpoolFile::Sync() {
  MT_RETURN_IF_ERROR(Flush());
  MT_RETURN_IF_ERROR(file_->Sync());
  return State{bytes_, digest_.Hex()};
}

absl::StatusOr<SpoolFile::State> SpoolFile::Finish() {
  MT_ASSIGN_OR_RETURN(State state, Sync());
  MT_RETURN_IF_ERROR(file_->Close());
  return state;
}

}  // namespace mt
