#include "worker/kernels_main.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/exit_codes.h"
#include "common/spec/defaults.h"
#include "common/spec/mesh.h"
#include "worker/backend/operations.h"
#include "worker/model/number_types.h"
#include "worker/train/gemm_peak.h"
#include "worker/train/trainer.h"

namespace mt {
namespace {

struct Flags {
  Operations::Options operations;
  v1::TrainingSpec::Precision precision = v1::TrainingSpec::PRECISION_FP32;
};

absl::StatusOr<Flags> Parse(const std::vector<std::string>& arguments) {
  Flags flags;
  for (const std::string& argument : arguments) {
    const std::pair<std::string, std::string> pair =
        absl::StrSplit(argument, absl::MaxSplits('=', 1));
    const auto& [name, value] = pair;
    bool good = !value.empty();
    if (name == "--backend") {
      flags.operations.backend = value;
    } else if (name == "--operation") {
      const std::pair<std::string, std::string> chosen =
          absl::StrSplit(value, absl::MaxSplits('=', 1));
      flags.operations.overrides[chosen.first] = chosen.second;
    } else if (name == "--precision") {
      good = v1::TrainingSpec::Precision_Parse(
          absl::StrCat("PRECISION_", absl::AsciiStrToUpper(value)), &flags.precision);
    } else if (name == "--threads") {
      good = absl::SimpleAtoi(value, &flags.operations.threads) && flags.operations.threads >= 0;
    } else {
      good = false;
    }
    if (!good)
      return absl::InvalidArgumentError(
          absl::StrCat("kernels: `", argument, "` is not understood"));
  }
  return flags;
}

// Nothing is trained here.
class NoSamples : public BatchSource {
 public:
  absl::Status Fetch(std::span<const int64_t>, const Batch&) override {
    return absl::FailedPreconditionError("kernels: there are no samples");
  }
};

// A trainer declares every use of an operation when it is made; a small model uses the same ones as a large one.
absl::Status Kernels(const Flags& flags) {
  v1::JobSpec spec;
  v1::ModelSpec* model = spec.mutable_model();
  model->set_layers(1);
  model->set_hidden(64);
  model->set_heads(4);
  model->set_kv_heads(2);
  model->set_ffn(128);
  spec.mutable_data()->set_tokenizer("byte");
  spec.mutable_data()->set_sequence_length(64);
  spec.mutable_training()->set_steps(1);
  spec.mutable_training()->set_global_batch(1);
  spec.mutable_training()->set_precision(flags.precision);
  MT_RETURN_IF_ERROR(FillDefaults(&spec));
  MT_ASSIGN_OR_RETURN(const Mesh mesh, Mesh::FromSpec(spec.parallel()));
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<Operations> operations,
                      Operations::Create(flags.operations));
  NoSamples samples;
  TrainerOptions options{
      .spec = spec, .mesh = mesh, .operations = operations.get(), .samples = &samples};
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<Trainer> trainer, Trainer::Create(std::move(options)));
  nlohmann::ordered_json answer;
  answer["operations"] = nlohmann::ordered_json::array();
  for (const v1::ResolvedOperation& o : operations->Resolved()) {
    answer["operations"].push_back(
        {{"operation", o.operation()}, {"backend", o.backend()}, {"kernel", o.kernel()}});
  }
  MT_ASSIGN_OR_RETURN(
      answer["peak_flops"],
      MeasureGemmPeak(flags.operations, TypesOf(flags.precision).data, absl::Milliseconds(300)));
  std::printf("%s\n", answer.dump(2).c_str());
  return absl::OkStatus();
}

}  // namespace

int KernelsMain(const std::vector<std::string>& arguments) {
  const absl::StatusOr<Flags> flags = Parse(arguments);
  const absl::Status status = flags.ok() ? Kernels(*flags) : flags.status();
  if (status.ok()) return kExitOk;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return absl::IsInternal(status) ? kExitInternal : kExitPrecondition;
}

}  // namespace mt
