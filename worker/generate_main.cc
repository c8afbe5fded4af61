#include "worker/generate_main.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/env.h"
#include "common/exit_codes.h"
#include "worker/backend/operations.h"
#include "worker/checkpoint/loader.h"
#include "worker/checkpoint/manifest.h"
#include "worker/data/tokenize/tokenizer.h"
#include "worker/train/generate.h"

namespace mt {
namespace {

struct Flags {
  std::string checkpoint, prompt, backend;
  GenerateOptions options;
};

absl::StatusOr<Flags> Parse(const std::vector<std::string>& arguments) {
  Flags flags;
  for (const std::string& argument : arguments) {
    const std::pair<std::string, std::string> pair =
        absl::StrSplit(argument, absl::MaxSplits('=', 1));
    const auto& [name, value] = pair;
    bool good = argument.find('=') != std::string::npos;
    if (name == "--checkpoint") {
      flags.checkpoint = value;
    } else if (name == "--prompt") {
      flags.prompt = value;
    } else if (name == "--backend") {
      flags.backend = value;
    } else if (name == "--max-tokens") {
      good = good && absl::SimpleAtoi(value, &flags.options.max_tokens) &&
             flags.options.max_tokens > 0;
    } else if (name == "--temperature") {
      good = good && absl::SimpleAtod(value, &flags.options.sampling.temperature);
    } else if (name == "--top-k") {
      good = good && absl::SimpleAtoi(value, &flags.options.sampling.top_k);
    } else if (name == "--top-p") {
      good = good && absl::SimpleAtod(value, &flags.options.sampling.top_p);
    } else if (name == "--seed") {
      good = good && absl::SimpleAtoi(value, &flags.options.seed);
    } else {
      good = false;
    }
    if (!good)
      return absl::InvalidArgumentError(
          absl::StrCat("generate: `", argument, "` is not understood"));
  }
  MT_RETURN_IF_ERROR(CheckSampling(flags.options.sampling));
  if (flags.checkpoint.empty())
    return absl::InvalidArgumentError("generate: --checkpoint=FOLDER is needed");
  return flags;
}

absl::Status Generate(Flags flags) {
  MT_ASSIGN_OR_RETURN(const std::string json,
                      ReadFile(Env::Real(), JoinPath(flags.checkpoint, "manifest.json"), 1 << 30));
  MT_ASSIGN_OR_RETURN(const v1::CheckpointManifest manifest, ManifestFromJson(json));
  const v1::JobSpec& spec = manifest.spec();
  if (spec.data().tokenizer().empty()) {
    return absl::FailedPreconditionError(
        "data.tokenizer was not set in this job, so its tokens cannot be turned into text");
  }
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer,
                      NewTokenizer(Env::Real(), spec.data().tokenizer()));
  const bool fp64 = spec.training().precision() == v1::TrainingSpec::PRECISION_FP64;
  MT_ASSIGN_OR_RETURN(
      const std::unique_ptr<Operations> operations,
      Operations::Create({.backend = flags.backend.empty() && fp64 ? "reference" : flags.backend}));
  std::vector<int32_t> prompt;
  MT_RETURN_IF_ERROR(tokenizer->Encode(flags.prompt, &prompt));
  // Without a prompt, a text begins where another has ended.
  if (prompt.empty() && tokenizer->eod() >= 0) prompt.push_back(tokenizer->eod());
  // As long as the model was trained for, and no longer than this text can be: memory goes with it.
  const int64_t context =
      std::clamp<int64_t>(static_cast<int64_t>(prompt.size()) + flags.options.max_tokens, 1,
                          spec.data().sequence_length());
  MT_ASSIGN_OR_RETURN(
      const std::unique_ptr<Generator> generator,
      Generator::Create(spec.model(), spec.training().precision(), context, operations.get()));
  LoadOptions loading;
  const Backend& backend = operations->backend();
  if (!backend.host_memory()) loading.device = &backend.abi();
  MT_RETURN_IF_ERROR(LoadCheckpoint(manifest, generator->LoadTargets(),
                                    FolderResolver(flags.checkpoint), loading));
  for (const int32_t id : tokenizer->stop_ids()) flags.options.stop_tokens.push_back(id);
  MT_ASSIGN_OR_RETURN(std::vector<int32_t> tokens, generator->Generate(prompt, flags.options));
  // The vocabulary is padded: its last ids stand for no text.
  std::erase_if(tokens, [&](int32_t token) { return token >= tokenizer->vocab_size(); });
  MT_ASSIGN_OR_RETURN(const std::string text, tokenizer->Decode(tokens));
  std::printf("%s%s\n", flags.prompt.c_str(), text.c_str());
  return absl::OkStatus();
}

}  // namespace

int GenerateMain(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Flags> flags = Parse(arguments);
  const absl::Status status = flags.ok() ? Generate(*flags) : flags.status();
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "mt-worker: %s\n", std::string(status.message()).c_str());
  if (absl::IsNotFound(status)) return kExitNotFound;
  return absl::IsInternal(status) ? kExitInternal : kExitPrecondition;
}

}  // namespace mt
