// mt-bench: trains one rank on a given shape and prints tokens per second; the last line is JSON.
// bench/run.sh and tests/gpu/run.sh compare it with bench/train_peer.py.
//
//   mt-bench [--shape default|0.4b|1.3b|tiny] [--precision fp32|bf16|fp8] [--backend NAME] [--threads N]
//            [--steps N] [--warmup N] [--tokens FILE [--write-tokens]] [--weights-out FOLDER]
//            [--layers N] [--hidden N] [--heads N] [--kv-heads N] [--ffn N] [--vocab N] [--seq N]
//            [--micro-batch N] [--loss-chunk N] [--attention auto|cudnn|flash] [--gemm-cache FILE]
//            [--profile STEPS] [--copy-gbytes N] [--bf16-tflops N] [--json FILE]
//
// Tokens are uint16 ids below --vocab, skewed so that there is something to learn; --write-tokens
// makes FILE, without --tokens they are made in memory. --weights-out writes the initial weights as
// float32: data.bin, and manifest.txt with name, offset and sizes per line.
//
// --profile then runs STEPS more with every operation timed on its own and launched one by one, and
// prints the time of a step by operation against its floor; ceilings are measured by the backend's
// own copy and products, or are what --copy-gbytes and --bf16-tflops say where that is more. The
// operations are in the --json file only, which is written before, without them, and after.
//
// --gemm-cache has a GPU's matrix products measured and chosen as a rank has it, which keeps them
// beside its checkpoints; without it the library's first choice is taken.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "bench/profile.h"
#include "common/spec/defaults.h"
#include "common/spec/model_flops.h"
#include "kernels/abi/philox.h"
#include "worker/train/gemm_peak.h"
#include "worker/train/trainer.h"

namespace mt {
namespace {

struct Flags {
  std::map<std::string, int64_t> numbers = {
      {"threads", 2},    {"steps", 15},      {"warmup", 5},     {"profile", 0},
      {"layers", 8},     {"hidden", 512},    {"heads", 8},      {"kv-heads", 4},
      {"ffn", 1408},     {"vocab", 8192},    {"seq", 512},      {"micro-batch", 4},
      {"loss-chunk", 0}, {"copy-gbytes", 0}, {"bf16-tflops", 0}};
  std::map<std::string, std::string> texts = {
      {"tokens", ""},       {"weights-out", ""}, {"backend", "cpu"}, {"precision", "fp32"},
      {"shape", "default"}, {"json", ""},        {"attention", ""},  {"gemm-cache", ""}};
  bool write_tokens = false;

  int64_t operator[](const std::string& name) const { return numbers.at(name); }
  const std::string& text(const std::string& name) const { return texts.at(name); }
};

// The shapes of bench/README.md; a flag behind --shape changes one number of it.
absl::Status SetShape(const std::string& name, std::map<std::string, int64_t>& numbers) {
  const auto set = [&](int64_t layers, int64_t hidden, int64_t heads, int64_t kv_heads, int64_t ffn,
                       int64_t vocab, int64_t seq, int64_t micro_batch) {
    numbers["layers"] = layers;
    numbers["hidden"] = hidden;
    numbers["heads"] = heads;
    numbers["kv-heads"] = kv_heads;
    numbers["ffn"] = ffn;
    numbers["vocab"] = vocab;
    numbers["seq"] = seq;
    numbers["micro-batch"] = micro_batch;
    return absl::OkStatus();
  };
  if (name == "default") return set(8, 512, 8, 4, 1408, 8192, 512, 4);
  if (name == "1.3b") return set(24, 2048, 16, 8, 6144, 32768, 4096, 4);
  if (name == "0.4b") return set(24, 1024, 16, 8, 3072, 32768, 2048, 16);
  if (name == "tiny") return set(2, 64, 4, 2, 128, 256, 32, 2);
  return absl::InvalidArgumentError(
      absl::StrCat("--shape ", name, ": it is default, 0.4b, 1.3b or tiny"));
}

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
    if (const auto text = flags.texts.find(name.substr(2)); text != flags.texts.end()) {
      text->second = value;
      if (name == "--shape") MT_RETURN_IF_ERROR(SetShape(value, flags.numbers));
      continue;
    }
    const auto number = flags.numbers.find(name.substr(2));
    if (number == flags.numbers.end())
      return absl::InvalidArgumentError(absl::StrCat(name, ": no such flag"));
    if (!absl::SimpleAtoi(value, &number->second) || number->second < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(name, ": '", value, "' is not a number of 0 or more"));
    }
  }
  if (flags.write_tokens && flags.text("tokens").empty())
    return absl::InvalidArgumentError("--write-tokens needs --tokens FILE");
  return flags;
}

