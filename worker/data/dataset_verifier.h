// What `mtctl data inspect` and `mtctl data verify` say of a dataset: one pass over all of its
// tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/dataset_manifest.h"
#include "worker/data/indexed_dataset.h"

namespace mt {

struct DatasetReport {
  TokenType type = TokenType::kUint16;
  int64_t num_documents = 0;
  int64_t num_sequences = 0;
  int64_t num_tokens = 0;
  uint64_t bin_bytes = 0;
  int32_t largest_id = -1;  // -1: no tokens
  int64_t empty_sequences = 0;
  int32_t shortest = 0;
  int32_t longest = 0;
  std::optional<DatasetManifest> manifest;
};

// Reads everything. Errors as IndexedDataset::Open and ::Read.
absl::StatusOr<DatasetReport> ScanDataset(Env* env, const std::string& prefix);

// ScanDataset, and: no id reaches `vocab_size` (0: the manifest's, if there is one), and counts,
// sizes and digests are the manifest's. DATA_LOSS otherwise.
absl::StatusOr<DatasetReport> VerifyDataset(Env* env, const std::string& prefix,
                                            int64_t vocab_size = 0);

}  // namespace mt
