// DeepSeek V3's three splits as one matcher; word_matchers.h says how.
#pragma once

#include "worker/data/tokenize/word_matchers.h"

namespace mt {

// First \p{N}{1,3}, then [一-龥぀-ゟ゠-ヿ]+ in what is left, then in what is left of that:
//   [!-/:-@[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// So numbers and Chinese and Japanese characters (a class of their own here) are borders which the last pattern never looks across.
// It does not match everything: characters of no class with no word behind are a piece of their own, together.
struct DeepSeekV3Matcher {
  static constexpr uint32_t kEastAsian = 15;
  static constexpr ClassSet kEastAsianSet = 1u << kEastAsian;

  static const uint8_t* Classes() {
    static const uint8_t* const classes = [] {
      auto* table = new uint8_t[kCodePoints];
      std::memcpy(table, UnicodeClasses(), kCodePoints);
      std::memset(table + 0x4e00, kEastAsian, 0x9fa5 + 1 - 0x4e00);
      std::memset(table + 0x3040, kEastAsian, 0x30ff + 1 - 0x3040);
      return table;
    }();
    return classes;
  }

  static const uint8_t* Next(const TextScanner& scanner, const uint8_t* p) {
    constexpr ClassSet kBorders = kNumberSet | kEastAsianSet;
    constexpr ClassSet kWords = kLetterSet | kMarkSet;
    const ClassedChar first = scanner.At(p);
    const uint8_t* next = p + first.bytes;
    if (first.In(kWords)) return scanner.Run<kWords>(next);
    if (first.In(kNumberSet)) return Digits<3>(scanner, next);
    if (first.In(kEastAsianSet)) return scanner.Run<kEastAsianSet>(next);
    const ClassedChar second = scanner.AtOrEnd(next);
    if (first.In(kSymbolSet)) {
      if (*p < 0x80 && next < scanner.end() && *next < 0x80 && second.In(kLetterSet))
        return scanner.AsciiLetters(next);
      return scanner.LineEnds(scanner.Run<kSymbolSet>(next));
    }
    if (second.In(kWords) && *p != '\n' && *p != '\r') return scanner.Run<kWords>(next);
    if (*p == ' ' && second.In(kSymbolSet))
      return scanner.LineEnds(scanner.Run<kSymbolSet>(next + second.bytes));
    if (first.In(kSpaceSet)) return WhiteSpace<false, kBorders>(scanner, p);
    return Unmatched(scanner, next, second);
  }

 private:
  // From a character of no class on that ends at `p`, before `c`: up to where the pattern matches again.
  static const uint8_t* Unmatched(const TextScanner& scanner, const uint8_t* p, ClassedChar c) {
    while (c.In(kOtherSet)) {
      const ClassedChar after = scanner.AtOrEnd(p + c.bytes);
      if (after.In(kLetterSet | kMarkSet)) break;
      p += c.bytes;
      c = after;
    }
    return p;
  }
};

}  // namespace mt
