// Documents out of .txt and .jsonl files, one at a time; memory holds one document.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "common/env.h"
#include "common/status.h"

namespace mt {

struct TextSourceOptions {
  std::string text_key = "text";  // of a JSONL object
  // .txt only: a line equal to this (an empty one: any blank line) ends a document. Unset: a file
  // is one document.
  std::optional<std::string> document_separator;
  uint64_t max_document_bytes = 1ull << 30;  // of text; also the longest line
};

// A line of a .jsonl file that is not an object with a string under text_key.
struct BadLine {
  std::string file;
  int64_t line = 0;  // from 1
  std::string reason;
};

class TextSource {
 public:
  virtual ~TextSource() = default;
  // The next document into `document`; false at the end of the file. Blank documents are left out.
  // A bad line is reported to `on_bad_line`; if that returns an error, reading ends with it.
  // RESOURCE_EXHAUSTED: a document larger than the limit.
  virtual absl::StatusOr<bool> Next(std::string* document) = 0;
  virtual uint64_t bytes_read() const = 0;
};

using BadLineHandler = std::function<absl::Status(const BadLine&)>;

// By the file's name: .jsonl (and .json: one object per line) or .txt. INVALID_ARGUMENT for other
// names.
absl::StatusOr<std::unique_ptr<TextSource>> OpenTextSource(Env* env, const std::string& path,
                                                           const TextSourceOptions& options,
                                                           BadLineHandler on_bad_line);

}  // namespace mt
