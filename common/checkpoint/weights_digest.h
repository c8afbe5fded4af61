// What can be said about a checkpoint from its manifest alone: is every logical tensor whole, and
// what is its digest. The coordinator needs both to commit, and it holds no bytes; so every slice
// carries a sum over its own elements that adds up to the sum over the logical tensor, however the
// tensor was cut (docs/spec/checkpoint.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/status.h"
#include "mt/v1/checkpoint.pb.h"

namespace mt {

// Sum over elements of two 64-bit mixes of (tensor, global index, bits), modulo 2^64 each. Equal
// tensors have equal sums; any two that differ have equal ones with a chance of about 2^-128 (it
// guards against mistakes and decay, not against malice).
struct ContentSum {
  uint64_t low = 0, high = 0;

  void Add(const ContentSum& other) {
    low += other.low;
    high += other.high;
  }
  bool operator==(const ContentSum&) const = default;
  std::string Hex() const;  // 32 digits
  static absl::StatusOr<ContentSum> FromHex(absl::string_view hex);
};

// The sum of one box, held contiguously (row-major) in host memory as elements of `element_bytes`
// (1, 2, 4 or 8). `dtype_name` is safetensors' ("F32").
ContentSum SumOfBox(absl::string_view tensor, absl::string_view dtype_name,
                    const std::vector<int64_t>& global_shape, const std::vector<int64_t>& offset,
                    const std::vector<int64_t>& shape, int element_bytes, const void* data);

// OK if the slices of every logical tensor agree on its shape and cover each element exactly once;
// otherwise DATA_LOSS (missing elements, overlap) or INVALID_ARGUMENT (impossible boxes), naming
// tensor and files.
absl::Status CheckCoverage(const v1::CheckpointManifest& manifest);

// 32 hex digits: XXH3-128 over the sorted lines "<tensor> <shape> <sum>\n" of all logical tensors.
// The same for every layout. FAILED_PRECONDITION if a slice has no sum.
absl::StatusOr<std::string> WeightsDigest(const v1::CheckpointManifest& manifest);

}  // namespace mt
