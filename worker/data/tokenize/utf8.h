// UTF-8 in string views, one character at a time.
#pragma once

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"
#include "worker/data/tokenize/unicode_classes.h"

namespace mt {

// The length of the character at text[at] (at < text.size()), and the character; 0 if the bytes there are not UTF-8.
inline size_t DecodeUtf8(absl::string_view text, size_t at, char32_t* character) {
  const auto* const bytes = reinterpret_cast<const uint8_t*>(text.data());
  const Utf8Char decoded = DecodeUtf8(bytes + at, bytes + text.size());
  *character = decoded.code_point;
  return decoded.code_point == kNotUtf8 ? 0 : decoded.bytes;
}

inline void AppendUtf8(char32_t character, std::string* text) {
  const auto push = [&](uint32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (character < 0x80) {
    push(character);
  } else if (character < 0x800) {
    push(0xc0 | character >> 6);
    push(0x80 | (character & 0x3f));
  } else if (character < 0x10000) {
    push(0xe0 | character >> 12);
    push(0x80 | (character >> 6 & 0x3f));
    push(0x80 | (character & 0x3f));
  } else {
    push(0xf0 | character >> 18);
    push(0x80 | (character >> 12 & 0x3f));
    push(0x80 | (character >> 6 & 0x3f));
    push(0x80 | (character & 0x3f));
  }
}

}  // namespace mt
