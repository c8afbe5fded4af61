// `mtctl data build`: text files through a tokenizer into PREFIX.bin, PREFIX.idx and
// PREFIX.manifest.json.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/env.h"
#include "common/status.h"
#include "worker/data/indexed_dataset_writer.h"
#include "worker/data/text/text_source.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt {

struct BuildProgress {
  uint64_t input_bytes_done = 0;
  uint64_t input_bytes_total = 0;
  int64_t documents = 0;
  int64_t tokens = 0;
  absl::Duration elapsed;
};

struct BuildOptions {
  std::vector<std::string> inputs;
  std::string output_prefix;
  TextSourceOptions text;
  bool append_eod = true;
  bool strict = false;  // the first bad line ends the build
  bool overwrite = false;
  // Called about once a second, and on the caller's thread.
  std::function<void(const BuildProgress&)> on_progress;
  std::function<void(const BadLine&)> on_bad_line;
};

struct BuildResult {
  IndexedDatasetSummary files;
  BuildProgress progress;
  int64_t bad_lines = 0;
  TokenType type = TokenType::kUint16;
};

// ALREADY_EXISTS: the output exists and `overwrite` is off. INVALID_ARGUMENT: no inputs, a bad line
// with `strict`, or no document at all. On any error no PREFIX.idx is left.
absl::StatusOr<BuildResult> BuildDataset(Env* env, Clock* clock, const Tokenizer& tokenizer,
                                         const BuildOptions& options);

}  // namespace mt
