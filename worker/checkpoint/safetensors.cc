#include "worker/checkpoint/safetensors.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "absl/strings/str_join.h"

namespace mt {
namespace {

// Bits per element by type name; 0 = not a safetensors type. Sub-byte types exist in the format; we
// hold none.
int BitsOf(absl::string_view dtype) {
  static const auto* bits = new std::map<std::string, int>{
      {"BOOL", 8}, {"F4", 4},          {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
      {"I8", 8},   {"F8_E5M2", 8},     {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"I16", 16},
      {"U16", 16}, {"F16", 16},        {"BF16", 16},   {"I32", 32},    {"U32", 32},
      {"F32", 32}, {"F8_E4M3FNUZ", 8}, {"C64", 64},    {"F64", 64},    {"I64", 64},
      {"U64", 64}};
  const auto it = bits->find(std::string(dtype));
  return it == bits->end() ? 0 : it->second;
}

// The JSON of a header: an object of objects of strings and arrays of unsigned integers, and
// nothing else.
class HeaderParser {
 public:
  HeaderParser(absl::string_view text, const std::string& path) : text_(text), path_(path) {}

  absl::StatusOr<SafetensorsHeader> Parse() {
    SafetensorsHeader header;
    bool has_metadata = false;
    MT_RETURN_IF_ERROR(Object([&](const std::string& name) -> absl::Status {
      if (name == "__metadata__") {
        if (has_metadata) return Error("__metadata__ is there twice");
        has_metadata = true;
        return Object([&](const std::string& key) -> absl::Status {
          MT_ASSIGN_OR_RETURN(std::string value, String());
          if (!header.metadata.emplace(key, std::move(value)).second)
            return Error(absl::StrCat("metadata key ", key, " is there twice"));
          return absl::OkStatus();
        });
      }
      MT_ASSIGN_OR_RETURN(SafetensorsEntry entry, Tensor(name));
      header.entries.push_back(std::move(entry));
      return absl::OkStatus();
    }));
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
    if (at_ != text_.size()) return Error("something follows the header's end");
    return header;
  }

 private:
  absl::Status Error(absl::string_view what) const {
    return absl::DataLossError(absl::StrCat(path_, ": safetensors header, byte ", at_, ": ", what));
  }
  void SkipSpace() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
      ++at_;
  }
  absl::Status Expect(char c) {
    SkipSpace();
    if (at_ >= text_.size() || text_[at_] != c)
      return Error(absl::StrCat("expected '", std::string(1, c), "'"));
    ++at_;
    return absl::OkStatus();
  }
  bool Take(char c) {
    SkipSpace();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  template <typename Value>
  absl::Status Object(Value value) {
    MT_RETURN_IF_ERROR(Expect('{'));
    if (Take('}')) return absl::OkStatus();
    do {
      SkipSpace();
      MT_ASSIGN_OR_RETURN(const std::string key, String());
      MT_RETURN_IF_ERROR(Expect(':'));
      SkipSpace();
      MT_RETURN_IF_ERROR(value(key));
    } while (Take(','));
    return Expect('}');
  }

  absl::StatusOr<SafetensorsEntry> Tensor(const std::string& name) {
    SafetensorsEntry entry;
    entry.name = name;
    bool dtype = false, shape = false, offsets = false;
    MT_RETURN_IF_ERROR(Object([&](const std::string& key) -> absl::Status {
      if (key == "dtype" && !dtype) {
        dtype = true;
        MT_ASSIGN_OR_RETURN(entry.dtype, String());
        return absl::OkStatus();
      }
      if (key == "shape" && !shape) {
        shape = true;
        MT_ASSIGN_OR_RETURN(entry.shape, Integers());
        return absl::OkStatus();
      }
      if (key == "data_offsets" && !offsets) {
        offsets = true;
        MT_ASSIGN_OR_RETURN(const std::vector<int64_t> range, Integers());
        if (range.size() != 2) return Error("data_offsets are not two");
        entry.begin = range[0];
        entry.end = range[1];
        return absl::OkStatus();
      }
      return Error(absl::StrCat("tensor ", name, ": key ", key, " is unknown or there twice"));
    }));
    if (!dtype || !shape || !offsets)
      return Error(absl::StrCat("tensor ", name, " lacks dtype, shape or data_offsets"));
    return entry;
  }

  absl::StatusOr<std::vector<int64_t>> Integers() {
    std::vector<int64_t> values;
    MT_RETURN_IF_ERROR(Expect('['));
    if (Take(']')) return values;
    do {
      SkipSpace();
      const size_t start = at_;
      int64_t value = 0;
      while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
        const int digit = text_[at_] - '0';
        if (value > (INT64_MAX - digit) / 10) return Error("a number is too large");
        value = value * 10 + digit;
        ++at_;
      }
      if (at_ == start) return Error("expected an unsigned integer");
      if (text_[start] == '0' && at_ - start > 1) return Error("a number begins with 0");
      values.push_back(value);
    } while (Take(','));
    MT_RETURN_IF_ERROR(Expect(']'));
    return values;
  }

  absl::StatusOr<uint32_t> Hex4() {
    if (text_.size() - at_ < 4) return Error("an escape is cut off");
    uint32_t value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = text_[at_];
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) return Error("an escape is not hexadecimal");
      value = value * 16 + digit;
    }
    return value;
  }
  static void AppendUtf8(uint32_t c, std::string& out) {
    if (c < 0x80) {
      out.push_back(static_cast<char>(c));
    } else if (c < 0x800) {
      out.push_back(static_cast<char>(0xC0 | (c >> 6)));
      out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
    } else if (c < 0x10000) {
      out.push_back(static_cast<char>(0xE0 | (c >> 12)));
      out.push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
      out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
    } else {
      out.push_back(static_cast<char>(0xF0 | (c >> 18)));
      out.push_back(static_cast<char>(0x80 | ((c >> 12) & 0x3F)));
      out.push_back(static_cast<char>(0x80 | ((c >> 6) & 0x3F)));
      out.push_back(static_cast<char>(0x80 | (c & 0x3F)));
    }
  }
  absl::StatusOr<std::string> String() {
    MT_RETURN_IF_ERROR(Expect('"'));
    std::string out;
    while (true) {
      if (at_ >= text_.size()) return Error("a string is cut off");
      const char c = text_[at_++];
      if (c == '"') return out;
      if (static_cast<unsigned char>(c) < 0x20) return Error("a control character in a string");
      if (c != '\\') {
        out.push_back(c);
        continue;
      }
      if (at_ >= text_.size()) return Error("a string is cut off");
      const char escape = text_[at_++];
      static constexpr absl::string_view kEscapes = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
      if (const size_t i = kEscapes.find(escape); i != absl::string_view::npos) {
        out.push_back(kMeanings[i]);
      } else if (escape == 'u') {
        MT_ASSIGN_OR_RETURN(uint32_t code, Hex4());
        if (code >= 0xD800 && code < 0xDC00) {
          if (text_.size() - at_ < 6 || text_[at_] != '\\' || text_[at_ + 1] != 'u')
            return Error("half of a surrogate pair");
          at_ += 2;
          MT_ASSIGN_OR_RETURN(const uint32_t low, Hex4());
          if (low < 0xDC00 || low > 0xDFFF) return Error("half of a surrogate pair");
          code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
        } else if (code >= 0xDC00 && code <= 0xDFFF) {
          return Error("half of a surrogate pair");
        }
        AppendUtf8(code, out);
      } else {
        return Error("an unknown escape");
      }
    }
  }

