// Plan first: what a job will need, known before it is queued. Memory per rank by kind comes from
// the parameter list and the engine's own activation plan; nothing here is a guess except the step
// time, which is the model's FLOPs over the machine's peak with the pipeline's bubble.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/spec/activation_plan.h"
#include "common/spec/mesh.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

struct RankPlan {
  int rank = 0;
  MeshCoordinates at;
  LayerRange layers;
  int64_t parameters = 0;  // held here
  RankMemory bytes;
};

// What the ranks will run on. Zero = not known, and not checked.
struct ClusterShape {
  int slots = 0;
  int64_t memory_per_slot_bytes = 0;
  // That is the hosts' memory, in which snapshots lie too; else it is devices', and this is the hosts' beside them.
  bool computes_on_hosts = false;
  int64_t host_memory_per_slot_bytes = 0;
  double peak_flops_per_slot = 0;  // FLOP/s that matrix products reach
};

struct JobPlan {
  int64_t parameters = 0;
  int64_t active_parameters = 0;  // that a token meets; see ActiveParameterCount
  // Of a whole step; those of a batch ramp-up are smaller.
  double flops_per_step = 0;
  int64_t tokens_per_step = 0;
  int64_t micro_batches = 0;       // per data-parallel rank and step
  double whole_steps = 0;          // that take as many tokens as all steps of the run
  double bubble = 0;               // idle share of a pipeline stage, 0..1
  double step_seconds = 0;         // at the peak: a step takes at least this; 0 = peak unknown
  std::vector<RankPlan> ranks;     // by rank
  int64_t largest_rank_bytes = 0;  // in the memory that it computes in
  int64_t largest_snapshot_bytes = 0;
};

// `spec` is resolved. INVALID_ARGUMENT if it does not validate; never looks at a cluster.
absl::StatusOr<JobPlan> PlanJob(const v1::JobSpec& spec, const ClusterShape& shape = {});

// OK when the job can ever run on `shape`. FAILED_PRECONDITION names what it needs, what there is,
// and the nearest layouts that fit.
absl::Status CheckFits(const v1::JobSpec& spec, const ClusterShape& shape);

// Layouts of `slots` ranks, or as near below it as any, that divide this job and fit the shape's
// memory: nearest to the spec's own first, then by estimated speed; at most `count`.
std::vector<v1::ParallelSpec> NearestLayouts(const v1::JobSpec& spec, const ClusterShape& shape,
                                             int slots, int count = 3);
std::string LayoutToString(const v1::ParallelSpec& parallel);  // "tensor 2 × pipeline 1 × data 3"

}  // namespace mt
