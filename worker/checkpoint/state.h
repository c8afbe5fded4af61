// Between the engine and checkpoints: the training state as boxes of logical tensors. The parallel layout is not visible.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/abi/mt_backend.h"

namespace mt {

// A box of a logical tensor. `data` is contiguous (row-major) device memory owned by the engine, valid as long as the engine.
// Names: "<parameter>" for (master) weights, "optimizer.exp_avg.<parameter>", "optimizer.exp_avg_sq.<parameter>"; more in
// docs/spec/checkpoint.md.
struct TensorBox {
  std::string tensor;
  std::vector<int64_t> global_shape;
  std::vector<int64_t> offset;
  std::vector<int64_t> shape;
  mt_dtype dtype = MT_F32;
  void* data = nullptr;

  int64_t Elements() const {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    return count;
  }
};

// Scalars that are part of the state.
struct TrainingPosition {
  int64_t step = 0;  // optimizer steps done
  int64_t consumed_samples = 0;
  double loss = 0;  // of the last step
};

}  // namespace mt
