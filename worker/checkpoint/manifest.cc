#include "worker/checkpoint/manifest.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <functional>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "common/checkpoint/weights_digest.h"

namespace mt {
namespace {

constexpr char kManifestName[] = "manifest.json";
constexpr char kLatestName[] = "latest";
constexpr char kTemporaryMark[] = ".tmp";
constexpr int32_t kFormatVersion = 1;
constexpr uint64_t kMaxManifestBytes = uint64_t{1} << 30;

absl::Status IgnoreNotFound(const absl::Status& status) {
  return status.code() == absl::StatusCode::kNotFound ? absl::OkStatus() : status;
}

// Names of a folder; none if it does not exist.
absl::StatusOr<std::vector<std::string>> ListIfThere(Env* env, const std::string& path) {
  absl::StatusOr<std::vector<std::string>> names = env->List(path);
  if (names.status().code() == absl::StatusCode::kNotFound) return std::vector<std::string>();
  return names;
}

bool IsFolder(Env* env, const std::string& path) {
  const absl::StatusOr<FileInfo> info = env->Stat(path);
  return info.ok() && info->is_directory;
}

// visit(job, step, folder) for every folder of a checkpoint below `root`, committed or not.
absl::Status ForEachStep(
    Env* env, const std::string& root,
    const std::function<absl::Status(const std::string&, int64_t, const std::string&)>& visit) {
  MT_ASSIGN_OR_RETURN(const std::vector<std::string> jobs, ListIfThere(env, root));
  for (const std::string& job : jobs) {
    const std::string job_folder = JoinPath(root, job);
    if (!ValidateComponent("job id", job).ok() || !IsFolder(env, job_folder)) continue;
    MT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListIfThere(env, job_folder));
    for (const std::string& name : names) {
      const absl::StatusOr<int64_t> step = ParseStepFolderName(name);
      const std::string folder = JoinPath(job_folder, name);
      if (step.ok() && IsFolder(env, folder)) MT_RETURN_IF_ERROR(visit(job, *step, folder));
    }
  }
  return absl::OkStatus();
}

absl::Status SetLatest(Env* env, const std::string& job_folder, int64_t step) {
  return WriteFileAtomically(env, JoinPath(job_folder, kLatestName), StepFolderName(step) + "\n");
}

// After `deleted` has gone: `latest` names the newest that is left, or goes too.
absl::Status RepairLatest(Env* env, const std::string& root, absl::string_view job_id,
                          int64_t deleted) {
  MT_ASSIGN_OR_RETURN(const std::string job_folder, JobFolder(root, job_id));
  const std::string path = JoinPath(job_folder, kLatestName);
  const absl::StatusOr<std::string> latest = ReadFile(env, path, 4096);
  if (latest.status().code() == absl::StatusCode::kNotFound) return absl::OkStatus();
  if (latest.ok() && *latest != StepFolderName(deleted) + "\n") return absl::OkStatus();
  MT_ASSIGN_OR_RETURN(const std::vector<int64_t> left, ListCommitted(env, root, job_id));
  if (!left.empty()) return SetLatest(env, job_folder, left.back());
  return IgnoreNotFound(env->RemoveFile(path));
}

}  // namespace

absl::Status ValidateComponent(absl::string_view what, absl::string_view value) {
  const auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  const bool valid = !value.empty() && value.size() <= 63 && letter(value[0]) &&
                     std::all_of(value.begin(), value.end(), [&](char c) {
                       return letter(c) || c == '.' || c == '_' || c == '-';
                     });
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " \"", value, "\" is not of the form [a-z0-9][a-z0-9._-]{0,62}"));
}

std::string StepFolderName(int64_t step) { return absl::StrFormat("step-%08d", step); }

absl::StatusOr<int64_t> ParseStepFolderName(absl::string_view name) {
  int64_t step = 0;
  if (!absl::StartsWith(name, "step-") || !absl::SimpleAtoi(name.substr(5), &step) || step < 0 ||
      name != StepFolderName(step)) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" is not the folder of a checkpoint (step-00000020)"));
  }
  return step;
}

std::string ShardFileName(int rank) { return absl::StrCat("shard-r", rank, ".safetensors"); }

