#include "worker/data/text/text_source.h"

#include <nlohmann/json.hpp>

#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"

namespace mt {
namespace {

constexpr size_t kReadBytes = 1 << 20;

bool IsBlank(absl::string_view text) {
  return text.find_first_not_of(" \t\r\n\f\v") == absl::string_view::npos;
}

// Lines without their end (LF or CRLF), whatever the pieces the file is read in.
class LineReader {
 public:
  LineReader(std::unique_ptr<RandomAccessFile> file, std::string path, uint64_t max_line_bytes)
      : file_(std::move(file)), path_(std::move(path)), max_line_bytes_(max_line_bytes) {}

  absl::StatusOr<bool> Next(std::string* line) {
    line->clear();
    while (true) {
      if (at_ == buffer_.size()) {
        buffer_.resize(kReadBytes);
        at_ = 0;
        absl::StatusOr<size_t> bytes = file_->Read(offset_, buffer_.size(), buffer_.data());
        if (!bytes.ok()) {
          buffer_.clear();
          return bytes.status();
        }
        buffer_.resize(*bytes);
        offset_ += *bytes;
        if (*bytes == 0) {
          if (line->empty()) return false;
          ++line_number_;
          return true;
        }
      }
      const char* start = buffer_.data() + at_;
      const size_t left = buffer_.size() - at_;
      const void* end = std::memchr(start, '\n', left);
      const size_t count = end == nullptr ? left : static_cast<const char*>(end) - start;
      if (line->size() + count > max_line_bytes_) {
        return absl::ResourceExhaustedError(
            absl::StrCat(path_, ":", line_number_ + 1, ": a line longer than ", max_line_bytes_,
                         " bytes; split it, or raise --max-document-bytes"));
      }
      line->append(start, count);
      at_ += count;
      if (end == nullptr) continue;
      ++at_;
      ++line_number_;
      if (!line->empty() && line->back() == '\r') line->pop_back();
      return true;
    }
  }

  int64_t line_number() const { return line_number_; }
  uint64_t bytes_read() const { return offset_ - (buffer_.size() - at_); }
  const std::string& path() const { return path_; }

 private:
  std::unique_ptr<RandomAccessFile> file_;
  std::string path_;
  uint64_t max_line_bytes_;
  std::string buffer_;
  size_t at_ = 0;
  uint64_t offset_ = 0;
  int64_t line_number_ = 0;
};

class JsonlSource : public TextSource {
 public:
  JsonlSource(LineReader reader, const TextSourceOptions& options, BadLineHandler on_bad_line)
      : reader_(std::move(reader)), key_(options.text_key), on_bad_line_(std::move(on_bad_line)) {}

  absl::StatusOr<bool> Next(std::string* document) override {
    std::string line;
    while (true) {
      MT_ASSIGN_OR_RETURN(const bool more, reader_.Next(&line));
      if (!more) return false;
      if (IsBlank(line)) continue;
      const std::string reason = Parse(line, document);
      if (!reason.empty()) {
        MT_RETURN_IF_ERROR(on_bad_line_({reader_.path(), reader_.line_number(), reason}));
        continue;
      }
      if (!IsBlank(*document)) return true;
    }
  }
  uint64_t bytes_read() const override { return reader_.bytes_read(); }

 private:
  // Takes the text out of the line; returns what is wrong with it, or nothing. A streaming parse:
  // nothing but the wanted value is kept, and nesting costs no stack, however deep a hostile line
  // nests.
  std::string Parse(const std::string& line, std::string* document);

  LineReader reader_;
  std::string key_;
  BadLineHandler on_bad_line_;
};

class TextExtractor : public nlohmann::json_sax<nlohmann::json> {
 public:
  TextExtractor(const std::string& key, std::string* text) : key_(key), text_(text) {}