  const absl::string_view text_;
  const std::string& path_;
  size_t at_ = 0;
};

// Bytes that `entry`'s type and shape need; an error if they overflow or do not end on a byte.
absl::StatusOr<uint64_t> BytesOf(const SafetensorsEntry& entry, const std::string& path) {
  const auto error = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat(path, ": tensor ", entry.name, ": ", what));
  };
  uint64_t bits = BitsOf(entry.dtype);
  if (bits == 0) return error(absl::StrCat("unknown type ", entry.dtype));
  for (const int64_t size : entry.shape) {
    if (size < 0 || __builtin_mul_overflow(bits, static_cast<uint64_t>(size), &bits)) {
      return error(absl::StrCat("impossible shape [", absl::StrJoin(entry.shape, ","), "]"));
    }
  }
  if (bits % 8 != 0) return error("does not end on a byte");
  return bits / 8;
}

void AppendJsonString(absl::string_view text, std::string& out) {
  out.push_back('"');
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (static_cast<unsigned char>(c) < 0x20) {
      static constexpr char kHex[] = "0123456789abcdef";
      absl::StrAppend(&out, "\\u00", std::string(1, kHex[c >> 4]), std::string(1, kHex[c & 15]));
    } else {
      out.push_back(c);
    }
  }
  out.push_back('"');
}

}  // namespace

