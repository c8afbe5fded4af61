// How files become records: shared by everything in worker/data/text.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace mt {

struct TextSourceOptions {
  std::string text_key = "text";  // of a JSONL object
  // The record is the JSON value under text_key as it stands in the file, of whatever type, rather than the text of a string.
  bool raw_json = false;
  // .txt only: a line equal to this (an empty one: any blank line) ends a document. Unset: a file is one document.
  std::optional<std::string> document_separator;
  // Larger documents are bad records: located, counted, left out.
  uint64_t max_document_bytes = 1ull << 30;
};

// A record that is no document: a line of a .jsonl file that is not an object with a string under text_key, or too large a document.
struct BadLine {
  std::string file;
  int64_t line = 0;  // from 1; of a document in .txt: its first
  std::string reason;
};

// Records larger than this in the file are passed over without being held: a text at the limit takes at most twice its size there
// (as \uXXXX), and what stands beside it in its line is no more than that or 64 MiB.
inline uint64_t MaxRecordBytes(const TextSourceOptions& options) {
  constexpr uint64_t kSmallest = 64ull << 20;
  constexpr uint64_t kLargest = 0xFFFF'0000;  // of simdjson
  const uint64_t limit =
      options.max_document_bytes > kLargest / 2 ? kLargest : 2 * options.max_document_bytes;
  return limit < kSmallest ? kSmallest : limit;
}

inline bool IsBlank(absl::string_view text) {
  return text.find_first_not_of(" \t\r\n\f\v") == absl::string_view::npos;
}

constexpr size_t kMaxSeparatorBytes = 64 << 10;

// `line` without its LF.
inline bool IsSeparator(const TextSourceOptions& options, absl::string_view line) {
  if (!options.document_separator.has_value() || line.size() > kMaxSeparatorBytes) return false;
  if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
  return options.document_separator->empty()
             ? IsBlank(line)
             : line == absl::string_view(*options.document_separator);
}

}  // namespace mt
