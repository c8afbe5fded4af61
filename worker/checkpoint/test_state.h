// For tests: a training state whose elements are known, cut at random over ranks, and written as a
// checkpoint.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "common/checkpoint/weights_digest.h"
#include "worker/checkpoint/boxes.h"
#include "worker/checkpoint/loader.h"
#include "worker/checkpoint/manifest.h"
#include "worker/checkpoint/safetensors.h"
#include "worker/checkpoint/writer.h"

namespace mt {

struct TestTensor {
  std::string name;
  std::vector<int64_t> shape;
  mt_dtype dtype = MT_F32;
};

inline std::vector<TestTensor> TestTensors() {
  return {{"model.embed_tokens.weight", {13, 8}},
          {"model.norm.weight", {8}},
          {"model.layers.0.mlp.down_proj.weight", {8, 12}},
          {"cube", {3, 4, 5}},
          {"optimizer.exp_avg.model.norm.weight", {8}, MT_F64},
          {"scale", {}},
          {"tokens", {7}, MT_I32}};
}

// Element `index` of a tensor at a step, as bits of the tensor's type.
inline uint64_t TestBits(const TestTensor& tensor, uint64_t index, uint64_t step) {
  uint64_t x = std::hash<std::string>()(tensor.name) + index * 0x9e3779b97f4a7c15ULL + step;
  x ^= x >> 31;
  return x * 0xbf58476d1ce4e5b9ULL;
}

// Boxes together with the memory they point to.
struct HeldBoxes {
  std::vector<TensorBox> boxes;
  std::vector<std::unique_ptr<char[]>> memory;

  void Add(const TestTensor& tensor, const std::vector<int64_t>& offset,
           const std::vector<int64_t>& shape) {
    TensorBox box{tensor.name, tensor.shape, offset, shape, tensor.dtype, nullptr};
    memory.push_back(std::make_unique<char[]>(box.Elements() * ElementBytes(tensor.dtype) + 1));
    box.data = memory.back().get();
    boxes.push_back(box);
  }
};

template <typename Visit>
void ForEachElement(const TensorBox& box, Visit visit) {
  std::vector<int64_t> at(box.shape.size(), 0);
  for (int64_t i = 0; i < box.Elements(); ++i) {
    uint64_t global = 0;
    for (size_t d = 0; d < at.size(); ++d)
      global = global * box.global_shape[d] + box.offset[d] + at[d];
    visit(static_cast<char*>(box.data) + i * ElementBytes(box.dtype), global);
    for (int d = static_cast<int>(at.size()) - 1; d >= 0 && ++at[d] == box.shape[d]; --d) at[d] = 0;
  }
}
inline const TestTensor& TensorOf(const std::vector<TestTensor>& tensors, const std::string& name) {
  for (const TestTensor& tensor : tensors) {
    if (tensor.name == name) return tensor;
  }
  std::abort();
}
inline void Fill(HeldBoxes& held, const std::vector<TestTensor>& tensors, uint64_t step) {
  for (const TensorBox& box : held.boxes) {
    const TestTensor& tensor = TensorOf(tensors, box.tensor);
    ForEachElement(box, [&](char* element, uint64_t global) {
      const uint64_t bits = TestBits(tensor, global, step);
      std::memcpy(element, &bits, ElementBytes(tensor.dtype));
    });
  }
}
inline void Scribble(HeldBoxes& held) {
  for (const TensorBox& box : held.boxes)
    std::memset(box.data, 0xAB, box.Elements() * ElementBytes(box.dtype));
}
// Number of wrong elements.
inline int64_t CountWrong(const HeldBoxes& held, const std::vector<TestTensor>& tensors,
                          uint64_t step) {
  int64_t wrong = 0;
  for (const TensorBox& box : held.boxes) {
    const TestTensor& tensor = TensorOf(tensors, box.tensor);
    ForEachElement(box, [&](char* element, uint64_t global) {
      const uint64_t bits = TestBits(tensor, global, step);
      if (std::memcmp(element, &bits, ElementBytes(tensor.dtype)) != 0) ++wrong;
    });
  }
  return wrong;
}

// Cuts a box in two at random, again and again, and deals the pieces to `ranks` at random.
inline void CutAtRandom(const TestTensor& tensor, const std::vector<int64_t>& offset,
                        const std::vector<int64_t>& shape, int depth, std::mt19937& random,
                        std::vector<HeldBoxes>& ranks) {
  std::vector<int> dimensions;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] > 1) dimensions.push_back(static_cast<int>(d));
  }
  if (depth == 0 || dimensions.empty() || random() % 5 == 0) {
    ranks[random() % ranks.size()].Add(tensor, offset, shape);
    return;
  }
  const int d = dimensions[random() % dimensions.size()];
  const int64_t at = 1 + random() % (shape[d] - 1);
  std::vector<int64_t> low = shape, high = shape, high_offset = offset;
  low[d] = at;
  high[d] -= at;
  high_offset[d] += at;
  CutAtRandom(tensor, offset, low, depth - 1, random, ranks);
  CutAtRandom(tensor, high_offset, high, depth - 1, random, ranks);
}
inline std::vector<HeldBoxes> RandomLayout(const std::vector<TestTensor>& tensors, int ranks,
                                           int depth, std::mt19937& random) {
  std::vector<HeldBoxes> layout(ranks);
  for (const TestTensor& tensor : tensors) {
    CutAtRandom(tensor, std::vector<int64_t>(tensor.shape.size(), 0), tensor.shape, depth, random,
                layout);
  }
  return layout;
}