absl::string_view SafetensorsDtype(mt_dtype dtype) {
  switch (dtype) {
    case MT_F32:
      return "F32";
    case MT_F64:
      return "F64";
    case MT_BF16:
      return "BF16";
    case MT_F8_E4M3:
      return "F8_E4M3";
    case MT_F8_E5M2:
      return "F8_E5M2";
    case MT_I32:
      return "I32";
    case MT_I64:
      return "I64";
    case MT_U8:
      return "U8";
  }
  return "";
}

int ElementBytes(mt_dtype dtype) { return BitsOf(SafetensorsDtype(dtype)) / 8; }

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json,
                                                         uint64_t buffer_bytes,
                                                         const std::string& path) {
  if (json.empty() || json[0] != '{')
    return absl::DataLossError(absl::StrCat(path, ": safetensors header does not begin with {"));
  MT_ASSIGN_OR_RETURN(SafetensorsHeader header, HeaderParser(json, path).Parse());
  std::sort(header.entries.begin(), header.entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
            });
  uint64_t at = 0;
  std::map<absl::string_view, int> names;
  for (const SafetensorsEntry& entry : header.entries) {
    if (++names[entry.name] > 1)
      return absl::DataLossError(absl::StrCat(path, ": tensor ", entry.name, " is there twice"));
    MT_ASSIGN_OR_RETURN(const uint64_t bytes, BytesOf(entry, path));
    if (entry.begin != at || entry.end < entry.begin || entry.end - entry.begin != bytes ||
        entry.end > buffer_bytes) {
      return absl::DataLossError(absl::StrCat(path, ": tensor ", entry.name, " (", entry.dtype,
                                              " [", absl::StrJoin(entry.shape, ","), "]) lies at ",
                                              entry.begin, "..", entry.end, "; expected ", bytes,
                                              " bytes at ", at, " of ", buffer_bytes));
    }
    at = entry.end;
  }
  if (at != buffer_bytes) {
    return absl::DataLossError(absl::StrCat(path, ": the tensors take ", at,
                                            " bytes, the file has ", buffer_bytes,
                                            " after its header"));
  }
  return header;
}

absl::StatusOr<std::unique_ptr<SafetensorsReader>> SafetensorsReader::Open(
    Env* env, const std::string& path) {
  MT_ASSIGN_OR_RETURN(std::unique_ptr<RandomAccessFile> file, env->NewRandomAccessFile(path));
  MT_ASSIGN_OR_RETURN(const uint64_t file_bytes, file->Size());
  unsigned char length[8];
  MT_ASSIGN_OR_RETURN(const size_t count,
                      file->Read(0, sizeof(length), reinterpret_cast<char*>(length)));
  if (count != sizeof(length))
    return absl::DataLossError(
        absl::StrCat(path, ": ", file_bytes, " bytes is too short for safetensors"));
  uint64_t header_bytes = 0;
  for (int i = 7; i >= 0; --i) header_bytes = header_bytes << 8 | length[i];
  if (header_bytes > kMaxHeaderBytes || header_bytes > file_bytes - sizeof(length)) {
    return absl::DataLossError(
        absl::StrCat(path, ": a header of ", header_bytes, " bytes in a file of ", file_bytes));
  }
  std::string json(header_bytes, '\0');
  MT_ASSIGN_OR_RETURN(const size_t got, file->Read(sizeof(length), header_bytes, json.data()));
  if (got != header_bytes)
    return absl::DataLossError(absl::StrCat(path, ": the header is cut off"));
  const uint64_t data_start = sizeof(length) + header_bytes;
  MT_ASSIGN_OR_RETURN(SafetensorsHeader header,
                      ParseSafetensorsHeader(json, file_bytes - data_start, path));
  return std::unique_ptr<SafetensorsReader>(
      new SafetensorsReader(path, std::move(file), std::move(header), data_start));
}