absl::StatusOr<std::string> JobFolder(const std::string& root, absl::string_view job_id) {
  MT_RETURN_IF_ERROR(ValidateComponent("job id", job_id));
  return JoinPath(root, job_id);
}
absl::StatusOr<std::string> CheckpointFolder(const std::string& root, absl::string_view job_id,
                                             int64_t step) {
  if (step < 0)
    return absl::InvalidArgumentError(
        absl::StrCat("job ", job_id, ": checkpoint step ", step, " is negative"));
  MT_ASSIGN_OR_RETURN(const std::string folder, JobFolder(root, job_id));
  return JoinPath(folder, StepFolderName(step));
}
absl::StatusOr<std::string> CheckpointFilePath(const std::string& root, absl::string_view job_id,
                                               int64_t step, absl::string_view file) {
  MT_RETURN_IF_ERROR(ValidateComponent("checkpoint file", file));
  MT_ASSIGN_OR_RETURN(const std::string folder, CheckpointFolder(root, job_id, step));
  return JoinPath(folder, file);
}

absl::Status ValidateManifest(const v1::CheckpointManifest& manifest) {
  const std::string what =
      absl::StrCat("manifest of job ", manifest.job_id(), ", step ", manifest.step());
  if (manifest.format_version() != kFormatVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        what, ": format ", manifest.format_version(), ", this program reads ", kFormatVersion,
        "; use the version that wrote it (", manifest.mt_version(), ")"));
  }
  MT_RETURN_IF_ERROR(Annotate(ValidateComponent("job id", manifest.job_id()), what));
  if (manifest.step() < 0 || manifest.consumed_samples() < 0)
    return absl::InvalidArgumentError(absl::StrCat(what, ": negative position"));
  std::set<std::string> names;
  for (const v1::CheckpointFile& file : manifest.files()) {
    MT_RETURN_IF_ERROR(Annotate(ValidateComponent("file", file.name()), what));
    if (file.name() == kManifestName || !names.insert(file.name()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(what, ": file name ", file.name(), " is taken"));
    }
    const bool digest = file.xxh3_128().size() == 32 &&
                        file.xxh3_128().find_first_not_of("0123456789abcdef") == std::string::npos;
    if (file.size_bytes() < 0 || !digest) {
      return absl::InvalidArgumentError(absl::StrCat(what, ": file ", file.name(), ": size ",
                                                     file.size_bytes(), ", XXH3-128 \"",
                                                     file.xxh3_128(), "\""));
    }
  }
  return Annotate(CheckCoverage(manifest), what);
}

absl::StatusOr<std::string> ManifestToJson(const v1::CheckpointManifest& manifest) {
  google::protobuf::util::JsonPrintOptions options;
  options.add_whitespace = true;
  options.preserve_proto_field_names = true;
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(manifest, &json, options);
  if (!status.ok())
    return absl::InvalidArgumentError(
        absl::StrCat("manifest to JSON: ", std::string(status.message())));
  return json;
}

absl::StatusOr<v1::CheckpointManifest> ManifestFromJson(absl::string_view json) {
  // A newer format may have fields that this program does not know: look at the version before
  // insisting on the rest.
  google::protobuf::util::JsonParseOptions lenient;
  lenient.ignore_unknown_fields = true;
  const google::protobuf::StringPiece text(json.data(), json.size());
  v1::CheckpointManifest manifest;
  const auto status = google::protobuf::util::JsonStringToMessage(text, &manifest, lenient);
  if (!status.ok())
    return absl::DataLossError(
        absl::StrCat("manifest is not JSON: ", std::string(status.message())));
  const absl::Status valid = ValidateManifest(manifest);
  if (valid.code() == absl::StatusCode::kInvalidArgument)
    return absl::DataLossError(valid.message());
  MT_RETURN_IF_ERROR(valid);
  return manifest;
}

absl::Status CommitManifest(Env* env, const std::string& root,
                            const v1::CheckpointManifest& manifest) {
  MT_RETURN_IF_ERROR(ValidateManifest(manifest));
  MT_ASSIGN_OR_RETURN(const std::string job_folder, JobFolder(root, manifest.job_id()));
  MT_ASSIGN_OR_RETURN(const std::string folder,
                      CheckpointFolder(root, manifest.job_id(), manifest.step()));
  MT_ASSIGN_OR_RETURN(const std::string json, ManifestToJson(manifest));
  MT_RETURN_IF_ERROR(env->CreateDirectories(folder));
  MT_RETURN_IF_ERROR(env->SyncDirectory(root));
  MT_RETURN_IF_ERROR(env->SyncDirectory(job_folder));
  MT_RETURN_IF_ERROR(env->SyncDirectory(folder));  // the files' names, whoever renamed them
  MT_RETURN_IF_ERROR(WriteFileAtomically(env, JoinPath(folder, kManifestName), json));
  return SetLatest(env, job_folder, manifest.step());
}

