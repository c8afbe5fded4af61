#include "common/spec/validate.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/spec/activation_plan.h"
#include "common/spec/defaults.h"
#include "common/spec/problems.h"
#include "common/spec/round_up.h"
#include "common/spec/yaml.h"

namespace mt {
namespace {

constexpr int64_t kMaxWorld = 1 << 20;

bool IsWord(absl::string_view text, size_t max_size) {
  if (text.empty() || text.size() > max_size) return false;
  if (!absl::ascii_islower(text[0]) && !absl::ascii_isdigit(text[0])) return false;
  return std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '.' || c == '_' || c == '-';
  });
}

class Validator {
 public:
  explicit Validator(const v1::JobSpec& spec) : spec_(spec) {}

  std::vector<std::string> Run() {
    Names();
    CheckModelSection(spec_, &out_);
    CheckDataSection(spec_, &out_);
    Training();
    Evaluation();
    BatchRampup();
    Schedule();
    Checkpoints();
    Running();
    // Sums of broken sizes would only repeat what was said.
    if (out_.empty()) Layout();
    return out_.Take();
  }

 private:
  void Names() {
    if (spec_.name().empty()) {
      out_.AddLine("name is not set; set it to a short word such as `tiny-llama`");
    } else if (!IsWord(spec_.name(), 63)) {
      out_.Add("name", "`", spec_.name().substr(0, 70),
               "`: use 1 to 63 of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or digit");
    }
    for (const auto& [key, value] : spec_.labels()) {
      if (key.empty() || key.size() > 63 || value.size() > 255) {
        out_.Add("labels", "`", key.substr(0, 70),
                 "`: keys have 1 to 63 characters and values at most 255");
      }
    }
  }

