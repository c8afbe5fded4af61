// mt-bench: trains one rank on a given shape and prints tokens per second; the last line is JSON.
// bench/run.sh compares it with bench/train_peer.py.
//
//   mt-bench --tokens FILE [--write-tokens] [--weights-out FOLDER] [--backend NAME] [--threads N]
//   [--steps N] [--warmup N]
//            [--layers N] [--hidden N] [--heads N] [--kv-heads N] [--ffn N] [--vocab N] [--seq N]
//            [--micro-batch N]
//
// --write-tokens makes FILE: uint16 ids below --vocab, skewed so that there is something to learn.
// --weights-out writes the initial weights as float32: data.bin, and manifest.txt with name, offset
// and sizes per line.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/spec/defaults.h"
#include "common/spec/parameters.h"
#include "kernels/abi/philox.h"
#include "worker/train/trainer.h"

namespace mt {
namespace {

struct Flags {
  std::map<std::string, int64_t> numbers = {{"threads", 2},  {"steps", 15},     {"warmup", 5},
                                            {"layers", 8},   {"hidden", 512},   {"heads", 8},
                                            {"kv-heads", 4}, {"ffn", 1408},     {"vocab", 8192},
                                            {"seq", 512},    {"micro-batch", 4}};
  std::string tokens, weights_out, backend = "cpu";
  bool write_tokens = false;

  int64_t operator[](const std::string& name) const { return numbers.at(name); }
};

absl::StatusOr<Flags> ParseFlags(int argc, char** argv) {
  Flags flags;
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--write-tokens") {
      flags.write_tokens = true;
      continue;
    }
    if (name.rfind("--", 0) != 0 || i + 1 == argc)
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": no such flag, or its value is missing"));
    const std::string value = argv[++i];
    if (name == "--tokens") {
      flags.tokens = value;
    } else if (name == "--weights-out") {
      flags.weights_out = value;
    } else if (name == "--backend") {
      flags.backend = value;
    } else {
      const auto number = flags.numbers.find(name.substr(2));
      if (number == flags.numbers.end())
        return absl::InvalidArgumentError(absl::StrCat(name, ": no such flag"));
      if (!absl::SimpleAtoi(value, &number->second) || number->second < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat(name, ": '", value, "' is not a number of 0 or more"));
      }
    }
  }
  if (flags.tokens.empty()) return absl::InvalidArgumentError("--tokens FILE is needed");
  return flags;
}

// Ids as floor(V u^3): small ones are frequent, as in text.
absl::Status WriteTokens(const Flags& flags) {
  const int64_t count = (flags["seq"] + 1) * flags["micro-batch"] * flags["steps"];
  std::vector<uint16_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i) {
    const mt_philox_block words = mt_philox(1, i, 0);
    const double u = mt_uniform_from_words(words.word[0], words.word[1]);
    ids[i] = static_cast<uint16_t>(static_cast<double>(flags["vocab"]) * u * u * u);
  }
  std::ofstream file(flags.tokens, std::ios::binary);
  file.write(reinterpret_cast<const char*>(ids.data()),
             static_cast<std::streamsize>(2 * ids.size()));
  file.flush();
  if (!file) return absl::UnavailableError(absl::StrCat(flags.tokens, ": cannot be written"));
  return absl::OkStatus();
}

// Samples in file order.
class FileSamples : public BatchSource {
 public:
  static absl::StatusOr<FileSamples> Read(const Flags& flags) {
    std::ifstream file(flags.tokens, std::ios::binary | std::ios::ate);
    if (!file)
      return absl::NotFoundError(
          absl::StrCat(flags.tokens, ": cannot be read; make it with --write-tokens"));
    FileSamples samples;
    samples.length_ = static_cast<size_t>(flags["seq"] + 1);
    samples.ids_.resize(static_cast<size_t>(file.tellg()) / 2);
    file.seekg(0);
    file.read(reinterpret_cast<char*>(samples.ids_.data()),
              static_cast<std::streamsize>(2 * samples.ids_.size()));
    if (samples.ids_.size() < samples.length_)
      return absl::InvalidArgumentError(
          absl::StrCat(flags.tokens, ": shorter than one sample of ", samples.length_, " tokens"));
    return samples;
  }
  absl::Status Fetch(std::span<const int64_t> sample_ids, std::span<int32_t> tokens) override {
    const size_t samples = ids_.size() / length_;
    for (size_t i = 0; i < sample_ids.size(); ++i) {
      const size_t at = static_cast<size_t>(sample_ids[i]) % samples * length_;
      std::copy_n(ids_.begin() + static_cast<std::ptrdiff_t>(at), length_,
                  tokens.begin() + static_cast<std::ptrdiff_t>(i * length_));
    }
    return absl::OkStatus();
  }

 private:
  size_t length_ = 0;
  std::vector<uint16_t> ids_;
};

