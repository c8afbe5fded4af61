// Datasets made of documents of other datasets: what `mtctl data merge` and `mtctl data split` do.
//
// Tokens are copied as bytes and never looked at, so a copy is as fast as the disks, and the result has the bytes that a build of the
// same documents would have given: .bin, .idx, .loss and their digests. Sequences stay in their documents (Megatron's sentence
// level), and the token type is kept. Memory does not grow with the data.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/dataset_source.h"

namespace mt {

// Documents [begin, end) of a source.
struct DatasetPart {
  const DatasetSource* source = nullptr;
  int64_t begin = 0;
  int64_t end = 0;
};

struct DatasetCopy {
  std::string prefix;
  std::vector<DatasetPart> parts;  // one after the other
};

struct CopyOptions {
  bool overwrite = false;
  // About every 64 MiB, on the caller's thread.
  std::function<void(uint64_t bytes_done, uint64_t bytes_total)> on_progress;
};

// Writes all copies, then shows them: if anything fails before, none of them appears. If one has parts with losses and parts without,
// those without get a loss everywhere. A copy has a manifest if all of its sources have one: that of the first with the inputs of all.
//
// ALREADY_EXISTS: an output exists and `overwrite` is off. INVALID_ARGUMENT: sources of one copy have different token types or
// tokenizers; an output is a source, or two outputs are one. RESOURCE_EXHAUSTED: no room, told before anything is written where it can be.
// DATA_LOSS: a source that was read from beginning to end does not have its manifest's digest.
absl::StatusOr<std::vector<IndexedDatasetSummary>> CopyDocuments(
    Env* env, const std::vector<DatasetCopy>& copies, const CopyOptions& options);

}  // namespace mt