  void Training() {
    const v1::TrainingSpec& t = spec_.training();
    out_.Size("training.steps", t.steps(), 1'000'000'000);
    out_.Size("training.global_batch", t.global_batch(), 1 << 24);
    out_.Size("training.micro_batch", t.micro_batch(), 1 << 20);
    out_.Size("training.loss_chunk", t.loss_chunk(), 1 << 24);
    if (t.z_loss() < 0) out_.Add("training.z_loss", t.z_loss(), ": must not be negative; 0 is off");
    if (t.clip_grad_norm() == 0) {
      out_.Add("training.clip_grad_norm", 0,
               ": would scale every gradient to nothing; use -1 to switch clipping off");
    } else if (t.clip_grad_norm() < 0 && t.clip_grad_norm() != -1) {
      out_.Add("training.clip_grad_norm", t.clip_grad_norm(),
               ": must be above 0; only -1 switches clipping off");
    }
    const v1::OptimizerSpec& o = t.optimizer();
    out_.Positive("training.optimizer.lr", o.lr());
    out_.Positive("training.optimizer.eps", o.eps());
    for (const auto& [key, beta] : {std::pair{"beta1", o.beta1()}, std::pair{"beta2", o.beta2()}}) {
      if (!(beta >= 0 && beta < 1))
        out_.Add(absl::StrCat("training.optimizer.", key), beta,
                 ": must be at least 0 and below 1");
    }
    if (o.weight_decay() < 0)
      out_.Add("training.optimizer.weight_decay", o.weight_decay(),
               ": must not be negative; 0 is off");
    const std::string& backend = spec_.runtime().backend();
    if (t.precision() == v1::TrainingSpec::PRECISION_FP64 && backend != "reference") {
      out_.Add(
          "training.precision",
          "fp64: only the reference backend computes in it; set runtime.backend: reference, or use "
          "fp32");
    }
  }

  void Evaluation() {
    const v1::EvaluationSpec& e = spec_.training().evaluation();
    if (e.every_steps() < 0) {
      out_.Add("training.evaluation.every_steps", e.every_steps(),
               ": must not be negative; 0 is never");
    }
    if (e.every_steps() <= 0) return;
    out_.Within("training.evaluation.batches", e.batches(), 1, 1 << 20);
    if (spec_.data().validation().empty() && !HasHeldOutShare(spec_.data().split())) {
      out_.Add("training.evaluation.every_steps", e.every_steps(),
               ": no data is held out; set data.validation, or a second share in data.split such "
               "as 969,30,1");
    }
  }
  static bool HasHeldOutShare(const std::string& split) {
    const std::vector<std::string> parts = absl::StrSplit(split, ',');
    double share = 0;
    return parts.size() > 1 && absl::SimpleAtod(parts[1], &share) && share > 0;
  }

  void BatchRampup() {
    const v1::TrainingSpec& t = spec_.training();
    const v1::BatchRampup& r = t.batch_rampup();
    if (r.start() == 0) {
      if (r.increment() != 0 || r.samples() != 0) {
        out_.AddLine(
            "training.batch_rampup.start is not set; set it to the global batch of the first step, "
            "or delete training.batch_rampup");
      }
      return;
    }
    constexpr int64_t kMaxSamples = int64_t{1} << 48;  // a double holds them exactly
    const bool sane = out_.Size("training.batch_rampup.start", r.start(), 1 << 24) &
                      out_.Size("training.batch_rampup.increment", r.increment(), 1 << 24) &
                      out_.Size("training.batch_rampup.samples", r.samples(), kMaxSamples);
    if (!sane || t.global_batch() < 1) return;
    if (r.start() >= t.global_batch()) {
      out_.Add("training.batch_rampup.start", r.start(),
               ": must be below training.global_batch = ", t.global_batch(),
               "; delete training.batch_rampup for batches of one size");
    } else if (const int64_t rise = t.global_batch() - r.start(); rise % r.increment() != 0) {
      out_.Add("training.batch_rampup.increment", r.increment(), ": does not divide the rise from ",
               r.start(), " to training.global_batch = ", t.global_batch(), "; use ",
               Problems::Or(NearestCommonDivisors({rise}, r.increment())));
    }
  }

  void Schedule() {
    const v1::TrainingSpec& t = spec_.training();
    const v1::ScheduleSpec& s = t.schedule();
    if (s.warmup_steps() < 0 || (t.steps() > 0 && s.warmup_steps() > t.steps())) {
      out_.Add("training.schedule.warmup_steps", s.warmup_steps(),
               ": must be 0 to training.steps = ", t.steps());
    } else if (s.kind() == v1::ScheduleSpec::KIND_WSD && s.warmup_steps() == t.steps()) {
      out_.Add("training.schedule.warmup_steps", s.warmup_steps(),
               ": leaves none of training.steps = ", t.steps(), " to decay; use at most ",
               t.steps() - 1);
    } else if (s.kind() == v1::ScheduleSpec::KIND_WSD &&
               s.decay_steps() > t.steps() - s.warmup_steps()) {
      out_.Add("training.schedule.decay_steps", s.decay_steps(),
               ": with training.schedule.warmup_steps = ", s.warmup_steps(),
               " is more than training.steps = ", t.steps(), "; use at most ",
               t.steps() - s.warmup_steps());
    }
    if (s.decay_steps() < 0)
      out_.Add("training.schedule.decay_steps", s.decay_steps(), ": must be at least 1");
    if (s.min_lr() < 0 || s.min_lr() > t.optimizer().lr()) {
      out_.Add("training.schedule.min_lr", s.min_lr(),
               ": must be 0 to training.optimizer.lr = ", t.optimizer().lr());
    }
  }

  void Checkpoints() {
    const v1::CheckpointSpec& c = spec_.checkpoint();
    if (c.every_steps() < 0)
      out_.Add("checkpoint.every_steps", c.every_steps(),
               ": must not be negative; 0 is only at the end");
    if (c.keep_last() < 1) out_.Add("checkpoint.keep_last", c.keep_last(), ": must be at least 1");
    if (c.replicas() < 0 || c.replicas() > 16)
      out_.Add("checkpoint.replicas", c.replicas(), ": use 0 to 16");
    if (!c.path().empty() && c.path()[0] != '/') {
      out_.Add("checkpoint.path", "`", c.path(),
               "`: must be absolute, every node writes there; or delete it to keep shards on their "
               "nodes");
    }
    if (const std::string& weights = spec_.initial_checkpoint(); !weights.empty()) {
      const absl::string_view path = absl::StripPrefix(weights, "hf:");
      if (path.empty() || path[0] != '/') {
        out_.Add("initial_checkpoint", "`", weights.substr(0, 140),
                 "`: use hf:/FOLDER for Hugging Face's files or the folder of a checkpoint, "
                 "absolute, as every node sees it");
      }
      if (!c.resume_from().empty()) {
        out_.Add("initial_checkpoint", "`", weights.substr(0, 140),
                 "`: checkpoint.resume_from starts from other weights; delete one");
      }
    }
    if (const std::string& from = c.resume_from(); !from.empty()) {
      const std::vector<std::string> parts = absl::StrSplit(from, '@');
      int64_t step = 0;
      if (parts.size() > 2 || !IsWord(parts[0], 128) ||
          (parts.size() == 2 && (!absl::SimpleAtoi(parts[1], &step) || step < 0))) {
        out_.Add("checkpoint.resume_from", "`", from.substr(0, 140),
                 "`: use JOB or JOB@STEP (`mtctl checkpoint list JOB` shows them)");
      }
    }
  }

  void Running() {
    const v1::FaultSpec& f = spec_.fault();
    if (f.max_attempts_without_progress() < 1) {
      out_.Add("fault.max_attempts_without_progress", f.max_attempts_without_progress(),
               ": must be at least 1");
    }
    for (const auto& [key, duration] : {std::pair{"fault.min_step_deadline", f.min_step_deadline()},
                                        std::pair{"fault.start_deadline", f.start_deadline()},
                                        std::pair{"fault.stop_grace", f.stop_grace()}}) {
      if (duration.seconds() < 0 || duration.nanos() < 0)
        out_.Add(key, duration.seconds(), "s: must not be negative");
    }
    const v1::RuntimeSpec& r = spec_.runtime();
    if (!r.backend().empty() && !IsWord(r.backend(), 32)) {
      out_.Add("runtime.backend", "`", r.backend().substr(0, 40),
               "`: use a backend's name: cpu or reference");
    }
    if (r.threads_per_rank() < 0 || r.threads_per_rank() > 4096) {
      out_.Add("runtime.threads_per_rank", r.threads_per_rank(),
               ": use 1 to 4096, or delete it for cores / slots");
    }
    if (r.log_every() < 1) out_.Add("runtime.log_every", r.log_every(), ": must be at least 1");
    static const auto* const kTransports =
        new std::vector<std::string>{"auto", "nccl", "shm", "gloo"};
    if (std::find(kTransports->begin(), kTransports->end(), r.transport()) == kTransports->end()) {
      const std::string nearest = NearestWord(r.transport(), *kTransports);
      out_.Add("runtime.transport", "`", r.transport().substr(0, 40), "`: use ",
               nearest.empty() ? "auto, nccl, shm or gloo" : nearest);
    }
    if (r.graphs() != "on" && r.graphs() != "off")
      out_.Add("runtime.graphs", "`", r.graphs().substr(0, 40), "`: use on or off");
    if (r.attention() != "auto" && r.attention() != "cudnn" && r.attention() != "flash") {
      out_.Add("runtime.attention", "`", r.attention().substr(0, 40),
               "`: use auto, cudnn or flash");
    } else if (r.attention() == "cudnn" && spec_.data().document_mask()) {
      out_.Add("runtime.attention",
               "cudnn: has no document masks (data.document_mask = true); use auto or flash");
    }
    for (const auto& [operation, backend] : r.operations()) {
      if (!IsWord(operation, 64) || !IsWord(backend, 32)) {
        out_.Add("runtime.operations", "`", operation.substr(0, 70), ": ", backend.substr(0, 40),
                 "`: use operation: backend, such as attention_forward: reference");
      }
    }
  }

  void Layout() {
    const v1::ModelSpec& m = spec_.model();
    const v1::ParallelSpec& p = spec_.parallel();
    const v1::TrainingSpec& t = spec_.training();
    for (const auto& [key, value] :
         {std::pair{"parallel.tensor", p.tensor()}, std::pair{"parallel.pipeline", p.pipeline()},
          std::pair{"parallel.data", p.data()}}) {
      out_.Size(key, value, kMaxWorld);
    }
    if (!out_.empty()) return;
    const double world = static_cast<double>(p.tensor()) * p.pipeline() * p.data();
    if (world > kMaxWorld) {
      out_.Add("parallel", "tensor ", p.tensor(), " × pipeline ", p.pipeline(), " × data ",
               p.data(), ": is more than ", kMaxWorld, " ranks");
      return;
    }
    Tensor();
    if (p.pipeline() > m.layers()) {
      out_.Add("parallel.pipeline", p.pipeline(), ": is more than model.layers = ", m.layers(),
               "; every stage needs a block, use at most ", m.layers());
    }
    const int64_t samples = t.micro_batch() * p.data();
    if (t.global_batch() % samples != 0) {
      std::vector<int64_t> multiples;
      if (const int64_t below = t.global_batch() / samples * samples; below > 0)
        multiples.push_back(below);
      multiples.push_back((t.global_batch() / samples + 1) * samples);
      std::string remedy = absl::StrCat("use ", Problems::Or(multiples));
      if (t.global_batch() % t.micro_batch() == 0) {
        absl::StrAppend(
            &remedy, ", or set parallel.data to ",
            Problems::Or(NearestCommonDivisors({t.global_batch() / t.micro_batch()}, p.data())));
      }
      out_.Add("training.global_batch", t.global_batch(),
               ": is not a multiple of training.micro_batch × parallel.data = ", t.micro_batch(),
               " × ", p.data(), "; ", remedy);
    }
    const v1::BatchRampup& rampup = t.batch_rampup();
    for (const auto& [key, size] :
         {std::pair{"start", rampup.start()}, std::pair{"increment", rampup.increment()}}) {
      if (size % samples != 0) {
        out_.Add(absl::StrCat("training.batch_rampup.", key), size,
                 ": is not a multiple of training.micro_batch × parallel.data = ", t.micro_batch(),
                 " × ", p.data(), "; use ", RoundUp(size, samples));
      }
    }
    if (p.zero() != 0 && p.zero() != 1)
      out_.Add("parallel.zero", p.zero(), ": use 0 or 1 (optimizer state sharded over data)");
    if (!out_.empty()) return;
    // The engine's own word is last, so that nothing it would refuse gets past this.
    const absl::StatusOr<Mesh> mesh = Mesh::FromSpec(p);
    const absl::Status sizes = mesh.ok() ? CheckSizes(spec_, *mesh) : mesh.status();
    if (!sizes.ok()) out_.AddLine(std::string(sizes.message()));
  }

  void Tensor() {
    const v1::ModelSpec& m = spec_.model();
    const v1::ParallelSpec& p = spec_.parallel();
    // The vocabulary is padded where it does not divide.
    std::vector<std::pair<std::string, int64_t>> cut = TensorSplitSizes(m);
    if (p.sequence()) cut.emplace_back("data.sequence_length", spec_.data().sequence_length());
    std::vector<int64_t> sizes;
    std::vector<std::string> broken;
    for (const auto& [key, size] : cut) {
      sizes.push_back(size);
      if (size % p.tensor() != 0) broken.push_back(absl::StrCat(key, " = ", size));
    }
    if (!broken.empty()) {
      out_.Add("parallel.tensor", p.tensor(), ": does not divide ", absl::StrJoin(broken, ", "),
               "; use ", Problems::Or(NearestCommonDivisors(sizes, p.tensor())));
    }
    if (p.sequence() && p.tensor() == 1) {
      out_.Add(
          "parallel.sequence",
          "true: cuts the sequence over the tensor group, and parallel.tensor = 1; use tensor 2 or "
          "more, or false");
    }
  }

  const v1::JobSpec& spec_;
  Problems out_;
};

}  // namespace

