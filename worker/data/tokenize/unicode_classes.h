// The classes of characters that pre-tokenizers' patterns speak of, in Unicode 16.0.0: the version of the regex engines that define
// the ids (make_unicode_classes.py says which).
#pragma once

#include <cstddef>
#include <cstdint>

namespace mt {

// General categories, so far as any known pattern tells them apart; kSpace is the property White_Space, which comes first.
enum class UnicodeClass : uint8_t {
  kOther,  // controls, formats, unassigned; and bytes that are not UTF-8
  kUpper,
  kLower,
  kTitle,
  kModifier,
  kOtherLetter,
  kMark,
  kNumber,       // Nd, Nl
  kOtherNumber,  // No
  kPunctuation,  // all but Pc
  kConnector,    // Pc
  kSymbol,
  kSpace,
};

inline constexpr uint32_t kCodePoints = 0x110000;

// One UnicodeClass per code point. Made at the first call, then never changed.
const uint8_t* UnicodeClasses();

// White_Space, and what \w is to Rust's regex (Alphabetic, M, Nd, Pc, Join_Control): for added tokens that must stand alone. False
// for what is no code point.
bool IsWhiteSpace(uint32_t code_point);
bool IsWord(uint32_t code_point);

// Bytes of the UTF-8 character at `p`, and its code point. Bytes that begin none (a stray or missing continuation byte, an overlong
// form, a surrogate, more than U+10FFFF) are "characters" of one byte, and of a code point that is none.
struct Utf8Char {
  uint32_t code_point;
  uint32_t bytes;
};
inline constexpr uint32_t kNotUtf8 = 0xffffffff;

inline Utf8Char DecodeUtf8(const uint8_t* p, const uint8_t* end) {
  const uint32_t lead = *p;
  if (lead < 0x80) return {lead, 1};
  const auto continues = [&](int i) { return (p[i] & 0xc0) == 0x80; };
  if (lead < 0xe0) {
    if (lead < 0xc2 || end - p < 2 || !continues(1)) return {kNotUtf8, 1};
    return {(lead & 0x1f) << 6 | (p[1] & 0x3fu), 2};
  }
  if (lead < 0xf0) {
    if (end - p < 3 || !continues(1) || !continues(2)) return {kNotUtf8, 1};
    const uint32_t code_point = (lead & 0x0f) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu);
    if (code_point < 0x800 || (code_point >> 11) == 0x1b) return {kNotUtf8, 1};
    return {code_point, 3};
  }
  if (end - p < 4 || !continues(1) || !continues(2) || !continues(3)) return {kNotUtf8, 1};
  const uint32_t code_point =
      (lead & 0x07) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
  if (lead > 0xf4 || code_point < 0x10000 || code_point >= kCodePoints) return {kNotUtf8, 1};
  return {code_point, 4};
}

}  // namespace mt
