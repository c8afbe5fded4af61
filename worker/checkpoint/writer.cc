#include "worker/checkpoint/writer.h"

#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/checkpoint/weights_digest.h"
#include "common/hash.h"
#include "worker/checkpoint/boxes.h"
#include "worker/checkpoint/manifest.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace mt {
namespace {

constexpr size_t kPieceBytes = 4 << 20;

// A whole tensor keeps its name, so that any safetensors reader finds it; a part adds where it
// begins.
std::string EntryName(const TensorBox& box) {
  if (box.shape == box.global_shape) return box.tensor;
  return absl::StrCat(box.tensor, "@", absl::StrJoin(box.offset, ","));
}

class ThreadedCheckpointWriter : public CheckpointWriter {
 public:
  ThreadedCheckpointWriter(CheckpointWriterOptions options, std::vector<TensorBox> boxes,
                           std::vector<SafetensorsEntry> entries,
                           std::unique_ptr<SnapshotBuffer> buffer)
      : options_(std::move(options)),
        boxes_(std::move(boxes)),
        entries_(std::move(entries)),
        buffer_(std::move(buffer)) {
    std::map<std::string, const SafetensorsEntry*> by_name;
    for (const SafetensorsEntry& entry : entries_) by_name[entry.name] = &entry;
    for (const TensorBox& box : boxes_) {
      const SafetensorsEntry* entry = by_name.at(EntryName(box));
      box_entries_.push_back(entry);
      pieces_.push_back({box.data, static_cast<size_t>(entry->begin), entry->bytes()});
    }
    bytes_ = entries_.empty() ? 0 : entries_.back().end;
    thread_ = std::thread([this] { Work(); });
  }
  ~ThreadedCheckpointWriter() override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }

