#include "worker/data/text/record_reader.h"

#include <cstring>

namespace mt {
namespace {

// Up to and with its LF, or all.
absl::string_view FirstLine(absl::string_view text) {
  const void* end = std::memchr(text.data(), '\n', text.size());
  return end == nullptr ? text : text.substr(0, static_cast<const char*>(end) - text.data() + 1);
}

absl::string_view WithoutNewline(absl::string_view line) {
  if (!line.empty() && line.back() == '\n') line.remove_suffix(1);
  return line;
}

}  // namespace

RecordReader::RecordReader(const TextSourceOptions& options)
    : options_(options), json_(options.text_key) {}

void RecordReader::Begin(const TextChunk* chunk, TextFormat format) {
  chunk_ = chunk;
  format_ = format;
  rest_ = chunk->text();
  line_ = chunk->first_line;
  passed_over_ = !chunk->too_large.empty();
}

bool RecordReader::Next(Record* record) {
  record->reason.clear();
  record->found = record->text = absl::string_view();
  if (passed_over_) {
    passed_over_ = false;
    record->line = chunk_->first_line;
    record->reason = chunk_->too_large;
    return true;
  }
  return format_ == TextFormat::kJsonl ? NextLine(record) : NextText(record);
}

bool RecordReader::Take(absl::string_view found, absl::string_view text, Record* record) {
  if (text.size() > options_.max_document_bytes) {
    record->found = found;
    record->reason =
        absl::StrCat("a document of ", text.size(), " bytes, more than --max-document-bytes ",
                     options_.max_document_bytes);
    return true;
  }
  record->text = text;
  return !IsBlank(text);
}

bool RecordReader::NextLine(Record* record) {
  while (!rest_.empty()) {
    const absl::string_view whole = FirstLine(rest_);
    rest_.remove_prefix(whole.size());
    record->line = line_++;
    const absl::string_view line = WithoutNewline(whole);
    if (IsBlank(line)) continue;
    if (line.size() > MaxRecordBytes(options_)) {
      record->reason = TooLarge(format_, options_);
      return true;
    }
    absl::string_view text;
    record->reason = options_.raw_json ? json_.RawValue(line, &text) : json_.Text(line, &text);
    if (!record->reason.empty()) {
      record->found = line;
      return true;
    }
    if (Take(line, text, record)) return true;
  }
  return false;
}

bool RecordReader::NextText(Record* record) {
  while (!rest_.empty()) {
    const char* begin = rest_.data();
    record->line = line_;
    size_t size = 0;
    if (options_.document_separator.has_value()) {
      bool ended = false;
      while (!ended && !rest_.empty()) {
        const absl::string_view line = FirstLine(rest_);
        rest_.remove_prefix(line.size());
        ++line_;
        // The last line of a file need not end in LF.
        ended = IsSeparator(options_, WithoutNewline(line));
        if (!ended) size += line.size();
      }
    } else {
      size = rest_.size();
      rest_ = absl::string_view();
    }
    const absl::string_view found(begin, size);
    if (size > MaxRecordBytes(options_)) {
      record->reason = TooLarge(format_, options_);
      return true;
    }
    if (!IsBlank(found) && Take(found, Normalized(found), record)) return true;
  }
  return false;
}

// Lines that end in LF, all of them.
absl::string_view RecordReader::Normalized(absl::string_view text) {
  const bool carriage = std::memchr(text.data(), '\r', text.size()) != nullptr;
  if (!carriage && text.back() == '\n') return text;
  scratch_.clear();
  scratch_.reserve(text.size() + 1);
  while (!text.empty()) {
    const void* found = std::memchr(text.data(), '\r', text.size());
    const size_t at =
        found == nullptr ? text.size() : static_cast<const char*>(found) - text.data();
    scratch_.append(text.data(), at);
    text.remove_prefix(at);
    if (text.empty()) break;
    if (text.size() < 2 || text[1] != '\n') scratch_.push_back('\r');
    text.remove_prefix(1);
  }
  if (scratch_.back() != '\n') scratch_.push_back('\n');
  return scratch_;
}

}  // namespace mt
