#include "worker/train/generate.h"

#include <algorithm>
#include <cmath>

#include "kernels/abi/philox.h"
#include "worker/train/expert_balance.h"
#include "worker/train/flat_state.h"
#include "worker/train/stage.h"

namespace mt {
namespace {

constexpr int64_t kLengthStep = 32;  // contexts are computed at lengths that are multiples of this

// Highest logit; the lowest id among equals.
int32_t MostLikely(std::span<const double> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Softmax of logits / temperature, inverted at `uniform` in (0, 1).
int32_t Draw(std::span<const double> logits, double temperature, double uniform) {
  const double maximum = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const double logit : logits) total += std::exp((logit - maximum) / temperature);
  double rest = uniform * total;
  for (size_t id = 0; id < logits.size(); ++id) {
    rest -= std::exp((logits[id] - maximum) / temperature);
    if (rest < 0) return static_cast<int32_t>(id);
  }
  return MostLikely(logits);  // rounding left a sliver at the end
}

}  // namespace

struct Generator::State {
  ~State() = default;

  // One rank, one sequence; activations as in recomputation: one set for all blocks.
  static v1::JobSpec SpecOf(const v1::ModelSpec& model, v1::TrainingSpec::Precision precision,
                            int64_t context) {
    v1::JobSpec spec;
    *spec.mutable_model() = model;
    spec.mutable_data()->set_sequence_length(context);
    v1::TrainingSpec& training = *spec.mutable_training();
    training.set_steps(1);
    training.set_global_batch(1);
    training.set_micro_batch(1);
    training.set_loss_chunk(1);
    training.set_precision(precision);
    training.set_recompute(v1::TrainingSpec::RECOMPUTE_BLOCK);
    return spec;
  }
  int64_t LengthFor(int64_t tokens) const {
    return std::min((tokens + kLengthStep - 1) / kLengthStep * kLengthStep, context);
  }
  void SetLength(int64_t length) {
    RankShape& shape = stage->context().shape;
    shape.sequence = shape.rows = shape.stream_rows = length;
  }

