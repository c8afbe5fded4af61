// Multi-token prediction (DeepSeek-V3, arXiv 2412.19437, section 2.2), depth one: one more decoder block, on the last stage,
// that predicts the token after the next from the main model's last hidden state and the next token's embedding:
//   x_t = W_eh [norm_e(embedding(token t+1)); norm_h(h_t)]
//   loss = coefficient * mean over t of cross entropy(head(shared_head.norm(block(x)_t)), token t+2)
// Embedding and head are the main model's, and the gradient flows into both and into h.
//
// h is what leaves the main model's final norm: Megatron-Core's decoder ends with it whether there is MTP or not
// (megatron/core/transformer/transformer_block.py, has_final_layernorm_in_this_stage), and vLLM hands its deepseek_mtp.py the hidden
// states that DeepseekV2Model.forward returns behind `norm`. The embedding's half of W_eh comes first in both, and so in the
// published weights. The paper leaves h open.
//
// A sample has T + 1 tokens, so every position has a next token; position T - 1 has no target and does not count: the mean is
// over T - 1 positions of every sequence, as in Megatron (process_mtp_loss). Where labels are masked, those of the next position are
// meant, as there; where documents are, a position predicts none of the document after its own, whose beginning it does not know.
//
// W_eh and the norms are replicated over the tensor group and work on the stream's own rows. Shapes: N rows, S stream rows,
// C hidden.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"
#include "worker/model/decoder_block.h"
#include "worker/model/head.h"
#include "worker/model/norm.h"

namespace mt {

// Borrowed from the flat buffers: the weights and their gradients.
struct MtpWeights {
  const void* table = nullptr;     // (vocab_rows, C): the embedding
  void* table_gradient = nullptr;  // added to
  NormWeights embedding_norm, hidden_norm;
  LinearLayer projection;  // (C, 2C): the columns of the embedding, then those of h
  BlockWeights block;
  HeadWeights head;  // shared_head.norm, and the main model's head
};

// Made by the forward pass, read by the backward pass, which follows at once: one copy. Borrowed from the arena.
struct MtpActivations {
  void* embedded = nullptr;  // (S, C)
  NormActivations embedding_norm, hidden_norm;
  BlockActivations block;
  HeadTensors head;
};

struct MtpScratch {
  void* embedded_gradient = nullptr;  // (S, C)
  void* hidden_gradient = nullptr;    // (S, C): of h, made by the backward pass
  BlockScratch block;
};

// next_tokens (N); targets (N): the tokens after them, negative where there is none; hidden (S, C): h. Fills
// activations.head.row_loss and begins the head's gradient. `loss` adds to the head's gradient, since the main loss comes first.
absl::Status MtpForward(ModelContext& context, const MtpWeights& weights, const void* hidden,
                        const int32_t* next_tokens, const int32_t* targets, const LossOptions& loss,
                        const MtpActivations& activations, const MtpScratch& scratch);

// After MtpForward of the same micro-batch: scratch.hidden_gradient, and all gradients of weights. Leaves scratch.block to the
// main model's backward pass.
absl::Status MtpBackward(ModelContext& context, const MtpWeights& weights, const void* hidden,
                         const int32_t* next_tokens, const MtpActivations& activations,
                         const MtpScratch& scratch);

}  // namespace mt
