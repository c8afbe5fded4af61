// A matrix of a block and the three products it takes part in:
//   y (N, out) = x (N, in) W^T + bias      dx = dy W      dW (+)= dy^T x      dbias += sum of dy's rows
//
// The bias of a row-parallel matrix is whole on every tensor rank, and its output is a partial sum: tensor rank 0 adds the bias.
// All ranks have all rows of dy; under sequence parallelism, where gradients of whole vectors are summed over the tensor group,
// rank 0 alone adds to the bias's.
//
// Under precision fp8 they are done in FP8 with a scale per tensor that follows from the tensor's
// own largest absolute value ("current scaling"; Micikevicius et al. 2022): x and W in E4M3, dy in
// E5M2, sums in float32, y and dx in BF16, dW added to float32. Whoever makes x or dy also finds that
// value (most producers on the way); it stays in a slot of its own until the micro-batch's backward
// pass is done, so that a tensor that is made again meets the scale it had. Over a tensor group the
// largest value is the group's, so that the layout changes nothing but rounding.
//
// FP8 products want both operands contiguous along the summed dimension, so each backward operand is
// quantised into a transposed copy as well: of W once per step (fp8_weights.h), of dy with its plain
// copy, of x in the backward pass.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"

namespace mt {

// Of a tensor that is quantised; null where none is. Both on the device.
struct TensorScale {
  float* amax = nullptr;   // largest absolute value, by the tensor's producer
  float* scale = nullptr;  // written when the tensor is quantised
};
struct LinearScales {
  TensorScale input, output_gradient;
};

struct LinearLayer {
  const void* weight = nullptr;     // (out, in)
  void* weight_gradient = nullptr;  // (out, in) of the gradient type
  const void* bias = nullptr;       // (out), null where there is none
  void* bias_gradient = nullptr;    // (out) of the gradient type, added to
  int64_t in = 0, out = 0;          // of this tensor rank
  bool column_parallel = false;     // this rank has a part of `out`; else of `in`

  // fp8 only.
  const void* weight8 = nullptr;             // (out, in) E4M3
  const void* weight8_transposed = nullptr;  // (in, out) E4M3
  const float* weight8_scale = nullptr;
  void* output_gradient8_transposed =
      nullptr;  // scratch (out, N) E5M2, from one product to the next
};

absl::Status LinearForward(ModelContext& context, const LinearLayer& layer, const void* x,
                           const LinearScales& scales, void* y);
absl::Status LinearInputGradient(ModelContext& context, const LinearLayer& layer, const void* dy,
                                 const LinearScales& scales, void* dx);
// After LinearInputGradient of the same dy. Overwrites in a step's first micro-batch.
absl::Status LinearWeightGradient(ModelContext& context, const LinearLayer& layer, const void* dy,
                                  const void* x, const LinearScales& scales);

}  // namespace mt
