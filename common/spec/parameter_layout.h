// Where one rank's parameters lie in its flat buffers (weights, gradients, optimizer state: one
// layout for all).
//
// Order: regions of what is treated alike (FlatRegion), each in the order of the forward pass:
//   1. matrices that the tensor group shares out: weight decay; products overwrite their gradients
//   2. a copy of the embedding on a last stage that is not the first, where head or multi-token prediction reads it: counted and
//      saved by the first stage only
//   3. biases and other vectors that the tensor group shares out: no decay
//   4. matrices that every tensor rank has whole (router, latent projections, positions): decay
//   5. vectors that every tensor rank has whole (norms, row-parallel biases): no decay
// Gradients from 3 on are added to and must be cleared. Of 4 and 5 each tensor rank has the same gradient, or, under sequence
// parallelism, the part that its rows made (of norms of heads always the part that its heads made); tensor rank 0 counts and
// saves them. What is not trained has no place here.
// Parameters of one group (LogicalParameter::group) lie next to each other; groups begin at a multiple of kFlatAlignment elements.
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

struct FlatRegion {
  FlatRange range;
  bool weight_decay = false;
  bool copy = false;        // another stage has the same parameters, and counts and saves them
  bool replicated = false;  // every tensor rank has them whole
};

struct ParameterLayout {
  std::vector<LocalParameter> parameters;
  std::vector<FlatRegion> regions;  // the five above, in order; some may be empty
  FlatRange added;                  // gradients that are added to: regions 3 to 5
  FlatRange replicated;             // regions 4 and 5
  int64_t size = 0;                 // elements, padded
  std::vector<FlatBucket> buckets;  // in order, without gaps
  int64_t vocab_rows = 0;           // of embedding and head on this rank, padding included
  int64_t vocab_start = 0, vocab_valid = 0;

  // Null if this rank has no such parameter.
  const LocalParameter* Find(absl::string_view name) const;
};

ParameterLayout LayoutOf(const v1::ModelSpec& model, const Mesh& mesh, int rank);

// What data rank `data` owns under ZeRO-1: its part of each bucket.
std::vector<FlatRange> PartsOf(const ParameterLayout& layout, int data_ranks, int data);

}  // namespace mt