// Ids as floor(V u^3): small ones are frequent, as in text.
std::vector<uint16_t> MakeTokens(const Flags& flags) {
  const int64_t count = (flags["seq"] + 1) * flags["micro-batch"] * flags["steps"];
  std::vector<uint16_t> ids(static_cast<size_t>(count));
  for (size_t i = 0; i < ids.size(); ++i) {
    const mt_philox_block words = mt_philox(1, i, 0);
    const double u = mt_uniform_from_words(words.word[0], words.word[1]);
    ids[i] = static_cast<uint16_t>(static_cast<double>(flags["vocab"]) * u * u * u);
  }
  return ids;
}

absl::Status WriteTokens(const Flags& flags) {
  const std::vector<uint16_t> ids = MakeTokens(flags);
  std::ofstream file(flags.text("tokens"), std::ios::binary);
  file.write(reinterpret_cast<const char*>(ids.data()),
             static_cast<std::streamsize>(2 * ids.size()));
  file.flush();
  if (!file)
    return absl::UnavailableError(absl::StrCat(flags.text("tokens"), ": cannot be written"));
  return absl::OkStatus();
}

// Samples in file order.
class FileSamples : public BatchSource {
 public:
  static absl::StatusOr<FileSamples> Read(const Flags& flags) {
    FileSamples samples;
    samples.length_ = static_cast<size_t>(flags["seq"] + 1);
    const std::string& path = flags.text("tokens");
    if (path.empty()) {
      samples.ids_ = MakeTokens(flags);
      return samples;
    }
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file)
      return absl::NotFoundError(
          absl::StrCat(path, ": cannot be read; make it with --write-tokens"));
    samples.ids_.resize(static_cast<size_t>(file.tellg()) / 2);
    file.seekg(0);
    file.read(reinterpret_cast<char*>(samples.ids_.data()),
              static_cast<std::streamsize>(2 * samples.ids_.size()));
    if (samples.ids_.size() < samples.length_)
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": shorter than one sample of ", samples.length_, " tokens"));
    return samples;
  }
  absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override {
    const std::span<int32_t> tokens = batch.tokens;
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

absl::Status WriteWeights(Trainer& trainer, const Backend& backend, const std::string& folder) {
  std::ofstream data(folder + "/data.bin", std::ios::binary), manifest(folder + "/manifest.txt");
  int64_t offset = 0;
  for (const TensorBox& box : trainer.CheckpointState()) {
    if (box.tensor.rfind("optimizer.", 0) == 0) continue;
    if (box.dtype != MT_F32) return absl::UnimplementedError("--weights-out: float32 only");
    std::vector<char> host(static_cast<size_t>(4 * box.Elements()));
    MT_RETURN_IF_ERROR(backend.ToStatus(
        backend.abi().copy_to_host(host.data(), box.data, host.size(), nullptr), "weights"));
    MT_RETURN_IF_ERROR(backend.ToStatus(backend.abi().stream_synchronize(nullptr), "weights"));
    manifest << box.tensor << ' ' << offset << ' ' << absl::StrJoin(box.shape, " ") << '\n';
    data.write(host.data(), static_cast<std::streamsize>(host.size()));
    offset += box.Elements();
  }
  data.flush();
  manifest.flush();
  if (!data || !manifest)
    return absl::UnavailableError(absl::StrCat(folder, ": weights cannot be written"));
  return absl::OkStatus();
}

absl::StatusOr<v1::JobSpec> SpecOf(const Flags& flags, bool graphs) {
  v1::JobSpec spec;
  spec.set_name("bench");
  v1::ModelSpec* model = spec.mutable_model();
  model->set_layers(flags["layers"]);
  model->set_hidden(flags["hidden"]);
  model->set_heads(flags["heads"]);
  model->set_kv_heads(flags["kv-heads"]);
  model->set_ffn(flags["ffn"]);
  model->set_vocab(flags["vocab"]);
  spec.mutable_data()->add_train()->set_prefix(flags.text("tokens").empty() ? "memory"
                                                                            : flags.text("tokens"));
  spec.mutable_data()->set_tokenizer("byte");
  spec.mutable_data()->set_sequence_length(flags["seq"]);
  v1::TrainingSpec* training = spec.mutable_training();
  training->set_steps(flags["steps"]);
  training->set_global_batch(flags["micro-batch"]);
  training->set_micro_batch(flags["micro-batch"]);
  training->mutable_optimizer()->set_lr(3e-4);
  training->mutable_schedule()->set_kind(v1::ScheduleSpec::KIND_CONSTANT);
  if (flags["loss-chunk"] > 0) training->set_loss_chunk(flags["loss-chunk"]);
  const std::string precision =
      absl::StrCat("PRECISION_", absl::AsciiStrToUpper(flags.text("precision")));
  v1::TrainingSpec::Precision value;
  if (!v1::TrainingSpec::Precision_Parse(precision, &value)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--precision ", flags.text("precision"), ": it is fp32, bf16 or fp8"));
  }
  training->set_precision(value);
  spec.mutable_runtime()->set_graphs(graphs ? "on" : "off");
  MT_RETURN_IF_ERROR(FillDefaults(&spec));
  return spec;
}

// A trainer with what it is made of.
struct Run {
  std::unique_ptr<Operations> operations;
  v1::JobSpec spec;
  std::unique_ptr<Trainer> trainer;
};

absl::StatusOr<Run> NewRun(const Flags& flags, BatchSource* samples, OperationObserver* observer) {
  Run run;
  Operations::Options options{.backend = flags.text("backend"),
                              .threads = static_cast<int>(flags["threads"]),
                              .observer = observer};
  if (!flags.text("attention").empty())
    options.configuration["attention"] = flags.text("attention");
  if (!flags.text("gemm-cache").empty())
    options.configuration["gemm_cache"] = flags.text("gemm-cache");
  MT_ASSIGN_OR_RETURN(run.operations, Operations::Create(options));
  // Operations that are timed one by one cannot be in a graph.
  MT_ASSIGN_OR_RETURN(run.spec, SpecOf(flags, observer == nullptr));
  MT_ASSIGN_OR_RETURN(const Mesh mesh, Mesh::Create(1, 1, 1));
  MT_ASSIGN_OR_RETURN(run.trainer, Trainer::Create({.spec = run.spec,
                                                    .mesh = mesh,
                                                    .operations = run.operations.get(),
                                                    .samples = samples}));
  MT_RETURN_IF_ERROR(run.trainer->InitialiseWeights());
  return run;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct Timing {
  std::vector<double> seconds;  // of the steps after the warm-up
  std::vector<std::string> losses;
  PhaseSeconds phases;  // their sum
};

absl::StatusOr<Timing> TimeSteps(const Flags& flags, Trainer& trainer) {
  Timing timing;
  for (int64_t step = 0; step < flags["steps"]; ++step) {
    const auto start = std::chrono::steady_clock::now();
    MT_ASSIGN_OR_RETURN(const StepResult result, trainer.Step());
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    timing.losses.push_back(absl::StrFormat("%.6f", result.loss));
    if (step < flags["warmup"]) continue;
    timing.seconds.push_back(spent.count());
    timing.phases.forward += result.seconds.forward;
    timing.phases.backward += result.seconds.backward;
    timing.phases.grad_sync += result.seconds.grad_sync;
    timing.phases.optimizer += result.seconds.optimizer;
  }
  if (timing.seconds.empty())
    return absl::InvalidArgumentError("--steps must be larger than --warmup");
  return timing;
}

absl::StatusOr<std::string> TimeOperations(const Flags& flags, BatchSource* samples,
                                           double step_seconds) {
  Profile profile;
  MT_ASSIGN_OR_RETURN(const Run run, NewRun(flags, samples, &profile));
  const mt_backend& abi = run.operations->backend().abi();
  MT_RETURN_IF_ERROR(profile.EndStep(/*counts=*/false));
  for (int64_t step = 0; step <= flags["profile"]; ++step) {  // the first one warms up
    MT_RETURN_IF_ERROR(run.trainer->Step().status());
    MT_RETURN_IF_ERROR(profile.EndStep(/*counts=*/step > 0));
  }
  conformance::Ceilings ceilings =
      conformance::MeasureCeilings(&abi, run.operations->backend().host_memory());
  ceilings.bytes_per_second = std::max(ceilings.bytes_per_second, 1e9 * flags["copy-gbytes"]);
  ceilings.bf16_flops = std::max(ceilings.bf16_flops, 1e12 * flags["bf16-tflops"]);
  const std::vector<Profile::Row> rows = profile.Rows(ceilings);
  absl::FPrintF(stderr, "%s", FormatProfile(rows, step_seconds, ceilings));
  return absl::StrFormat(
      "{\"copy_bytes_per_second\": %.0f, \"fp32_flops\": %.0f, \"bf16_flops\": %.0f, "
      "\"fp8_flops\": %.0f}, \"operations\": %s",
      ceilings.bytes_per_second, ceilings.f32_flops, ceilings.bf16_flops, ceilings.fp8_flops,
      ProfileJson(rows));
}

absl::Status WriteJson(const Flags& flags, const std::string& object) {
  const std::string& path = flags.text("json");
  if (path.empty()) return absl::OkStatus();
  std::ofstream file(path);
  file << object << "}\n" << std::flush;
  return file ? absl::OkStatus()
              : absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
}

absl::Status Bench(const Flags& flags) {
  if (flags.write_tokens) MT_RETURN_IF_ERROR(WriteTokens(flags));
  MT_ASSIGN_OR_RETURN(FileSamples samples, FileSamples::Read(flags));
  MT_ASSIGN_OR_RETURN(Run run, NewRun(flags, &samples, nullptr));
  const Backend& backend = run.operations->backend();
  if (!flags.text("weights-out").empty())
    MT_RETURN_IF_ERROR(WriteWeights(*run.trainer, backend, flags.text("weights-out")));

  MT_ASSIGN_OR_RETURN(const Timing timing, TimeSteps(flags, *run.trainer));
  const double median = Median(timing.seconds), count = static_cast<double>(timing.seconds.size());
  const int64_t tokens = flags["seq"] * flags["micro-batch"];
  // A GPU is measured against its nominal dense bf16 rate, also in fp8, so that the runs compare; a
  // processor against what it was measured to do.
  const bool nominal = backend.info().bf16_flops > 0 && flags.text("precision") != "fp32";
  double peak = backend.info().bf16_flops;
  if (!nominal) {
    MT_ASSIGN_OR_RETURN(peak, MeasureGemmPeak({.backend = flags.text("backend"),
                                               .threads = static_cast<int>(flags["threads"])},
                                              TypesOf(run.spec.training().precision()).data));
  }
  const double flops = ModelFlops(run.spec.model(), flags["seq"], tokens) / median;
  int64_t free_bytes = 0, total_bytes = 0;
  if (!backend.host_memory()) (void)backend.abi().memory_info(&free_bytes, &total_bytes);
  absl::FPrintF(stderr,
                "forward %.4f s, backward %.4f s, gradient norm %.4f s, optimizer %.4f s; peak "
                "%.0f GFLOP/s\n",
                timing.phases.forward / count, timing.phases.backward / count,
                timing.phases.grad_sync / count, timing.phases.optimizer / count, peak / 1e9);
  std::string json = absl::StrFormat(
      "{\"program\": \"mt\", \"backend\": \"%s\", \"device\": \"%s\", \"shape\": \"%s\", "
      "\"precision\": \"%s\", \"threads\": %d, \"step_seconds\": %.6f, "
      "\"tokens_per_second\": %.1f, \"model_gflops\": %.1f, \"mfu\": %.4f, \"mfu_peak\": \"%s\", "
      "\"memory_bytes\": %d, \"losses\": [%s]",
      backend.name(), backend.info().name, flags.text("shape"), flags.text("precision"),
      flags["threads"], median, static_cast<double>(tokens) / median, flops / 1e9,
      peak > 0 ? flops / peak : 0, nominal ? "nominal bf16" : "measured", total_bytes - free_bytes,
      absl::StrJoin(timing.losses, ", "));
  MT_RETURN_IF_ERROR(WriteJson(flags, json));
  absl::PrintF("%s}\n", json);
  std::fflush(stdout);
  if (flags["profile"] == 0) return absl::OkStatus();
  run.trainer.reset();  // its memory is needed
  run.operations.reset();
  MT_ASSIGN_OR_RETURN(const std::string operations, TimeOperations(flags, &samples, median));
  absl::StrAppend(&json, ", \"ceilings\": ", operations);
  return WriteJson(flags, json);
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
