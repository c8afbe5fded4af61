// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): queries (if the model has a q_rank), keys and values
// are made from narrow latents, and one rotated part of the key is shared by all heads.
//   c_q  = norm(W_qa x)     q = W_qb c_q                          (without q_rank: q = W_q x)
//   c_kv = norm(W_kva x)    (k_nope, v) per head = W_kvb c_kv     k_rope = rope(W_kr x)
//   delta = W_o attention((q_nope, rope(q_rope)), (k_nope, k_rope), v)
//
// Replicated over the tensor group, on the stream's own rows: W_qa, W_kva over W_kr (one matrix) and the latents' norms; what
// crosses ranks is the normed latents and k_rope, which are narrower than x. Column-parallel by heads: W_q or W_qb, W_kvb.
// Row-parallel: W_o. The gradient of what is replicated is that of the own rows (parameter_layout.h).
//
// Shapes: N rows, S stream rows, C hidden, H heads of this rank, Q = q_rank, R = kv_rank, E = nope_dim + rope_dim, V = v_dim.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"
#include "worker/model/linear.h"
#include "worker/model/norm.h"
#include "worker/model/part_scratch.h"

namespace mt {

// Borrowed from the flat buffers: the weights and their gradients.
struct MlaWeights {
  LinearLayer query_down;  // (Q, C); null without q_rank
  NormWeights query_norm;  // (Q); null without q_rank
  LinearLayer query;       // (H E, Q), or (H E, C) without q_rank
  LinearLayer key_down;    // (R + rope_dim, C)
  NormWeights key_norm;    // (R)
  LinearLayer key_value;   // (H (nope_dim + V), R)
  LinearLayer output;      // (C, H V)
};

// Made by the forward pass, read by the backward pass. Borrowed from the arena.
struct MlaActivations {
  void* query_latent = nullptr;  // (S, Q); null without q_rank
  NormActivations query_norm;    // (S), (S, Q); null without q_rank
  void* key_latent = nullptr;    // (S, R)
  NormActivations key_norm;      // (S), (S, R)
  void* query = nullptr;         // (N, H E), rotated
  void* key = nullptr;           // (N, H E), rotated
  void* value = nullptr;         // (N, H V)
  void* output = nullptr;        // (N, H V)
  void* lse = nullptr;           // (B, H, T)
};

// One for all blocks.
struct MlaScratch {
  PartScratch part;
  const void* rope_table = nullptr;  // (T, rope_dim)
  void* key_value = nullptr;         // (N, H (nope_dim + V))
  void* key_rope = nullptr;          // (N, rope_dim)
  void* key_rope_rows = nullptr;     // (S, rope_dim) under sequence parallelism
  void* gathered_query = nullptr;    // (N, Q) under sequence parallelism
  void* gathered_key = nullptr;      // (N, R) under sequence parallelism
  // The gradients of what is called alike; those of the latents (S rows) lie within those of the normed latents.
  void* output_gradient = nullptr;        // (N, H V)
  void* query_gradient = nullptr;         // (N, H E)
  void* key_gradient = nullptr;           // (N, H E)
  void* value_gradient = nullptr;         // (N, H V)
  void* key_value_gradient = nullptr;     // (N, H (nope_dim + V))
  void* key_rope_gradient = nullptr;      // (N, rope_dim)
  void* query_normed_gradient = nullptr;  // (N, Q)
  void* key_normed_gradient = nullptr;    // (N, R)
};

// x (S, C) -> (S, C), within scratch.part.delta.
absl::StatusOr<void*> MlaForward(ModelContext& context, const MlaWeights& weights, const void* x,
                                 const MlaActivations& activations, const MlaScratch& scratch);

// dy (S, C) -> dx (S, C), within scratch.part.norm_gradient. Adds to the gradients of the latents' norms.
absl::StatusOr<void*> MlaBackwardInput(ModelContext& context, const MlaWeights& weights,
                                       const void* dy, const MlaActivations& activations,
                                       const MlaScratch& scratch);

// After MlaBackwardInput of the same dy, with scratch as that left it.
absl::Status MlaBackwardWeight(ModelContext& context, const MlaWeights& weights, const void* x,
                               const void* dy, const MlaActivations& activations,
                               const MlaScratch& scratch);

}  // namespace mt
