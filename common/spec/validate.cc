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
#include "common/spec/activation_plan.h"
#include "common/spec/defaults.h"
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
    Model();
    Data();
    Training();
    Schedule();
    Checkpoints();
    Running();
    // Sums of broken sizes would only repeat what was said.
    if (problems_.empty()) Layout();
    return std::move(problems_);
  }

 private:
  template <typename... Parts>
  void Add(absl::string_view key, const Parts&... parts) {
    problems_.push_back(absl::StrCat(key, " = ", parts...));
  }

  // True if the size is sane; says what is wrong otherwise.
  bool Size(absl::string_view key, int64_t value, int64_t limit) {
    if (value == 0) {
      problems_.push_back(absl::StrCat(key, " is not set; set it to a number from 1 to ", limit));
      return false;
    }
    if (value < 0 || value > limit) {
      Add(key, value, ": out of range; use 1 to ", limit);
      return false;
    }
    return true;
  }

  void Positive(absl::string_view key, double value) {
    if (!(value > 0) || !std::isfinite(value)) Add(key, value, ": must be greater than 0");
  }

  void Names() {
    if (spec_.name().empty()) {
      problems_.push_back("name is not set; set it to a short word such as `tiny-llama`");
    } else if (!IsWord(spec_.name(), 63)) {
      Add("name", "`", spec_.name().substr(0, 70),
          "`: use 1 to 63 of a-z, 0-9, `.`, `_`, `-`, beginning with a letter or digit");
    }
    for (const auto& [key, value] : spec_.labels()) {
      if (key.empty() || key.size() > 63 || value.size() > 255) {
        Add("labels", "`", key.substr(0, 70),
            "`: keys have 1 to 63 characters and values at most 255");
      }
    }
  }

  void Model() {
    const v1::ModelSpec& m = spec_.model();
    Size("model.layers", m.layers(), 10'000);
    const bool hidden = Size("model.hidden", m.hidden(), 1 << 20);
    const bool heads = Size("model.heads", m.heads(), 1 << 16);
    Size("model.ffn", m.ffn(), 1 << 22);
    Size("model.vocab", m.vocab(), 1 << 24);
    if (heads && hidden && m.head_dim() == 0) {
      Add("model.hidden", m.hidden(), ": does not divide by model.heads = ", m.heads(),
          "; set model.heads to ", Or(NearestCommonDivisors({m.hidden()}, m.heads())),
          ", or set model.head_dim");
    } else if (heads && hidden && Size("model.head_dim", m.head_dim(), 1 << 12) &&
               m.head_dim() % 2 != 0) {
      Add("model.head_dim", m.head_dim(), ": rotary positions need an even number; use ",
          m.head_dim() - 1, " or ", m.head_dim() + 1);
    }
    if (heads && Size("model.kv_heads", m.kv_heads(), 1 << 16) && m.heads() % m.kv_heads() != 0) {
      Add("model.kv_heads", m.kv_heads(), ": does not divide model.heads = ", m.heads(), "; use ",
          Or(NearestCommonDivisors({m.heads()}, m.kv_heads())));
    }
    Positive("model.rope_theta", m.rope_theta());
    Positive("model.norm_eps", m.norm_eps());
    Positive("model.init_std", m.init_std());
    if (spec_.data().tokenizer() == "byte" && m.vocab() > 0 && m.vocab() < kByteVocabulary) {
      Add("model.vocab", m.vocab(), ": the byte tokenizer has ", kByteVocabulary,
          " ids; use at least that many");
    }
  }

  void Data() {
    const v1::DataSpec& d = spec_.data();
    if (d.train().empty()) {
      problems_.push_back(
          "data.train is not set; set it to the prefix of a .bin/.idx pair (`mtctl data build` "
          "makes one)");
    } else if (absl::EndsWith(d.train(), ".bin") || absl::EndsWith(d.train(), ".idx")) {
      Add("data.train", "`", d.train(), "`: is a prefix; write it without the ending: ",
          d.train().substr(0, d.train().size() - 4));
    } else if (d.train()[0] != '/') {
      Add("data.train", "`", d.train(), "`: must be absolute, as every node sees it");
    }
    if (!d.tokenizer().empty() && d.tokenizer() != "byte" &&
        !absl::EndsWith(d.tokenizer(), ".model")) {
      Add("data.tokenizer", "`", d.tokenizer(),
          "`: use `byte` or the path of a SentencePiece .model file");
    }
    Size("data.sequence_length", d.sequence_length(), 1 << 24);
    Split(d.split());
    for (const auto& [key, seed] :
         {std::pair{"data.seed", d.seed()}, std::pair{"training.seed", spec_.training().seed()}}) {
      if (seed < 0 || seed > 0xffffffffLL) Add(key, seed, ": out of range; use 0 to 4294967295");
    }
    if (!d.validation().empty()) {
      Add("data.validation", "`", d.validation(),
          "`: is not read yet; delete it (split works on data.train)");
    }
  }

  void Split(const std::string& split) {
    const std::vector<std::string> parts = absl::StrSplit(split, ',');
    double first = 0, sum = 0;
    bool good = parts.size() <= 3;
    for (size_t i = 0; i < parts.size() && good; ++i) {
      double share = 0;
      good = absl::SimpleAtod(parts[i], &share) && std::isfinite(share) && share >= 0;
      if (i == 0) first = share;
      sum += share;
    }
    if (!good) {
      Add("data.split", "`", split.substr(0, 70),
          "`: use up to three shares for train, validation and test: 969,30,1");
    } else if (!(first > 0) || !std::isfinite(sum)) {
      Add("data.split", "`", split.substr(0, 70),
          "`: leaves nothing to train on; use 969,30,1 or 1,0,0");
    }
  }

  void Training() {
    const v1::TrainingSpec& t = spec_.training();
    Size("training.steps", t.steps(), 1'000'000'000);
    Size("training.global_batch", t.global_batch(), 1 << 24);
    Size("training.micro_batch", t.micro_batch(), 1 << 20);
    Size("training.loss_chunk", t.loss_chunk(), 1 << 24);
    if (t.z_loss() < 0) Add("training.z_loss", t.z_loss(), ": must not be negative; 0 is off");
    if (t.clip_grad_norm() == 0) {
      Add("training.clip_grad_norm", 0,
          ": would scale every gradient to nothing; use -1 to switch clipping off");
    }
    const v1::OptimizerSpec& o = t.optimizer();
    Positive("training.optimizer.lr", o.lr());
    Positive("training.optimizer.eps", o.eps());
    for (const auto& [key, beta] : {std::pair{"beta1", o.beta1()}, std::pair{"beta2", o.beta2()}}) {
      if (!(beta >= 0 && beta < 1))
        Add(absl::StrCat("training.optimizer.", key), beta, ": must be at least 0 and below 1");
    }
    if (o.weight_decay() < 0)
      Add("training.optimizer.weight_decay", o.weight_decay(), ": must not be negative; 0 is off");
    const std::string& backend = spec_.runtime().backend();
    if (t.precision() == v1::TrainingSpec::PRECISION_FP64 && backend != "reference") {
      Add("training.precision",
          "fp64: only the reference backend computes in it; set runtime.backend: reference, or use "
          "fp32");
    }
  }

  void Schedule() {
    const v1::TrainingSpec& t = spec_.training();
    const v1::ScheduleSpec& s = t.schedule();
    if (s.warmup_steps() < 0 || (t.steps() > 0 && s.warmup_steps() > t.steps())) {
      Add("training.schedule.warmup_steps", s.warmup_steps(),
          ": must be 0 to training.steps = ", t.steps());
    } else if (s.kind() == v1::ScheduleSpec::KIND_WSD &&
               s.warmup_steps() + s.decay_steps() > t.steps() && t.steps() > 0) {
      Add("training.schedule.decay_steps", s.decay_steps(),
          ": with training.schedule.warmup_steps = ", s.warmup_steps(),
          " is more than training.steps = ", t.steps(), "; use at most ",
          t.steps() - s.warmup_steps());
    }
    if (s.decay_steps() < 0)
      Add("training.schedule.decay_steps", s.decay_steps(), ": must be at least 1");
    if (s.min_lr() < 0 || s.min_lr() > t.optimizer().lr()) {
      Add("training.schedule.min_lr", s.min_lr(),
          ": must be 0 to training.optimizer.lr = ", t.optimizer().lr());
    }
  }

  void Checkpoints() {
    const v1::CheckpointSpec& c = spec_.checkpoint();
    if (c.every_steps() < 0)
      Add("checkpoint.every_steps", c.every_steps(),
          ": must not be negative; 0 is only at the end");
    if (c.keep_last() < 1) Add("checkpoint.keep_last", c.keep_last(), ": must be at least 1");
    if (c.replicas() < 0 || c.replicas() > 16)
      Add("checkpoint.replicas", c.replicas(), ": use 0 to 16");
    if (!c.path().empty() && c.path()[0] != '/') {
      Add("checkpoint.path", "`", c.path(),
          "`: must be absolute, every node writes there; or delete it to keep shards on their "
          "nodes");
    }
    if (const std::string& from = c.resume_from(); !from.empty()) {
      const std::vector<std::string> parts = absl::StrSplit(from, '@');
      int64_t step = 0;
      if (parts.size() > 2 || !IsWord(parts[0], 128) ||
          (parts.size() == 2 && (!absl::SimpleAtoi(parts[1], &step) || step < 0))) {
        Add("checkpoint.resume_from", "`", from.substr(0, 140),
            "`: use JOB or JOB@STEP (`mtctl checkpoint list JOB` shows them)");
      }
    }
  }

  void Running() {
    const v1::FaultSpec& f = spec_.fault();
    if (f.max_attempts_without_progress() < 1) {
      Add("fault.max_attempts_without_progress", f.max_attempts_without_progress(),
          ": must be at least 1");
    }
    for (const auto& [key, duration] : {std::pair{"fault.min_step_deadline", f.min_step_deadline()},
                                        std::pair{"fault.start_deadline", f.start_deadline()},
                                        std::pair{"fault.stop_grace", f.stop_grace()}}) {
      if (duration.seconds() < 0 || duration.nanos() < 0)
        Add(key, duration.seconds(), "s: must not be negative");
    }
    const v1::RuntimeSpec& r = spec_.runtime();
    if (!r.backend().empty() && !IsWord(r.backend(), 32)) {
      Add("runtime.backend", "`", r.backend().substr(0, 40),
          "`: use a backend's name: cpu or reference");
    }
    if (r.threads_per_rank() < 0 || r.threads_per_rank() > 4096) {
      Add("runtime.threads_per_rank", r.threads_per_rank(),
          ": use 1 to 4096, or delete it for cores / slots");
    }
    if (r.log_every() < 1) Add("runtime.log_every", r.log_every(), ": must be at least 1");
    static const auto* const kTransports =
        new std::vector<std::string>{"auto", "nccl", "shm", "gloo"};
    if (std::find(kTransports->begin(), kTransports->end(), r.transport()) == kTransports->end()) {
      const std::string nearest = NearestWord(r.transport(), *kTransports);
      Add("runtime.transport", "`", r.transport().substr(0, 40), "`: use ",
          nearest.empty() ? "auto, nccl, shm or gloo" : nearest);
    }
    if (r.graphs() != "on" && r.graphs() != "off")
      Add("runtime.graphs", "`", r.graphs().substr(0, 40), "`: use on or off");
    if (r.attention() != "auto" && r.attention() != "cudnn" && r.attention() != "flash") {
      Add("runtime.attention", "`", r.attention().substr(0, 40), "`: use auto, cudnn or flash");
    }
    for (const auto& [operation, backend] : r.operations()) {
      if (!IsWord(operation, 64) || !IsWord(backend, 32)) {
        Add("runtime.operations", "`", operation.substr(0, 70), ": ", backend.substr(0, 40),
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
      Size(key, value, kMaxWorld);
    }
    if (!problems_.empty()) return;
    const double world = static_cast<double>(p.tensor()) * p.pipeline() * p.data();
    if (world > kMaxWorld) {
      Add("parallel", "tensor ", p.tensor(), " × pipeline ", p.pipeline(), " × data ", p.data(),
          ": is more than ", kMaxWorld, " ranks");
      return;
    }
    Tensor();
    if (p.pipeline() > m.layers()) {
      Add("parallel.pipeline", p.pipeline(), ": is more than model.layers = ", m.layers(),
          "; every stage needs a block, use at most ", m.layers());
    }
    const int64_t samples = t.micro_batch() * p.data();
    if (t.global_batch() % samples != 0) {
      std::vector<int64_t> multiples;
      if (const int64_t below = t.global_batch() / samples * samples; below > 0)
        multiples.push_back(below);
      multiples.push_back((t.global_batch() / samples + 1) * samples);
      std::string remedy = absl::StrCat("use ", Or(multiples));
      if (t.global_batch() % t.micro_batch() == 0) {
        absl::StrAppend(&remedy, ", or set parallel.data to ",
                        Or(NearestCommonDivisors({t.global_batch() / t.micro_batch()}, p.data())));
      }
      Add("training.global_batch", t.global_batch(),
          ": is not a multiple of training.micro_batch × parallel.data = ", t.micro_batch(), " × ",
          p.data(), "; ", remedy);
    }
    if (p.zero() != 0 && p.zero() != 1)
      Add("parallel.zero", p.zero(), ": use 0 or 1 (optimizer state sharded over data)");
    if (!problems_.empty()) return;
    // The engine's own word is last, so that nothing it would refuse gets past this.
    const absl::StatusOr<Mesh> mesh = Mesh::FromSpec(p);
    const absl::Status sizes = mesh.ok() ? CheckSizes(spec_, *mesh) : mesh.status();
    if (!sizes.ok()) problems_.push_back(std::string(sizes.message()));
  }

  void Tensor() {
    const v1::ModelSpec& m = spec_.model();
    const v1::ParallelSpec& p = spec_.parallel();
    std::vector<std::pair<std::string, int64_t>> cut = {{"model.heads", m.heads()},
                                                        {"model.kv_heads", m.kv_heads()},
                                                        {"model.ffn", m.ffn()},
                                                        {"model.vocab", m.vocab()}};
    if (p.sequence()) cut.emplace_back("data.sequence_length", spec_.data().sequence_length());
    std::vector<int64_t> sizes;
    std::vector<std::string> broken;
    for (const auto& [key, size] : cut) {
      sizes.push_back(size);
      if (size % p.tensor() != 0) broken.push_back(absl::StrCat(key, " = ", size));
    }
    if (!broken.empty()) {
      Add("parallel.tensor", p.tensor(), ": does not divide ", absl::StrJoin(broken, ", "),
          "; use ", Or(NearestCommonDivisors(sizes, p.tensor())));
    }
    if (p.sequence() && p.tensor() == 1) {
      Add("parallel.sequence",
          "true: cuts the sequence over the tensor group, and parallel.tensor = 1; use tensor 2 or "
          "more, or false");
    }
  }

  static std::string Or(const std::vector<int64_t>& numbers) {
    return absl::StrJoin(numbers, " or ");
  }

  const v1::JobSpec& spec_;
  std::vector<std::string> problems_;
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

absl::Status ValidateSpec(const v1::JobSpec& spec) {
  const std::vector<std::string> problems = SpecProblems(spec);
  if (problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrJoin(problems, "\n"));
}

}  // namespace mt
