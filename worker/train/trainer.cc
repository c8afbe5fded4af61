#include "worker/train/trainer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "common/spec/batch_schedule.h"
#include "common/spec/data_traits.h"
#include "common/spec/model_traits.h"
#include "worker/comm/device_wait.h"
#include "worker/train/flat_state.h"
#include "worker/train/lr_schedule.h"
#include "worker/train/pass_graphs.h"
#include "worker/train/schedule.h"
#include "worker/train/stage.h"
#include "worker/train/step_samples.h"
#include "worker/train/token_staging.h"

namespace mt {
namespace {

// Changes of phase in a step besides those of its schedule.
constexpr int64_t kOtherPhases = 4;

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

  absl::Status Build();
  absl::Status CheckGroups() const;

  absl::Status BuildStage(const RankShape& shape);

  // One action of the pipeline schedule.
  absl::Status Execute(const Action& action);
  absl::Status Forward(int64_t slot, bool first_micro_batch);
  absl::Status Backward(int64_t slot, bool first_micro_batch, bool last_micro_batch);
  // Of what `samples` has begun.
  absl::Status SendTokens(int64_t micro_batch);
  // One action of an evaluation.
  absl::Status ExecuteForwardOnly(const Action& action);
  int64_t MicroBatchesOf(int64_t global_batch) const;
  LossOptions MainLoss() const;
  LossOptions MtpLoss() const;
  // The step from `position` on has as many samples as the ramp-up says.
  void SetBatch(const TrainingPosition& position);
  // Samples and sums of the step.
  absl::Status BeginStep(const TrainingPosition& position, StepVotes votes);
  // Forward and backward passes of the whole schedule.
  absl::Status RunSchedule(int64_t step);
  // Sums of gradients over groups, then loss, norm and votes of the whole job.
  absl::Status SumGradients();
  // What is enqueued afterwards waits for the event of BeforeNextUpdate.
  absl::Status WaitBeforeUpdate();
  // Clips and updates, without the host knowing by how much.
  absl::Status Update(double lr, int64_t step);

