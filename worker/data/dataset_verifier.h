// What `mtctl data inspect` and `mtctl data verify` say of a dataset: one pass over all of its
// tokens.
#pragma once

#include <array>
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
  // documents_of_length[i]: documents of 2^(i-1) to 2^i - 1 tokens; [0]: of none.
  std::array<int64_t, 64> documents_of_length = {};
  int64_t documents_with_eod = 0;           // that end with the id asked for
  std::optional<int64_t> tokens_with_loss;  // if there is a PREFIX.loss
  std::optional<DatasetManifest> manifest;
};

// Reads everything. `eod`: -1, or the id that documents should end with. Errors as IndexedDataset::Open and ::Read, and LossFile's.
absl::StatusOr<DatasetReport> ScanDataset(Env* env, const std::string& prefix, int32_t eod = -1);

// ScanDataset, and: no id reaches `vocab_size` (0: the manifest's, if there is one), and counts,
// sizes and digests are the manifest's, of PREFIX.loss too, whose unused bits are 0. DATA_LOSS otherwise.
absl::StatusOr<DatasetReport> VerifyDataset(Env* env, const std::string& prefix,
                                            int64_t vocab_size = 0);

}  // namespace mt