  bool null() override { return Value("null"); }
  bool boolean(bool) override { return Value("a boolean"); }
  bool number_integer(number_integer_t) override { return Value("a number"); }
  bool number_unsigned(number_unsigned_t) override { return Value("a number"); }
  bool number_float(number_float_t, const string_t&) override { return Value("a number"); }
  bool binary(binary_t&) override { return Value("binary"); }
  bool string(string_t& value) override {
    if (depth_ == 1 && wanted_) {
      if (found_) return Fail(absl::StrCat("key \"", key_, "\" stands twice"));
      *text_ = std::move(value);
      found_ = true;
      wanted_ = false;
      return true;
    }
    return Value("a string");
  }
  bool start_object(std::size_t) override {
    if (!Value("an object")) return false;
    ++depth_;
    return true;
  }
  bool key(string_t& name) override {
    wanted_ = depth_ == 1 && name == key_;
    return true;
  }
  bool end_object() override {
    --depth_;
    return true;
  }
  bool start_array(std::size_t) override {
    if (!Value("an array")) return false;
    ++depth_;
    return true;
  }
  bool end_array() override {
    --depth_;
    return true;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("not JSON at column ", position));
  }

  std::string Reason() const {
    if (!reason_.empty()) return reason_;
    return found_ ? "" : absl::StrCat("no key \"", key_, "\" (name it with --text-key)");
  }

 private:
  bool Fail(std::string reason) {
    reason_ = std::move(reason);
    return false;
  }
  bool Value(absl::string_view kind) {
    if (depth_ == 0 && kind != "an object")
      return Fail(absl::StrCat("is ", kind, ", not an object"));
    if (depth_ == 1 && wanted_)
      return Fail(absl::StrCat("key \"", key_, "\" is ", kind, ", not a string"));
    return true;
  }

  const std::string& key_;
  std::string* text_;
  std::string reason_;
  int64_t depth_ = 0;
  bool wanted_ = false;
  bool found_ = false;
};

std::string JsonlSource::Parse(const std::string& line, std::string* document) {
  TextExtractor extractor(key_, document);
  nlohmann::json::sax_parse(line, &extractor);
  return extractor.Reason();
}

class TxtSource : public TextSource {
 public:
  TxtSource(LineReader reader, const TextSourceOptions& options)
      : reader_(std::move(reader)),
        separator_(options.document_separator),
        max_bytes_(options.max_document_bytes) {}

  absl::StatusOr<bool> Next(std::string* document) override {
    document->clear();
    std::string line;
    while (true) {
      MT_ASSIGN_OR_RETURN(const bool more, reader_.Next(&line));
      if (!more) return !IsBlank(*document);
      if (IsSeparator(line)) {
        if (!IsBlank(*document)) return true;
        document->clear();
        continue;
      }
      if (document->size() + line.size() + 1 > max_bytes_) {
        return absl::ResourceExhaustedError(absl::StrCat(
            reader_.path(), ":", reader_.line_number(), ": a document larger than ", max_bytes_,
            " bytes; cut the file into documents with --document-separator, or raise "
            "--max-document-bytes"));
      }
      document->append(line);
      document->push_back('\n');
    }
  }
  uint64_t bytes_read() const override { return reader_.bytes_read(); }

 private:
  bool IsSeparator(absl::string_view line) const {
    if (!separator_.has_value()) return false;
    return separator_->empty() ? IsBlank(line) : line == absl::string_view(*separator_);
  }

  LineReader reader_;
  std::optional<std::string> separator_;
  uint64_t max_bytes_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<TextSource>> OpenTextSource(Env* env, const std::string& path,
                                                           const TextSourceOptions& options,
                                                           BadLineHandler on_bad_line) {
  const bool jsonl = absl::EndsWith(path, ".jsonl") || absl::EndsWith(path, ".json");
  if (!jsonl && !absl::EndsWith(path, ".txt")) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": only .txt and .jsonl files are read"));
  }
  MT_ASSIGN_OR_RETURN(std::unique_ptr<RandomAccessFile> file, env->NewRandomAccessFile(path));
  LineReader reader(std::move(file), path, options.max_document_bytes);
  if (jsonl)
    return std::make_unique<JsonlSource>(std::move(reader), options, std::move(on_bad_line));
  return std::make_unique<TxtSource>(std::move(reader), options);
}

}  // namespace mt
