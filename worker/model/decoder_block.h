// One decoder block of a Llama: grouped-query attention and a SwiGLU feed-forward, each behind an
// RMS norm, on a residual stream:
//   input  = delta' + residual'                         (of the block before; fused into the norm)
//   middle = input + W_o attention(rope(W_qkv norm1(input)))
//   output = middle + W_down swiglu(W_gate_up norm2(middle))     left as the pair (delta, middle):
//   the next norm adds them
//
// Column-parallel: W_qkv, W_gate_up (rows of this rank's heads and feed-forward columns).
// Row-parallel: W_o, W_down. Shapes: N rows, S stream rows, C hidden, Q = heads d, P = (heads + 2
// kv_heads) d, D feed-forward columns of this rank.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"
#include "worker/model/linear.h"

namespace mt {

struct NormWeight {
  const void* weight = nullptr;     // (C)
  void* weight_gradient = nullptr;  // (C) of the gradient type, added to
};

// Borrowed from the flat buffers: the weights and their gradients.
struct BlockWeights {
  NormWeight first_norm;
  LinearLayer qkv;     // (P, C)
  LinearLayer output;  // (C, Q)
  NormWeight second_norm;
  LinearLayer gate_up;  // (2D, C)
  LinearLayer down;     // (C, D)
};

// Made by the forward pass, read by the backward pass. Borrowed from the arena.
struct BlockActivations {
  void* input = nullptr;             // (S, C)
  void* first_norm_rstd = nullptr;   // (S)
  void* first_norm = nullptr;        // (S, C)
  void* qkv = nullptr;               // (N, P), rotated
  void* attention = nullptr;         // (N, Q)
  void* attention_lse = nullptr;     // (B, heads, T)
  void* middle = nullptr;            // (S, C)
  void* second_norm_rstd = nullptr;  // (S)
  void* second_norm = nullptr;       // (S, C)
  void* gate_up = nullptr;           // (N, 2D); the backward pass turns it into its gradient

  // Of what goes into the products; zeros before the forward pass.
  LinearScales qkv_scales, output_scales, gate_up_scales, down_scales;
  float* input_gradient_amax = nullptr;  // of the block before: it is that block's output gradient
};

// One for all blocks.
struct BlockScratch {
  const void* rope_table = nullptr;    // (T, d)
  void* delta = nullptr;               // (N, C)
  void* activated = nullptr;           // (N, D)
  void* gradient = nullptr;            // (S, C) of the stream between blocks
  void* middle_gradient = nullptr;     // (S, C)
  void* activated_gradient = nullptr;  // (N, D)
  void* activated_again = nullptr;     // (N, D)
  void* norm_gradient = nullptr;       // (N, C)
  void* attention_gradient = nullptr;  // (N, Q)
  void* qkv_gradient = nullptr;        // (N, P)
  void* gathered_input = nullptr;      // (N, C) under sequence parallelism
  void* gathered_gradient = nullptr;   // (N, C) under sequence parallelism
};

// What enters a block: `delta` (S, C) and `residual` (S, C) to be added into activations.input, or
// both null when the sum is already there.
struct BlockInput {
  const void* delta = nullptr;
  const void* residual = nullptr;
};

// Returns the block's delta (S, C), within scratch.delta; the residual that belongs to it is
// activations.middle.
absl::StatusOr<void*> BlockForward(ModelContext& context, const BlockWeights& weights,
                                   const BlockInput& input, const BlockActivations& activations,
                                   const BlockScratch& scratch);

// Makes all of `activations` again from activations.input: the same bits as the forward pass made.
absl::Status BlockRecompute(ModelContext& context, const BlockWeights& weights,
                            const BlockActivations& activations, const BlockScratch& scratch);

// scratch.gradient: of the block's output -> of its input. Weight gradients are added to. Each
// half's input gradient comes first and its weight gradient right after, while what both read is at
// hand.
absl::Status BlockBackward(ModelContext& context, const BlockWeights& weights,
                           const BlockActivations& activations, const BlockScratch& scratch);

}  // namespace mt
