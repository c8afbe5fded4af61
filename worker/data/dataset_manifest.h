// PREFIX.manifest.json: how a dataset was made, and the digests that `mtctl data verify` compares.
// Training does not need it, and datasets that Megatron made have none.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/indexed_dataset_writer.h"

namespace mt {

struct DatasetInput {
  std::string path;
  uint64_t bytes = 0;
};

struct DatasetManifest {
  IndexedDatasetSummary files;
  std::string type;  // TokenTypeName
  std::string tokenizer;
  std::string tokenizer_digest;
  int64_t vocab_size = 0;
  bool append_eod = false;
  int64_t bad_lines = 0;
  std::vector<DatasetInput> inputs;
};

std::string DatasetManifestPath(const std::string& prefix);
absl::Status WriteDatasetManifest(Env* env, const std::string& prefix,
                                  const DatasetManifest& manifest);
// NOT_FOUND: none. INVALID_ARGUMENT: not a manifest of this format.
absl::StatusOr<DatasetManifest> ReadDatasetManifest(Env* env, const std::string& prefix);

}  // namespace mt
