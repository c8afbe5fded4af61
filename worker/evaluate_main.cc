#include "worker/evaluate_main.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/env.h"
#include "common/exit_codes.h"
#include "common/spec/defaults.h"
#include "worker/backend/operations.h"
#include "worker/checkpoint/hugging_face/import.h"
#include "worker/checkpoint/hugging_face/initial_checkpoint.h"
#include "worker/checkpoint/manifest.h"
#include "worker/data/sample/dataset_batch_source.h"
#include "worker/train/trainer.h"

namespace mt {
namespace {

constexpr int64_t kHubBatch = 8;               // sequences, where no job says how many
constexpr int64_t kLongestHubSequence = 1024;  // there, unless it is asked for

struct Flags {
  std::string checkpoint, data, backend;
  int64_t batches = 8, sequence_length = 0;
  DataShare share = DataShare::kValidation;
  bool json = false;
};

absl::StatusOr<Flags> Parse(const std::vector<std::string>& arguments) {
  Flags flags;
  for (const std::string& argument : arguments) {
    const std::pair<std::string, std::string> pair =
        absl::StrSplit(argument, absl::MaxSplits('=', 1));
    const auto& [name, value] = pair;
    bool good = absl::StrContains(argument, '=');
    if (name == "--checkpoint") {
      flags.checkpoint = value;
    } else if (name == "--data") {
      flags.data = value;
    } else if (name == "--share") {
      flags.share = value == "test" ? DataShare::kTest : DataShare::kValidation;
      good = value == "test" || value == "validation";
    } else if (name == "--backend") {
      flags.backend = value;
    } else if (name == "--batches") {
      good = good && absl::SimpleAtoi(value, &flags.batches) && flags.batches > 0;
    } else if (name == "--sequence-length") {
      good = good && absl::SimpleAtoi(value, &flags.sequence_length) && flags.sequence_length > 0;
    } else if (name == "--json") {
      flags.json = value == "1";
    } else {
      good = false;
    }
    if (!good)
      return absl::InvalidArgumentError(
          absl::StrCat("evaluate: `", argument, "` is not understood"));
  }
  if (flags.checkpoint.empty())
    return absl::InvalidArgumentError("evaluate: --checkpoint=FOLDER is needed");
  return flags;
}

v1::JobSpec WithHubSizes(v1::JobSpec spec) {
  const int64_t longest = spec.model().max_positions();
  spec.mutable_data()->set_sequence_length(longest > 0 ? std::min(longest, kLongestHubSequence)
                                                       : kLongestHubSequence);
  spec.mutable_training()->set_global_batch(kHubBatch);
  return spec;
}

// The job that the weights come from, or one that could have made them.
absl::StatusOr<v1::JobSpec> SpecOf(const Flags& flags) {
  const std::string hub = HubFolderOf(flags.checkpoint);
  if (hub.empty()) {
    MT_ASSIGN_OR_RETURN(
        const std::string json,
        ReadFile(Env::Real(), JoinPath(flags.checkpoint, "manifest.json"), 1 << 30));
    MT_ASSIGN_OR_RETURN(const v1::CheckpointManifest manifest, ManifestFromJson(json));
    // One that was imported comes from no job.
    if (manifest.spec().training().global_batch() > 0) return manifest.spec();
    return WithHubSizes(manifest.spec());
  }
  v1::JobSpec spec;
  MT_ASSIGN_OR_RETURN(const HubConfig config, HubFolder::ReadConfig(Env::Real(), hub));
  *spec.mutable_model() = config.model;
  return WithHubSizes(std::move(spec));
}

// The same model on one rank, a sequence at a time, keeping as little as can be.
absl::StatusOr<v1::JobSpec> EvaluationSpecOf(const Flags& flags) {
  MT_ASSIGN_OR_RETURN(v1::JobSpec spec, SpecOf(flags));
  v1::TrainingSpec& training = *spec.mutable_training();
  if (training.precision() != v1::TrainingSpec::PRECISION_FP64)
    training.set_precision(v1::TrainingSpec::PRECISION_FP32);
  training.set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
  training.set_steps(1);
  training.set_micro_batch(1);
  training.mutable_evaluation()->set_every_steps(1);
  training.mutable_evaluation()->set_batches(flags.batches);
  spec.clear_parallel();
  spec.mutable_parallel()->set_zero_set(true);
  spec.set_initial_checkpoint(flags.checkpoint);
  if (!flags.data.empty()) {
    spec.mutable_data()->clear_validation();
    spec.mutable_data()->clear_test();
    spec.mutable_data()->add_validation()->set_prefix(flags.data);
  }
  if (flags.sequence_length > 0) spec.mutable_data()->set_sequence_length(flags.sequence_length);
  // The model is known: nothing is read for it again.
  const std::string weights = spec.initial_checkpoint();
  spec.clear_initial_checkpoint();
  MT_RETURN_IF_ERROR(FillDefaults(&spec));
  spec.set_initial_checkpoint(weights);
  return spec;
}

struct Result {
  double loss = 0;
  int64_t sequences = 0, tokens = 0;
};

absl::StatusOr<Result> Evaluate(const Flags& flags) {
  MT_ASSIGN_OR_RETURN(const v1::JobSpec spec, EvaluationSpecOf(flags));
  // --data is the validation data of the spec.
  const DataShare share = flags.data.empty() ? flags.share : DataShare::kValidation;
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<BatchSource> samples,
                      OpenData(Env::Real(), spec, share));
  const bool fp64 = spec.training().precision() == v1::TrainingSpec::PRECISION_FP64;
  MT_ASSIGN_OR_RETURN(
      const std::unique_ptr<Operations> operations,
      Operations::Create({.backend = flags.backend.empty() && fp64 ? "reference" : flags.backend}));
  MT_ASSIGN_OR_RETURN(const Mesh mesh, Mesh::Create(1, 1, 1));
  MT_ASSIGN_OR_RETURN(
      const std::unique_ptr<Trainer> trainer,
      Trainer::Create(
          {.spec = spec, .mesh = mesh, .operations = operations.get(), .trained = false}));
  const Backend& backend = operations->backend();
  MT_RETURN_IF_ERROR(LoadInitialCheckpoint(Env::Real(), spec, trainer->LoadTargets(),
                                           backend.host_memory() ? nullptr : &backend.abi()));
  MT_RETURN_IF_ERROR(trainer->FinishLoad({}));
  Result result{.sequences = flags.batches * spec.training().global_batch()};
  result.tokens = result.sequences * spec.data().sequence_length();
  HeldOutLoss all;
  for (int64_t batch = 0; batch < flags.batches; ++batch) {
    MT_ASSIGN_OR_RETURN(const HeldOutLoss loss,
                        trainer->Evaluate(samples.get(), batch * spec.training().global_batch()));
    all += loss;
  }
  result.loss = all.mean();
  return result;
}

}  // namespace

int EvaluateMain(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Flags> flags = Parse(arguments);
  const absl::StatusOr<Result> result = flags.ok() ? Evaluate(*flags) : flags.status();
  if (result.ok()) {
    const char* const format =
        flags->json
            ? "{\"loss\": %.9g, \"perplexity\": %.9g, \"sequences\": %lld, \"tokens\": %lld}\n"
            : "held-out loss %.6f, perplexity %.3f, over %lld sequences, %lld tokens\n";
    std::printf(format, result->loss, std::exp(result->loss),
                static_cast<long long>(result->sequences), static_cast<long long>(result->tokens));
    return kExitOk;
  }
  const absl::Status& status = result.status();
  std::fprintf(stderr, "mt-worker: %s\n", std::string(status.message()).c_str());
  if (absl::IsNotFound(status)) return kExitNotFound;
  return absl::IsInternal(status) ? kExitInternal : kExitPrecondition;
}

}  // namespace mt
