#include "worker/checkpoint/safetensors_writer.h"

namespace mt {

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    Env* env, const std::string& path, std::vector<SafetensorsEntry>& entries,
    const std::map<std::string, std::string>& metadata, const std::string& mark) {
  MT_ASSIGN_OR_RETURN(const std::string head, BuildSafetensorsHead(entries, metadata));
  auto writer = std::unique_ptr<SafetensorsWriter>(new SafetensorsWriter(env, path, mark));
  writer->due_ = head.size() + (entries.empty() ? 0 : entries.back().end);
  MT_ASSIGN_OR_RETURN(writer->file_,
                      env->NewWritableFile(writer->temporary_, Env::WriteMode::kTruncate));
  MT_RETURN_IF_ERROR(writer->Append(head));
  return writer;
}

SafetensorsWriter::~SafetensorsWriter() {
  if (finished_ || file_ == nullptr) return;
  file_.reset();
  (void)env_->RemoveFile(temporary_);
}

absl::Status SafetensorsWriter::Append(absl::string_view bytes) {
  hash_.Update(bytes.data(), bytes.size());
  written_ += bytes.size();
  return file_->Append(bytes);
}

absl::Status SafetensorsWriter::Finish() {
  if (written_ != due_)
    return absl::InternalError(absl::StrCat(path_, ": ", written_, " of ", due_, " bytes"));
  MT_RETURN_IF_ERROR(file_->Sync());
  MT_RETURN_IF_ERROR(file_->Close());
  MT_RETURN_IF_ERROR(env_->Rename(temporary_, path_));
  finished_ = true;
  return absl::OkStatus();
}

}  // namespace mt
