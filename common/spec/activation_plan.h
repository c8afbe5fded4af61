// What a rank keeps in memory, known before anything runs: the flat parameter buffers and every
// activation with its shape, lifetime and policy. The engine builds its one arena from this plan;
// the planner adds it up.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/spec/mesh.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

// INVALID_ARGUMENT if the model's and batch's sizes do not divide over the mesh; names the field,
// the value and what would do.
absl::Status CheckSizes(const v1::JobSpec& spec, const Mesh& mesh);

// Every size of the model that is cut into equal parts over the tensor group, by its key.
std::vector<std::pair<std::string, int64_t>> TensorSplitSizes(const v1::ModelSpec& model);

// Bytes of an element by use. bf16 and fp8 keep activations and working weights in 2 bytes, and in
// float32 what must be exact: statistics, gradients (the "main gradients") and the optimizer's state
// with its own master weights.
struct NumberBytes {
  int64_t data = 4, statistic = 4, gradient = 4, state = 4;
  // Weights that the optimizer updates are not the ones that products read.
  bool master_weights() const { return data != state; }
};
NumberBytes BytesOf(v1::TrainingSpec::Precision precision);

// Sizes of one rank's part of the model and of one micro-batch.
struct RankShape {
  int64_t sequence = 0, batch = 0;  // T, B (micro-batch)
  int64_t rows = 0;                 // N = T * B
  int64_t stream_rows = 0;  // of the residual stream: N / tensor under sequence parallelism, else N
  int64_t hidden = 0;       // C
  int64_t heads = 0, kv_heads = 0, head_dim = 0;  // of this tensor rank
  int64_t query = 0, qkv = 0;                     // columns: heads * d, (heads + 2 kv_heads) * d
  int64_t rotary_dim = 0;  // numbers of a head that are rotated; 0 = learned positions
  int64_t ffn = 0;         // D of this tensor rank
  int64_t gate_up = 0;     // columns: 2D, or D where there is no gate
  int64_t expert_ffn = 0, shared_ffn = 0;  // likewise of one expert and of the shared ones
  int64_t vocab_rows = 0, vocab_start = 0, vocab_valid = 0;  // see parameter_layout.h
  int64_t loss_chunk = 0;                                    // rows of logits alive at once
  int64_t first_layer = 0, blocks = 0;                       // decoder blocks of this stage
  int64_t mtp_blocks =
      0;  // more blocks behind those, of multi-token prediction; not counted by `blocks`
  int64_t micro_batches = 0;    // per step and data rank
  int64_t in_flight = 0;        // micro-batches whose forward is done and backward is not, at most
  int64_t element_bytes = 0;    // of weights and activations
  int64_t statistic_bytes = 0;  // of rstd, lse, row losses and the rotation table
};
RankShape ShapeOf(const v1::JobSpec& spec, const Mesh& mesh, int rank);

// Under precision fp8 a block has four matrices whose products have two operands with a scale each.
inline constexpr int64_t kFp8MatricesPerBlock = 4;
inline constexpr int64_t kFp8ScalesPerBlock = 2 * kFp8MatricesPerBlock;

enum class KeepPolicy {
  kKeep,       // written in the forward pass, read in the backward pass: one copy per block and
               // micro-batch in flight
  kRecompute,  // made again in the backward pass: one copy for all blocks
  kScratch,    // used within one pass of one block: one copy for all blocks
};

struct PlannedTensor {
  std::string name;            // "block.qkv"
  std::vector<int64_t> shape;  // on this rank, of one copy
  int64_t element_bytes = 0;
  KeepPolicy policy = KeepPolicy::kScratch;
  int first_use = 0,
      last_use =
          0;  // moments of a pass (see the source); copies whose moments do not meet share memory
  int64_t copies = 1;  // consecutive in the arena, each padded to 64 bytes
  int64_t offset = 0;  // of the first copy in the arena, in bytes
  // Of what belongs to blocks: by block of the stage, which copy is its own in slot 0 (-1: it has no such tensor), and how many
  // copies further the next slot's is (0: all share one).
  std::vector<int64_t> copy_of_block;
  int64_t blocks = 0;

  int64_t CopyBytes() const;  // of one copy, padded
};

struct ActivationPlan {
  std::vector<PlannedTensor> tensors;
  int64_t arena_bytes = 0;

  // Null if this stage has no such tensor.
  const PlannedTensor* Find(absl::string_view name) const;
};

enum class PlanPurpose {
  kTraining,
  kGeneration,  // forward passes only; keys and values of every block are kept from pass to pass
};

// `spec` is resolved and CheckSizes(spec, mesh) is OK.
ActivationPlan PlanActivations(const v1::JobSpec& spec, const Mesh& mesh, int rank,
                               PlanPurpose purpose = PlanPurpose::kTraining);

// Bytes of one rank by kind. `workspace` is what the engine itself needs besides (tables, token
// buffers); a backend's own scratch is not in it.
struct RankMemory {
  int64_t weights = 0, gradients = 0, optimizer = 0, activations = 0, workspace = 0;
  // In the host's memory, also of a rank that computes on a device: its part of a checkpoint, from which files are written while
  // training goes on.
  int64_t snapshot = 0;
  int64_t Total() const { return weights + gradients + optimizer + activations + workspace; }
};
RankMemory PlanMemory(const v1::JobSpec& spec, const Mesh& mesh, int rank);

}  // namespace mt
