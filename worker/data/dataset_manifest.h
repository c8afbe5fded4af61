// PREFIX.manifest.json: how a dataset was made, and the digests that `mtctl data verify` compares.
// Training does not need it, and datasets that Megatron made have none.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/indexed_dataset_writer.h"

namespace mt {

struct DatasetInput {
  std::string path;
  uint64_t bytes = 0;
  std::string xxh3;  // XXH3-128 of the file; empty: not known
};

struct DatasetManifest {
  IndexedDatasetSummary files;
  std::string type;  // TokenTypeName
  std::string tokenizer;
  std::string tokenizer_digest;
  int64_t vocab_size = 0;
  bool append_eod = false;
  int64_t bad_lines = 0;
  int64_t duplicates = 0;       // documents left out by --deduplicate
  int64_t empty_documents = 0;  // records whose encoding had no tokens
  std::string mt_version;       // empty: not told
  // By name, what else the data depends on: options of the build, the encoder.
  std::map<std::string, std::string> options;
  // At most kListedInputs of them. There were num_inputs; inputs_xxh3 is over all of their lines in the list of a build
  // (docs/spec/dataset.md), if it is known.
  std::vector<DatasetInput> inputs;
  int64_t num_inputs = 0;
  std::string inputs_xxh3;
};

constexpr int64_t kListedInputs = 10'000;

std::string DatasetManifestPath(const std::string& prefix);
// As it is written (StageManifest). File names need not be UTF-8; what is not is replaced.
std::string DatasetManifestJson(const DatasetManifest& manifest);
// NOT_FOUND: none. INVALID_ARGUMENT: not a manifest of this format.
absl::StatusOr<DatasetManifest> ReadDatasetManifest(Env* env, const std::string& prefix);

}  // namespace mt
