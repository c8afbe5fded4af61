#include "client/hugging_face_commands.h"

#include <cstdio>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "client/checkpoint_commands.h"
#include "client/temporary_folder.h"
#include "common/env.h"
#include "worker/checkpoint/hugging_face/carried_files.h"
#include "worker/checkpoint/hugging_face/export.h"
#include "worker/checkpoint/hugging_face/initial_checkpoint.h"
#include "worker/checkpoint/hugging_face/to_checkpoint.h"
#include "worker/checkpoint/manifest.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt::client {
namespace {

struct Options {
  std::string from, to, dtype, shard = "5GiB", tokenizer;
};

std::string Absolute(const std::string& path) {
  std::error_code error;
  const auto absolute = std::filesystem::absolute(path, error).lexically_normal();
  return error ? path : absolute.string();
}

absl::StatusOr<int64_t> ParseSize(const std::string& option, std::string text) {
  uint64_t bytes = 0;
  const std::string given = text;
  if (!CLI::AsSizeValue(false)(text).empty() || !absl::SimpleAtoi(text, &bytes) || bytes == 0 ||
      bytes > uint64_t{1} << 50) {
    return absl::InvalidArgumentError(
        absl::StrCat(option, " ", given, ": expected a size such as 5GiB"));
  }
  return static_cast<int64_t>(bytes);
}

absl::StatusOr<ExitCode> Import(Session* session, const Options& o) {
  const std::string from = Absolute(o.from), to = Absolute(o.to);
  MT_ASSIGN_OR_RETURN(const auto hub, HubFolder::Open(Env::Real(), from));
  for (const std::string& note : hub->config().notes) Note(note);
  MT_ASSIGN_OR_RETURN(const v1::CheckpointManifest manifest,
                      HubToCheckpoint(*hub, from, to, {.mt_version = MT_VERSION}));
  if (session->json()) {
    session->Print(Json{{"folder", to},
                        {"parameters", ParameterCount(hub->model())},
                        {"bytes", manifest.total_bytes()},
                        {"files", manifest.files_size()},
                        {"digest", manifest.weights_digest()}});
  } else {
    std::printf("%s\n", to.c_str());
  }
  Note(absl::StrCat(Count(static_cast<double>(ParameterCount(hub->model()))), " parameters, ",
                    Bytes(manifest.total_bytes()), " in ", manifest.files_size(),
                    " files; next: `initial_checkpoint: ", to, "` in a job"));
  return kExitOk;
}

// The checkpoint's folder: here, or pulled from the cluster to `temporary`.
absl::StatusOr<std::string> FolderOf(Session* session, const Options& o,
                                     const std::string& temporary) {
  if (Exists(Env::Real(), JoinPath(o.from, "manifest.json"))) return Absolute(o.from);
  if (o.from.find('/') != std::string::npos) {
    return absl::NotFoundError(absl::StrCat(
        o.from,
        " holds no manifest.json; name a checkpoint's own folder (…/step-00000100) or a job"));
  }
  MT_ASSIGN_OR_RETURN(const v1::CheckpointRef reference, ParseCheckpoint(o.from));
  return PullCheckpoint(session, reference, temporary);
}

// Where config.json, as the model came, and its tokenizer are: told, with the imported checkpoint, or where the job began.
std::string CarryFrom(const Options& o, const std::string& folder, const v1::JobSpec& spec) {
  if (!o.tokenizer.empty()) return Absolute(o.tokenizer);
  const std::string& initial = spec.initial_checkpoint();
  for (const std::string& candidate :
       {JoinPath(folder, kHubSubfolder), HubFolderOf(initial), JoinPath(initial, kHubSubfolder)}) {
    if (!candidate.empty() && Exists(Env::Real(), JoinPath(candidate, "config.json")))
      return candidate;
  }
  return "";
}

// The type that the folder's weights came in, else what the job computed in.
absl::StatusOr<std::string> DtypeFor(const Options& o, const std::string& carry_from,
                                     const v1::JobSpec& spec) {
  if (o.dtype == "bf16") return "bfloat16";
  if (o.dtype == "fp16") return "float16";
  if (!o.dtype.empty()) return o.dtype;
  if (!carry_from.empty() && Exists(Env::Real(), JoinPath(carry_from, "config.json"))) {
    MT_ASSIGN_OR_RETURN(const HubConfig config, HubFolder::ReadConfig(Env::Real(), carry_from));
    if (!config.dtype.empty()) return config.dtype;
  }
  const auto precision = spec.training().precision();
  const bool wide = precision == v1::TrainingSpec::PRECISION_FP32 ||
                    precision == v1::TrainingSpec::PRECISION_FP64;
  return wide ? "float32" : "bfloat16";
}

absl::StatusOr<ExitCode> Export(Session* session, const Options& o) {
  HubExportOptions options;
  MT_ASSIGN_OR_RETURN(options.max_shard_bytes, ParseSize("--max-shard-size", o.shard));
  MT_ASSIGN_OR_RETURN(const auto temporary, TemporaryFolder::Create("mtctl-export"));
  MT_ASSIGN_OR_RETURN(const std::string folder, FolderOf(session, o, temporary->path()));
  MT_ASSIGN_OR_RETURN(const std::string json,
                      ReadFile(Env::Real(), JoinPath(folder, "manifest.json"), uint64_t{1} << 30));
  MT_ASSIGN_OR_RETURN(const v1::CheckpointManifest manifest, ManifestFromJson(json));
  options.carry_from = CarryFrom(o, folder, manifest.spec());
  if (const v1::DataSpec& data = manifest.spec().data(); data.has_eod() && data.eod() >= 0) {
    options.eod = data.eod();
  } else if (!data.tokenizer().empty()) {
    const auto tokenizer = NewTokenizer(Env::Real(), data.tokenizer());  // it may be gone
    if (tokenizer.ok() && (*tokenizer)->eod() >= 0) options.eod = (*tokenizer)->eod();
  }
  MT_ASSIGN_OR_RETURN(options.dtype, DtypeFor(o, options.carry_from, manifest.spec()));
  MT_ASSIGN_OR_RETURN(const auto reader,
                      CheckpointReader::Create(manifest, FolderResolver(folder)));
  const std::string to = Absolute(o.to);
  MT_ASSIGN_OR_RETURN(const HubExportResult result,
                      ExportToHub(reader.get(), manifest.spec(), to, options));
  if (session->json()) {
    session->Print(Json{{"folder", to},
                        {"tensors", result.tensors},
                        {"files", result.files},
                        {"bytes", result.bytes},
                        {"dtype", options.dtype},
                        {"carried", result.carried}});
  } else {
    std::printf("%s\n", to.c_str());
  }
  if (result.carried.empty()) {
    Note(
        "no tokenizer went along: its files are not known here; --tokenizer-from FOLDER names "
        "them");
  }
  Note(absl::StrCat(result.tensors, " tensors in ", options.dtype, ", ", Bytes(result.bytes),
                    "; next: AutoModelForCausalLM.from_pretrained(\"", to, "\")"));
  return kExitOk;
}

}  // namespace

