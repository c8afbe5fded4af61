// Runs one small job under any layout, ranks as threads, over any kind of group, and hands back
// what must not depend on the layout: losses, the first step's gradients and the final state, all
// in logical tensors.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <ostream>
#include <string>
#include <vector>

#include "common/spec/mesh.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"
#include "worker/backend/backend.h"
#include "worker/checkpoint/state.h"
#include "worker/comm/groups.h"
#include "worker/train/batch_source.h"
#include "worker/train/expert_balance.h"

namespace mt::equivalence {

// Makes the groups of one rank; called once per rank, from that rank's thread.
using GroupFactory = std::function<absl::StatusOr<RankGroups>(const Mesh& mesh, int rank)>;

// Groups of threads of this process. One factory serves one run.
GroupFactory InProcessGroups();

struct Layout {
  int tensor = 1, data = 1, pipeline = 1;
  bool sequence = false, zero = false;
  std::string Name() const;  // "TP2_SP_DP2_ZeRO"
};

// For gtest's messages.
inline void PrintTo(const Layout& layout, std::ostream* out) { *out << layout.Name(); }

// A logical tensor put together from boxes.
struct LogicalTensor {
  std::vector<int64_t> shape;
  mt_dtype dtype = MT_F32;
  std::vector<char> bytes;
  std::vector<char> times_written;  // by element

  int64_t Elements() const { return static_cast<int64_t>(times_written.size()); }
  double At(int64_t element) const;
};
using LogicalState = std::map<std::string, LogicalTensor>;

// Boxes lie in the backend's memory.
absl::Status AddBoxes(const std::vector<TensorBox>& boxes, const Backend& backend,
                      LogicalState* state);
// NOT_FOUND if the state lacks a box's tensor or has it with another shape.
absl::Status FillBoxes(const LogicalState& state, const std::vector<TensorBox>& boxes,
                       const Backend& backend);

// Token (sample, t) follows from a hash: every rank and every layout sees the same text. Samples
// repeat after 24.
class HashedSamples : public BatchSource {
 public:
  HashedSamples(int64_t vocab, int64_t sequence) : vocab_(vocab), sequence_(sequence) {}
  absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override;

 private:
  const int64_t vocab_, sequence_;
};

// The same text with documents of hashed lengths. Every sixth sample has no label, and the others a share of theirs, so that ranks
// and micro-batches count differently.
class MaskedSamples : public HashedSamples {
 public:
  MaskedSamples(int64_t vocab, int64_t sequence)
      : HashedSamples(vocab, sequence), sequence_(sequence) {}
  absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override;
  bool masks_loss() const override { return true; }

 private:
  const int64_t sequence_;
};

uint64_t Hash(uint64_t x);

// Every layout that must equal one rank: TP, PP, DP and their products up to eight ranks, each with and without sequence
// parallelism and ZeRO-1 where they apply.
std::vector<Layout> AllLayouts();

// Five blocks, grouped queries, sizes that leave remainders wherever they may.
v1::JobSpec SmallJob();

struct Outcome {
  std::vector<double> losses, gradient_norms;
  std::vector<std::map<std::string, double>> auxiliary_losses;  // by step
  std::vector<ExpertLoad> expert_loads;                         // by step, of a model with experts
  std::vector<double> total_losses;     // what is minimised: with every auxiliary loss
  std::vector<double> held_out_losses;  // by step, if RunOptions::evaluate
  LogicalState gradients;               // of the first step
  LogicalState state;                   // after the last step
  TrainingPosition position;
};
struct RunOptions {
  v1::JobSpec spec;  // its parallel part is replaced by `layout`
  Layout layout;
  std::string backend = "reference";
  int64_t steps = 1;
  GroupFactory groups;                   // empty: InProcessGroups()
  const LogicalState* resume = nullptr;  // start here instead of fresh weights
  TrainingPosition position;             // of `resume`
  BatchSource* samples = nullptr;        // of all ranks, thread-safe; null: HashedSamples
  bool evaluate = false;                 // before each step, on the samples that it will learn from
};
// The first error of any rank; the other ranks are then aborted.
absl::StatusOr<Outcome> RunJob(const RunOptions& options);

// One rank of a job, in the calling thread: for harnesses whose ranks are processes. Fills what
// this rank owns.
absl::StatusOr<Outcome> RunRank(const RunOptions& options, int rank, RankGroups* groups);

// Largest |a - b| relative to the largest |b| of the tensor; infinity if shapes differ or an
// element was not written once.
double Difference(const LogicalTensor& a, const LogicalTensor& b);

// Puts the parts of all ranks together. The first error of any; INTERNAL if ranks report different losses.
absl::StatusOr<Outcome> MergeRanks(std::vector<absl::StatusOr<Outcome>> parts);

// Losses, the first gradients and their norm agree within `tolerance`, relative, and the state is of the same tensors, each
// element saved once. FAILED_PRECONDITION names the first that does not.
absl::Status CheckEquivalent(const Outcome& outcome, const Outcome& expected, double tolerance);

// The same tensors, bit for bit. FAILED_PRECONDITION names the first that is not.
absl::Status CheckSameBits(const LogicalState& state, const LogicalState& expected);

}  // namespace mt::equivalence
