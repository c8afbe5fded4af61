// A checkpoint's tensors one after the other, for what goes through all of them in little memory. (A rank that knows all its
// boxes uses LoadCheckpoint, which opens each file once.)
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "worker/checkpoint/loader.h"
#include "worker/checkpoint/safetensors.h"

namespace mt {

class CheckpointReader {
 public:
  // INVALID_ARGUMENT or DATA_LOSS: the manifest does not cover its tensors. Files are looked for when they are needed.
  static absl::StatusOr<std::unique_ptr<CheckpointReader>> Create(
      const v1::CheckpointManifest& manifest, FileResolver resolver, Env* env = Env::Real());

  const v1::CheckpointManifest& manifest() const { return manifest_; }
  bool Has(const std::string& tensor) const { return slices_.contains(tensor); }
  // Global shape; empty if there is no such tensor.
  std::vector<int64_t> ShapeOf(const std::string& tensor) const;

  // Rows (of a vector: elements) [first, first + count) of a tensor of F32 or F64, as float32. Each file is verified before its
  // first byte is used. FAILED_PRECONDITION: no such tensor, or another type; else as LoadCheckpoint.
  absl::Status ReadRows(const std::string& tensor, int64_t first, int64_t count, float* out);

 private:
  CheckpointReader(const v1::CheckpointManifest& manifest, FileResolver resolver, Env* env)
      : manifest_(manifest), resolver_(std::move(resolver)), env_(env) {}
  absl::StatusOr<const SafetensorsReader*> Open(int file);

  const v1::CheckpointManifest manifest_;
  const FileResolver resolver_;
  Env* const env_;
  std::map<std::string, std::vector<std::pair<int, const v1::TensorSlice*>>> slices_;
  std::map<int, std::unique_ptr<SafetensorsReader>> files_;
  std::vector<char> window_;
};

}  // namespace mt
