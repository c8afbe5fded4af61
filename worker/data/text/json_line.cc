#include "worker/data/text/json_line.h"

#include <simdjson.h>
#include <nlohmann/json.hpp>

#include <cstring>

#include "absl/strings/str_cat.h"

namespace mt {
namespace {

namespace dom = simdjson::dom;

// A streaming parse: nothing but the wanted value is kept, and nesting costs no stack, however deep a hostile line nests.
class TextExtractor : public nlohmann::json_sax<nlohmann::json> {
 public:
  TextExtractor(const std::string& key, bool any_type, std::string* text)
      : key_(key), any_type_(any_type), text_(text) {}

  bool null() override { return Value("null"); }
  bool boolean(bool) override { return Value("a boolean"); }
  bool number_integer(number_integer_t) override { return Value("a number"); }
  bool number_unsigned(number_unsigned_t) override { return Value("a number"); }
  bool number_float(number_float_t, const string_t&) override { return Value("a number"); }
  bool binary(binary_t&) override { return Value("binary"); }
  bool string(string_t& value) override {
    const bool mine = depth_ == 1 && wanted_;
    if (!Value("a string")) return false;
    if (mine) *text_ = std::move(value);
    return true;
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

  std::string Reason() const;

 private:
  bool Fail(std::string reason) {
    reason_ = std::move(reason);
    return false;
  }
  bool Value(absl::string_view kind);

  const std::string& key_;
  const bool any_type_;
  std::string* text_;
  std::string reason_;
  int64_t depth_ = 0;
  bool wanted_ = false;
  bool found_ = false;
};

std::string Missing(const std::string& key) {
  return absl::StrCat("no key \"", key, "\" (name it with --text-key)");
}
std::string Twice(const std::string& key) { return absl::StrCat("key \"", key, "\" stands twice"); }
std::string NotString(const std::string& key, absl::string_view kind) {
  return absl::StrCat("key \"", key, "\" is ", kind, ", not a string");
}

std::string TextExtractor::Reason() const {
  if (!reason_.empty()) return reason_;
  return found_ ? "" : Missing(key_);
}

bool TextExtractor::Value(absl::string_view kind) {
  if (depth_ == 0 && kind != "an object") return Fail(absl::StrCat("is ", kind, ", not an object"));
  if (depth_ != 1 || !wanted_) return true;
  if (found_) return Fail(Twice(key_));
  if (!any_type_ && kind != "a string") return Fail(NotString(key_, kind));
  found_ = true;
  wanted_ = false;
  return true;
}

absl::string_view KindOf(dom::element_type type) {
  switch (type) {
    case dom::element_type::ARRAY:
      return "an array";
    case dom::element_type::OBJECT:
      return "an object";
    case dom::element_type::STRING:
      return "a string";
    case dom::element_type::BOOL:
      return "a boolean";
    case dom::element_type::NULL_VALUE:
      return "null";
    default:
      return "a number";
  }
}

// Over JSON that was found valid: only the borders of strings and brackets matter.
class Scanner {
 public:
  explicit Scanner(absl::string_view json) : json_(json) {}

  void SkipSpace() { at_ = std::min(json_.find_first_not_of(" \t\r\n", at_), json_.size()); }
  char Peek() const { return at_ < json_.size() ? json_[at_] : '\0'; }
  void Skip(size_t count) { at_ = std::min(at_ + count, json_.size()); }
  // The string that begins here, with its quotes.
  absl::string_view String() {
    const size_t begin = at_++;
    while (at_ < json_.size() && json_[at_] != '"') at_ += json_[at_] == '\\' ? 2 : 1;
    Skip(1);
    return json_.substr(begin, at_ - begin);
  }
  absl::string_view Value() {
    const size_t begin = at_;
    int64_t depth = 0;
    do {
      const char c = Peek();
      if (c == '"') {
        String();
      } else if (c == '{' || c == '[') {
        ++depth;
        Skip(1);
      } else if (c == '}' || c == ']') {
        --depth;
        Skip(1);
      } else {  // a number or a word; between brackets, also what separates values
        const size_t end = json_.find_first_of(depth == 0 ? ",]} \t\r\n" : "\"{}[]", at_);
        at_ = std::min(end, json_.size());
      }
    } while (depth > 0 && at_ < json_.size());
    return json_.substr(begin, at_ - begin);
  }

 private:
  absl::string_view json_;
  size_t at_ = 0;
};

bool KeyIs(absl::string_view quoted, const std::string& key) {
  if (quoted.find('\\') == absl::string_view::npos)
    return quoted.substr(1, quoted.size() - 2) == absl::string_view(key);
  return nlohmann::json::parse(quoted.begin(), quoted.end(), nullptr, false) == key;
}

}  // namespace

struct JsonLineParser::State {
  // What one long line needed is not kept for the short ones that follow.
  bool Parse(absl::string_view line, dom::object* object) {
    constexpr size_t kKeptBytes = 64 << 20;
    if (parser.capacity() > kKeptBytes && line.size() <= kKeptBytes) parser = dom::parser();
    return parser.parse(line.data(), line.size(), false).get(*object) == simdjson::SUCCESS;
  }
  dom::parser parser;
  std::string text;  // of the slow way
};

JsonLineParser::JsonLineParser(std::string key)
    : key_(std::move(key)), state_(std::make_unique<State>()) {}
JsonLineParser::~JsonLineParser() = default;

std::string JsonLineParser::Slow(absl::string_view line, bool any_type) {
  if (const void* nul = std::memchr(line.data(), '\0', line.size()); nul != nullptr) {
    return absl::StrCat("not JSON at column ", static_cast<const char*>(nul) - line.data() + 1,
                        ": a NUL byte");
  }
  TextExtractor extractor(key_, any_type, &state_->text);
  nlohmann::json::sax_parse(line.begin(), line.end(), &extractor);
  return extractor.Reason();
}

std::string JsonLineParser::Text(absl::string_view line, absl::string_view* text) {
  dom::object object;
  if (!state_->Parse(line, &object)) {
    std::string reason = Slow(line, false);
    *text = state_->text;
    return reason;
  }
  bool found = false;
  for (const dom::key_value_pair field : object) {
    if (field.key != std::string_view(key_)) continue;
    if (found) return Twice(key_);
    std::string_view value;
    if (field.value.get(value) != simdjson::SUCCESS)
      return NotString(key_, KindOf(field.value.type()));
    *text = absl::string_view(value.data(), value.size());
    found = true;
  }
  return found ? "" : Missing(key_);
}

std::string JsonLineParser::RawValue(absl::string_view line, absl::string_view* value) {
  dom::object object;
  if (!state_->Parse(line, &object)) {
    if (std::string reason = Slow(line, true); !reason.empty()) return reason;
  }
  Scanner scanner(line.substr(line.find('{')));  // a byte order mark may stand before it
  scanner.Skip(1);
  bool found = false;
  for (scanner.SkipSpace(); scanner.Peek() == '"'; scanner.SkipSpace()) {
    const bool wanted = KeyIs(scanner.String(), key_);
    scanner.SkipSpace();
    scanner.Skip(1);  // the colon
    scanner.SkipSpace();
    const absl::string_view raw = scanner.Value();
    if (wanted) {
      if (found) return Twice(key_);
      *value = raw;
      found = true;
    }
    scanner.SkipSpace();
    scanner.Skip(1);  // the comma
  }
  return found ? "" : Missing(key_);
}

}  // namespace mt