constexpr char kTestRoot[] = "/store";
constexpr char kTestJob[] = "llama-abc123";

// Every rank's file; the manifest that the coordinator would commit. The first failure otherwise.
inline absl::StatusOr<v1::CheckpointManifest> WriteShards(Env* env, std::vector<HeldBoxes>& layout,
                                                          int64_t step) {
  v1::CheckpointManifest manifest;
  manifest.set_format_version(1);
  manifest.set_job_id(kTestJob);
  manifest.set_step(step);
  manifest.set_consumed_samples(step * 16);
  manifest.set_loss(1.0 / 3);
  manifest.set_parent_step(-1);
  absl::Status failed;
  for (size_t rank = 0; rank < layout.size(); ++rank) {
    CheckpointWriterOptions options;
    options.env = env;
    options.root = kTestRoot;
    options.job_id = kTestJob;
    options.rank = static_cast<int>(rank);
    options.world_size = static_cast<int>(layout.size());
    options.on_written = [&](const v1::ShardWritten& written) {
      *manifest.add_files() = written.file();
    };
    MT_ASSIGN_OR_RETURN(auto writer, CheckpointWriter::Create(options, layout[rank].boxes));
    MT_RETURN_IF_ERROR(writer->Snapshot({step, step * 16, 1.0 / 3}).status());
    MT_RETURN_IF_ERROR(writer->Wait());
  }
  MT_ASSIGN_OR_RETURN(const std::string digest, WeightsDigest(manifest));
  manifest.set_weights_digest(digest);
  return manifest;
}

// Loads a committed step into one rank that holds everything; OK only if every element is right.
inline absl::Status LoadAndCompare(Env* env, const std::vector<TestTensor>& tensors, int64_t step) {
  MT_ASSIGN_OR_RETURN(const v1::CheckpointManifest manifest,
                      ReadManifest(env, kTestRoot, kTestJob, step));
  std::mt19937 random(1);
  std::vector<HeldBoxes> whole = RandomLayout(tensors, 1, 0, random);
  Scribble(whole[0]);
  LoadOptions options;
  options.env = env;
  MT_ASSIGN_OR_RETURN(const std::string folder, CheckpointFolder(kTestRoot, kTestJob, step));
  MT_RETURN_IF_ERROR(LoadCheckpoint(manifest, whole[0].boxes, FolderResolver(folder), options));
  const int64_t wrong = CountWrong(whole[0], tensors, step);
  return wrong == 0 ? absl::OkStatus()
                    : absl::InternalError(absl::StrCat(wrong, " wrong elements"));
}

}  // namespace mt
