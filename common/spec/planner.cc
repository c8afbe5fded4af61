#include "common/spec/planner.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "common/spec/batch_schedule.h"
#include "common/spec/model_flops.h"
#include "common/spec/parameter_layout.h"
#include "common/spec/parameters.h"
#include "common/spec/validate.h"

namespace mt {
namespace {

int64_t ParametersHeld(const ParameterLayout& layout) {
  int64_t held = 0;
  for (const LocalParameter& p : layout.parameters)
    held += p.Elements() / p.shape[0] * p.valid_rows;
  return held;
}

bool Divides(const v1::ModelSpec& model, int tensor) {
  for (const auto& [key, size] : TensorSplitSizes(model)) {
    if (size % tensor != 0) return false;
  }
  return true;
}

double BubbleOf(int64_t pipeline, int64_t micro_batches) {
  return static_cast<double>(pipeline - 1) / static_cast<double>(pipeline - 1 + micro_batches);
}

// The spec under another layout, as the user would have written it.
v1::JobSpec WithLayout(const v1::JobSpec& spec, int tensor, int pipeline, int data) {
  v1::JobSpec other = spec;
  v1::ParallelSpec* p = other.mutable_parallel();
  p->set_tensor(tensor);
  p->set_pipeline(pipeline);
  p->set_data(data);
  p->set_sequence(spec.parallel().sequence() && tensor > 1);
  if (!p->zero_set()) p->set_zero(data > 1 ? 1 : 0);
  return other;
}

// What some rank holds at least: weights, gradients and optimizer state spread evenly. Planning a model of many experts takes
// time, and most layouts need not be planned to be left out.
int64_t LeastBytes(const v1::JobSpec& spec, int64_t parameters) {
  const v1::ParallelSpec& p = spec.parallel();
  const NumberBytes bytes = BytesOf(spec.training().precision());
  const int64_t shards = p.zero() == 1 ? p.data() : 1;
  const int64_t each =
      bytes.data + bytes.gradient + (bytes.master_weights() ? 3 : 2) * bytes.state / shards;
  return parameters / (int64_t{p.tensor()} * p.pipeline()) * each;
}

// In the memory that a rank computes in.
int64_t NeedOf(const RankMemory& bytes, const ClusterShape& shape) {
  return bytes.Total() + (shape.computes_on_hosts ? bytes.snapshot : 0);
}

bool HasRoomForSnapshots(const JobPlan& plan, const ClusterShape& shape) {
  return shape.computes_on_hosts || shape.host_memory_per_slot_bytes == 0 ||
         plan.largest_snapshot_bytes <= shape.host_memory_per_slot_bytes;
}

bool FitsMemory(const v1::JobSpec& spec, const ClusterShape& shape) {
  const absl::StatusOr<JobPlan> plan = PlanJob(spec, shape);
  return plan.ok() && plan->largest_rank_bytes <= shape.memory_per_slot_bytes &&
         HasRoomForSnapshots(*plan, shape);
}

double Distance(const v1::ParallelSpec& a, const v1::ParallelSpec& b) {
  const auto log = [](int x, int y) {
    return std::abs(std::log2(static_cast<double>(x) / std::max(y, 1)));
  };
  return log(a.tensor(), b.tensor()) + log(a.pipeline(), b.pipeline()) + log(a.data(), b.data());
}

std::string Gibibytes(int64_t bytes) {
  return absl::StrFormat("%.2f GiB", static_cast<double>(bytes) / (1 << 30));
}

std::string Remedy(const v1::JobSpec& spec, const ClusterShape& shape, int slots) {
  const std::vector<v1::ParallelSpec> nearest = NearestLayouts(spec, shape, slots);
  if (nearest.empty())
    return "no layout of this job fits; make the model, batch or sequence smaller, or add nodes";
  std::vector<std::string> texts;
  for (const v1::ParallelSpec& layout : nearest) texts.push_back(LayoutToString(layout));
  return absl::StrCat("nearest layouts that fit: ", absl::StrJoin(texts, "; "));
}

}  // namespace

std::string LayoutToString(const v1::ParallelSpec& p) {
  return absl::StrCat("tensor ", p.tensor(), " × pipeline ", p.pipeline(), " × data ", p.data());
}

absl::StatusOr<JobPlan> PlanJob(const v1::JobSpec& spec, const ClusterShape& shape) {
  MT_RETURN_IF_ERROR(ValidateSpec(spec));
  MT_ASSIGN_OR_RETURN(const Mesh mesh, Mesh::FromSpec(spec.parallel()));
  JobPlan plan;
  plan.parameters = ParameterCount(spec.model());
  plan.active_parameters = ActiveParameterCount(spec.model());
  plan.tokens_per_step = spec.training().global_batch() * spec.data().sequence_length();
  plan.flops_per_step =
      ModelFlops(spec.model(), spec.data().sequence_length(), plan.tokens_per_step);
  plan.micro_batches =
      spec.training().global_batch() / (spec.training().micro_batch() * mesh.data());
  plan.whole_steps = static_cast<double>(SamplesOfSteps(spec.training(), spec.training().steps())) /
                     static_cast<double>(spec.training().global_batch());
  plan.bubble = BubbleOf(mesh.pipeline(), plan.micro_batches);
  if (shape.peak_flops_per_slot > 0) {
    plan.step_seconds =
        plan.flops_per_step / (mesh.world() * shape.peak_flops_per_slot) / (1 - plan.bubble);
  }
  // The ranks of a stage hold equal parts (that is what "divides" means), so one of each stage
  // tells all.
  std::vector<RankPlan> stages;
  for (int stage = 0; stage < mesh.pipeline(); ++stage) {
    RankPlan rank;
    rank.layers = LayersOfStage(spec.model().layers(), mesh.pipeline(), stage);
    const int first = mesh.RankOf({.tensor = 0, .data = 0, .pipeline = stage});
    rank.parameters = ParametersHeld(LayoutOf(spec.model(), mesh, first));
    rank.bytes = PlanMemory(spec, mesh, first);
    plan.largest_rank_bytes = std::max(plan.largest_rank_bytes, NeedOf(rank.bytes, shape));
    plan.largest_snapshot_bytes = std::max(plan.largest_snapshot_bytes, rank.bytes.snapshot);
    stages.push_back(rank);
  }
  plan.ranks.reserve(mesh.world());
  for (int rank = 0; rank < mesh.world(); ++rank) {
    const MeshCoordinates at = mesh.CoordinatesOf(rank);
    plan.ranks.push_back(stages[at.pipeline]);
    plan.ranks.back().rank = rank;
    plan.ranks.back().at = at;
  }
  return plan;
}

std::vector<v1::ParallelSpec> NearestLayouts(const v1::JobSpec& spec, const ClusterShape& shape,
                                             int slots, int count) {
  struct Found {
    double distance, work;  // work: relative time of a step
    v1::ParallelSpec layout;
  };
  std::vector<Found> found;
  const int64_t parameters = ParameterCount(spec.model());
  constexpr int kMaxSlots = 1 << 14;
  for (int world = std::min(slots, kMaxSlots); world >= 1 && found.empty(); --world) {
    for (int tensor = 1; tensor <= world; ++tensor) {
      if (world % tensor != 0 || !Divides(spec.model(), tensor)) continue;
      for (int pipeline = 1; pipeline <= world / tensor; ++pipeline) {
        if ((world / tensor) % pipeline != 0 || pipeline > spec.model().layers()) continue;
        const v1::JobSpec other = WithLayout(spec, tensor, pipeline, world / tensor / pipeline);
        if (!ValidateSpec(other).ok()) continue;
        if (shape.memory_per_slot_bytes > 0 &&
            (LeastBytes(other, parameters) > shape.memory_per_slot_bytes ||
             !FitsMemory(other, shape)))
          continue;
        const double bubble =
            BubbleOf(pipeline, other.training().global_batch() /
                                   (other.training().micro_batch() * other.parallel().data()));
        found.push_back({Distance(other.parallel(), spec.parallel()), 1 / (world * (1 - bubble)),
                         other.parallel()});
      }
    }
  }
  std::stable_sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return std::tie(a.distance, a.work) < std::tie(b.distance, b.work);
  });
  std::vector<v1::ParallelSpec> layouts;
  for (const Found& f : found) {
    if (static_cast<int>(layouts.size()) < count) layouts.push_back(f.layout);
  }
  return layouts;
}