absl::StatusOr<v1::CheckpointManifest> ReadManifest(Env* env, const std::string& root,
                                                    absl::string_view job_id, int64_t step) {
  MT_ASSIGN_OR_RETURN(const std::string folder, CheckpointFolder(root, job_id, step));
  const std::string path = JoinPath(folder, kManifestName);
  MT_ASSIGN_OR_RETURN(const std::string json, ReadFile(env, path, kMaxManifestBytes));
  absl::StatusOr<v1::CheckpointManifest> manifest = ManifestFromJson(json);
  if (!manifest.ok()) return Annotate(manifest.status(), path);
  if (manifest->job_id() != job_id || manifest->step() != step) {
    return absl::DataLossError(
        absl::StrCat(path, " is of job ", manifest->job_id(), ", step ", manifest->step()));
  }
  return manifest;
}

absl::StatusOr<std::vector<int64_t>> ListCommitted(Env* env, const std::string& root,
                                                   absl::string_view job_id) {
  MT_ASSIGN_OR_RETURN(const std::string folder, JobFolder(root, job_id));
  MT_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListIfThere(env, folder));
  std::vector<int64_t> steps;
  for (const std::string& name : names) {
    const absl::StatusOr<int64_t> step = ParseStepFolderName(name);
    if (step.ok() && Exists(env, JoinPath(JoinPath(folder, name), kManifestName)))
      steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end());
  return steps;
}

absl::StatusOr<std::vector<v1::HeldCheckpoint>> ListHeld(Env* env, const std::string& root) {
  std::vector<v1::HeldCheckpoint> held;
  MT_RETURN_IF_ERROR(ForEachStep(
      env, root,
      [&](const std::string& job, int64_t step, const std::string& folder) -> absl::Status {
        v1::HeldCheckpoint checkpoint;
        checkpoint.set_job_id(job);
        checkpoint.set_step(step);
        MT_ASSIGN_OR_RETURN(const std::vector<std::string> files, ListIfThere(env, folder));
        for (const std::string& file : files) {
          if (file == kManifestName || absl::StrContains(file, kTemporaryMark)) continue;
          if (ValidateComponent("file", file).ok()) checkpoint.add_files(file);
        }
        if (checkpoint.files_size() > 0) held.push_back(std::move(checkpoint));
        return absl::OkStatus();
      }));
  return held;
}

absl::Status DeleteCheckpoint(Env* env, const std::string& root, absl::string_view job_id,
                              int64_t step) {
  MT_ASSIGN_OR_RETURN(const std::string job_folder, JobFolder(root, job_id));
  MT_ASSIGN_OR_RETURN(const std::string folder, CheckpointFolder(root, job_id, step));
  if (IsFolder(env, folder)) {
    MT_RETURN_IF_ERROR(IgnoreNotFound(env->RemoveFile(JoinPath(folder, kManifestName))));
    MT_RETURN_IF_ERROR(IgnoreNotFound(
        env->SyncDirectory(folder)));  // before the files: no manifest may outlive one
    MT_RETURN_IF_ERROR(env->RemoveTree(folder));
    MT_RETURN_IF_ERROR(env->SyncDirectory(job_folder));
  }
  return RepairLatest(env, root, job_id, step);
}

absl::Status RemoveTemporaries(Env* env, const std::string& root) {
  return ForEachStep(
      env, root, [&](const std::string&, int64_t, const std::string& folder) -> absl::Status {
        MT_ASSIGN_OR_RETURN(const std::vector<std::string> files, ListIfThere(env, folder));
        for (const std::string& file : files) {
          if (absl::StrContains(file, kTemporaryMark))
            MT_RETURN_IF_ERROR(IgnoreNotFound(env->RemoveFile(JoinPath(folder, file))));
        }
        return absl::OkStatus();
      });
}

const char* CheckpointFailureReason(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kResourceExhausted:
      return "disk_full";
    case absl::StatusCode::kPermissionDenied:
      return "permission";
    default:
      return "io";
  }
}

}  // namespace mt
