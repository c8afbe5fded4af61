#include "worker/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "common/clock.h"
#include "worker/train/flat_state.h"
#include "worker/train/lr_schedule.h"
#include "worker/train/schedule.h"
#include "worker/train/stage.h"

namespace mt {
namespace {

// Adds the time between its construction and destruction to *seconds.
class PhaseTimer {
 public:
  explicit PhaseTimer(double* seconds) : seconds_(seconds), start_(Clock::Real()->Monotonic()) {}
  ~PhaseTimer() { *seconds_ += absl::ToDoubleSeconds(Clock::Real()->Monotonic() - start_); }

 private:
  double* const seconds_;
  const absl::Duration start_;
};

// Summed over all ranks: squared gradient norm, loss, votes for a checkpoint, votes to stop.
constexpr int64_t kScalars = 4;

const char* NameOf(ActionKind kind) {
  switch (kind) {
    case ActionKind::kReceiveActivation:
      return "receiving the activation";
    case ActionKind::kForward:
      return "forward";
    case ActionKind::kSendActivation:
      return "sending the activation";
    case ActionKind::kReceiveGradient:
      return "receiving the gradient";
    case ActionKind::kBackward:
      return "backward";
    case ActionKind::kSendGradient:
      return "sending the gradient";
  }
  return "";
}

// An empty group is one rank alone.
Communicator* OrNull(Communicator* group) {
  return group == nullptr || group->size() == 1 ? nullptr : group;
}

absl::Status CheckGroup(const char* name, const Communicator* group, int size, int rank) {
  const int actual_size = group == nullptr ? 1 : group->size(),
            actual_rank = group == nullptr ? 0 : group->rank();
  if (actual_size == size && actual_rank == rank) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the ", name, " group has this rank as member ",
                                                 actual_rank, " of ", actual_size,
                                                 "; the mesh wants ", rank, " of ", size));
}

}  // namespace

struct Trainer::State {
  explicit State(TrainerOptions options)
      : options(std::move(options)), at(this->options.mesh.CoordinatesOf(this->options.rank)) {}
  ~State() {
    if (scalars != nullptr) options.operations->Free(scalars);
  }

  absl::Status Build();
  absl::Status CheckGroups() const;

  // One action of the pipeline schedule, at `position`.
  absl::Status Execute(const Action& action, const TrainingPosition& position,
                       PhaseSeconds* seconds);
  absl::Status FetchTokens(int64_t micro_batch, const TrainingPosition& position);
  absl::Status AddLoss();
  // What is enqueued afterwards waits for the event of BeforeNextUpdate.
  absl::Status WaitBeforeUpdate();
  // Sums of gradients over groups, then loss and norm of the whole job.
  absl::Status SumGradients(StepVotes votes, StepResult* result);

  const TrainerOptions options;
  const MeshCoordinates at;
  Communicator *tensor = nullptr, *data = nullptr, *pipeline = nullptr, *embedding = nullptr,
               *model = nullptr;
  std::unique_ptr<FlatState> flat;
  std::unique_ptr<Stage> stage;
  std::vector<Action> schedule;
  NumberTypes types;
  mt_event before_update = nullptr, reached_update = nullptr;  // of BeforeNextUpdate
  bool first_stage = false, last_stage = false, tied_across_stages = false;
  int64_t total_tokens = 0;   // of a global batch
  double loss_sum = 0;        // of this rank's rows in this step
  double* scalars = nullptr;  // device: kScalars numbers that are summed over the job

  // Host staging, as large as one micro-batch.
  std::vector<int64_t> sample_ids;
  std::vector<int32_t> fetched, input_ids, targets;
  std::vector<char> row_loss;
};