  const TrainerOptions options;
  const MeshCoordinates at;
  Communicator *tensor = nullptr, *data = nullptr, *pipeline = nullptr, *embedding = nullptr,
               *model = nullptr;
  std::array<Communicator*, 5> groups = {};  // all of them, null where alone
  std::unique_ptr<FlatState> flat;
  std::unique_ptr<ExpertBalance> balance;  // null without experts
  std::unique_ptr<Stage> stage;
  std::unique_ptr<StepScalars> scalars;
  std::unique_ptr<StepSamples> samples;
  std::unique_ptr<TokenStaging> staging;
  std::unique_ptr<PhaseClock> clock;
  std::unique_ptr<PassGraphs> graphs;
  std::optional<Event> step_done;
  std::vector<Action> schedule;
  NumberTypes types;
  mt_event before_update = nullptr, reached_update = nullptr;  // of BeforeNextUpdate
  bool first_stage = false, last_stage = false;
  bool table_on_two_stages = false;  // the embedding, whose gradient is then the sum of both
  bool has_tokens = false;           // anything of them goes to this stage
  // On the last stage: labels of the training data may be masked, be it for multi-token prediction alone.
  bool masked = false;
  // Of the step: less than training's while the batch ramps up.
  int64_t global_batch = 0, micro_batches = 0;
};

absl::Status Trainer::State::CheckGroups() const {
  const Mesh& mesh = options.mesh;
  MT_RETURN_IF_ERROR(CheckGroup("tensor", options.groups.tensor, mesh.tensor(), at.tensor));
  MT_RETURN_IF_ERROR(CheckGroup("data", options.groups.data, mesh.data(), at.data));
  MT_RETURN_IF_ERROR(CheckGroup("pipeline", options.groups.pipeline, mesh.pipeline(), at.pipeline));
  MT_RETURN_IF_ERROR(CheckGroup("model", options.groups.model, mesh.tensor() * mesh.pipeline(),
                                at.tensor + mesh.tensor() * at.pipeline));
  if (table_on_two_stages)
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
  table_on_two_stages = (spec.model().tie_embeddings() || MtpLayers(spec.model()) > 0) &&
                        mesh.pipeline() > 1 && (first_stage || last_stage);
  MT_RETURN_IF_ERROR(CheckGroups());
  tensor = OrNull(options.groups.tensor);
  data = OrNull(options.groups.data);
  pipeline = OrNull(options.groups.pipeline);
  embedding = OrNull(options.groups.embedding);
  model = OrNull(options.groups.model);

  const RankShape shape = ShapeOf(spec, mesh, options.rank);
  const Backend& backend = options.operations->backend();
  global_batch = spec.training().global_batch();
  micro_batches = MicroBatchesOf(global_batch);
  masked =
      last_stage &&
      ((options.samples == nullptr ? MasksLabels(spec.data()) : options.samples->masks_loss()) ||
       (MtpLayers(spec.model()) > 0 && spec.data().document_mask()));
  MT_ASSIGN_OR_RETURN(flat, FlatState::Create(LayoutOf(spec.model(), mesh, options.rank),
                                              {.types = types,
                                               .trained = options.trained,
                                               .data_ranks = mesh.data(),
                                               .data_rank = at.data,
                                               .zero = spec.parallel().zero() == 1},
                                              options.operations));
  MT_ASSIGN_OR_RETURN(balance, ExpertBalance::Create(spec, mesh, options.rank,
                                                     {.types = types, .trained = options.trained},
                                                     options.operations));
  MT_ASSIGN_OR_RETURN(scalars, StepScalars::Create(types, shape.rows, options.operations));
  MT_RETURN_IF_ERROR(BuildStage(shape));
  groups = {tensor, data, pipeline, embedding, model};
  const TokenRows kinds = stage->tokens(0);
  has_tokens = kinds.Any();
  samples = std::make_unique<StepSamples>(shape, spec.model().vocab(), mesh.data(), at.data, kinds,
                                          masked);
  MT_ASSIGN_OR_RETURN(staging, TokenStaging::Create(backend, shape.rows, kinds, groups));
  MT_ASSIGN_OR_RETURN(step_done, Event::Create(backend));
  schedule = OneForwardOneBackward(mesh.pipeline(), at.pipeline, micro_batches);
  MT_ASSIGN_OR_RETURN(
      clock, PhaseClock::Create(backend, static_cast<int64_t>(schedule.size()) + kOtherPhases));
  // Collectives of the tensor group are within a pass, and are not recorded.
  const bool recorded = (backend.info().capabilities & MT_CAPABILITY_GRAPHS) != 0 &&
                        spec.runtime().graphs() != "off" && tensor == nullptr;
  graphs = std::make_unique<PassGraphs>(backend, recorded, 4 * shape.in_flight);
  return absl::OkStatus();
}

int64_t Trainer::State::MicroBatchesOf(int64_t batch) const {
  return batch / (options.spec.training().micro_batch() * options.mesh.data());
}

LossOptions Trainer::State::MainLoss() const {
  const auto tokens = static_cast<double>(global_batch * options.spec.data().sequence_length());
  return {.scale = masked ? 1.0 : 1.0 / tokens,
          .scale_pointer = masked ? scalars->loss_scale() : nullptr,
          .z_loss = options.spec.training().z_loss()};
}

LossOptions Trainer::State::MtpLoss() const {
  const int64_t targets = global_batch * (options.spec.data().sequence_length() - 1);
  const double coefficient = options.spec.model().mtp().loss_coefficient();
  return {.scale = masked ? coefficient
                          : coefficient / static_cast<double>(std::max<int64_t>(targets, 1)),
          .scale_pointer = masked ? scalars->mtp_loss_scale() : nullptr,
          .adds = true};
}

absl::Status Trainer::State::BuildStage(const RankShape& shape) {
  const v1::JobSpec& spec = options.spec;
  const Stage::Options stage_options = {
      .first = first_stage,
      .last = last_stage,
      .recompute = spec.training().recompute() == v1::TrainingSpec::RECOMPUTE_BLOCK,
      .tied = spec.model().tie_embeddings(),
      .loss = MainLoss(),
      .mtp_loss = MtpLoss(),
      .masked = masked,
      .reset_positions = spec.data().reset_positions(),
      .balance = balance.get()};
  MT_ASSIGN_OR_RETURN(
      stage, Stage::Create(ModelContext(shape, types, spec.model(), options.operations, tensor),
                           PlanActivations(spec, options.mesh, options.rank), stage_options,
                           flat.get(), options.operations));
  // Declare every shape a step will use; a first micro-batch's products overwrite gradients, the
  // others' add to them.
  stage->context().planning = true;
  MT_RETURN_IF_ERROR(stage->ForwardOnly(0));
  for (const bool first : {true, false}) {
    if (!options.trained) break;
    stage->context().first_micro_batch = first;
    MT_RETURN_IF_ERROR(stage->Forward(0));
    MT_RETURN_IF_ERROR(stage->Backward(0));
  }
  MT_RETURN_IF_ERROR(stage->WeightsChanged());
  stage->context().planning = false;
  return absl::OkStatus();
}

absl::Status Trainer::State::SendTokens(int64_t micro_batch) {
  MT_ASSIGN_OR_RETURN(const TokenRows rows, staging->Next());
  MT_RETURN_IF_ERROR(samples->Write(micro_batch, rows));
  return staging->Send(stage->tokens(micro_batch % stage->context().shape.in_flight));
}

// What a recorded pass depends on besides the slot is whether it is the step's first micro-batch.
absl::Status Trainer::State::Forward(int64_t slot, bool first_micro_batch) {
  return graphs->Run(4 * slot + (first_micro_batch ? 1 : 0), [&]() -> absl::Status {
    MT_RETURN_IF_ERROR(stage->Forward(slot));
    if (!last_stage || at.tensor != 0) return absl::OkStatus();
    MT_RETURN_IF_ERROR(scalars->AddLoss(stage->row_loss()));
    if (stage->mtp_row_loss() == nullptr) return absl::OkStatus();
    return scalars->AddMtpLoss(stage->mtp_row_loss());
  });
}

// In the step's last backward pass each bucket of gradients is summed over the data group as soon as it is complete, while the
// pass goes on; SumGradients ends what begins here. Collectives are not recorded, so this pass is not.
absl::Status Trainer::State::Backward(int64_t slot, bool first_micro_batch, bool last_micro_batch) {
  if (last_micro_batch && data != nullptr) {
    MT_RETURN_IF_ERROR(data->BeginOverlap());
    return stage->Backward(slot,
                           [&](int64_t block) { return flat->SumGradientsOverData(data, block); });
  }
  return graphs->Run(4 * slot + (first_micro_batch ? 3 : 2), [&] { return stage->Backward(slot); });
}

absl::Status Trainer::State::Execute(const Action& action) {
  const int64_t slot = action.micro_batch % stage->context().shape.in_flight;
  const bool first = action.micro_batch == 0;
  stage->context().first_micro_batch = first;
  switch (action.kind) {
    case ActionKind::kReceiveActivation:
      MT_RETURN_IF_ERROR(clock->Enter(&PhaseSeconds::forward));
      return pipeline->Receive(stage->input(slot), stage->stream_bytes(), at.pipeline - 1);
    case ActionKind::kForward:
      if (has_tokens) {
        MT_RETURN_IF_ERROR(clock->Enter(&PhaseSeconds::data));
        MT_RETURN_IF_ERROR(SendTokens(action.micro_batch));
      }
      MT_RETURN_IF_ERROR(clock->Enter(&PhaseSeconds::forward));
      return Forward(slot, first);
    case ActionKind::kSendActivation:
      MT_RETURN_IF_ERROR(clock->Enter(&PhaseSeconds::forward));
      return pipeline->Send(stage->output(), stage->stream_bytes(), at.pipeline + 1);
    case ActionKind::kReceiveGradient:
      MT_RETURN_IF_ERROR(clock->Enter(&PhaseSeconds::backward));
      return pipeline->Receive(stage->gradient(), stage->stream_bytes(), at.pipeline + 1);
    case ActionKind::kBackward:
      MT_RETURN_IF_ERROR(clock->Enter(&PhaseSeconds::backward));
      return Backward(slot, first, action.micro_batch + 1 == micro_batches);
    case ActionKind::kSendGradient:
      MT_RETURN_IF_ERROR(clock->Enter(&PhaseSeconds::backward));
      return pipeline->Send(stage->gradient(), stage->stream_bytes(), at.pipeline - 1);
  }
  return absl::OkStatus();
}

void Trainer::State::SetBatch(const TrainingPosition& position) {
  const v1::TrainingSpec& training = options.spec.training();
  if (!HasBatchRampup(training)) return;
  const int64_t batch = GlobalBatchAt(training, position.consumed_samples);
  if (balance != nullptr) {
    const int64_t sequence = options.spec.data().sequence_length(),
                  before = GlobalBatchBefore(training, position.consumed_samples);
    balance->SetTokens(batch * sequence, std::max<int64_t>(before, 1) * sequence);
  }
  if (batch == global_batch) return;
  global_batch = batch;
  micro_batches = MicroBatchesOf(batch);
  schedule = OneForwardOneBackward(options.mesh.pipeline(), at.pipeline, micro_batches);
  stage->SetLoss(MainLoss(), MtpLoss());
  graphs->Forget();
}

absl::Status Trainer::State::BeginStep(const TrainingPosition& position, StepVotes votes) {
  SetBatch(position);
  LabelCounts labels;
  if (has_tokens) {
    if (masked) MT_RETURN_IF_ERROR(clock->Enter(&PhaseSeconds::data));
    MT_RETURN_IF_ERROR(samples->Begin(options.samples, position.consumed_samples, micro_batches));
    labels = samples->labels();
  }
  const bool counts = last_stage && at.tensor == 0;
  const LabelCounts own = counts ? labels : LabelCounts();
  // The first backward pass needs the number of the whole global batch.
  if (masked && data != nullptr) {
    std::array<double, 2> sums = {labels.main, labels.mtp};
    MT_RETURN_IF_ERROR(data->AllReduceHost(sums.data(), sums.size(), MT_F64, ReduceOp::kSum));
    labels = {.main = sums[0], .mtp = sums[1]};
  }
  return scalars->Begin(votes, own, labels);
}

absl::Status Trainer::State::RunSchedule(int64_t step) {
  MT_RETURN_IF_ERROR(clock->Enter(&PhaseSeconds::backward));
  // A tied table on the last stage is overwritten by the head, which runs before whatever looks embeddings up. Where there is no
  // table, nothing is cleared.
  const bool head_writes_table = last_stage && options.spec.model().tie_embeddings();
  MT_RETURN_IF_ERROR(flat->ClearAddedGradients(/*table=*/!head_writes_table));
  if (balance != nullptr) MT_RETURN_IF_ERROR(balance->Begin());
  for (const Action& action : schedule) {
    const absl::Status status = Execute(action);
    if (!status.ok()) {
      return Annotate(status, absl::StrCat("step ", step, ", ", NameOf(action.kind),
                                           " of micro-batch ", action.micro_batch));
    }
  }
  return absl::OkStatus();
}

absl::Status Trainer::State::ExecuteForwardOnly(const Action& action) {
  const int64_t slot = action.micro_batch % stage->context().shape.in_flight;
  switch (action.kind) {
    case ActionKind::kReceiveActivation:
      return pipeline->Receive(stage->input(slot), stage->stream_bytes(), at.pipeline - 1);
    case ActionKind::kSendActivation:
      return pipeline->Send(stage->output(), stage->stream_bytes(), at.pipeline + 1);
    default:
      if (has_tokens) MT_RETURN_IF_ERROR(SendTokens(action.micro_batch));
      MT_RETURN_IF_ERROR(stage->ForwardOnly(slot));
      return last_stage && at.tensor == 0 ? scalars->AddLoss(stage->row_loss()) : absl::OkStatus();
  }
}

absl::Status Trainer::State::SumGradients() {
  const ParameterLayout& layout = flat->layout();
  // Under sequence parallelism each tensor rank saw its own rows only: what is whole on all of them
  // sums over them.
  if (stage->context().sequence_parallel()) {
    MT_RETURN_IF_ERROR(tensor->AllReduce(flat->GradientAt(layout.replicated.first),
                                         layout.replicated.count, types.gradient, ReduceOp::kSum));
  } else if (tensor != nullptr) {
    for (const LocalParameter& p : layout.parameters) {
      if (!p.logical.gradient_by_heads) continue;
      MT_RETURN_IF_ERROR(tensor->AllReduce(flat->GradientAt(p.flat_offset), p.Elements(),
                                           types.gradient, ReduceOp::kSum));
    }
  }
  if (table_on_two_stages) {
    const LocalParameter* table = layout.Find(kEmbeddingName);
    MT_RETURN_IF_ERROR(embedding->AllReduce(flat->GradientAt(table->flat_offset), table->Elements(),
                                            types.gradient, ReduceOp::kSum));
  }
  MT_RETURN_IF_ERROR(flat->SumGradientsOverData(data, FlatBucket::kAtTheEnd));
  if (data != nullptr) MT_RETURN_IF_ERROR(data->EndOverlap());
  // Every number has exactly one owner, so that plain sums over the data and the model group are
  // right. Without shards all data ranks have the same gradients, and the first one counts them.
  if (options.spec.parallel().zero() == 1 || at.data == 0) {
    MT_RETURN_IF_ERROR(
        flat->SquaredGradientSum(/*count_replicated=*/at.tensor == 0, scalars->squared_norm()));
  }
  if (balance != nullptr) MT_RETURN_IF_ERROR(balance->Sum(data, model));
  return scalars->Sum(data, model);
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

absl::Status Trainer::State::Update(double lr, int64_t step) {
  const v1::TrainingSpec& training = options.spec.training();
  MT_RETURN_IF_ERROR(scalars->MakeClipFactor(training.clip_grad_norm()));
  MT_RETURN_IF_ERROR(WaitBeforeUpdate());
  if (balance != nullptr) MT_RETURN_IF_ERROR(balance->Update(scalars->clip_factor()));
  return flat->Update(training.optimizer(), lr, step, scalars->clip_factor());
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
  MT_RETURN_IF_ERROR(state_->stage->WeightsChanged());
  if (state_->balance != nullptr) MT_RETURN_IF_ERROR(state_->balance->Initialise());
  position_ = {};
  return absl::OkStatus();
}

absl::StatusOr<StepResult> Trainer::Step(StepVotes votes) {
  State& s = *state_;
  const v1::TrainingSpec& training = s.options.spec.training();
  const Backend& backend = s.options.operations->backend();
  StepResult result{.step = position_.step + 1, .lr = LearningRateAt(training, position_.step)};
  auto step = [&](const absl::Status& status, absl::string_view doing) {
    return status.ok() ? status : Annotate(status, absl::StrCat("step ", result.step, ", ", doing));
  };
  s.clock->StartStep();
  MT_RETURN_IF_ERROR(step(s.BeginStep(position_, votes), "reading samples"));
  result.tokens = s.global_batch * s.options.spec.data().sequence_length();
  MT_RETURN_IF_ERROR(s.RunSchedule(result.step));
  MT_RETURN_IF_ERROR(s.clock->Enter(&PhaseSeconds::grad_sync));
  MT_RETURN_IF_ERROR(step(s.SumGradients(), "summing gradients"));
  MT_RETURN_IF_ERROR(s.clock->Enter(&PhaseSeconds::optimizer));
  MT_RETURN_IF_ERROR(step(s.Update(result.lr, result.step), "updating weights"));
  MT_RETURN_IF_ERROR(s.clock->Enter(&PhaseSeconds::grad_sync));
  MT_RETURN_IF_ERROR(step(s.flat->GatherWeights(s.data), "gathering weights"));
  MT_RETURN_IF_ERROR(step(s.stage->WeightsChanged(), "quantising weights"));
  MT_RETURN_IF_ERROR(s.scalars->End());
  if (s.balance != nullptr) MT_RETURN_IF_ERROR(s.balance->End());
  MT_RETURN_IF_ERROR(s.clock->EndStep());
  MT_RETURN_IF_ERROR(s.step_done->Record());
  MT_RETURN_IF_ERROR(step(WaitForEvent(backend.abi(), s.step_done->get(), s.groups), "at its end"));
  const StepScalars::Values values = s.scalars->Read();
  result.grad_norm = std::sqrt(values.squared_norm);
  result.loss = StepScalars::Values::Mean(values.loss_sum, values.labels.main);
  if (s.options.spec.data().sequence_length() > 1 && MtpLayers(s.options.spec.model()) > 0) {
    const double coefficient = s.options.spec.model().mtp().loss_coefficient();
    result.auxiliary_losses["mtp"] =
        StepScalars::Values::Mean(coefficient * values.mtp_loss_sum, values.labels.mtp);
  }
  result.votes = values.votes;
  MT_ASSIGN_OR_RETURN(result.seconds, s.clock->Read());
  if (!std::isfinite(result.loss) || !std::isfinite(result.grad_norm)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "step ", result.step, ": loss ", result.loss, ", gradient norm ", result.grad_norm,
        "; the weights are as before the step. Lower training.optimizer.lr, lengthen "
        "training.schedule.warmup_steps or set training.clip_grad_norm"));
  }
  if (s.balance != nullptr) {
    result.auxiliary_losses.merge(s.balance->Losses());
    result.expert_load = s.balance->Load();
    MT_RETURN_IF_ERROR(step(s.balance->Keep(), "keeping the loads of experts"));
  }
  position_.step = result.step;
  position_.consumed_samples += s.global_batch;
  position_.loss = result.loss;
  return result;
}

