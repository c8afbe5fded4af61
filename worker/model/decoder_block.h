// One decoder block: attention and a feed-forward, each behind a norm, on a residual stream:
//   input  = delta' + residual'                 (of the block before; fused into the norm)
//   middle = input + attention(norm1(input))
//   output = middle + feed_forward(norm2(middle))     left as the pair (delta, middle): the next norm adds them
//
// Which attention and which feed-forward is the model's traits' business (common/spec/model_traits.h); blocks of one model may
// differ. Every part has the same shape: weights, activations and scratch, borrowed; Forward, Recompute (where it is less than
// Forward), BackwardInput, BackwardWeight. A block has the weights and activations of the parts that it is made of; the others
// are null.
// Shapes: S stream rows, C hidden.
#pragma once

#include "common/status.h"
#include "worker/model/attention.h"
#include "worker/model/context.h"
#include "worker/model/feed_forward.h"
#include "worker/model/mla.h"
#include "worker/model/moe.h"
#include "worker/model/norm.h"

namespace mt {

// Borrowed from the flat buffers.
struct BlockWeights {
  int64_t layer = 0;
  NormWeights first_norm, second_norm;
  AttentionWeights attention;
  MlaWeights mla;
  FeedForwardWeights feed_forward;
  MoeWeights moe;
};

// Largest absolute values that a norm next to a part finds on its way, for the part's products; null unless precision is fp8.
struct PartAmax {
  float* input = nullptr;
  float* output_gradient = nullptr;
};

// Made by the forward pass, read by the backward pass. Borrowed from the arena.
struct BlockActivations {
  void* input = nullptr;   // (S, C)
  void* middle = nullptr;  // (S, C)
  NormActivations first_norm, second_norm;
  AttentionActivations attention;
  MlaActivations mla;
  FeedForwardActivations feed_forward;
  MoeActivations moe;
  PartAmax attention_amax, feed_forward_amax;
  float* input_gradient_amax = nullptr;  // of the block before: it is that block's output gradient
};

// One for all blocks.
struct BlockScratch {
  void* gradient = nullptr;         // (S, C) of the stream between blocks
  void* middle_gradient = nullptr;  // (S, C)
  AttentionScratch attention;
  MlaScratch mla;
  FeedForwardScratch feed_forward;
  MoeScratch moe;
};

// What enters a block: `delta` (S, C) and `residual` (S, C) to be added into activations.input, or
// both null when the sum is already there.
struct BlockInput {
  const void* delta = nullptr;
  const void* residual = nullptr;
};

// Returns the block's delta (S, C), within its scratch; the residual that belongs to it is
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
