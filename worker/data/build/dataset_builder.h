// `mtctl data build`: text files through an encoder into PREFIX.bin, PREFIX.idx, PREFIX.manifest.json and, where the encoder makes
// losses, PREFIX.loss; what is no document goes to PREFIX.bad.jsonl.
//
//   files ──ChunkReader──► chunks ──RecordReader──► records ──RecordEncoder──► encoded chunks ──► one writer, in order
//            one thread per file      any thread, the same from reading to encoding                the caller's thread
//
// Every thread does the same (build_pipeline.h): it reads the next chunk of the first file that nobody else is reading from, and
// encodes it. So a large file keeps all threads busy, and so do many small ones; where unpacking a file is slower than encoding it,
// the next file is begun. The writer takes encoded chunks in the order of files and of chunks in them, which makes the result the
// same for any number of threads.
//
// Memory: chunks that were read and not yet written hold `memory_bytes` together, and each thread one more. A record beyond 64 MiB
// is read only when everything before it is being written, so that there is one such at a time; records that exceed MaxRecordBytes
// are never held. `deduplicate` holds about 40 bytes per document that is kept.
//
// Resume: about every `journal_interval` the writer syncs what it wrote and replaces PREFIX.journal.json (build_journal.h), which
// says where that was: the file, the place in it, the length and digest of each file that is being written. A build that finds a
// journal cuts these files off there and goes on, after it made sure that what was read until then still reads the same. Chunks
// may end elsewhere from there on; documents do not.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/env.h"
#include "common/status.h"
#include "worker/data/build/record_encoder.h"
#include "worker/data/indexed_dataset_writer.h"
#include "worker/data/text/chunk_reader.h"
#include "worker/data/text/text_options.h"

namespace mt {

struct BuildProgress {
  uint64_t input_bytes_done = 0;  // of the files as they are, compressed or not
  uint64_t input_bytes_total = 0;
  uint64_t input_bytes_resumed = 0;  // of those done: by earlier runs of this build
  uint64_t text_bytes = 0;           // of documents, by this run
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t tokens_resumed = 0;
  absl::Duration elapsed;  // of this run
};

struct BuildOptions {
  std::vector<std::string> inputs;  // files, in the order of the documents (ExpandInputs)
  std::string output_prefix;
  TextSourceOptions text;     // raw_json: set by the encoder
  int64_t max_documents = 0;  // 0: all; else the first so many
  bool deduplicate = false;   // of equal records the first is kept
  bool strict = false;        // the first bad line ends the build
  bool overwrite = false;
  bool restart = false;  // what an interrupted build left is thrown away
  int threads = 0;       // 0: as many as the machine has cores
  uint64_t memory_bytes = 1ull << 30;
  absl::Duration journal_interval = absl::Seconds(10);  // at most this much work is lost by a kill
  size_t chunk_bytes = kChunkBytes;                     // for tests
  // Called about once a second, and on the caller's thread, like the two that follow.
  std::function<void(const BuildProgress&)> on_progress;
  std::function<void(const BadLine&)> on_bad_line;
  std::function<void(const BuildProgress&)> on_resume;  // once, if an earlier run is gone on with
};

struct BuildResult {
  IndexedDatasetSummary files;
  BuildProgress progress;
  int64_t bad_lines = 0;
  int64_t duplicates = 0;
  int64_t empty_documents = 0;
  TokenType type = TokenType::kUint16;
  // Seconds that all threads together spent, by stage; waiting is not among them.
  double read_seconds = 0, parse_seconds = 0, encode_seconds = 0, write_seconds = 0;
};

// What the manifest's `options` are: all that the documents depend on besides tokenizer and inputs.
std::map<std::string, std::string> ManifestOptions(const RecordEncoderFactory& encoders,
                                                   const BuildOptions& options);

// ALREADY_EXISTS: the output exists and `overwrite` is off. INVALID_ARGUMENT: no inputs, a bad line with `strict`, or no document at
// all. FAILED_PRECONDITION: an interrupted build of other inputs or options, or inputs that have changed since. DATA_LOSS: a damaged
// input. RESOURCE_EXHAUSTED: the disk is full. After an error no PREFIX.idx of this build is there; what has been written stays, for
// a resume, if there is a journal of it, else nothing does.
absl::StatusOr<BuildResult> BuildDataset(Env* env, Clock* clock,
                                         const RecordEncoderFactory& encoders,
                                         const BuildOptions& options);

}  // namespace mt