void AddHuggingFaceCommands(CLI::App* checkpoint, Session* session) {
  static Options o;  // CLI11 keeps references to it
  o = Options();
  CLI::App* import =
      checkpoint->add_subcommand("import", "Make a checkpoint of weights from elsewhere")
          ->require_subcommand(1);
  CLI::App* from_hub = import->add_subcommand(
      "hf", "A Hugging Face folder as a checkpoint of step 0, on this machine");
  from_hub->add_option("DIR", o.from, "Folder with config.json and safetensors")->required();
  from_hub->add_option("TO", o.to, "New folder of the checkpoint")->required();
  AddFormatOption(from_hub, session);
  from_hub->callback([session] { session->action = [session] { return Import(session, o); }; });

  CLI::App* exported =
      checkpoint->add_subcommand("export", "Write a checkpoint for others")->require_subcommand(1);
  CLI::App* to_hub = exported->add_subcommand(
      "hf", "A Hugging Face folder that from_pretrained loads, on this machine");
  to_hub
      ->add_option("JOB[@STEP]|DIR", o.from,
                   "Job (its newest checkpoint is pulled), or a checkpoint's folder")
      ->required();
  to_hub->add_option("TO", o.to, "New folder")->required();
  to_hub
      ->add_option("--dtype", o.dtype,
                   "Of the weights; default: as they came from Hugging Face, else as the job "
                   "computed")
      ->check(CLI::IsMember({"bf16", "bfloat16", "fp16", "float16", "float32"}))
      ->type_name("TYPE");
  to_hub->add_option("--max-shard-size", o.shard, "Larger models are cut into files of this size")
      ->capture_default_str()
      ->type_name("SIZE");
  to_hub
      ->add_option("--tokenizer-from", o.tokenizer,
                   "Folder whose tokenizer files and config.json go along; default: the one that "
                   "the model came from, if it is on this machine")
      ->type_name("DIR");
  AddFormatOption(to_hub, session);
  to_hub->callback([session] { session->action = [session] { return Export(session, o); }; });
}

}  // namespace mt::client
