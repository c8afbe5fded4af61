#include "worker/checkpoint/hugging_face/to_checkpoint.h"

#include <algorithm>
#include <map>

#include "absl/strings/ascii.h"
#include "common/checkpoint/weights_digest.h"
#include "common/proto_time.h"
#include "worker/checkpoint/hugging_face/carried_files.h"
#include "worker/checkpoint/manifest.h"
#include "worker/checkpoint/safetensors_writer.h"

namespace mt {
namespace {

constexpr int64_t kPieceElements = 32 << 20;  // of a tensor that are held at once

// The folder's name as a job id.
std::string JobIdOf(const std::string& folder) {
  std::string id;
  const size_t slash = folder.find_last_not_of('/');
  const std::string trimmed = folder.substr(0, slash + 1);
  for (const char c : trimmed.substr(trimmed.find_last_of('/') + 1)) {
    const char lower = absl::ascii_tolower(static_cast<unsigned char>(c));
    const bool letter = absl::ascii_islower(lower) || absl::ascii_isdigit(lower);
    if (letter || !id.empty()) id.push_back(letter || c == '.' || c == '_' ? lower : '-');
  }
  if (id.empty()) id = "imported";
  return id.substr(0, 63);
}

class Importer {
 public:
  Importer(const HubFolder& hub, std::string from, std::string to, const HubImportOptions& options)
      : hub_(hub),
        from_(std::move(from)),
        to_(std::move(to)),
        options_(options),
        env_(options.env) {}

  absl::StatusOr<v1::CheckpointManifest> Run() {
    MT_RETURN_IF_ERROR(hub_.Check(hub_.model()));
    MT_RETURN_IF_ERROR(env_->CreateDirectories(to_));
    MT_ASSIGN_OR_RETURN(const std::vector<std::string> names, env_->List(to_));
    if (!names.empty()) {
      return absl::FailedPreconditionError(
          absl::StrCat(to_, " is not empty; name a new folder, or empty this one"));
    }
    Describe();
    int64_t bytes = 0;
    std::vector<LogicalParameter> shard;
    for (LogicalParameter& parameter : ParametersOf(hub_.model())) {
      if (bytes > 0 && bytes + 4 * parameter.Elements() > options_.max_shard_bytes) {
        MT_RETURN_IF_ERROR(WriteShard(shard));
        shard.clear();
        bytes = 0;
      }
      bytes += 4 * parameter.Elements();
      shard.push_back(std::move(parameter));
    }
    MT_RETURN_IF_ERROR(WriteShard(shard));
    return Finish();
  }

 private:
  void Describe() {
    manifest_.set_format_version(1);
    manifest_.set_job_id(JobIdOf(from_));
    manifest_.set_parent_step(-1);
    manifest_.set_mt_version(options_.mt_version);
    SetTime(manifest_.mutable_created(), absl::Now());
    v1::JobSpec& spec = *manifest_.mutable_spec();
    spec.set_name(manifest_.job_id());
    spec.set_initial_checkpoint("hf:" + from_);
    *spec.mutable_model() = hub_.model();
    spec.mutable_training()->set_precision(v1::TrainingSpec::PRECISION_FP32);
    spec.mutable_data()->set_sequence_length(std::max<int64_t>(1, hub_.model().max_positions()));
  }

  absl::Status WriteShard(const std::vector<LogicalParameter>& parameters) {
    v1::CheckpointFile& file = *manifest_.add_files();
    file.set_name(ShardFileName(manifest_.files_size() - 1));
    std::map<std::string, const LogicalParameter*> by_name;
    std::vector<SafetensorsEntry> entries;
    for (const LogicalParameter& parameter : parameters) {
      by_name[parameter.name] = &parameter;
      entries.push_back({parameter.name, "F32", parameter.shape});
    }
    MT_ASSIGN_OR_RETURN(const auto out,
                        SafetensorsWriter::Create(env_, JoinPath(to_, file.name()), entries,
                                                  {{"format", "pt"}, {"mt.step", "0"}}));
    for (const SafetensorsEntry& entry : entries)
      MT_RETURN_IF_ERROR(WriteTensor(*by_name[entry.name], out.get(), *file.add_slices()));
    MT_RETURN_IF_ERROR(out->Finish());
    file.set_size_bytes(static_cast<int64_t>(out->size_bytes()));
    file.set_xxh3_128(out->xxh3_128());
    manifest_.set_total_bytes(manifest_.total_bytes() + file.size_bytes());
    return absl::OkStatus();
  }

  absl::Status WriteTensor(const LogicalParameter& parameter, SafetensorsWriter* out,
                           v1::TensorSlice& slice) {
    std::vector<int64_t> offset(parameter.shape.size(), 0), shape = parameter.shape;
    slice.set_tensor(parameter.name);
    slice.mutable_global_shape()->Assign(shape.begin(), shape.end());
    slice.mutable_offset()->Assign(offset.begin(), offset.end());
    slice.mutable_shape()->Assign(shape.begin(), shape.end());
    slice.set_entry(parameter.name);
    const int64_t rows = shape[0], columns = parameter.Elements() / rows;
    const int64_t step = std::clamp<int64_t>(kPieceElements / columns, 1, rows);
    ContentSum sum;
    for (int64_t row = 0; row < rows; row += step) {
      offset[0] = row;
      shape[0] = std::min(step, rows - row);
      piece_.resize(static_cast<size_t>(shape[0] * columns));
      MT_RETURN_IF_ERROR(hub_.ReadRows(hub_.model(), parameter, row, shape[0], piece_.data()));
      sum.Add(SumOfBox(parameter.name, "F32", parameter.shape, offset, shape, 4, piece_.data()));
      MT_RETURN_IF_ERROR(out->Append(
          {reinterpret_cast<const char*>(piece_.data()), piece_.size() * sizeof(float)}));
    }
    slice.set_content_sum(sum.Hex());
    return absl::OkStatus();
  }

  absl::StatusOr<v1::CheckpointManifest> Finish() {
    const std::string carried = JoinPath(to_, kHubSubfolder);
    MT_RETURN_IF_ERROR(CarryFiles(env_, from_, carried, /*config=*/true).status());
    // What `generate` turns text into tokens with.
    for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
      if (Exists(env_, JoinPath(carried, name)))
        manifest_.mutable_spec()->mutable_data()->set_tokenizer(carried);
    }
    MT_ASSIGN_OR_RETURN(*manifest_.mutable_weights_digest(), WeightsDigest(manifest_));
    MT_RETURN_IF_ERROR(ValidateManifest(manifest_));
    MT_ASSIGN_OR_RETURN(const std::string json, ManifestToJson(manifest_));
    MT_RETURN_IF_ERROR(env_->SyncDirectory(to_));
    MT_RETURN_IF_ERROR(WriteFileAtomically(env_, JoinPath(to_, "manifest.json"), json));
    return std::move(manifest_);
  }

  const HubFolder& hub_;
  const std::string from_, to_;
  const HubImportOptions& options_;
  Env* const env_;
  v1::CheckpointManifest manifest_;
  std::vector<float> piece_;
};

}  // namespace

absl::StatusOr<v1::CheckpointManifest> HubToCheckpoint(const HubFolder& hub,
                                                       const std::string& from,
                                                       const std::string& to,
                                                       const HubImportOptions& options) {
  return Importer(hub, from, to, options).Run();
}

}  // namespace mt
