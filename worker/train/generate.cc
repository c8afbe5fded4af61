#include "worker/train/generate.h"

#include <algorithm>

#include "common/spec/model_traits.h"
#include "kernels/abi/philox.h"
#include "worker/train/expert_balance.h"
#include "worker/train/flat_state.h"
#include "worker/train/stage.h"

namespace mt {
namespace {

constexpr int64_t kLengthStep = 32;  // prompts are computed at lengths that are multiples of this

// The model as text is generated with it.
v1::ModelSpec ForwardOnly(v1::ModelSpec model) {
  model.clear_mtp();
  if (HasExperts(model)) model.mutable_moe()->set_capacity_factor(0);
  return model;
}

}  // namespace

struct Generator::State {
  ~State() = default;

  // One rank, one sequence.
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
    training.set_recompute(v1::TrainingSpec::RECOMPUTE_NONE);
    return spec;
  }
  int64_t LengthFor(int64_t tokens) const {
    return std::min((tokens + kLengthStep - 1) / kLengthStep * kLengthStep, context);
  }
  // The next pass has rows [first, first + length).
  void SetRows(int64_t first, int64_t length) {
    ModelContext& pass = stage->context();
    pass.first_position = first;
    pass.shape.sequence = pass.shape.rows = pass.shape.stream_rows = length;
  }
  // Of a text of `length` tokens, the first one that is looked at.
  int64_t WindowStart(int64_t length) const {
    const int64_t dropped = context - context / 2;  // at a time
    return length <= context ? 0 : (length - context + dropped - 1) / dropped * dropped;
  }
  absl::Status Declare();
  // Runs `rows` (their ids) from position `first` on; logits after the last of them into stage->logits().
  absl::Status Run(int64_t first, std::span<const int32_t> rows);

  int64_t context = 0, vocab = 0;
  Operations* operations = nullptr;
  std::unique_ptr<FlatState> flat;
  std::unique_ptr<ExpertBalance> balance;  // null without experts
  std::unique_ptr<Stage> stage;
  std::vector<int32_t> ids;
  std::vector<char> logits;
  std::vector<int32_t> cached;  // whose keys and values the blocks have
};

// Every shape that will be used: prompts, and one row behind others.
absl::Status Generator::State::Declare() {
  stage->context().planning = true;
  for (int64_t tokens = 1; tokens <= context; tokens += kLengthStep) {
    SetRows(0, LengthFor(tokens));
    MT_RETURN_IF_ERROR(stage->Logits(0));
  }
  if (context > 1) {
    SetRows(context - 1, 1);
    MT_RETURN_IF_ERROR(stage->Logits(0));
  }
  stage->context().planning = false;
  return absl::OkStatus();
}

absl::Status Generator::State::Run(int64_t first, std::span<const int32_t> rows) {
  const int64_t count = static_cast<int64_t>(rows.size());
  // What follows a prompt's last token is not looked at: attention is causal, and the next token's row takes its place.
  const int64_t length = first > 0 ? count : LengthFor(count);
  std::fill(ids.begin(), ids.end(), 0);
  std::copy(rows.begin(), rows.end(), ids.begin());
  SetRows(first, length);
  const Backend& backend = operations->backend();
  MT_RETURN_IF_ERROR(backend.ToStatus(
      backend.abi().copy_to_device(stage->tokens(0).input_ids, ids.data(),
                                   static_cast<size_t>(length) * sizeof(int32_t), nullptr),
      "copying token ids"));
  return stage->Logits(count - 1);
}

Generator::Generator(std::unique_ptr<State> state) : state_(std::move(state)) {}
Generator::~Generator() = default;

absl::StatusOr<std::unique_ptr<Generator>> Generator::Create(const v1::ModelSpec& trained,
                                                             v1::TrainingSpec::Precision precision,
                                                             int64_t context,
                                                             Operations* operations) {
  if (precision != v1::TrainingSpec::PRECISION_FP64) precision = v1::TrainingSpec::PRECISION_FP32;
  const v1::ModelSpec model = ForwardOnly(trained);
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
      Stage::Create(ModelContext(ShapeOf(spec, mesh, 0), types, model, operations, nullptr),
                    PlanActivations(spec, mesh, 0, PlanPurpose::kGeneration),
                    {.tied = model.tie_embeddings(), .balance = state->balance.get()},
                    state->flat.get(), operations));
  state->ids.resize(static_cast<size_t>(context));
  state->logits.resize(static_cast<size_t>(model.vocab() * BytesPerNumber(types.data)));
  MT_RETURN_IF_ERROR(state->Declare());
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
  const std::span<const int32_t> window =
      tokens.subspan(static_cast<size_t>(s.WindowStart(static_cast<int64_t>(tokens.size()))));
  const size_t known = window.size() - 1;
  const bool goes_on = known > 0 && s.cached.size() >= known &&
                       std::equal(window.begin(), window.end() - 1, s.cached.begin());
  s.cached.clear();  // until the pass has succeeded
  MT_RETURN_IF_ERROR(goes_on ? s.Run(static_cast<int64_t>(known), window.last(1))
                             : s.Run(0, window));
  const Backend& backend = s.operations->backend();
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
  s.cached.assign(window.begin(), window.end());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> Generator::Generate(std::span<const int32_t> prompt,
                                                         const GenerateOptions& options) {
  MT_RETURN_IF_ERROR(CheckSampling(options.sampling));
  if (options.max_tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens = ", options.max_tokens, "; it must not be negative"));
  }
  std::vector<int32_t> tokens(prompt.begin(), prompt.end()), added;
  std::vector<double> logits(static_cast<size_t>(state_->vocab));
  for (int64_t i = 0; i < options.max_tokens; ++i) {
    MT_RETURN_IF_ERROR(Logits(tokens, logits));
    const mt_philox_block random = mt_philox(options.seed, static_cast<uint64_t>(i), 0);
    const int32_t token = SampleToken(logits, options.sampling,
                                      mt_uniform_from_words(random.word[0], random.word[1]));
    if (std::count(options.stop_tokens.begin(), options.stop_tokens.end(), token) > 0) break;
    tokens.push_back(token);
    added.push_back(token);
  }
  return added;
}

}  // namespace mt
