// Documents out of one file, one at a time. What a build does by chunks on many threads, in order on one.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "worker/data/text/chunk_reader.h"
#include "worker/data/text/record_reader.h"

namespace mt {

using BadLineHandler = std::function<absl::Status(const BadLine&)>;

class TextSource {
 public:
  // INVALID_ARGUMENT: a file of another name.
  static absl::StatusOr<std::unique_ptr<TextSource>> Open(Env* env, const std::string& path,
                                                          const TextSourceOptions& options,
                                                          BadLineHandler on_bad_line,
                                                          size_t chunk_bytes = kChunkBytes);

  // The next document into `document`; false at the end of the file. Blank documents are left out. What is no document is reported
  // to `on_bad_line`; if that returns an error, reading ends with it. Errors of ByteSource::Read.
  absl::StatusOr<bool> Next(std::string* document);
  // Of the file, so far.
  uint64_t bytes_read() const { return reader_->file_bytes(); }

 private:
  TextSource(std::string path, std::unique_ptr<ChunkReader> reader,
             const TextSourceOptions& options, BadLineHandler on_bad_line)
      : path_(std::move(path)),
        reader_(std::move(reader)),
        records_(options),
        on_bad_line_(std::move(on_bad_line)) {
    records_.Begin(&chunk_, reader_->format());
  }

  const std::string path_;
  const std::unique_ptr<ChunkReader> reader_;
  TextChunk chunk_;
  RecordReader records_;
  const BadLineHandler on_bad_line_;
};

}  // namespace mt
