// One rank's part of training: the weights, gradients and optimizer state it holds, and the step
// that advances them.
//
// What is computed does not depend on the layout: initial weights are counter-based, the batch of a
// step is the samples from position().consumed_samples on, as many as common/spec/batch_schedule.h says,
// the loss is scaled by 1 / (labels of the global batch that have a loss), and every sum over ranks is
// taken in rank order. So any layout gives the same losses up to rounding, and the same layout gives the same bits.
//
// A global batch in which no label has a loss is a step like any other: its loss is 0, and so is its gradient, but for what
// experts' routers add; moments and weights decay. (So does Megatron-LM, where num_tokens is 0.)
//
//   MT_ASSIGN_OR_RETURN(auto trainer, Trainer::Create(options));
//   fresh:   trainer->InitialiseWeights();
//   resumed: fill every box of trainer->LoadTargets(), then trainer->FinishLoad(position);
//   while (trainer->position().step < steps) trainer->Step();
//
// Everything a step needs is allocated in Create; Step allocates nothing. Within a step the host only
// enqueues: loss, gradient norm, clipping and update meet on the device, and the host waits once, at
// the step's end, for four numbers.
// All ranks of a job call InitialiseWeights, FinishLoad and Step in the same order. One thread per
// Trainer. After Step, InitialiseWeights or FinishLoad has failed, the trainer can only be
// destroyed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "common/spec/mesh.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"
#include "worker/backend/operations.h"
#include "worker/checkpoint/state.h"
#include "worker/comm/communicator.h"
#include "worker/train/batch_source.h"
#include "worker/train/expert_balance.h"
#include "worker/train/phase_clock.h"
#include "worker/train/step_scalars.h"

namespace mt {

// The groups this rank is a member of (Mesh::TensorGroup, ...), in the mesh's order. Owned by the
// caller, who keeps them alive as long as the trainer. A group of one may be null. `embedding` is
// used only when embeddings are tied or multi-token prediction looks them up, and the pipeline has more than one stage, and then
// only by the first and the last stage; it may be null elsewhere.
struct TrainerGroups {
  Communicator* tensor = nullptr;
  Communicator* data = nullptr;
  Communicator* pipeline = nullptr;
  Communicator* embedding = nullptr;
  Communicator* model = nullptr;
};

struct TrainerOptions {
  v1::JobSpec spec;  // resolved
  Mesh mesh;
  int rank = 0;  // global
  TrainerGroups groups;
  Operations* operations = nullptr;  // this rank's own; outlives the trainer
  // Outlives the trainer; may be null on stages between the first and the last, unless they see documents
  // (common/spec/data_traits.h).
  BatchSource* samples = nullptr;
  bool trained = true;  // false: for Evaluate alone, without gradients and optimizer state
};

// The same on every rank, except `seconds`.
struct StepResult {
  int64_t step = 0;  // steps done, this one included
  double loss = 0;   // mean over the global batch's labels (with the z-loss term if that is on),
                     // before the update
  // What the gradient contains besides, by name, coefficients included: mtp (multi-token prediction), balance and router_z
  // (experts). Those that the model has not are absent.
  std::map<std::string, double> auxiliary_losses;
  double grad_norm = 0;  // before clipping
  double lr = 0;
  int64_t tokens = 0;                     // of the global batch
  std::optional<ExpertLoad> expert_load;  // of a model with experts
  StepVotes votes;                        // what any rank asked for
  PhaseSeconds seconds;
};

// Of an evaluation, over the labels that have a loss. The same on every rank.
struct HeldOutLoss {
  double sum = 0, labels = 0;
  double mean() const { return labels > 0 ? sum / labels : 0; }
  HeldOutLoss& operator+=(const HeldOutLoss& other) {
    sum += other.sum;
    labels += other.labels;
    return *this;
  }
};

// What this rank holds, in bytes.
struct TrainerMemory {
  int64_t weights = 0, gradients = 0, optimizer = 0, activations = 0;
};

class Trainer {
 public:
  // INVALID_ARGUMENT: sizes that do not divide (names the field and what would do). UNIMPLEMENTED:
  // an operation that no backend supports, a precision the engine does not have.
  // RESOURCE_EXHAUSTED: memory.
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(TrainerOptions options);
  ~Trainer();
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  // Fresh weights from training.seed: the same under any layout. Position becomes step 0.
  absl::Status InitialiseWeights();

  // One optimizer step. ABORTED, UNAVAILABLE, DEADLINE_EXCEEDED: from a communicator. OUT_OF_RANGE:
  // a token id outside the vocabulary. FAILED_PRECONDITION: loss or gradient norm is not finite
  // (weights are left as before the step).
  absl::StatusOr<StepResult> Step(StepVotes votes = {});

  // The loss over labels of a (whole) global batch that is not learned from: samples [first_sample, + global batch) of `samples`
  // (null as TrainerOptions::samples may be), forward passes alone, without the z-loss. The same on every rank. Nothing that is
  // trained or counted changes: a run with evaluations has the bits of one without. All ranks call it. Errors as Step's, but a
  // loss that is not finite is none.
  absl::StatusOr<HeldOutLoss> Evaluate(BatchSource* samples, int64_t first_sample);

  // The next step may begin at once, but the device changes the training state (what
  // CheckpointState points to) only after `event`: a snapshot that is being copied overlaps the next
  // step's forward and backward pass. `reached` (may be null) is recorded where the device begins to
  // wait. Holds for one step; the events must live until that Step has returned.
  absl::Status BeforeNextUpdate(mt_event event, mt_event reached = nullptr);

  // What this rank saves: over all ranks of the job every logical element of weights and optimizer
  // state exactly once. Valid between steps, as long as the trainer lives; Step changes the data.
  std::vector<TensorBox> CheckpointState();

  // What this rank must be filled with before FinishLoad: the caller writes every element of every
  // box.
  std::vector<TensorBox> LoadTargets();
  absl::Status FinishLoad(const TrainingPosition& position);

  const TrainingPosition& position() const { return position_; }

  // The gradient of the last step, summed over the global batch, before clipping; over all ranks
  // every logical element once.
  std::vector<TensorBox> Gradients();

  TrainerMemory memory() const;

 private:
  struct State;
  explicit Trainer(std::unique_ptr<State> state);

  std::unique_ptr<State> state_;
  TrainingPosition position_;
};

}  // namespace mt
