// The records of a chunk: the texts of documents, and what stands in their place but is none.
#pragma once

#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"
#include "worker/data/text/chunk_reader.h"
#include "worker/data/text/json_line.h"

namespace mt {

struct Record {
  int64_t line = 0;        // the first of the record
  absl::string_view text;  // of the document, or its JSON value with TextSourceOptions::raw_json
  std::string reason;      // not empty: why it is no document
  absl::string_view
      found;  // with a reason: the record as it stands in the file, unless it is too large
};

// One thread's: keeps its memory from chunk to chunk.
class RecordReader {
 public:
  explicit RecordReader(const TextSourceOptions& options);

  // `chunk` must live and stay as it is until the next Begin.
  void Begin(const TextChunk* chunk, TextFormat format);
  // False at the end of the chunk. What is in `record` is valid until the next call. Blank records are left out.
  bool Next(Record* record);

 private:
  bool NextLine(Record* record);
  bool NextText(Record* record);
  // Checks the limits; false if there is nothing in it.
  bool Take(absl::string_view found, absl::string_view text, Record* record);
  absl::string_view Normalized(absl::string_view text);

  const TextSourceOptions options_;
  JsonLineParser json_;
  const TextChunk* chunk_ = nullptr;
  TextFormat format_ = TextFormat::kTxt;
  absl::string_view rest_;
  int64_t line_ = 1;  // where rest_ begins
  bool passed_over_ = false;
  std::string scratch_;
};

}  // namespace mt
