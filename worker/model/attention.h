// Grouped-query attention: x -> W_o attention(rope(W_qkv x)), with what models vary it by: biases, an RMS norm of every query and
// key head before the rotation (Qwen3), a window, a sink per head (gpt-oss), no rotation at all (learned positions).
//
// Column-parallel: W_qkv (rows of this rank's heads). Row-parallel: W_o. Shapes: N rows, S stream rows, C hidden, Q = heads d,
// P = (heads + 2 kv_heads) d, R = (heads + kv_heads) d.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"
#include "worker/model/linear.h"
#include "worker/model/norm.h"
#include "worker/model/part_scratch.h"

namespace mt {

// Borrowed from the flat buffers: the weights and their gradients.
struct AttentionWeights {
  LinearLayer qkv;                   // (P, C)
  LinearLayer output;                // (C, Q)
  NormWeights query_norm, key_norm;  // (d); null unless heads are normed
  const void* sinks = nullptr;       // (heads); null: none
  void* sinks_gradient = nullptr;    // (heads) of the gradient type, added to
  int64_t window = 0;                // keys that a query sees; 0: all before it
};

// Made by the forward pass, read by the backward pass. Borrowed from the arena.
struct AttentionActivations {
  void* qkv = nullptr;  // (N, P); queries and keys are rotated in place unless there is `rotated`
  void* output = nullptr;  // (N, Q)
  void* lse = nullptr;     // (B, heads, T)
  // Where heads are normed:
  void* rotated = nullptr;     // (N, R): queries and keys as attention reads them
  void* query_rstd = nullptr;  // (N, heads)
  void* key_rstd = nullptr;    // (N, kv_heads)
  // Of what goes into the products; zeros before the forward pass.
  LinearScales qkv_scales, output_scales;
};

// One for all blocks.
struct AttentionScratch {
  PartScratch part;
  const void* rope_table = nullptr;  // (T, d), null: no rotation
  void* output_gradient = nullptr;   // (N, Q)
  void* qkv_gradient = nullptr;      // (N, P)
  void* rotated_gradient = nullptr;  // (N, R) where heads are normed
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