absl::Status Trainer::State::CheckGroups() const {
  const Mesh& mesh = options.mesh;
  MT_RETURN_IF_ERROR(CheckGroup("tensor", options.groups.tensor, mesh.tensor(), at.tensor));
  MT_RETURN_IF_ERROR(CheckGroup("data", options.groups.data, mesh.data(), at.data));
  MT_RETURN_IF_ERROR(CheckGroup("pipeline", options.groups.pipeline, mesh.pipeline(), at.pipeline));
  MT_RETURN_IF_ERROR(CheckGroup("model", options.groups.model, mesh.tensor() * mesh.pipeline(),
                                at.tensor + mesh.tensor() * at.pipeline));
  if (tied_across_stages)
    return CheckGroup("embedding", options.groups.embedding, 2, first_stage ? 0 : 1);
  return absl::OkStatus();
}

absl::Status Trainer::State::Build() {
  const v1::JobSpec& spec = options.spec;
  const Mesh& mesh = options.mesh;
  MT_RETURN_IF_ERROR(CheckSizes(spec, mesh));
  types = TypesOf(spec.training().precision());
  first_stage = mesh.IsFirstStage(options.rank);
  last_stage = mesh.IsLastStage(options.rank);
  tied_across_stages =
      spec.model().tie_embeddings() && mesh.pipeline() > 1 && (first_stage || last_stage);
  MT_RETURN_IF_ERROR(CheckGroups());
  tensor = OrNull(options.groups.tensor);
  data = OrNull(options.groups.data);
  pipeline = OrNull(options.groups.pipeline);
  embedding = OrNull(options.groups.embedding);
  model = OrNull(options.groups.model);

  const RankShape shape = ShapeOf(spec, mesh, options.rank);
  total_tokens = spec.training().global_batch() * shape.sequence;
  MT_ASSIGN_OR_RETURN(flat, FlatState::Create(LayoutOf(spec.model(), mesh, options.rank),
                                              {.types = types,
                                               .data_ranks = mesh.data(),
                                               .data_rank = at.data,
                                               .zero = spec.parallel().zero() == 1},
                                              options.operations));
  const Stage::Options stage_options = {
      .first = first_stage,
      .last = last_stage,
      .recompute = spec.training().recompute() == v1::TrainingSpec::RECOMPUTE_BLOCK,
      .tied = spec.model().tie_embeddings(),
      .rope_theta = spec.model().rope_theta(),
      .loss = {.scale = 1.0 / static_cast<double>(total_tokens),
               .z_loss = spec.training().z_loss()}};
  MT_ASSIGN_OR_RETURN(stage, Stage::Create(ModelContext(shape, types, spec.model().norm_eps(),
                                                        options.operations, tensor),
                                           PlanActivations(spec, mesh, options.rank), stage_options,
                                           flat.get(), options.operations));
  // Declare every shape a step will use.
  stage->context().planning = true;
  MT_RETURN_IF_ERROR(stage->Forward(0));
  MT_RETURN_IF_ERROR(stage->Backward(0));
  stage->context().planning = false;

  MT_ASSIGN_OR_RETURN(void* scalar_memory, options.operations->Allocate(kScalars * sizeof(double)));
  scalars = static_cast<double*>(scalar_memory);
  schedule = OneForwardOneBackward(mesh.pipeline(), at.pipeline, shape.micro_batches);
  sample_ids.resize(static_cast<size_t>(shape.batch));
  fetched.resize(static_cast<size_t>(shape.batch * (shape.sequence + 1)));
  input_ids.resize(static_cast<size_t>(shape.rows));
  targets.resize(static_cast<size_t>(shape.rows));
  row_loss.resize(static_cast<size_t>(shape.rows * shape.statistic_bytes));
  return absl::OkStatus();
}