absl::Status WriteWeights(Trainer& trainer, const std::string& folder) {
  std::ofstream data(folder + "/data.bin", std::ios::binary), manifest(folder + "/manifest.txt");
  int64_t offset = 0;
  for (const TensorBox& box : trainer.CheckpointState()) {
    if (box.tensor.rfind("optimizer.", 0) == 0) continue;
    manifest << box.tensor << ' ' << offset << ' ' << absl::StrJoin(box.shape, " ") << '\n';
    data.write(static_cast<const char*>(box.data),
               static_cast<std::streamsize>(4 * box.Elements()));
    offset += box.Elements();
  }
  data.flush();
  manifest.flush();
  if (!data || !manifest)
    return absl::UnavailableError(absl::StrCat(folder, ": weights cannot be written"));
  return absl::OkStatus();
}

absl::StatusOr<v1::JobSpec> SpecOf(const Flags& flags) {
  v1::JobSpec spec;
  spec.set_name("bench");
  v1::ModelSpec* model = spec.mutable_model();
  model->set_layers(flags["layers"]);
  model->set_hidden(flags["hidden"]);
  model->set_heads(flags["heads"]);
  model->set_kv_heads(flags["kv-heads"]);
  model->set_ffn(flags["ffn"]);
  model->set_vocab(flags["vocab"]);
  spec.mutable_data()->set_train(flags.tokens);
  spec.mutable_data()->set_tokenizer("byte");
  spec.mutable_data()->set_sequence_length(flags["seq"]);
  v1::TrainingSpec* training = spec.mutable_training();
  training->set_steps(flags["steps"]);
  training->set_global_batch(flags["micro-batch"]);
  training->set_micro_batch(flags["micro-batch"]);
  training->mutable_optimizer()->set_lr(3e-4);
  training->mutable_schedule()->set_kind(v1::ScheduleSpec::KIND_CONSTANT);
  MT_RETURN_IF_ERROR(FillDefaults(&spec));
  return spec;
}

absl::Status Bench(const Flags& flags) {
  if (flags.write_tokens) MT_RETURN_IF_ERROR(WriteTokens(flags));
  MT_ASSIGN_OR_RETURN(FileSamples samples, FileSamples::Read(flags));
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<Operations> operations,
                      Operations::Create({.backend = flags.backend,
                                          .threads = static_cast<int>(flags["threads"])}));
  MT_ASSIGN_OR_RETURN(const v1::JobSpec spec, SpecOf(flags));
  MT_ASSIGN_OR_RETURN(const Mesh mesh, Mesh::Create(1, 1, 1));
  MT_ASSIGN_OR_RETURN(
      const std::unique_ptr<Trainer> trainer,
      Trainer::Create(
          {.spec = spec, .mesh = mesh, .operations = operations.get(), .samples = &samples}));
  MT_RETURN_IF_ERROR(trainer->InitialiseWeights());
  if (!flags.weights_out.empty()) MT_RETURN_IF_ERROR(WriteWeights(*trainer, flags.weights_out));

  std::vector<double> seconds;
  std::vector<std::string> losses;
  PhaseSeconds phases;
  for (int64_t step = 0; step < flags["steps"]; ++step) {
    const auto start = std::chrono::steady_clock::now();
    MT_ASSIGN_OR_RETURN(const StepResult result, trainer->Step());
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    losses.push_back(absl::StrFormat("%.6f", result.loss));
    if (step < flags["warmup"]) continue;
    seconds.push_back(spent.count());
    phases.forward += result.seconds.forward;
    phases.backward += result.seconds.backward;
    phases.grad_sync += result.seconds.grad_sync;
    phases.optimizer += result.seconds.optimizer;
  }
  if (seconds.empty()) return absl::InvalidArgumentError("--steps must be larger than --warmup");
  const double count = static_cast<double>(seconds.size());
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  const int64_t tokens = flags["seq"] * flags["micro-batch"];
  const double flops = ModelFlops(spec.model(), flags["seq"], tokens) / median,
               peak = operations->MeasurePeakFlops();
  absl::FPrintF(stderr,
                "forward %.3f s, backward %.3f s, gradient norm %.3f s, optimizer %.3f s; peak "
                "%.0f GFLOP/s\n",
                phases.forward / count, phases.backward / count, phases.grad_sync / count,
                phases.optimizer / count, peak / 1e9);
  absl::PrintF(
      "{\"program\": \"mt\", \"backend\": \"%s\", \"threads\": %d, \"step_seconds\": %.5f, "
      "\"tokens_per_second\": %.1f, "
      "\"model_gflops\": %.1f, \"mfu\": %.3f, \"losses\": [%s]}\n",
      operations->backend().name(), flags["threads"], median, static_cast<double>(tokens) / median,
      flops / 1e9, peak > 0 ? flops / peak : 0, absl::StrJoin(losses, ", "));
  return absl::OkStatus();
}

}  // namespace
}  // namespace mt

int main(int argc, char** argv) {
  const absl::StatusOr<mt::Flags> flags = mt::ParseFlags(argc, argv);
  const absl::Status status = flags.ok() ? mt::Bench(*flags) : flags.status();
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "mt-bench: %s\n", status.message());
  return flags.ok() ? 1 : 2;
}