absl::StatusOr<HeldOutLoss> Trainer::Evaluate(BatchSource* samples, int64_t first_sample) {
  State& s = *state_;
  const int64_t micro_batches = s.MicroBatchesOf(s.options.spec.training().global_batch());
  LabelCounts own;
  if (s.has_tokens) {
    MT_RETURN_IF_ERROR(
        Annotate(s.samples->Begin(samples, first_sample, micro_batches),
                 absl::StrCat("evaluation after step ", position_.step, ", reading samples")));
    if (s.last_stage && s.at.tensor == 0) own = s.samples->labels();
  }
  MT_RETURN_IF_ERROR(s.scalars->Begin({}, own));
  for (const Action& action :
       ForwardOnly(s.options.mesh.pipeline(), s.at.pipeline, micro_batches)) {
    MT_RETURN_IF_ERROR(
        Annotate(s.ExecuteForwardOnly(action),
                 absl::StrCat("evaluation after step ", position_.step, ", ", NameOf(action.kind),
                              " of micro-batch ", action.micro_batch)));
  }
  MT_RETURN_IF_ERROR(s.scalars->Sum(s.data, s.model));
  MT_RETURN_IF_ERROR(s.scalars->End());
  MT_RETURN_IF_ERROR(s.step_done->Record());
  MT_RETURN_IF_ERROR(
      Annotate(WaitForEvent(s.options.operations->backend().abi(), s.step_done->get(), s.groups),
               absl::StrCat("evaluation after step ", position_.step, ", at its end")));
  const StepScalars::Values values = s.scalars->Read();
  return HeldOutLoss{.sum = values.loss_sum, .labels = values.labels.main};
}