SafetensorsReader::SafetensorsReader(std::string path, std::unique_ptr<RandomAccessFile> file,
                                     SafetensorsHeader header, uint64_t data_start)
    : path_(std::move(path)),
      file_(std::move(file)),
      header_(std::move(header)),
      data_start_(data_start) {
  for (size_t i = 0; i < header_.entries.size(); ++i) by_name_[header_.entries[i].name] = i;
}

const SafetensorsEntry* SafetensorsReader::Find(absl::string_view name) const {
  const auto it = by_name_.find(std::string(name));
  return it == by_name_.end() ? nullptr : &header_.entries[it->second];
}

absl::Status SafetensorsReader::Read(const SafetensorsEntry& entry, uint64_t offset, uint64_t size,
                                     void* buffer) const {
  if (offset > entry.bytes() || size > entry.bytes() - offset) {
    return absl::OutOfRangeError(absl::StrCat(path_, ": tensor ", entry.name, ": bytes ", offset,
                                              "+", size, " of ", entry.bytes()));
  }
  MT_ASSIGN_OR_RETURN(const size_t count, file_->Read(data_start_ + entry.begin + offset, size,
                                                      static_cast<char*>(buffer)));
  if (count != size) {
    return absl::DataLossError(absl::StrCat(path_, ": tensor ", entry.name, " is cut off: ", count,
                                            " of ", size, " bytes"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> BuildSafetensorsHead(
    std::vector<SafetensorsEntry>& entries, const std::map<std::string, std::string>& metadata) {
  std::sort(entries.begin(), entries.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              const int a_bits = BitsOf(a.dtype), b_bits = BitsOf(b.dtype);
              return a_bits != b_bits ? a_bits > b_bits : a.name < b.name;
            });
  std::string json = "{\"__metadata__\":{";
  for (const auto& [key, value] : metadata) {
    if (json.back() != '{') json.push_back(',');
    AppendJsonString(key, json);
    json.push_back(':');
    AppendJsonString(value, json);
  }
  json.push_back('}');
  uint64_t at = 0;
  std::set<std::string> names;
  for (SafetensorsEntry& entry : entries) {
    if (entry.name == "__metadata__" || !names.insert(entry.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("tensor ", entry.name, ": the name is taken in this file"));
    }
    const absl::StatusOr<uint64_t> bytes = BytesOf(entry, "safetensors file to write");
    if (!bytes.ok()) return absl::InvalidArgumentError(bytes.status().message());
    entry.begin = at;
    at += *bytes;
    entry.end = at;
    json.push_back(',');
    AppendJsonString(entry.name, json);
    absl::StrAppend(&json, ":{\"dtype\":\"", entry.dtype, "\",\"shape\":[",
                    absl::StrJoin(entry.shape, ","), "],\"data_offsets\":[", entry.begin, ",",
                    entry.end, "]}");
  }
  json.push_back('}');
  constexpr size_t kPage = 4096;
  json.append((kPage - (8 + json.size()) % kPage) % kPage, ' ');
  if (json.size() > SafetensorsReader::kMaxHeaderBytes)
    return absl::InvalidArgumentError(absl::StrCat("a header of ", json.size(), " bytes"));
  std::string head(8, '\0');
  for (int i = 0; i < 8; ++i) head[i] = static_cast<char>(json.size() >> (8 * i));
  return head + json;
}

}  // namespace mt