// Micro-batch m of data rank r is samples [m B D + r B, + B) of the step's global batch (D data
// ranks): Megatron's order.
absl::Status Trainer::State::FetchTokens(int64_t micro_batch, const TrainingPosition& position) {
  const RankShape& s = stage->context().shape;
  const int64_t first =
      position.consumed_samples + (micro_batch * options.mesh.data() + at.data) * s.batch;
  for (int64_t b = 0; b < s.batch; ++b) sample_ids[static_cast<size_t>(b)] = first + b;
  MT_RETURN_IF_ERROR(options.samples->Fetch(sample_ids, fetched));
  const int64_t vocab = options.spec.model().vocab();
  for (int64_t b = 0; b < s.batch; ++b) {
    const int32_t* sample = fetched.data() + b * (s.sequence + 1);
    for (int64_t t = 0; t <= s.sequence; ++t) {
      if (sample[t] < 0 || sample[t] >= vocab) {
        return absl::OutOfRangeError(absl::StrCat("sample ", first + b, " has token id ", sample[t],
                                                  " at position ", t, ", but model.vocab = ", vocab,
                                                  "; set model.vocab to the tokenizer's size"));
      }
      if (t < s.sequence) input_ids[static_cast<size_t>(t * s.batch + b)] = sample[t];
      if (t > 0) targets[static_cast<size_t>((t - 1) * s.batch + b)] = sample[t];
    }
  }
  const int64_t slot = micro_batch % s.in_flight;
  const Backend& backend = options.operations->backend();
  const size_t bytes = input_ids.size() * sizeof(int32_t);
  if (first_stage) {
    MT_RETURN_IF_ERROR(backend.ToStatus(
        backend.abi().copy_to_device(stage->input_ids(slot), input_ids.data(), bytes, nullptr),
        "copying token ids"));
  }
  if (last_stage) {
    MT_RETURN_IF_ERROR(backend.ToStatus(
        backend.abi().copy_to_device(stage->targets(slot), targets.data(), bytes, nullptr),
        "copying targets"));
  }
  return absl::OkStatus();
}

absl::Status Trainer::State::AddLoss() {
  const Backend& backend = options.operations->backend();
  MT_RETURN_IF_ERROR(backend.ToStatus(
      backend.abi().copy_to_host(row_loss.data(), stage->row_loss(), row_loss.size(), nullptr),
      "copying the loss"));
  MT_RETURN_IF_ERROR(
      backend.ToStatus(backend.abi().stream_synchronize(nullptr), "waiting for the loss"));
  const int64_t rows = stage->context().shape.rows;
  auto add = [&](const auto* values) {
    for (int64_t i = 0; i < rows; ++i) loss_sum += static_cast<double>(values[i]);
  };
  if (types.statistic == MT_F64) {
    add(reinterpret_cast<const double*>(row_loss.data()));
  } else {
    add(reinterpret_cast<const float*>(row_loss.data()));
  }
  return absl::OkStatus();
}

absl::Status Trainer::State::Execute(const Action& action, const TrainingPosition& position,
                                     PhaseSeconds* seconds) {
  const int64_t slot = action.micro_batch % stage->context().shape.in_flight;
  stage->context().first_micro_batch = action.micro_batch == 0;
  switch (action.kind) {
    case ActionKind::kReceiveActivation: {
      PhaseTimer timer(&seconds->forward);
      return pipeline->Receive(stage->input(slot), stage->stream_bytes(), at.pipeline - 1);
    }
    case ActionKind::kForward: {
      if (first_stage || last_stage) {
        PhaseTimer timer(&seconds->data);
        MT_RETURN_IF_ERROR(FetchTokens(action.micro_batch, position));
      }
      PhaseTimer timer(&seconds->forward);
      MT_RETURN_IF_ERROR(stage->Forward(slot));
      return last_stage ? AddLoss() : absl::OkStatus();
    }
    case ActionKind::kSendActivation: {
      PhaseTimer timer(&seconds->forward);
      return pipeline->Send(stage->output(), stage->stream_bytes(), at.pipeline + 1);
    }
    case ActionKind::kReceiveGradient: {
      PhaseTimer timer(&seconds->backward);
      return pipeline->Receive(stage->gradient(), stage->stream_bytes(), at.pipeline + 1);
    }
    case ActionKind::kBackward: {
      PhaseTimer timer(&seconds->backward);
      return stage->Backward(slot);
    }
    case ActionKind::kSendGradient: {
      PhaseTimer timer(&seconds->backward);
      return pipeline->Send(stage->gradient(), stage->stream_bytes(), at.pipeline - 1);
    }
  }
  return absl::OkStatus();
}

