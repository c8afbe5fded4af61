#include "client/initial_weights.h"

#include "absl/strings/match.h"
#include "client/session.h"
#include "common/env.h"
#include "worker/checkpoint/hugging_face/import.h"
#include "worker/checkpoint/hugging_face/initial_checkpoint.h"
#include "worker/checkpoint/manifest.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt::client {
namespace {

std::string FolderOf(const std::string& initial_checkpoint) {
  const std::string hub = HubFolderOf(initial_checkpoint);
  return hub.empty() ? initial_checkpoint : hub;
}

}  // namespace

absl::StatusOr<v1::ModelSpec> ModelOfFolder(const std::string& initial_checkpoint,
                                            bool is_written) {
  const std::string folder = FolderOf(initial_checkpoint);
  Env* env = Env::Real();
  if (!Exists(env, folder)) {
    if (is_written) return v1::ModelSpec();
    return absl::NotFoundError(
        absl::StrCat(folder,
                     " is not on this machine, so its model is not known here; name the model "
                     "(`model: llama3-8b`, see mtctl model list, or all its sizes), or submit "
                     "where the folder is"));
  }
  if (HubFolderOf(initial_checkpoint).empty()) {
    MT_ASSIGN_OR_RETURN(const std::string json,
                        ReadFile(env, JoinPath(folder, "manifest.json"), uint64_t{1} << 30));
    MT_ASSIGN_OR_RETURN(const v1::CheckpointManifest manifest, ManifestFromJson(json));
    return manifest.spec().model();
  }
  MT_ASSIGN_OR_RETURN(const HubConfig config, HubFolder::ReadConfig(env, folder));
  for (const std::string& note : config.notes) Note(absl::StrCat(folder, "/config.json: ", note));
  return config.model;
}

absl::Status CheckInitialWeightsIfHere(const v1::JobSpec& spec) {
  if (spec.initial_checkpoint().empty()) return absl::OkStatus();
  if (!Exists(Env::Real(), FolderOf(spec.initial_checkpoint()))) {
    Note(absl::StrCat("initial_checkpoint ", spec.initial_checkpoint(),
                      " is not on this machine: the nodes will look for it"));
    return absl::OkStatus();
  }
  const absl::Status status = CheckInitialCheckpoint(Env::Real(), spec);
  return status.ok() ? status : WithNext(status, "see docs/guide/hugging-face.md");
}

absl::Status CheckTokenizerIfHere(const v1::JobSpec& spec) {
  const std::string& path = spec.data().tokenizer();
  if (path.empty()) return absl::OkStatus();
  const auto tokenizer = NewTokenizer(Env::Real(), path);
  if (!tokenizer.ok() || (*tokenizer)->vocab_size() <= spec.model().vocab())
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "model.vocab = ", spec.model().vocab(), ": the tokenizer ", path, " has ",
      (*tokenizer)->vocab_size(),
      " ids; build the data with the model's own tokenizer, or train a model with that many"));
}

}  // namespace mt::client