  absl::StatusOr<double> Snapshot(const TrainingPosition& position) override {
    const absl::Duration start = options_.clock->Monotonic();
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !pending_.has_value(); });
    lock.unlock();  // the thread touches the buffer only while a write is pending
    MT_RETURN_IF_ERROR(Annotate(buffer_->Begin(pieces_), "snapshot"));
    const double stall = absl::ToDoubleSeconds(options_.clock->Monotonic() - start);
    lock.lock();
    pending_ = Pending{position, stall};
    changed_.notify_all();
    return stall;
  }

  absl::Status Wait() override {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !pending_.has_value(); });
    return last_;
  }
  int64_t bytes() const override { return bytes_; }

 private:
  struct Pending {
    TrainingPosition position;
    double stall_seconds;
  };

  void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return pending_.has_value() || stopping_; });
      if (!pending_.has_value()) return;
      const Pending pending = *pending_;
      lock.unlock();
      const absl::Status status = WriteAndReport(pending);
      lock.lock();
      last_ = status;
      pending_.reset();
      changed_.notify_all();
    }
  }

  absl::Status WriteAndReport(const Pending& pending) {
    v1::ShardWritten written;
    absl::Status status = Annotate(buffer_->Finish(), "snapshot");
    const absl::Duration start = options_.clock->Monotonic();
    if (status.ok()) status = Write(pending.position, *written.mutable_file());
    if (!status.ok()) {
      v1::CheckpointFailed failed;
      failed.set_step(pending.position.step);
      failed.set_reason(CheckpointFailureReason(status));
      failed.set_message(std::string(status.message()));
      if (options_.on_failed) options_.on_failed(failed);
      return status;
    }
    written.set_step(pending.position.step);
    written.set_consumed_samples(pending.position.consumed_samples);
    written.set_loss(pending.position.loss);
    written.set_stall_seconds(pending.stall_seconds + buffer_->UpdateStallSeconds());
    written.set_persist_seconds(absl::ToDoubleSeconds(options_.clock->Monotonic() - start));
    written.set_world_size(options_.world_size);
    if (options_.on_written) options_.on_written(written);
    return absl::OkStatus();
  }

  absl::Status Write(const TrainingPosition& position, v1::CheckpointFile& file) {
    Env* env = options_.env;
    MT_ASSIGN_OR_RETURN(const std::string job_folder, JobFolder(options_.root, options_.job_id));
    MT_ASSIGN_OR_RETURN(const std::string folder,
                        CheckpointFolder(options_.root, options_.job_id, position.step));
    file.set_name(ShardFileName(options_.rank));
    MT_RETURN_IF_ERROR(env->CreateDirectories(folder));
    RemoveOlderGenerations(folder, file.name());
    MT_RETURN_IF_ERROR(WriteFile(JoinPath(folder, file.name()), position, file));
    // The name in its folder, and the folders' own names above it.
    MT_RETURN_IF_ERROR(env->SyncDirectory(folder));
    MT_RETURN_IF_ERROR(env->SyncDirectory(job_folder));
    MT_RETURN_IF_ERROR(env->SyncDirectory(options_.root));
    AddSlices(file);
    return absl::OkStatus();
  }

  // What an earlier attempt began and did not finish. If it still writes there, unheard by the coordinator, its rename fails.
  void RemoveOlderGenerations(const std::string& folder, const std::string& name) {
    const absl::StatusOr<std::vector<std::string>> there = options_.env->List(folder);
    if (!there.ok()) return;
    for (absl::string_view left : *there) {
      int generation = 0;
      if (absl::ConsumePrefix(&left, absl::StrCat(name, ".tmp-g")) &&
          absl::SimpleAtoi(left, &generation) && generation < options_.generation) {
        (void)options_.env->RemoveFile(JoinPath(folder, absl::StrCat(name, ".tmp-g", generation)));
      }
    }
  }

  absl::Status WriteFile(const std::string& path, const TrainingPosition& position,
                         v1::CheckpointFile& file) {
    std::vector<SafetensorsEntry> entries = entries_;
    MT_ASSIGN_OR_RETURN(
        const auto out,
        SafetensorsWriter::Create(options_.env, path, entries,
                                  {{"format", "pt"}, {"mt.step", absl::StrCat(position.step)}},
                                  absl::StrCat("-g", options_.generation)));
    for (size_t at = 0; at < bytes_; at += kPieceBytes) {
      MT_RETURN_IF_ERROR(
          out->Append(absl::string_view(buffer_->data() + at, std::min(kPieceBytes, bytes_ - at))));
    }
    MT_RETURN_IF_ERROR(out->Finish());
    file.set_size_bytes(static_cast<int64_t>(out->size_bytes()));
    file.set_xxh3_128(out->xxh3_128());
    return absl::OkStatus();
  }

  void AddSlices(v1::CheckpointFile& file) const {
    for (size_t i = 0; i < boxes_.size(); ++i) {
      const TensorBox& box = boxes_[i];
      v1::TensorSlice* slice = file.add_slices();
      slice->set_tensor(box.tensor);
      slice->mutable_global_shape()->Assign(box.global_shape.begin(), box.global_shape.end());
      slice->mutable_offset()->Assign(box.offset.begin(), box.offset.end());
      slice->mutable_shape()->Assign(box.shape.begin(), box.shape.end());
      slice->set_entry(box_entries_[i]->name);
      slice->set_content_sum(SumOfBox(box.tensor, SafetensorsDtype(box.dtype), box.global_shape,
                                      box.offset, box.shape, ElementBytes(box.dtype),
                                      buffer_->data() + box_entries_[i]->begin)
                                 .Hex());
    }
  }

  const CheckpointWriterOptions options_;
  const std::vector<TensorBox> boxes_;
  const std::vector<SafetensorsEntry> entries_;       // in the file's order
  std::vector<const SafetensorsEntry*> box_entries_;  // of each box
  std::vector<SnapshotBuffer::Piece> pieces_;         // of each box
  // The file's byte buffer; the thread's while a write is pending.
  const std::unique_ptr<SnapshotBuffer> buffer_;
  size_t bytes_ = 0;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Pending> pending_;  // guarded by mutex_, as the two below
  absl::Status last_;
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointWriter>> CheckpointWriter::Create(
    CheckpointWriterOptions options, std::vector<TensorBox> boxes) {
  MT_RETURN_IF_ERROR(JobFolder(options.root, options.job_id).status());
  if (options.root.empty()) return absl::InvalidArgumentError("checkpoint writer: no root folder");
  std::vector<SafetensorsEntry> entries;
  for (const TensorBox& box : boxes) MT_RETURN_IF_ERROR(ValidateBox(box));
  std::erase_if(boxes, [](const TensorBox& box) { return box.Elements() == 0; });
  for (const TensorBox& box : boxes) {
    entries.push_back({EntryName(box), std::string(SafetensorsDtype(box.dtype)), box.shape});
  }
  MT_RETURN_IF_ERROR(BuildSafetensorsHead(entries, {}).status());
  // BuildSafetensorsHead has laid the entries out.
  MT_ASSIGN_OR_RETURN(auto buffer, NewSnapshotBuffer(entries.empty() ? 0 : entries.back().end,
                                                     options.device, options.before_next_update));
  return std::make_unique<ThreadedCheckpointWriter>(std::move(options), std::move(boxes),
                                                    std::move(entries), std::move(buffer));
}

}  // namespace mt