absl::Status Trainer::State::SumGradients(StepVotes votes, StepResult* result) {
  const ParameterLayout& layout = flat->layout();
  // Under sequence parallelism each tensor rank saw its own rows only: norm weights, whole on all
  // of them, sum over them.
  if (stage->context().sequence_parallel()) {
    MT_RETURN_IF_ERROR(tensor->AllReduce(flat->GradientAt(layout.matrices),
                                         layout.end - layout.matrices, types.gradient,
                                         ReduceOp::kSum));
  }
  if (tied_across_stages) {
    const LocalParameter* table = layout.Find(kEmbeddingName);
    MT_RETURN_IF_ERROR(embedding->AllReduce(flat->GradientAt(table->flat_offset), table->Elements(),
                                            types.gradient, ReduceOp::kSum));
  }
  MT_RETURN_IF_ERROR(flat->SumGradientsOverData(data));

  // Every number below has exactly one owner, so that plain sums over the data and the model group
  // are right.
  MT_RETURN_IF_ERROR(flat->SquaredGradientSum(/*count_norms=*/at.tensor == 0, &scalars[0]));
  const Backend& backend = options.operations->backend();
  double host[kScalars];
  auto to_host = [&]() -> absl::Status {
    MT_RETURN_IF_ERROR(
        backend.ToStatus(backend.abi().copy_to_host(host, scalars, sizeof(host), nullptr),
                         "copying the gradient norm"));
    return backend.ToStatus(backend.abi().stream_synchronize(nullptr),
                            "waiting for the gradient norm");
  };
  MT_RETURN_IF_ERROR(to_host());
  const bool sharded = options.spec.parallel().zero() == 1;
  if (!sharded && at.data != 0) host[0] = 0;
  host[1] = last_stage && at.tensor == 0 ? loss_sum : 0;
  host[2] = votes.checkpoint ? 1 : 0;
  host[3] = votes.stop ? 1 : 0;
  MT_RETURN_IF_ERROR(backend.ToStatus(
      backend.abi().copy_to_device(scalars, host, sizeof(host), nullptr), "copying the loss"));
  if (data != nullptr)
    MT_RETURN_IF_ERROR(data->AllReduce(scalars, kScalars, MT_F64, ReduceOp::kSum));
  if (model != nullptr)
    MT_RETURN_IF_ERROR(model->AllReduce(scalars, kScalars, MT_F64, ReduceOp::kSum));
  MT_RETURN_IF_ERROR(to_host());
  result->grad_norm = std::sqrt(host[0]);
  result->loss = host[1] / static_cast<double>(total_tokens);
  result->votes = {.checkpoint = host[2] > 0, .stop = host[3] > 0};
  return absl::OkStatus();
}

absl::Status Trainer::State::WaitBeforeUpdate() {
  if (before_update == nullptr) return absl::OkStatus();
  const Backend& backend = options.operations->backend();
  const mt_event event = std::exchange(before_update, nullptr);
  if (const mt_event reached = std::exchange(reached_update, nullptr); reached != nullptr) {
    MT_RETURN_IF_ERROR(
        backend.ToStatus(backend.abi().event_record(reached, nullptr), "the update's event"));
  }
  return backend.ToStatus(backend.abi().event_wait(event, nullptr),
                          "waiting for whoever reads the state");
}

Trainer::Trainer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Trainer::~Trainer() = default;

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(TrainerOptions options) {
  auto state = std::make_unique<State>(std::move(options));
  MT_RETURN_IF_ERROR(state->Build());
  return std::unique_ptr<Trainer>(new Trainer(std::move(state)));
}

