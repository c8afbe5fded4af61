#include "worker/checkpoint/hugging_face/initial_checkpoint.h"
#include "common/spec/model_differences.h"

#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "common/spec/parameters.h"
#include "common/spec/presets.h"
#include "worker/checkpoint/hugging_face/import.h"
#include "worker/checkpoint/loader.h"
#include "worker/checkpoint/manifest.h"
#include "worker/checkpoint/reader.h"

namespace mt {
namespace {

constexpr uint64_t kMaxManifestBytes = uint64_t{1} << 30;

absl::Status CompareModels(const v1::JobSpec& spec, const v1::ModelSpec& folder) {
  // The folder's model is what the job's is a change of, unless a preset is named: then single traits were changed on purpose,
  // and only shapes are the weights'.
  const bool from_folder = spec.model().preset().empty() || IsFolderPreset(spec.model().preset());
  const std::vector<std::string> lines = ModelDifferences(spec.model(), folder, from_folder);
  if (lines.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "initial_checkpoint = ", spec.initial_checkpoint(), ": the job's model is another one (",
      absl::StrJoin(lines, "; "),
      "); delete the model section to take the folder's, or write in it only what is to change"));
}

absl::StatusOr<v1::CheckpointManifest> ReadFolder(Env* env, const std::string& folder) {
  const std::string path = JoinPath(folder, "manifest.json");
  absl::StatusOr<std::string> json = ReadFile(env, path, kMaxManifestBytes);
  if (absl::IsNotFound(json.status())) {
    return absl::NotFoundError(absl::StrCat(
        "initial_checkpoint = ", folder,
        ": no manifest.json there on this machine; name a "
        "checkpoint's own folder (…/step-00000100), or hf:FOLDER for one of Hugging Face"));
  }
  MT_RETURN_IF_ERROR(json.status());
  absl::StatusOr<v1::CheckpointManifest> manifest = ManifestFromJson(*json);
  if (!manifest.ok()) return Annotate(manifest.status(), path);
  return manifest;
}

absl::Status CheckFolder(Env* env, const v1::JobSpec& spec) {
  const std::string& folder = spec.initial_checkpoint();
  MT_ASSIGN_OR_RETURN(const v1::CheckpointManifest manifest, ReadFolder(env, folder));
  MT_RETURN_IF_ERROR(CompareModels(spec, manifest.spec().model()));
  for (const v1::CheckpointFile& file : manifest.files()) {
    const absl::StatusOr<FileInfo> info = env->Stat(JoinPath(folder, file.name()));
    MT_RETURN_IF_ERROR(info.status());
    if (static_cast<int64_t>(info->size_bytes) != file.size_bytes()) {
      return absl::DataLossError(absl::StrCat(folder, "/", file.name(), " has ", info->size_bytes,
                                              " bytes, its manifest says ", file.size_bytes()));
    }
  }
  MT_ASSIGN_OR_RETURN(const auto reader,
                      CheckpointReader::Create(manifest, FolderResolver(folder), env));
  for (const LogicalParameter& parameter : ParametersOf(spec.model())) {
    if (reader->ShapeOf(parameter.name) == parameter.shape) continue;
    return absl::FailedPreconditionError(
        absl::StrCat(folder, ": tensor ", parameter.name, " is [",
                     absl::StrJoin(reader->ShapeOf(parameter.name), ","),
                     "], the job's model has [", absl::StrJoin(parameter.shape, ","), "]"));
  }
  return absl::OkStatus();
}

}  // namespace

std::string HubFolderOf(absl::string_view initial_checkpoint) {
  return absl::StartsWith(initial_checkpoint, kHubPrefix)
             ? std::string(initial_checkpoint.substr(sizeof(kHubPrefix) - 1))
             : "";
}

absl::Status CheckInitialCheckpoint(Env* env, const v1::JobSpec& spec) {
  if (spec.initial_checkpoint().empty()) return absl::OkStatus();
  const std::string folder = HubFolderOf(spec.initial_checkpoint());
  if (folder.empty()) return CheckFolder(env, spec);
  MT_ASSIGN_OR_RETURN(const auto hub, HubFolder::Open(env, folder));
  MT_RETURN_IF_ERROR(CompareModels(spec, hub->model()));
  return hub->Check(spec.model());
}

absl::Status LoadInitialCheckpoint(Env* env, const v1::JobSpec& spec,
                                   const std::vector<TensorBox>& boxes, const mt_backend* device) {
  const std::string folder = HubFolderOf(spec.initial_checkpoint());
  if (!folder.empty()) {
    MT_ASSIGN_OR_RETURN(const auto hub, HubFolder::Open(env, folder));
    return hub->Load(spec.model(), boxes, device);
  }
  MT_ASSIGN_OR_RETURN(const v1::CheckpointManifest manifest,
                      ReadFolder(env, spec.initial_checkpoint()));
  std::vector<TensorBox> weights;
  std::set<std::string> parameters;
  for (const LogicalParameter& parameter : ParametersOf(spec.model()))
    parameters.insert(parameter.name);
  for (const TensorBox& box : boxes) {
    if (parameters.contains(box.tensor)) {
      weights.push_back(box);
    } else {
      MT_RETURN_IF_ERROR(ZeroBox(box, device));
    }
  }
  return LoadCheckpoint(manifest, weights, FolderResolver(spec.initial_checkpoint()),
                        {.env = env, .device = device});
}

}  // namespace mt
