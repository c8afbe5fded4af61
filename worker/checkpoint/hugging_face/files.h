// The tensors of a Hugging Face folder: model.safetensors, or the shards of model.safetensors.index.json. Opening reads headers
// alone, of all files, so that one that is cut off or missing is found before any work is done.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "worker/checkpoint/hugging_face/names.h"
#include "worker/checkpoint/safetensors.h"

namespace mt {

// The weight_map of an index: file by tensor. DATA_LOSS: not JSON, no weight_map, a file name that leads out of the folder.
absl::StatusOr<std::map<std::string, std::string>> ParseHubIndex(absl::string_view json,
                                                                 const std::string& path);

class HubFiles {
 public:
  // NOT_FOUND: neither file is there, or a shard is missing; FAILED_PRECONDITION: only pickled weights are; DATA_LOSS: what
  // SafetensorsReader refuses, or a shard without a tensor that the index promises.
  static absl::StatusOr<std::unique_ptr<HubFiles>> Open(Env* env, const std::string& folder);

  struct Place {
    const SafetensorsReader* file = nullptr;
    const SafetensorsEntry* entry = nullptr;
  };
  const std::map<std::string, Place>& tensors() const { return tensors_; }
  const Place* Find(const std::string& tensor) const;  // null if it is not there
  const std::string& folder() const { return folder_; }

 private:
  explicit HubFiles(std::string folder) : folder_(std::move(folder)) {}
  const std::string folder_;
  std::vector<std::unique_ptr<SafetensorsReader>> files_;
  std::map<std::string, Place> tensors_;
};

// One tensor as float32, whatever it is stored in: F32, F16, BF16; FP8 E4M3 with a scale for every block
// (`<tensor>_scale_inv`, as DeepSeek-V3 publishes); MXFP4 (`<tensor>_blocks` and `<tensor>_scales`, as gpt-oss does).
class HubTensorReader {
 public:
  // NOT_FOUND: it is not there in this storage. DATA_LOSS: its scales are not, or have another shape. UNIMPLEMENTED: a type that
  // holds no weights.
  static absl::StatusOr<std::unique_ptr<HubTensorReader>> Open(const HubFiles& files,
                                                               const std::string& tensor,
                                                               HubStorage storage,
                                                               int64_t block_rows,
                                                               int64_t block_columns);
  virtual ~HubTensorReader() = default;
  virtual const std::vector<int64_t>& shape() const = 0;
  virtual absl::Status Read(int64_t first, int64_t count, float* out) const = 0;
};

// Rows and columns of a parameter from a tensor. A vector is one row: offset {0, i}, shape {1, n}.
struct Window2d {
  int64_t row = 0, column = 0, rows = 1, columns = 1;
};
absl::Status ReadView(const HubTensorReader& tensor, const HubView& view, bool is_vector,
                      const Window2d& window, float* out);

}  // namespace mt