absl::Status CheckFits(const v1::JobSpec& spec, const ClusterShape& shape) {
  const absl::StatusOr<JobPlan> plan = PlanJob(spec, shape);
  if (!plan.ok()) return plan.status();
  const int world = static_cast<int>(plan->ranks.size());
  if (shape.slots > 0 && world > shape.slots) {
    return absl::FailedPreconditionError(absl::StrCat(
        "parallel = ", LayoutToString(spec.parallel()), ": needs ", world,
        " slots and the cluster has ", shape.slots, "; ", Remedy(spec, shape, shape.slots)));
  }
  if (shape.memory_per_slot_bytes > 0 && plan->largest_rank_bytes > shape.memory_per_slot_bytes) {
    const auto largest = std::max_element(plan->ranks.begin(), plan->ranks.end(),
                                          [&](const RankPlan& a, const RankPlan& b) {
                                            return NeedOf(a.bytes, shape) < NeedOf(b.bytes, shape);
                                          });
    const int slots = shape.slots > 0 ? shape.slots : world;
    return absl::FailedPreconditionError(
        absl::StrCat("parallel = ", LayoutToString(spec.parallel()), ": rank ", largest->rank,
                     " needs ", Gibibytes(plan->largest_rank_bytes), " and a slot has ",
                     Gibibytes(shape.memory_per_slot_bytes), "; ", Remedy(spec, shape, slots)));
  }
  if (!HasRoomForSnapshots(*plan, shape)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "parallel = ", LayoutToString(spec.parallel()),
        ": while a checkpoint is written each rank keeps ", Gibibytes(plan->largest_snapshot_bytes),
        " of it in its host's memory, which has ", Gibibytes(shape.host_memory_per_slot_bytes),
        " per slot; ", Remedy(spec, shape, shape.slots > 0 ? shape.slots : world)));
  }
  return absl::OkStatus();
}

}  // namespace mt
