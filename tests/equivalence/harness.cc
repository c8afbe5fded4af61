#include "tests/equivalence/harness.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>

#include "worker/backend/operations.h"
#include "worker/train/trainer.h"

namespace mt::equivalence {
namespace {

int64_t Bytes(mt_dtype dtype) { return dtype == MT_F64 ? 8 : 4; }

// Calls visit(first element in the logical tensor, first element in the box, count) for every row
// of the box.
template <typename Visit>
void ForEachRow(const TensorBox& box, Visit&& visit) {
  if (box.shape.size() == 1) {
    visit(box.offset[0], int64_t{0}, box.shape[0]);
    return;
  }
  for (int64_t row = 0; row < box.shape[0]; ++row) {
    visit((box.offset[0] + row) * box.global_shape[1] + box.offset[1], row * box.shape[1],
          box.shape[1]);
  }
}

void Merge(LogicalState part, LogicalState* whole) {
  for (auto& [name, tensor] : part) {
    auto [at, added] = whole->try_emplace(name, tensor);
    if (added) continue;
    const int64_t size = Bytes(tensor.dtype);
    for (int64_t i = 0; i < tensor.Elements(); ++i) {
      if (tensor.times_written[i] == 0) continue;
      at->second.times_written[i] += tensor.times_written[i];
      std::memcpy(at->second.bytes.data() + i * size, tensor.bytes.data() + i * size, size);
    }
  }
}

void AbortAll(const RankGroups& groups, absl::string_view reason) {
  for (Communicator* group : {groups.tensor.get(), groups.data.get(), groups.pipeline.get(),
                              groups.embedding.get(), groups.model.get()}) {
    if (group != nullptr) group->Abort(reason);
  }
}

}  // namespace

std::string Layout::Name() const {
  std::string name = absl::StrCat("TP", tensor, sequence ? "_SP" : "");
  if (pipeline > 1) absl::StrAppend(&name, "_PP", pipeline);
  if (data > 1) absl::StrAppend(&name, "_DP", data, zero ? "_ZeRO" : "");
  return name;
}

GroupFactory InProcessGroups() {
  struct Shared {
    std::mutex mutex;
    std::map<std::string, std::vector<std::unique_ptr<Communicator>>> groups;
  };
  auto shared = std::make_shared<Shared>();
  return [shared](const Mesh& mesh, int rank) -> absl::StatusOr<RankGroups> {
    // The first member of a group makes it for all.
    auto join = [&](const char* kind,
                    const std::vector<int>& ranks) -> std::unique_ptr<Communicator> {
      const auto me = std::find(ranks.begin(), ranks.end(), rank);
      if (me == ranks.end()) return nullptr;
      if (ranks.size() == 1) return NewSelfCommunicator(kind);
      const std::string key = absl::StrCat(kind, " of rank ", ranks.front());
      auto& members = shared->groups[key];
      if (members.empty()) members = NewInProcessGroup(key, static_cast<int>(ranks.size()));
      return std::move(members[static_cast<size_t>(me - ranks.begin())]);
    };
    const std::lock_guard lock(shared->mutex);
    RankGroups groups;
    groups.tensor = join("tensor", mesh.TensorGroup(rank));
    groups.data = join("data", mesh.DataGroup(rank));
    groups.pipeline = join("pipeline", mesh.PipelineGroup(rank));
    groups.embedding = join("embedding", mesh.EmbeddingGroup(rank));
    groups.model = join("model", mesh.ModelGroup(rank));
    return groups;
  };
}

double LogicalTensor::At(int64_t element) const {
  if (dtype == MT_F64) return reinterpret_cast<const double*>(bytes.data())[element];
  return reinterpret_cast<const float*>(bytes.data())[element];
}

absl::Status AddBoxes(const std::vector<TensorBox>& boxes, const Backend& backend,
                      LogicalState* state) {
  std::vector<char> bytes;
  for (const TensorBox& box : boxes) {
    LogicalTensor& tensor = (*state)[box.tensor];
    if (tensor.times_written.empty()) {
      int64_t count = 1;
      for (const int64_t size : box.global_shape) count *= size;
      tensor = {.shape = box.global_shape, .dtype = box.dtype};
      tensor.bytes.resize(static_cast<size_t>(count * Bytes(box.dtype)));
      tensor.times_written.resize(static_cast<size_t>(count));
    }
    const int64_t size = Bytes(box.dtype);
    bytes.resize(static_cast<size_t>(box.Elements() * size));
    MT_RETURN_IF_ERROR(backend.ToStatus(
        backend.abi().copy_to_host(bytes.data(), box.data, bytes.size(), nullptr), "copy_to_host"));
    MT_RETURN_IF_ERROR(
        backend.ToStatus(backend.abi().stream_synchronize(nullptr), "stream_synchronize"));
    ForEachRow(box, [&](int64_t at, int64_t from, int64_t count) {
      std::memcpy(tensor.bytes.data() + at * size, bytes.data() + from * size, count * size);
      for (int64_t i = 0; i < count; ++i) ++tensor.times_written[static_cast<size_t>(at + i)];
    });
  }
  return absl::OkStatus();
}

absl::Status FillBoxes(const LogicalState& state, const std::vector<TensorBox>& boxes,
                       const Backend& backend) {
  std::vector<char> bytes;
  for (const TensorBox& box : boxes) {
    const auto found = state.find(box.tensor);
    if (found == state.end() || found->second.shape != box.global_shape ||
        found->second.dtype != box.dtype) {
      return absl::NotFoundError(
          absl::StrCat("no tensor ", box.tensor, " of this shape and type in the state"));
    }
    const int64_t size = Bytes(box.dtype);
    bytes.resize(static_cast<size_t>(box.Elements() * size));
    ForEachRow(box, [&](int64_t at, int64_t to, int64_t count) {
      std::memcpy(bytes.data() + to * size, found->second.bytes.data() + at * size, count * size);
    });
    MT_RETURN_IF_ERROR(backend.ToStatus(
        backend.abi().copy_to_device(box.data, bytes.data(), bytes.size(), nullptr),
        "copy_to_device"));
    MT_RETURN_IF_ERROR(
        backend.ToStatus(backend.abi().stream_synchronize(nullptr), "stream_synchronize"));
  }
  return absl::OkStatus();
}

uint64_t Hash(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

absl::Status HashedSamples::Fetch(std::span<const int64_t> sample_ids, const Batch& batch) {
  const std::span<int32_t> tokens = batch.tokens;
  for (size_t i = 0; i < sample_ids.size(); ++i) {
    for (int64_t t = 0; t <= sequence_; ++t) {
      const uint64_t x = Hash(static_cast<uint64_t>(sample_ids[i] % 24 * (sequence_ + 1) + t) +
                              0x9e3779b97f4a7c15u);
      tokens[i * static_cast<size_t>(sequence_ + 1) + static_cast<size_t>(t)] =
          static_cast<int32_t>(x % static_cast<uint64_t>(vocab_));
    }
  }
  return absl::OkStatus();
}

absl::Status MaskedSamples::Fetch(std::span<const int64_t> sample_ids, const Batch& batch) {
  if (!batch.tokens.empty()) MT_RETURN_IF_ERROR(HashedSamples::Fetch(sample_ids, batch));
  for (size_t i = 0; i < sample_ids.size(); ++i) {
    int32_t start = 0;
    for (int64_t t = 0; t < sequence_; ++t) {
      const uint64_t hash = Hash(static_cast<uint64_t>(sample_ids[i] % 24 * sequence_ + t) + 77);
      const size_t at = i * static_cast<size_t>(sequence_) + static_cast<size_t>(t);
      if (t > 0 && hash % 3 == 0) start = static_cast<int32_t>(t);
      if (!batch.document_start.empty()) batch.document_start[at] = start;
      const auto share = static_cast<uint64_t>(sample_ids[i] % 6);
      if (!batch.loss_mask.empty()) batch.loss_mask[at] = hash / 8 % 6 < share ? 1 : 0;
    }
  }
  return absl::OkStatus();
}

std::vector<Layout> AllLayouts() {
  std::vector<Layout> all;
  for (const auto& [tensor, pipeline, data] :
       {std::tuple(2, 1, 1), std::tuple(4, 1, 1), std::tuple(1, 2, 1), std::tuple(1, 4, 1),
        std::tuple(1, 1, 2), std::tuple(1, 1, 4), std::tuple(2, 2, 1), std::tuple(2, 1, 2),
        std::tuple(1, 2, 2), std::tuple(2, 2, 2)}) {
    for (const bool sequence : {false, true}) {
      for (const bool zero : {false, true}) {
        if ((sequence && tensor == 1) || (zero && data == 1)) continue;
        all.push_back({.tensor = tensor,
                       .data = data,
                       .pipeline = pipeline,
                       .sequence = sequence,
                       .zero = zero});
      }
    }
  }
  return all;
}

v1::JobSpec SmallJob() {
  v1::JobSpec spec;
  spec.set_name("equivalence");
  v1::ModelSpec& model = *spec.mutable_model();
  model.set_architecture(v1::ARCHITECTURE_LLAMA);
  model.set_layers(5);
  model.set_hidden(24);
  model.set_heads(8);
  model.set_kv_heads(4);
  model.set_head_dim(4);
  model.set_ffn(20);
  model.set_vocab(51);
  model.set_rope_theta(10000);
  model.set_norm_eps(1e-5);
  model.set_init_std(0.1);
  spec.mutable_data()->set_sequence_length(8);
  v1::TrainingSpec& training = *spec.mutable_training();
  training.set_steps(20);
  training.set_global_batch(8);
  training.set_micro_batch(2);
  training.set_seed(7);
  training.set_loss_chunk(7);
  training.set_clip_grad_norm(0.5);
  training.set_z_loss(1e-3);
  training.set_precision(v1::TrainingSpec::PRECISION_FP64);
  training.set_recompute(v1::TrainingSpec::RECOMPUTE_NONE);
  v1::OptimizerSpec& optimizer = *training.mutable_optimizer();
  optimizer.set_kind(v1::OptimizerSpec::KIND_ADAMW);
  optimizer.set_lr(1e-2);
  optimizer.set_beta1(0.9);
  optimizer.set_beta2(0.95);
  optimizer.set_eps(1e-8);
  optimizer.set_weight_decay(0.1);
  v1::ScheduleSpec& schedule = *training.mutable_schedule();
  schedule.set_kind(v1::ScheduleSpec::KIND_COSINE);
  schedule.set_warmup_steps(3);
  schedule.set_decay_steps(17);
  schedule.set_min_lr(1e-3);
  return spec;
}

absl::StatusOr<Outcome> RunRank(const RunOptions& options, int rank, RankGroups* groups) {
  TrainerOptions trainer_options{
      .spec = options.spec,
      .mesh = *Mesh::Create(options.layout.tensor, options.layout.data, options.layout.pipeline),
      .rank = rank};
  v1::ParallelSpec& parallel = *trainer_options.spec.mutable_parallel();
  parallel.set_tensor(options.layout.tensor);
  parallel.set_data(options.layout.data);
  parallel.set_pipeline(options.layout.pipeline);
  parallel.set_sequence(options.layout.sequence);
  parallel.set_zero(options.layout.zero ? 1 : 0);
  trainer_options.groups = {.tensor = groups->tensor.get(),
                            .data = groups->data.get(),
                            .pipeline = groups->pipeline.get(),
                            .embedding = groups->embedding.get(),
                            .model = groups->model.get()};
  MT_ASSIGN_OR_RETURN(
      const std::unique_ptr<Operations> operations,
      Operations::Create({.backend = options.backend, .device = rank, .threads = 1}));
  HashedSamples samples(options.spec.model().vocab(), options.spec.data().sequence_length());
  trainer_options.operations = operations.get();
  trainer_options.samples = options.samples != nullptr ? options.samples : &samples;
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<Trainer> trainer, Trainer::Create(trainer_options));
  if (options.resume != nullptr) {
    MT_RETURN_IF_ERROR(FillBoxes(*options.resume, trainer->LoadTargets(), operations->backend()));
    MT_RETURN_IF_ERROR(trainer->FinishLoad(options.position));
  } else {
    MT_RETURN_IF_ERROR(trainer->InitialiseWeights());
  }
  Outcome run;
  for (int64_t step = 0; step < options.steps; ++step) {
    if (options.evaluate) {
      MT_ASSIGN_OR_RETURN(
          const HeldOutLoss loss,
          trainer->Evaluate(trainer_options.samples, trainer->position().consumed_samples));
      run.held_out_losses.push_back(loss.mean());
    }
    MT_ASSIGN_OR_RETURN(const StepResult result, trainer->Step());
    run.losses.push_back(result.loss);
    run.total_losses.push_back(result.loss);
    for (const auto& [name, loss] : result.auxiliary_losses) run.total_losses.back() += loss;
    run.gradient_norms.push_back(result.grad_norm);
    run.auxiliary_losses.push_back(result.auxiliary_losses);
    if (result.expert_load.has_value()) run.expert_loads.push_back(*result.expert_load);
    if (step == 0)
      MT_RETURN_IF_ERROR(AddBoxes(trainer->Gradients(), operations->backend(), &run.gradients));
  }
  MT_RETURN_IF_ERROR(AddBoxes(trainer->CheckpointState(), operations->backend(), &run.state));
  run.position = trainer->position();
  return run;
}

absl::StatusOr<Outcome> RunJob(const RunOptions& options) {
  MT_ASSIGN_OR_RETURN(const Mesh mesh, Mesh::Create(options.layout.tensor, options.layout.data,
                                                    options.layout.pipeline));
  const GroupFactory factory = options.groups ? options.groups : InProcessGroups();
  const size_t world = static_cast<size_t>(mesh.world());
  std::vector<absl::StatusOr<Outcome>> results(world, absl::UnknownError("did not run"));
  std::mutex mutex;
  absl::Status first_error;
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < world; ++rank) {
    threads.emplace_back([&, rank] {
      absl::StatusOr<RankGroups> groups = factory(mesh, static_cast<int>(rank));
      if (groups.ok()) {
        results[rank] = RunRank(options, static_cast<int>(rank), &*groups);
        if (!results[rank].ok()) AbortAll(*groups, results[rank].status().message());
      } else {
        results[rank] = groups.status();
      }
      const std::lock_guard lock(mutex);
      if (!results[rank].ok() && first_error.ok()) {
        first_error = Annotate(results[rank].status(), absl::StrCat("rank ", rank));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  MT_RETURN_IF_ERROR(first_error);
  return MergeRanks(std::move(results));
}

absl::StatusOr<Outcome> MergeRanks(std::vector<absl::StatusOr<Outcome>> parts) {
  for (size_t rank = 0; rank < parts.size(); ++rank) {
    MT_RETURN_IF_ERROR(Annotate(parts[rank].status(), absl::StrCat("rank ", rank)));
  }
  Outcome whole = *std::move(parts[0]);
  for (size_t rank = 1; rank < parts.size(); ++rank) {
    Outcome& part = *parts[rank];
    // Every rank must report the same bits.
    if (part.losses != whole.losses || part.gradient_norms != whole.gradient_norms ||
        part.auxiliary_losses != whole.auxiliary_losses ||
        part.held_out_losses != whole.held_out_losses) {
      return absl::InternalError(absl::StrCat("rank ", rank, " reports other losses than rank 0"));
    }
    Merge(std::move(part.gradients), &whole.gradients);
    Merge(std::move(part.state), &whole.state);
  }
  return whole;
}

absl::Status CheckEquivalent(const Outcome& outcome, const Outcome& expected, double tolerance) {
  auto differs = [](auto&&... what) {
    return absl::FailedPreconditionError(absl::StrCat(what...));
  };
  auto close = [&](double a, double b) { return std::abs(a - b) <= tolerance * std::abs(b); };
  if (expected.losses.empty() || outcome.losses.size() != expected.losses.size()) {
    return differs(outcome.losses.size(), " losses instead of ", expected.losses.size());
  }
  for (size_t step = 0; step < expected.losses.size(); ++step) {
    if (!close(outcome.losses[step], expected.losses[step])) {
      return differs("loss of step ", step + 1, " is ", outcome.losses[step], " instead of ",
                     expected.losses[step], ", off by ",
                     outcome.losses[step] - expected.losses[step]);
    }
  }
  if (!close(outcome.gradient_norms[0], expected.gradient_norms[0])) {
    return differs("gradient norm ", outcome.gradient_norms[0], " instead of ",
                   expected.gradient_norms[0]);
  }
  if (expected.gradients.empty() || outcome.gradients.size() != expected.gradients.size() ||
      outcome.state.size() != expected.state.size()) {
    return differs(outcome.gradients.size(), " gradients and ", outcome.state.size(),
                   " tensors instead of ", expected.gradients.size(), " and ",
                   expected.state.size());
  }
  for (const auto& [name, gradient] : expected.gradients) {
    const auto found = outcome.gradients.find(name);
    if (found == outcome.gradients.end()) return differs("no gradient of ", name);
    const double difference = Difference(found->second, gradient);
    if (!(difference <= tolerance))
      return differs("gradient of ", name, " differs by ", difference);
  }
  for (const auto& [name, tensor] : outcome.state) {
    if (!expected.state.contains(name))
      return differs("the state has ", name, ", which one rank has not");
    for (int64_t i = 0; i < tensor.Elements(); ++i) {
      const int times = tensor.times_written[static_cast<size_t>(i)];
      if (times != 1) return differs(name, " element ", i, " is saved ", times, " times");
    }
  }
  return absl::OkStatus();
}

double Difference(const LogicalTensor& a, const LogicalTensor& b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (a.shape != b.shape) return kInfinity;
  double difference = 0, largest = 0;
  for (int64_t i = 0; i < b.Elements(); ++i) {
    if (a.times_written[i] != 1 || b.times_written[i] != 1) return kInfinity;
    if (!std::isfinite(a.At(i))) return kInfinity;
    difference = std::max(difference, std::abs(a.At(i) - b.At(i)));
    largest = std::max(largest, std::abs(b.At(i)));
  }
  return largest == 0 ? (difference == 0 ? 0 : kInfinity) : difference / largest;
}

absl::Status CheckSameBits(const LogicalState& state, const LogicalState& expected) {
  if (state.empty() || state.size() != expected.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat(state.size(), " tensors instead of ", expected.size()));
  }
  for (const auto& [name, tensor] : expected) {
    const auto found = state.find(name);
    if (found == state.end()) return absl::FailedPreconditionError(absl::StrCat("no ", name));
    if (found->second.bytes != tensor.bytes)
      return absl::FailedPreconditionError(absl::StrCat(name, " differs"));
  }
  return absl::OkStatus();
}

}  // namespace mt::equivalence