absl::Status Trainer::BeforeNextUpdate(mt_event event, mt_event reached) {
  state_->before_update = event;
  state_->reached_update = reached;
  return absl::OkStatus();
}

namespace {

std::vector<TensorBox> Joined(std::vector<TensorBox> boxes, std::vector<TensorBox> more) {
  boxes.insert(boxes.end(), std::make_move_iterator(more.begin()),
               std::make_move_iterator(more.end()));
  return boxes;
}

}  // namespace

std::vector<TensorBox> Trainer::CheckpointState() {
  std::vector<TensorBox> boxes = state_->flat->CheckpointBoxes();
  return state_->balance == nullptr ? boxes : Joined(boxes, state_->balance->CheckpointBoxes());
}
std::vector<TensorBox> Trainer::LoadTargets() {
  std::vector<TensorBox> boxes = state_->flat->LoadBoxes();
  return state_->balance == nullptr ? boxes : Joined(boxes, state_->balance->LoadBoxes());
}
std::vector<TensorBox> Trainer::Gradients() { return state_->flat->GradientBoxes(); }

absl::Status Trainer::FinishLoad(const TrainingPosition& position) {
  MT_RETURN_IF_ERROR(state_->flat->FinishWeights(state_->data));
  MT_RETURN_IF_ERROR(state_->stage->WeightsChanged());
  position_ = position;
  return absl::OkStatus();
}

TrainerMemory Trainer::memory() const {
  return {.weights = state_->flat->weight_bytes() + state_->stage->weight_copy_bytes(),
          .gradients = state_->flat->gradient_bytes(),
          .optimizer = state_->flat->optimizer_bytes(),
          .activations = state_->stage->arena_bytes()};
}

}  // namespace mt