std::vector<int64_t> NearestCommonDivisors(const std::vector<int64_t>& numbers, int64_t wanted,
                                           int count) {
  int64_t common = 0;
  for (const int64_t number : numbers) common = std::gcd(common, number);
  std::vector<int64_t> divisors;
  for (int64_t d = 1; d * d <= common; ++d) {
    if (common % d != 0) continue;
    divisors.push_back(d);
    if (d != common / d) divisors.push_back(common / d);
  }
  std::sort(divisors.begin(), divisors.end(), [wanted](int64_t a, int64_t b) {
    return std::pair(std::abs(a - wanted), a) < std::pair(std::abs(b - wanted), b);
  });
  if (static_cast<int>(divisors.size()) > count) divisors.resize(count);
  std::sort(divisors.begin(), divisors.end());
  return divisors;
}

std::vector<std::string> SpecProblems(const v1::JobSpec& spec) { return Validator(spec).Run(); }

std::vector<std::string> SpecNotes(const v1::JobSpec& spec) {
  std::vector<std::string> notes;
  const int64_t longest = spec.model().max_positions(), sequence = spec.data().sequence_length();
  if (longest > 0 && sequence > longest) {
    notes.push_back(absl::StrCat("data.sequence_length = ", sequence, ": is more than ", longest,
                                 ", the longest context that the model is made for "
                                 "(model.max_positions)"));
  }
  // A rank that is silent for five times as long as its steps is taken for hung (worker/agent/hang_detector.h).
  constexpr int64_t kSafeGrowth = 4;
  if (const v1::BatchRampup& rampup = spec.training().batch_rampup();
      rampup.start() > 0 && rampup.start() + rampup.increment() > kSafeGrowth * rampup.start()) {
    notes.push_back(absl::StrCat(
        "training.batch_rampup.increment = ", rampup.increment(),
        ": from one step to the next the "
        "batch grows from ",
        rampup.start(), " to ", rampup.start() + rampup.increment(),
        "; set fault.min_step_deadline to more than such a step takes, or a smaller increment"));
  }
  return notes;
}

absl::Status ValidateSpec(const v1::JobSpec& spec) {
  const std::vector<std::string> problems = SpecProblems(spec);
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
}

}  // namespace mt