absl::Status Trainer::InitialiseWeights() {
  MT_RETURN_IF_ERROR(
      state_->flat->Initialise(static_cast<uint64_t>(state_->options.spec.training().seed())));
  MT_RETURN_IF_ERROR(state_->flat->FinishWeights(state_->data));
  position_ = {};
  return absl::OkStatus();
}

absl::StatusOr<StepResult> Trainer::Step(StepVotes votes) {
  State& s = *state_;
  const v1::TrainingSpec& training = s.options.spec.training();
  StepResult result{.step = position_.step + 1,
                    .lr = LearningRateAt(training, position_.step),
                    .tokens = s.total_tokens};
  PhaseSeconds& seconds = result.seconds;
  s.loss_sum = 0;
  {
    PhaseTimer timer(&seconds.backward);
    // A tied table on a stage that is first and last is overwritten by the head, which runs before the embedding's backward.
    const bool head_writes_table = s.last_stage && s.options.spec.model().tie_embeddings();
    MT_RETURN_IF_ERROR(s.flat->ClearAddedGradients(/*table=*/s.first_stage && !head_writes_table));
  }
  for (const Action& action : s.schedule) {
    const absl::Status status = s.Execute(action, position_, &seconds);
    if (!status.ok()) {
      return Annotate(status, absl::StrCat("step ", result.step, ", ", NameOf(action.kind),
                                           " of micro-batch ", action.micro_batch));
    }
  }
  {
    PhaseTimer timer(&seconds.grad_sync);
    const absl::Status status = s.SumGradients(votes, &result);
    if (!status.ok())
      return Annotate(status, absl::StrCat("step ", result.step, ", summing gradients"));
  }
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "step ", result.step, ": loss ", result.loss, ", gradient norm ", result.grad_norm,
        "; the weights are as before the step. Lower training.optimizer.lr, lengthen "
        "training.schedule.warmup_steps or set training.clip_grad_norm"));
  }
  {
    PhaseTimer timer(&seconds.optimizer);
    MT_RETURN_IF_ERROR(s.WaitBeforeUpdate());
    const double limit = training.clip_grad_norm();
    const double scale = limit > 0 ? std::min(1.0, limit / (result.grad_norm + 1e-6)) : 1.0;
    MT_RETURN_IF_ERROR(s.flat->Update(training.optimizer(), result.lr, result.step, scale));
  }
  {
    PhaseTimer timer(&seconds.grad_sync);
    const absl::Status status = s.flat->GatherWeights(s.data);
    if (!status.ok())
      return Annotate(status, absl::StrCat("step ", result.step, ", gathering weights"));
  }
  position_.step = result.step;
  position_.consumed_samples += training.global_batch();
  position_.loss = result.loss;
  return result;
}

absl::Status Trainer::BeforeNextUpdate(mt_event event, mt_event reached) {
  state_->before_update = event;
  state_->reached_update = reached;
  return absl::OkStatus();
}

std::vector<TensorBox> Trainer::CheckpointState() { return state_->flat->CheckpointBoxes(); }
std::vector<TensorBox> Trainer::LoadTargets() { return state_->flat->LoadBoxes(); }
std::vector<TensorBox> Trainer::Gradients() { return state_->flat->GradientBoxes(); }

absl::Status Trainer::FinishLoad(const TrainingPosition& position) {
  MT_RETURN_IF_ERROR(state_->flat->FinishWeights(state_->data));
  position_ = position;
  return absl::OkStatus();
}

TrainerMemory Trainer::memory() const {
  return {.weights = state_->flat->weight_bytes(),
          .gradients = state_->flat->gradient_bytes(),
          .optimizer = state_->flat->optimizer_bytes(),
          .activations = state_->stage->arena_bytes()};
}

}  // namespace mt
