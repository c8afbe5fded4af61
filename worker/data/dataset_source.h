// A dataset with all that belongs to it: tokens, losses, manifest.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/dataset_manifest.h"
#include "worker/data/indexed_dataset.h"
#include "worker/data/loss_file.h"

namespace mt {

// An open dataset with all that belongs to it. Immutable.
struct DatasetSource {
  std::unique_ptr<IndexedDataset> data;
  std::unique_ptr<LossFile> losses;  // null: a loss everywhere
  std::optional<DatasetManifest> manifest;
};
// As IndexedDataset::Open, LossFile::Open and ReadDatasetManifest. DATA_LOSS too if the manifest tells of losses and there are none.
absl::StatusOr<DatasetSource> OpenDatasetSource(Env* env, const std::string& prefix);

}  // namespace mt
