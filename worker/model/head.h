// Final norm, head and loss. The loss makes its gradient at once, a chunk of rows at a time: all
// logits never exist. Vocabulary-parallel: a tensor rank has vocab_rows columns of the logits; per
// row only three numbers cross ranks.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"
#include "worker/model/norm.h"

namespace mt {

struct HeadWeights {
  NormWeights norm;
  const void* head = nullptr;     // (vocab_rows, C); the embedding table when tied
  void* head_gradient = nullptr;  // added to
};

struct HeadTensors {
  void* sum = nullptr;  // (S, C): the stream before the norm
  NormActivations norm;
  void* norm_gradient = nullptr;   // (N, C)
  void* logits = nullptr;          // (loss_chunk, vocab_rows)
  void* maximum = nullptr;         // (tensor ranks, loss_chunk)
  void* sum_exp = nullptr;         // (tensor ranks, loss_chunk)
  void* target_logit = nullptr;    // (tensor ranks, loss_chunk)
  void* lse = nullptr;             // (loss_chunk)
  void* row_loss = nullptr;        // (N)
  void* gathered_input = nullptr;  // (N, C) under sequence parallelism
};

struct LossOptions {
  double scale = 1;  // of the gradient: 1 / labels of the global batch that have a loss
  // On the device, multiplies `scale`; null: one. For what is known no sooner than the step begins.
  const double* scale_pointer = nullptr;
  double z_loss = 0;
  // To the head's gradient, always. Else a step's first micro-batch overwrites it (context.h).
  bool adds = false;
  bool gradient = true;  // false: the row losses alone; no gradient is touched
};

// Stream = delta + residual, both (S, C). Fills tensors.row_loss, tensors.norm_gradient and adds to
// the head's gradient.
absl::Status HeadForward(ModelContext& context, const HeadWeights& weights, const void* delta,
                         const void* residual, const int32_t* targets, const LossOptions& loss,
                         const HeadTensors& tensors);

// logits (vocab) of one row, into tensors.logits. Only for a tensor group of one.
absl::Status HeadLogits(ModelContext& context, const HeadWeights& weights, const void* delta,
                        const void* residual, int64_t row, const HeadTensors& tensors);

// also (S, C), may be null: one more gradient of the normed stream. stream_gradient (S, C) and, if asked, its largest absolute value; adds to the norm's gradients.
absl::Status HeadBackward(ModelContext& context, const HeadWeights& weights,
                          const HeadTensors& tensors, const void* also, void* stream_gradient,
                          float* stream_gradient_amax);

}  // namespace mt
