// Learned positions (GPT-2): a row of a table is added to each token's embedding. The table is whole on every tensor rank; each
// rank adds, and makes the gradient, of its own stream rows. Shapes: N rows, S stream rows, C hidden.
#pragma once

#include "common/status.h"
#include "worker/model/context.h"

namespace mt {

struct PositionWeights {
  int64_t positions = 0;           // M
  const void* table = nullptr;     // (M, C); null: the model has none
  void* table_gradient = nullptr;  // (M, C), added to
};

// stream (S, C) += table[ids]; ids (N): each row's position; scratch (S, C).
absl::Status PositionsForward(ModelContext& context, const PositionWeights& weights,
                              const int32_t* ids, void* scratch, void* stream);

// table_gradient[ids] += gradient (S, C).
absl::Status PositionsBackward(ModelContext& context, const PositionWeights& weights,
                               const int32_t* ids, const void* gradient);

}  // namespace mt
