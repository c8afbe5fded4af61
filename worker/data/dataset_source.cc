#include "worker/data/dataset_source.h"

namespace mt {

absl::StatusOr<DatasetSource> OpenDatasetSource(Env* env, const std::string& prefix) {
  DatasetSource source;
  MT_ASSIGN_OR_RETURN(source.data, IndexedDataset::Open(env, prefix));
  absl::StatusOr<DatasetManifest> manifest = ReadDatasetManifest(env, prefix);
  if (manifest.ok()) {
    source.manifest = *std::move(manifest);
  } else if (!absl::IsNotFound(manifest.status())) {
    return manifest.status();
  }
  absl::StatusOr<std::unique_ptr<LossFile>> losses =
      LossFile::Open(env, prefix, source.data->num_tokens());
  if (losses.ok()) {
    source.losses = *std::move(losses);
  } else if (!absl::IsNotFound(losses.status())) {
    return losses.status();
  } else if (source.manifest.has_value() && !source.manifest->files.loss_xxh3.empty()) {
    return absl::DataLossError(
        absl::StrCat(LossPath(prefix), " is missing, but ", DatasetManifestPath(prefix),
                     " has its digest; copy all files of the dataset again, or rebuild it"));
  }
  return source;
}

}  // namespace mt