  int64_t context = 0, vocab = 0;
  Operations* operations = nullptr;
  std::unique_ptr<FlatState> flat;
  std::unique_ptr<ExpertBalance> balance;  // null without experts
  std::unique_ptr<Stage> stage;
  std::vector<int32_t> ids;
  std::vector<char> logits;
};

Generator::Generator(std::unique_ptr<State> state) : state_(std::move(state)) {}
Generator::~Generator() = default;

absl::StatusOr<std::unique_ptr<Generator>> Generator::Create(const v1::ModelSpec& model,
                                                             v1::TrainingSpec::Precision precision,
                                                             int64_t context,
                                                             Operations* operations) {
  if (precision != v1::TrainingSpec::PRECISION_FP64) precision = v1::TrainingSpec::PRECISION_FP32;
  auto state = std::make_unique<State>();
  const v1::JobSpec spec = State::SpecOf(model, precision, context);
  MT_ASSIGN_OR_RETURN(const Mesh mesh, Mesh::Create(1, 1, 1));
  MT_RETURN_IF_ERROR(CheckSizes(spec, mesh));
  const NumberTypes types = TypesOf(precision);
  state->context = context;
  state->vocab = model.vocab();
  state->operations = operations;
  MT_ASSIGN_OR_RETURN(
      state->flat,
      FlatState::Create(LayoutOf(model, mesh, 0), {.types = types, .trained = false}, operations));
  MT_ASSIGN_OR_RETURN(
      state->balance,
      ExpertBalance::Create(spec, mesh, 0, {.types = types, .trained = false}, operations));
  MT_ASSIGN_OR_RETURN(
      state->stage,
      Stage::Create(
          ModelContext(ShapeOf(spec, mesh, 0), types, model, operations, nullptr),
          PlanActivations(spec, mesh, 0),
          {.recompute = true, .tied = model.tie_embeddings(), .balance = state->balance.get()},
          state->flat.get(), operations));
  state->ids.resize(static_cast<size_t>(context));
  state->logits.resize(static_cast<size_t>(model.vocab() * BytesPerNumber(types.data)));
  state->stage->context().planning = true;
  for (int64_t tokens = 1; tokens <= context; tokens += kLengthStep) {
    state->SetLength(state->LengthFor(tokens));
    MT_RETURN_IF_ERROR(state->stage->Logits(0));
  }
  state->stage->context().planning = false;
  return std::unique_ptr<Generator>(new Generator(std::move(state)));
}

std::vector<TensorBox> Generator::LoadTargets() {
  std::vector<TensorBox> boxes = state_->flat->LoadBoxes();
  if (state_->balance != nullptr) {
    const std::vector<TensorBox> biases = state_->balance->LoadBoxes();
    boxes.insert(boxes.end(), biases.begin(), biases.end());
  }
  return boxes;
}

absl::Status Generator::Logits(std::span<const int32_t> tokens, std::span<double> logits) {
  State& s = *state_;
  if (tokens.empty()) {
    return absl::InvalidArgumentError(
        "the prompt has no token; give a prompt of at least one character");
  }
  if (static_cast<int64_t>(logits.size()) != s.vocab) {
    return absl::InvalidArgumentError(
        absl::StrCat("room for ", logits.size(), " logits, but the vocabulary has ", s.vocab));
  }
  for (const int32_t token : tokens) {
    if (token < 0 || token >= s.vocab) {
      return absl::OutOfRangeError(
          absl::StrCat("token id ", token, " is outside the model's vocabulary of ", s.vocab,
                       "; use the tokenizer that the model was trained with"));
    }
  }
  const int64_t used = std::min(static_cast<int64_t>(tokens.size()), s.context),
                length = s.LengthFor(used);
  // What follows the last token is not looked at: attention is causal.
  std::fill(s.ids.begin(), s.ids.end(), 0);
  std::copy(tokens.end() - used, tokens.end(), s.ids.begin());
  s.SetLength(length);
  const Backend& backend = s.operations->backend();
  MT_RETURN_IF_ERROR(
      backend.ToStatus(backend.abi().copy_to_device(s.stage->input_ids(0), s.ids.data(),
                                                    static_cast<size_t>(length) * 4, nullptr),
                       "copying token ids"));
  MT_RETURN_IF_ERROR(s.stage->Logits(used - 1));
  MT_RETURN_IF_ERROR(backend.ToStatus(
      backend.abi().copy_to_host(s.logits.data(), s.stage->logits(), s.logits.size(), nullptr),
      "copying logits"));
  MT_RETURN_IF_ERROR(
      backend.ToStatus(backend.abi().stream_synchronize(nullptr), "waiting for logits"));
  if (s.stage->context().dtype == MT_F64) {
    std::copy_n(reinterpret_cast<const double*>(s.logits.data()), s.vocab, logits.begin());
  } else {
    std::copy_n(reinterpret_cast<const float*>(s.logits.data()), s.vocab, logits.begin());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Generator::Generate(std::span<const int32_t> prompt,
                                                         const GenerateOptions& options) {
  if (!(options.temperature >= 0) || !std::isfinite(options.temperature)) {
    return absl::InvalidArgumentError(absl::StrCat("temperature = ", options.temperature,
                                                   "; it must be zero (greedy) or positive"));
  }
  std::vector<int32_t> tokens(prompt.begin(), prompt.end()), added;
  std::vector<double> logits(static_cast<size_t>(state_->vocab));
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    MT_RETURN_IF_ERROR(Logits(tokens, logits));
    const mt_philox_block random = mt_philox(options.seed, static_cast<uint64_t>(i), 0);
    const int32_t token = options.temperature == 0
                              ? MostLikely(logits)
                              : Draw(logits, options.temperature,
                                     mt_uniform_from_words(random.word[0], random.word[1]));
    if (token == options.stop_token) break;
    tokens.push_back(token);
    added.push_back(token);
  }
  return added;
}

}  // namespace mt
