// Weights of a Hugging Face folder, for any layout: each rank reads the boxes that it holds, and of those only what it needs, a
// window at a time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "worker/checkpoint/hugging_face/config.h"
#include "worker/checkpoint/hugging_face/files.h"
#include "worker/checkpoint/state.h"

namespace mt {

class HubFolder {
 public:
  // Reads config.json and the headers of all weights. Errors are those of ParseHubConfig and HubFiles::Open.
  static absl::StatusOr<std::unique_ptr<HubFolder>> Open(Env* env, const std::string& folder);
  // config.json alone. NOT_FOUND where there is none.
  static absl::StatusOr<HubConfig> ReadConfig(Env* env, const std::string& folder);

  const HubConfig& config() const { return config_; }
  const v1::ModelSpec& model() const { return model_; }  // of config.json, resolved

  // FAILED_PRECONDITION: a parameter of `model` (resolved) that is not there, has another shape or a type without weights, or a
  // tensor that `model` has no use for.
  absl::Status Check(const v1::ModelSpec& model) const;

  // Rows (of a vector: elements) [first, first + count) of a parameter, row-major.
  absl::Status ReadRows(const v1::ModelSpec& model, const LogicalParameter& parameter,
                        int64_t first, int64_t count, float* out) const;

  // Fills the boxes (F32 or F64) that are parameters of `model`, and sets all others (optimizer state) to zero. `device`: whose
  // memory they are in, null = host memory; every copy is done when it returns.
  absl::Status Load(const v1::ModelSpec& model, const std::vector<TensorBox>& boxes,
                    const mt_backend* device) const;

 private:
  struct Found {
    HubView view;
    std::unique_ptr<HubTensorReader> reader;
  };
  HubFolder(HubConfig config, v1::ModelSpec model, std::unique_ptr<HubFiles> files)
      : config_(std::move(config)), model_(std::move(model)), files_(std::move(files)) {}
  absl::StatusOr<Found> Find(const v1::ModelSpec& model, const LogicalParameter& parameter) const;

  const HubConfig config_;
  const v1::ModelSpec model_;
  const std::unique_ptr<HubFiles> files_;
};

// Sets every element of `box` to zero.
absl::Status ZeroBox(const TensorBox& box, const mt_backend* device);

}  // namespace mt
