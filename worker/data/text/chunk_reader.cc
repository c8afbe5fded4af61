#include "worker/data/text/chunk_reader.h"

#include <algorithm>
#include <cstring>

namespace mt {
namespace {

constexpr size_t kNone = std::string::npos;
constexpr size_t kLongestSeparatorLine = kMaxSeparatorBytes + 2;

}  // namespace

std::string TooLarge(TextFormat format, const TextSourceOptions& options) {
  const bool jsonl = format == TextFormat::kJsonl;
  return absl::StrCat(jsonl ? "a line" : "a document", " of more than ", MaxRecordBytes(options),
                      " bytes; ",
                      jsonl ? "split it" : "cut the file into documents with --document-separator",
                      ", or raise --max-document-bytes");
}

ChunkReader::ChunkReader(std::string path, TextFormat format, const TextSourceOptions& options,
                         size_t chunk_bytes, std::unique_ptr<ByteSource> source)
    : path_(std::move(path)),
      format_(format),
      options_(options),
      chunk_bytes_(chunk_bytes),
      source_(std::move(source)) {}

absl::StatusOr<std::unique_ptr<ChunkReader>> ChunkReader::Open(Env* env, const std::string& path,
                                                               const TextSourceOptions& options,
                                                               size_t chunk_bytes) {
  MT_ASSIGN_OR_RETURN(const InputKind kind, InputKindOf(path));
  MT_ASSIGN_OR_RETURN(auto source, OpenByteSource(env, path, kind.compression));
  return std::unique_ptr<ChunkReader>(
      new ChunkReader(path, kind.format, options, chunk_bytes, std::move(source)));
}

absl::Status ChunkReader::SkipTo(const TextPosition& position) {
  std::string buffer(kChunkBytes, '\0');
  while (position_.offset < position.offset) {
    const size_t wanted = std::min<uint64_t>(buffer.size(), position.offset - position_.offset);
    MT_ASSIGN_OR_RETURN(const size_t bytes, source_->Read(wanted, buffer.data()));
    digest_.Update(buffer.data(), bytes);
    position_.offset += bytes;
    if (bytes < wanted) break;
  }
  if (position_.offset != position.offset ||
      (position.offset > 0 && digest_.Hex() != position.xxh3)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, ": its first ", position.offset,
                     " bytes are not those that were read before the build was interrupted"));
  }
  position_ = position;
  return absl::OkStatus();
}

absl::StatusOr<bool> ChunkReader::Fill() {
  const size_t had = carry_.size();
  // In growing steps, so that what a long record holds is not searched over and over.
  const size_t wanted = std::max(chunk_bytes_, had / 2);
  carry_.resize(had + wanted);
  absl::StatusOr<size_t> bytes = source_->Read(wanted, carry_.data() + had);
  carry_.resize(had + (bytes.ok() ? *bytes : 0));
  if (!bytes.ok()) return bytes.status();
  return *bytes == wanted;
}

// The last line feed in carry_[begin, end).
size_t ChunkReader::LastNewline(size_t begin, size_t end) const {
  const void* found = memrchr(carry_.data() + begin, '\n', end - begin);
  return found == nullptr ? kNone : static_cast<const char*>(found) - carry_.data();
}

size_t ChunkReader::LastRecordEnd() {
  size_t newline = LastNewline(searched_, carry_.size());
  if (format_ == TextFormat::kJsonl) {
    if (newline != kNone) return newline + 1;
    searched_ = carry_.size();
    return kNone;
  }
  if (!options_.document_separator.has_value() || newline == kNone) return kNone;
  // From the last whole line back to the first that was not looked at before.
  const size_t whole = newline + 1;
  while (newline != kNone) {
    const size_t before = LastNewline(searched_, newline);
    const size_t begin = before == kNone ? searched_ : before + 1;
    if (IsSeparator(options_, absl::string_view(carry_).substr(begin, newline - begin)))
      return newline + 1;
    newline = before;
  }
  searched_ = whole;
  return kNone;
}

void ChunkReader::Finish(TextChunk* chunk) {
  chunk->first_line = position_.line;
  const absl::string_view text = chunk->text();
  digest_.Update(text.data(), text.size());
  position_.offset += text.size();
  position_.line += std::count(text.begin(), text.end(), '\n');
  position_.xxh3 = digest_.Hex();
  chunk->end = position_;
  chunk->file_bytes = source_->file_bytes();
}

absl::StatusOr<bool> ChunkReader::Next(TextChunk* chunk,
                                       const std::function<absl::Status()>& before_large) {
  chunk->too_large.clear();
  chunk->buffer.clear();
  bool asked = false;
  while (true) {
    if (!at_end_) {
      MT_ASSIGN_OR_RETURN(const bool more, Fill());
      at_end_ = !more;
    }
    const size_t end = at_end_ ? carry_.size() : LastRecordEnd();
    if (end != kNone) {
      if (end == 0) return false;
      std::string rest = std::move(chunk->buffer);  // for its memory
      rest.assign(carry_, end);
      carry_.resize(end);
      carry_.append(kTextPadding, '\0');
      chunk->buffer = std::move(carry_);
      carry_ = std::move(rest);
      searched_ = 0;
      Finish(chunk);
      return true;
    }
    if (carry_.size() > MaxRecordBytes(options_) + kLongestSeparatorLine) {
      MT_RETURN_IF_ERROR(PassOver(chunk));
      return true;
    }
    if (carry_.size() >= kLargeBytes && !asked && before_large) {
      MT_RETURN_IF_ERROR(before_large());
      asked = true;
    }
  }
}

// The end of the record is looked for in what is read from here on, a line's beginning apart from the rest of it at most.
absl::Status ChunkReader::PassOver(TextChunk* chunk) {
  const int64_t first_line = position_.line;
  chunk->too_large = TooLarge(format_, options_);
  const auto drop = [&](size_t count) {
    digest_.Update(carry_.data(), count);
    position_.offset += count;
    position_.line += std::count(carry_.begin(), carry_.begin() + count, '\n');
    carry_.erase(0, count);
  };
  bool long_line = false;  // the line that carry_ begins with has lost its beginning
  const auto drop_lines = [&] {
    const size_t newline = carry_.rfind('\n');
    if (newline != kNone) {
      drop(newline + 1);
      long_line = false;
    }
    if (carry_.size() > kLongestSeparatorLine) {
      drop(carry_.size());
      long_line = true;
    }
  };
  drop_lines();
  for (bool found = false; !found;) {
    if (at_end_) {
      drop(carry_.size());
      break;
    }
    MT_ASSIGN_OR_RETURN(const bool more, Fill());
    at_end_ = !more;
    size_t end = kNone;
    if (format_ == TextFormat::kJsonl) {
      end = carry_.find('\n');
    } else if (options_.document_separator.has_value()) {
      for (size_t begin = 0, newline; (newline = carry_.find('\n', begin)) != kNone;
           begin = newline + 1) {
        const bool cut = begin == 0 && long_line;
        if (!cut &&
            IsSeparator(options_, absl::string_view(carry_).substr(begin, newline - begin))) {
          end = newline;
          break;
        }
      }
    }
    found = end != kNone;
    if (found) {
      drop(end + 1);
    } else {
      drop_lines();
    }
  }
  searched_ = 0;
  chunk->first_line = first_line;
  position_.xxh3 = digest_.Hex();
  chunk->end = position_;
  chunk->file_bytes = source_->file_bytes();
  return absl::OkStatus();
}

}  // namespace mt
