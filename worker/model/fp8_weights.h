// The FP8 copies of the blocks' matrices: E4M3 as stored and transposed, with a scale per matrix.
// They follow the weights of which they are copies: Refresh after every change.
#pragma once

#include <memory>
#include <vector>

#include "common/status.h"
#include "worker/model/linear.h"

namespace mt {

class Fp8Weights {
 public:
  // Allocates, and points the layers' weight8 fields to the copies. `layers` and `operations`
  // outlive this object.
  static absl::StatusOr<std::unique_ptr<Fp8Weights>> Create(std::vector<LinearLayer*> layers,
                                                            Operations* operations);
  ~Fp8Weights();
  Fp8Weights(const Fp8Weights&) = delete;
  Fp8Weights& operator=(const Fp8Weights&) = delete;

  // Quantises all of them. Every member of the tensor group calls it.
  absl::Status Refresh(ModelContext& context);

  int64_t bytes() const { return bytes_; }

 private:
  Fp8Weights(std::vector<LinearLayer*> layers, Operations* operations)
      : layers_(std::move(layers)), operations_(operations) {}
  float* amax(size_t layer) const { return scales_ + layer; }
  float* scale(size_t layer) const { return scales_ + layers_.size() + layer; }

  const std::vector<LinearLayer*> layers_;
  Operations* const operations_;
  void* memory_ = nullptr;
  float* scales_ = nullptr;  // in memory_: largest values of all matrices, then their scales
  int64_t bytes_ = 0;
};

}  // namespace mt
