// The value under one key of a line of JSON.
//
// Lines are parsed by simdjson, and those that it refuses by nlohmann's parser, which has the last word: it accepts what simdjson
// cannot hold (numbers beyond 64 bits, nesting beyond 1024) and says what is wrong with the rest. So what is accepted, and the text,
// is what nlohmann's parser gives; but a NUL byte is an error wherever it stands.
#pragma once

#include <memory>
#include <string>

#include "absl/strings/string_view.h"

namespace mt {

// One thread's: keeps its memory from line to line.
class JsonLineParser {
 public:
  explicit JsonLineParser(std::string key);
  ~JsonLineParser();

  // `line` is one line of at most 0xFFFFFFFF bytes, with kTextPadding readable bytes behind it. Sets `text` to the string under the
  // key, valid until the next call; returns what is wrong with the line, or nothing.
  std::string Text(absl::string_view line, absl::string_view* text);
  // The same for the value as it stands in the line, of whatever type.
  std::string RawValue(absl::string_view line, absl::string_view* value);

 private:
  struct State;
  std::string Slow(absl::string_view line, bool any_type);
  const std::string key_;
  const std::unique_ptr<State> state_;
};

}  // namespace mt
