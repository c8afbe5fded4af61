// How Hugging Face folders call and lay out parameters: one table for all architectures.
//
// A parameter is not always a tensor there. GPT-2 keeps matrices as [in, out] and q, k, v side by side in one; gpt-oss keeps all
// experts in one tensor, gate and up in alternating columns. But it is always a tensor's elements at regular distances, and that
// is what a HubView says. So import and export are the same loop for every architecture.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/spec/parameters.h"
#include "mt/v1/spec.pb.h"

namespace mt {

enum class HubStorage {
  kPlain,
  kMxfp4,  // two tensors, `tensor`_blocks and `tensor`_scales, of a tensor whose last dimension is cut into blocks of 32
};

// Element (i, j) of the parameter (j = 0 for a vector) is element first + i * row_stride + j * column_stride of `tensor`.
struct HubView {
  std::string tensor;
  std::vector<int64_t> shape;  // of `tensor`
  int64_t first = 0, row_stride = 1, column_stride = 1;
  HubStorage storage = HubStorage::kPlain;
};

// All forms in which folders of this architecture hold `parameter`, the one that an export writes first. Others: experts one by
// one or stacked as transformers 5 holds them, GPT-2 without `transformer.`, gpt-oss as published in MXFP4.
std::vector<HubView> HubViews(const v1::ModelSpec& model, const LogicalParameter& parameter);

// True for a tensor that folders of this architecture may have beyond the parameters: buffers, scales, copies of embedding and
// head, and, where `model` has no multi-token prediction, its block.
bool MayBeLeftOut(const v1::ModelSpec& model, absl::string_view tensor);

// A tensor of an exported folder and the parameters that fill it, each element once.
struct HubTensor {
  struct Part {
    LogicalParameter parameter;
    HubView view;
  };
  std::string name;
  std::vector<int64_t> shape;
  bool keeps_float32 = false;  // whatever type is asked for: DeepSeek's e_score_correction_bias
  std::vector<Part> parts;
};
// In the order of the forward pass.
std::vector<HubTensor> HubTensorsOf(const v1::ModelSpec& model);

}  // namespace mt
