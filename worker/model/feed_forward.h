// The dense feed-forward: x -> W_down swiglu(W_gate_up x), or W_down gelu(W_up x) where there is no gate; with or without biases.
//
// Column-parallel: W_gate_up (this rank's feed-forward columns). Row-parallel: W_down. Shapes: N rows, S stream rows, C hidden,
// D feed-forward columns of this rank, U = 2D with a gate, else D.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"
#include "worker/model/linear.h"
#include "worker/model/part_scratch.h"

namespace mt {

// Borrowed from the flat buffers: the weights and their gradients.
struct FeedForwardWeights {
  LinearLayer gate_up;  // (U, C)
  LinearLayer down;     // (C, D)
};

// Made by the forward pass, read by the backward pass. Borrowed from the arena.
struct FeedForwardActivations {
  void* gate_up = nullptr;  // (N, U); the backward pass turns it into its gradient
  // Of what goes into the products; zeros before the forward pass.
  LinearScales gate_up_scales, down_scales;
};

// One for all blocks.
struct FeedForwardScratch {
  PartScratch part;
  void* activated = nullptr;           // (N, D)
  void* activated_gradient = nullptr;  // (N, D)
  void* activated_again = nullptr;     // (N, D)
};

// Of all N rows, without the group: x (N, C) -> partial (N, C), a partial sum. The shared experts of a mixture are this too.
absl::Status FeedForwardPartial(ModelContext& context, const FeedForwardWeights& weights,
                                const void* x, const FeedForwardActivations& activations,
                                const FeedForwardScratch& scratch, void* partial);
absl::Status FeedForwardPartialRecompute(ModelContext& context, const FeedForwardWeights& weights,
                                         const void* x, const FeedForwardActivations& activations);
// dy (N, C) -> partial (N, C), a partial sum of dx.
absl::Status FeedForwardPartialBackwardInput(ModelContext& context,
                                             const FeedForwardWeights& weights, const void* dy,
                                             const FeedForwardActivations& activations,
                                             const FeedForwardScratch& scratch, void* partial);
absl::Status FeedForwardPartialBackwardWeight(ModelContext& context,
                                              const FeedForwardWeights& weights, const void* x,
                                              const void* dy,
                                              const FeedForwardActivations& activations,
                                              const FeedForwardScratch& scratch);

// x (S, C) -> (S, C), within scratch.part.delta.
absl::StatusOr<void*> FeedForwardForward(ModelContext& context, const FeedForwardWeights& weights,
                                         const void* x, const FeedForwardActivations& activations,
                                         const FeedForwardScratch& scratch);

// Makes all of `activations` again: the same bits as the forward pass made.
absl::Status FeedForwardRecompute(ModelContext& context, const FeedForwardWeights& weights,
                                  const void* x, const FeedForwardActivations& activations,
                                  const FeedForwardScratch& scratch);

// dy (S, C) -> dx (S, C), within scratch.part.norm_gradient.
absl::StatusOr<void*> FeedForwardBackwardInput(ModelContext& context,
                                               const FeedForwardWeights& weights, const void* dy,
                                               const FeedForwardActivations& activations,
                                               const FeedForwardScratch& scratch);

// After FeedForwardBackwardInput of the same dy, with scratch and activations as that left them.
absl::Status FeedForwardBackwardWeight(ModelContext& context, const FeedForwardWeights& weights,
                                       const void* x, const void* dy,
                                       const FeedForwardActivations& activations,
                                       const FeedForwardScratch& scratch);

}  // namespace mt
