#include "worker/data/chat/python_strip.h"

#include <array>

#include "absl/strings/match.h"

namespace mt {
namespace {

// UTF-8 of the characters with str.isspace() beyond ASCII: U+0085, U+00A0, U+1680, U+2000 to U+200A, U+2028, U+2029, U+202F, U+205F, U+3000.
constexpr std::array<absl::string_view, 19> kWideSpaces = {
    "\xC2\x85",     "\xC2\xA0",     "\xE1\x9A\x80", "\xE2\x80\x80", "\xE2\x80\x81",
    "\xE2\x80\x82", "\xE2\x80\x83", "\xE2\x80\x84", "\xE2\x80\x85", "\xE2\x80\x86",
    "\xE2\x80\x87", "\xE2\x80\x88", "\xE2\x80\x89", "\xE2\x80\x8A", "\xE2\x80\xA8",
    "\xE2\x80\xA9", "\xE2\x80\xAF", "\xE2\x81\x9F", "\xE3\x80\x80"};

bool IsNarrowSpace(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1c && c <= 0x1f);
}

// Bytes of the white space that `text` begins with (or ends with); 0: none.
size_t SpaceAtFront(absl::string_view text) {
  if (text.empty()) return 0;
  if (IsNarrowSpace(text.front())) return 1;
  for (absl::string_view space : kWideSpaces)
    if (absl::StartsWith(text, space)) return space.size();
  return 0;
}

size_t SpaceAtBack(absl::string_view text) {
  if (text.empty()) return 0;
  if (IsNarrowSpace(text.back())) return 1;
  for (absl::string_view space : kWideSpaces)
    if (absl::EndsWith(text, space)) return space.size();
  return 0;
}

}  // namespace

absl::string_view PythonStrip(absl::string_view text) {
  while (const size_t bytes = SpaceAtFront(text)) text.remove_prefix(bytes);
  while (const size_t bytes = SpaceAtBack(text)) text.remove_suffix(bytes);
  return text;
}

absl::string_view StripCharacter(absl::string_view text, char character) {
  while (!text.empty() && text.front() == character) text.remove_prefix(1);
  while (!text.empty() && text.back() == character) text.remove_suffix(1);
  return text;
}

}  // namespace mt
