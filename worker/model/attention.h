// Grouped-query attention: x -> W_o attention(rope(W_qkv x)).
//
// Column-parallel: W_qkv (rows of this rank's heads). Row-parallel: W_o. Shapes: N rows, S stream rows, C hidden, Q = heads d,
// P = (heads + 2 kv_heads) d.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"
#include "worker/model/linear.h"
#include "worker/model/part_scratch.h"

namespace mt {

// Borrowed from the flat buffers: the weights and their gradients.
struct AttentionWeights {
  LinearLayer qkv;     // (P, C)
  LinearLayer output;  // (C, Q)
};

// Made by the forward pass, read by the backward pass. Borrowed from the arena.
struct AttentionActivations {
  void* qkv = nullptr;     // (N, P), rotated
  void* output = nullptr;  // (N, Q)
  void* lse = nullptr;     // (B, heads, T)
  // Of what goes into the products; zeros before the forward pass.
  LinearScales qkv_scales, output_scales;
};

// One for all blocks.
struct AttentionScratch {
  PartScratch part;
  const void* rope_table = nullptr;  // (T, d)
  void* output_gradient = nullptr;   // (N, Q)
  void* qkv_gradient = nullptr;      // (N, P)
};

// x (S, C) -> (S, C), within scratch.part.delta.
absl::StatusOr<void*> AttentionForward(ModelContext& context, const AttentionWeights& weights,
                                       const void* x, const AttentionActivations& activations,
                                       const AttentionScratch& scratch);

// dy (S, C) -> dx (S, C), within scratch.part.norm_gradient.
absl::StatusOr<void*> AttentionBackwardInput(ModelContext& context, const AttentionWeights& weights,
                                             const void* dy,
                                             const AttentionActivations& activations,
                                             const AttentionScratch& scratch);

// After AttentionBackwardInput of the same dy, with scratch as that left it.
absl::Status AttentionBackwardWeight(ModelContext& context, const AttentionWeights& weights,
                                     const void* x, const void* dy,
                                     const AttentionActivations& activations,
                                     const AttentionScratch& scratch);

}  // namespace mt
