// Cuts the contents of one file into chunks of whole records, front to back: what a thread encodes at a time.
//
// Where chunks end depends on the contents alone: behind the last record that ends in the first MiB, or else behind the first that
// ends at all. So a chunk is about 1 MiB, unless one record is larger; a record beyond MaxRecordBytes is passed over in pieces.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "common/hash.h"
#include "worker/data/text/byte_source.h"
#include "worker/data/text/input_files.h"
#include "worker/data/text/text_options.h"

namespace mt {

// Readable bytes behind the text of a chunk (simdjson's SIMDJSON_PADDING).
constexpr size_t kTextPadding = 64;
constexpr size_t kChunkBytes = 1 << 20;

// Between two records of a file.
struct TextPosition {
  uint64_t offset = 0;  // of the contents, unpacked
  int64_t line = 1;     // the one that begins here
  // XXH3-128 of the contents before it; empty at the beginning.
  std::string xxh3;
};

struct TextChunk {
  std::string buffer;  // the text, and kTextPadding zeros
  int64_t first_line = 1;
  TextPosition end;
  uint64_t file_bytes = 0;  // of the file itself, read so far
  // Not empty: instead of text, a record at first_line that was passed over, and why.
  std::string too_large;

  absl::string_view text() const {
    return absl::string_view(buffer.data(), buffer.size() - std::min(buffer.size(), kTextPadding));
  }
};

// Why a record beyond MaxRecordBytes is none.
std::string TooLarge(TextFormat format, const TextSourceOptions& options);

// One thread's at a time.
class ChunkReader {
 public:
  // `before_large`: called before a record grows beyond kLargeBytes; an error ends the reading. INVALID_ARGUMENT: a file of
  // another name.
  static constexpr size_t kLargeBytes = 64 << 20;
  static absl::StatusOr<std::unique_ptr<ChunkReader>> Open(Env* env, const std::string& path,
                                                           const TextSourceOptions& options,
                                                           size_t chunk_bytes = kChunkBytes);

  // Goes on from a position that an earlier reader was at; before the first Next. FAILED_PRECONDITION: the contents before it are
  // not what they were.
  absl::Status SkipTo(const TextPosition& position);

  // False at the end. Errors of ByteSource::Read.
  absl::StatusOr<bool> Next(TextChunk* chunk,
                            const std::function<absl::Status()>& before_large = nullptr);

  TextFormat format() const { return format_; }
  // After Next gave false: of the file itself.
  uint64_t file_bytes() const { return source_->file_bytes(); }
  std::string file_xxh3() const { return source_->file_xxh3(); }

 private:
  ChunkReader(std::string path, TextFormat format, const TextSourceOptions& options,
              size_t chunk_bytes, std::unique_ptr<ByteSource> source);
  absl::StatusOr<bool> Fill();  // reads on behind carry_; false at the end
  size_t LastNewline(size_t begin, size_t end) const;
  size_t LastRecordEnd();
  absl::Status PassOver(TextChunk* chunk);
  void Finish(TextChunk* chunk);

  const std::string path_;
  const TextFormat format_;
  const TextSourceOptions options_;
  const size_t chunk_bytes_;
  const std::unique_ptr<ByteSource> source_;
  std::string carry_;    // read, but not given away
  size_t searched_ = 0;  // of carry_: no record ends before
  bool at_end_ = false;
  TextPosition position_;
  Xxh3Stream digest_;
};

}  // namespace mt
