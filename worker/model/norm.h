// A norm of rows of the residual stream, with the sum of the stream's two parts in the same pass: a layer norm (Ba, Kiros &
// Hinton 2016) where there is a bias, else an RMS norm (Zhang & Sennrich 2019).
// Shapes: S stream rows, C columns.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"

namespace mt {

// Borrowed from the flat buffers.
struct NormWeights {
  int64_t columns = 0;              // C
  const void* weight = nullptr;     // (C)
  void* weight_gradient = nullptr;  // (C) of the gradient type, added to
  const void* bias = nullptr;       // (C)
  void* bias_gradient = nullptr;    // (C) of the gradient type, added to
};

// Of the forward pass, for the backward pass.
struct NormActivations {
  void* rstd = nullptr;    // (S)
  void* mean = nullptr;    // (S), of a layer norm
  void* output = nullptr;  // (S, C)
};

// What is normed: x + residual, which is written to `sum`. Without a residual that is x; `sum` may be null if x stays.
struct NormInput {
  const void* x = nullptr;         // (S, C)
  const void* residual = nullptr;  // (S, C)
  void* sum = nullptr;             // (S, C)
};

// Gradients of the backward pass. `input` = the norm's input gradient + residual (if there is one).
struct NormGradients {
  const void* output = nullptr;    // (S, C)
  const void* residual = nullptr;  // (S, C)
  void* input = nullptr;           // (S, C), may be `output` or `residual`
};

// amax (may be null): largest absolute value of the output.
absl::Status NormForward(ModelContext& context, const NormWeights& weights, const NormInput& input,
                         const NormActivations& activations, float* amax);
// sum: what was normed. amax (may be null): of gradients.input.
absl::Status NormBackward(ModelContext& context, const NormWeights& weights, const void* sum,
                          const NormActivations& activations, const NormGradients& gradients,
                          float* amax);

}  // namespace mt
