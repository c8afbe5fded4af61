// Where one rank's parameters lie in its flat buffers (weights, gradients, optimizer state: one
// layout for all).
//
// Order: matrices in the order of the forward pass, then the tied copy of the embedding if this is a last stage that is not
// the first, then norm weights. So what is treated alike is contiguous:
//   [0, counted)         matrices: weight decay, part of the gradient norm
//   [counted, matrices)  the tied copy: weight decay, but counted and saved by the first stage only
//   [matrices, end)      norm weights: no decay; every tensor rank has them whole, tensor rank 0 counts and saves them
// Rows of q, k, v and of gate, up are adjacent, so that each group is one matrix product, and begin at a multiple of
// kFlatAlignment elements.
//
// Buckets cut the buffers where a backward pass completes its gradients: embedding, each block's matrices, head, and the rest
// (tied copy and norms). A bucket is a multiple of data * kFlatAlignment elements, padded at its end: ZeRO-1 cuts each bucket
// into equal, aligned parts, so that a bucket is summed and shared out by itself, as soon as it is complete.
//
// A vocabulary that does not divide over the tensor group is padded with rows at its end: `shape`
// has them, the logical tensor does not; they hold zeros and are neither saved nor counted.
#pragma once

#include <string>
#include <vector>

#include "common/spec/mesh.h"
#include "common/spec/parameters.h"
#include "mt/v1/spec.pb.h"

namespace mt {

inline constexpr int64_t kFlatAlignment = 16;  // elements: 64 bytes of float32

struct LocalParameter {
  LogicalParameter logical;
  std::vector<int64_t> shape;          // on this rank, padding included; 1-D or 2-D
  std::vector<int64_t> global_offset;  // of this rank's box in the logical tensor
  int64_t valid_rows = 0;              // rows of `shape` that exist in the logical tensor
  int64_t flat_offset = 0;             // in elements
  bool saved = true;  // false: another rank of the model group saves and counts the same elements

  int64_t Elements() const {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    return count;
  }
};

struct FlatRange {
  int64_t first = 0, count = 0;  // elements [first, first + count)
};

struct FlatBucket {
  static constexpr int64_t kAtTheEnd = -1;
  FlatRange range;
  // The block whose backward pass completes these gradients; the head's is the one after the stage's last. kAtTheEnd: when the
  // whole pass is done, and what is summed over other groups than data has been.
  int64_t block = kAtTheEnd;
};

struct ParameterLayout {
  std::vector<LocalParameter> parameters;
  int64_t counted = 0, matrices = 0, end = 0;  // see above
  int64_t size = 0;                            // elements, padded
  std::vector<FlatBucket> buckets;             // in order, without gaps
  int64_t vocab_rows = 0;  // of embedding and head on this rank, padding included
  int64_t vocab_start = 0, vocab_valid = 0;

  // Null if this rank has no such parameter.
  const LocalParameter* Find(absl::string_view name) const;
};

ParameterLayout LayoutOf(const v1::ModelSpec& model, const Mesh& mesh, int rank);

// What data rank `data` owns under ZeRO-1: its part of each bucket.
std::vector<FlatRange> PartsOf(const ParameterLayout& layout, int data_ranks, int data);

}  // namespace mt
