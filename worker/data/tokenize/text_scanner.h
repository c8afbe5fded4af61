// How matchers read text: characters by class, and runs of characters of a set of classes, eight ASCII bytes at a time.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "worker/data/tokenize/unicode_classes.h"

namespace mt {

// Sets of classes, one bit each.
using ClassSet = uint32_t;
constexpr ClassSet SetOf(UnicodeClass c) { return 1u << static_cast<uint32_t>(c); }

inline constexpr ClassSet kUpperSet = SetOf(UnicodeClass::kUpper);
inline constexpr ClassSet kLowerSet = SetOf(UnicodeClass::kLower);
inline constexpr ClassSet kUncasedSet =
    SetOf(UnicodeClass::kModifier) | SetOf(UnicodeClass::kOtherLetter);
inline constexpr ClassSet kLetterSet =
    kUpperSet | kLowerSet | SetOf(UnicodeClass::kTitle) | kUncasedSet;
inline constexpr ClassSet kMarkSet = SetOf(UnicodeClass::kMark);
inline constexpr ClassSet kNumberSet =
    SetOf(UnicodeClass::kNumber) | SetOf(UnicodeClass::kOtherNumber);
inline constexpr ClassSet kPunctuationSet =
    SetOf(UnicodeClass::kPunctuation) | SetOf(UnicodeClass::kConnector);
inline constexpr ClassSet kSymbolSet = kPunctuationSet | SetOf(UnicodeClass::kSymbol);
inline constexpr ClassSet kSpaceSet = SetOf(UnicodeClass::kSpace);
inline constexpr ClassSet kOtherSet = SetOf(UnicodeClass::kOther);
inline constexpr ClassSet kWordSet = kLetterSet | kNumberSet;
// [^\s\p{L}\p{N}]
inline constexpr ClassSet kNotWordSet = kOtherSet | kMarkSet | kSymbolSet;

struct ClassedChar {
  ClassSet set;  // one bit
  uint32_t bytes;
  bool In(ClassSet other) const { return (set & other) != 0; }
};

// Which of the eight bytes of `word` are no ASCII letters of the kind: their highest bits are set.
template <bool kUpper, bool kLower>
inline uint64_t NotLetters(uint64_t word) {
  constexpr uint64_t kEach = 0x0101010101010101, kHigh = 0x80 * kEach;
  uint64_t low = word & ~kHigh;  // sums below stay within their bytes
  if constexpr (kUpper && kLower) low |= 0x20 * kEach;
  constexpr uint64_t kFirst = kLower ? 'a' : 'A', kLast = kLower ? 'z' : 'Z';
  const uint64_t not_below = low + (0x80 - kFirst) * kEach;
  const uint64_t above = low + (0x80 - kLast - 1) * kEach;
  return (~not_below | above | word) & kHigh;
}

// Reads up to `end`; `classes` is UnicodeClasses(), or a table made from it.
class TextScanner {
 public:
  TextScanner(const uint8_t* classes, const uint8_t* end) : classes_(classes), end_(end) {}

  const uint8_t* end() const { return end_; }

  ClassedChar At(const uint8_t* p) const {
    if (*p < 0x80) return {1u << classes_[*p], 1};
    const Utf8Char c = DecodeUtf8(p, end_);
    return {c.code_point == kNotUtf8 ? kOtherSet : 1u << classes_[c.code_point], c.bytes};
  }
  // At the end of the text: no class at all.
  ClassedChar AtOrEnd(const uint8_t* p) const { return p < end_ ? At(p) : ClassedChar{0, 0}; }

  // The end of the longest run of characters of `kSet` from `p` on.
  template <ClassSet kSet>
  const uint8_t* Run(const uint8_t* p) const {
    constexpr bool kUpper = (kSet & kUpperSet) != 0, kLower = (kSet & kLowerSet) != 0;
    // Only then are letters the only ASCII of the set.
    constexpr bool kByWords =
        (kUpper || kLower) && (kSet & (kNumberSet | kSymbolSet | kSpaceSet | kOtherSet)) == 0;
    while (true) {
      if constexpr (kByWords) {
        while (end_ - p >= 8) {
          uint64_t word;
          std::memcpy(&word, p, 8);
          if constexpr (std::endian::native == std::endian::big) break;
          const uint64_t stops = NotLetters<kUpper, kLower>(word);
          if (stops != 0) {
            p += std::countr_zero(stops) >> 3;
            if (*p < 0x80) return p;
            break;
          }
          p += 8;
        }
      }
      while (p < end_ && *p < 0x80) {
        if (((kSet >> classes_[*p]) & 1) == 0) return p;
        ++p;
      }
      do {
        if (p == end_) return p;
        const ClassedChar c = At(p);
        if (!c.In(kSet)) return p;
        p += c.bytes;
      } while (p == end_ || *p >= 0x80);
    }
  }

  // The end of the run of [A-Za-z] from `p` on.
  const uint8_t* AsciiLetters(const uint8_t* p) const {
    while (p < end_ && static_cast<uint8_t>((*p | 0x20) - 'a') < 26) ++p;
    return p;
  }
  // The end of the run of line ends from `p` on.
  const uint8_t* LineEnds(const uint8_t* p) const {
    while (p < end_ && (*p == '\n' || *p == '\r')) ++p;
    return p;
  }

 private:
  const uint8_t* const classes_;
  const uint8_t* const end_;
};

}  // namespace mt
