// Where the trainer gets its samples.
#pragma once

#include <cstdint>
#include <span>

#include "common/status.h"

namespace mt {

class BatchSource {
 public:
  virtual ~BatchSource() = default;

  // Sample ids count through the run: id i is the i-th sample in the data's shuffled order (epoch
  // after epoch), so that the batch of a step follows from `consumed_samples` alone. Fills tokens[i
  // * (T + 1) .. (i + 1) * (T + 1)) with the T + 1 tokens of sample_ids[i]; T is the job's sequence
  // length and tokens.size() = sample_ids.size() * (T + 1). Called from the trainer's thread only.
  virtual absl::Status Fetch(std::span<const int64_t> sample_ids, std::span<int32_t> tokens) = 0;
};

}  // namespace mt
