// Mixture of experts: a router (moe_router.h) chooses top_k of E feed-forwards for every row, and their weighted outputs are
// summed, with that of the shared experts, which are a dense feed-forward beside it:
//   output = sum over j of weight[n, j] down_e(swiglu(gate_up_e(x))) + shared(x), e = ids[n, j]
//
// Rows are sorted by expert, so that each kind of matrix is one grouped product over N k sorted rows; those that a capacity left
// out are zeros behind the others. Where an expert's rows begin is known on the device only: nothing waits for the host.
//
// Tensor parallelism: every rank has all experts, and of each ffn / tensor columns. Outputs, and the gradients of the weights of
// choices, are partial sums.
//
// Recomputation makes the experts' part again, never the routing: that is small, is kept, and so is counted once.
// Shapes: N rows, S stream rows, C hidden, k = top_k, D columns of an expert on this rank.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"
#include "worker/model/feed_forward.h"
#include "worker/model/moe_router.h"
#include "worker/model/part_scratch.h"

namespace mt {

// One kind of matrix of all experts, borrowed from the flat buffers: (out, in) each, `stride` elements apart.
struct ExpertMatrices {
  void* weight = nullptr;
  void* weight_gradient = nullptr;
  int64_t in = 0, out = 0;  // of this tensor rank
  int64_t stride = 0;
  // Null without biases; (out) each, one behind the other.
  const void* bias = nullptr;
  void* bias_gradient = nullptr;
};

struct MoeWeights {
  RouterWeights router;
  ExpertMatrices gate_up;     // (2D, C)
  ExpertMatrices down;        // (C, D)
  FeedForwardWeights shared;  // null without shared experts
  bool has_shared() const { return shared.down.weight != nullptr; }
};

struct MoeActivations {
  RouterActivations router;
  int32_t* position = nullptr;  // (N, k)
  int32_t* source = nullptr;    // (N k)
  int32_t* offsets = nullptr;   // (E + 1)
  void* gate_up = nullptr;      // (N k, 2D); the backward pass turns it into its gradient
  void* output = nullptr;       // (N k, C) of the experts; likewise
  FeedForwardActivations shared;
};

struct MoeScratch {
  PartScratch part;
  RouterScratch router;
  void* sorted = nullptr;        // (N k, C): input
  void* sorted_again = nullptr;  // (N k, C): in the backward pass its gradient, then input again
  void* activated = nullptr;     // (N k, D)
  void* activated_gradient = nullptr;  // (N k, D)
  void* activated_again = nullptr;     // (N k, D)
  FeedForwardScratch shared;
};

// x (S, C) -> (S, C), within scratch.part.delta. Adds to what training counts.
absl::StatusOr<void*> MoeForward(ModelContext& context, const MoeWeights& weights, const void* x,
                                 const MoeActivations& activations, const MoeScratch& scratch);

// Makes all of `activations` but the routing again: the same bits as the forward pass made.
absl::Status MoeRecompute(ModelContext& context, const MoeWeights& weights, const void* x,
                          const MoeActivations& activations, const MoeScratch& scratch);

// dy (S, C) -> dx (S, C), within scratch.part.norm_gradient.
absl::StatusOr<void*> MoeBackwardInput(ModelContext& context, const MoeWeights& weights,
                                       const void* dy, const MoeActivations& activations,
                                       const MoeScratch& scratch);

// After MoeBackwardInput of the same dy, with scratch and activations as that left them.
absl::Status MoeBackwardWeight(ModelContext& context, const MoeWeights& weights, const void* x,
                               const void* dy, const MoeActivations& activations,
                               const MoeScratch& scratch);

}  // namespace mt
