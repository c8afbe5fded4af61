// Arithmetic on boxes of logical tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "common/status.h"
#include "worker/checkpoint/state.h"

namespace mt {

// [begin, end) per dimension, in the logical tensor's coordinates.
struct Region {
  std::vector<int64_t> begin, end;

  int64_t Volume() const;
};

// INVALID_ARGUMENT: dimensions that do not match, a box that leaves its tensor, a type without a
// name, sizes that overflow.
absl::Status ValidateBox(const TensorBox& box);

std::string DescribeBox(const TensorBox& box);  // "model.norm.weight F32 [4,8] at [0,8] of [4,16]"

// Nothing if they do not meet. Same number of dimensions.
std::optional<Region> Intersect(const std::vector<int64_t>& a_offset,
                                const std::vector<int64_t>& a_shape,
                                const std::vector<int64_t>& b_offset,
                                const std::vector<int64_t>& b_shape);

// One contiguous piece of a copy between two row-major boxes, in elements.
struct Run {
  int64_t source = 0;
  int64_t destination = 0;
  int64_t count = 0;
};
// The runs of `region` from a box into another, in increasing source order, each as long as both
// layouts allow.
class RunIterator {
 public:
  RunIterator(const Region& region, const std::vector<int64_t>& source_offset,
              const std::vector<int64_t>& source_shape,
              const std::vector<int64_t>& destination_offset,
              const std::vector<int64_t>& destination_shape);
  bool done() const { return done_; }
  const Run& run() const { return run_; }
  void Next();

 private:
  void Place();

  std::vector<int64_t> extent_, source_start_, destination_start_, source_stride_,
      destination_stride_, at_;
  int outer_ = 0;  // dimensions that are stepped through
  bool done_ = false;
  Run run_;
};

}  // namespace mt
