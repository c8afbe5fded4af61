// DeepSeek V3's three splits as one matcher; word_matchers.h says how.
#pragma once

#include "worker/data/tokenize/word_matchers.h"

namespace mt {

// First \p{N}{1,3}, then [一-龥぀-ゟ゠-ヿ]+ in what is left, then in all that is left, those runs too:
//   [!-/:-@[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// So numbers and Chinese and Japanese characters (classes of their own here) are borders which the last pattern never looks across.
// It does not match everything: characters of no class with no word behind are a piece of their own, together.
struct DeepSeekV3Matcher {
  // Chinese and Japanese characters, by what the last pattern sees in them: nearly all are letters; "・" and "゛" are not, nor are
  // three code points that mean nothing.
  static constexpr uint32_t kEastWord = 15, kEastSymbol = 16, kEastOther = 17;
  static constexpr ClassSet kEastWordSet = 1u << kEastWord, kEastSymbolSet = 1u << kEastSymbol;
  static constexpr ClassSet kEastOtherSet = 1u << kEastOther;

  static const uint8_t* Classes() {
    static const uint8_t* const classes = [] {
      auto* table = new uint8_t[kCodePoints];
      std::memcpy(table, UnicodeClasses(), kCodePoints);
      const auto part = [&](uint32_t first, uint32_t last) {
        for (uint32_t c = first; c <= last; ++c) {
          const ClassSet of = 1u << table[c];
          table[c] = (of & (kLetterSet | kMarkSet)) != 0 ? kEastWord
                     : (of & kSymbolSet) != 0            ? kEastSymbol
                                                         : kEastOther;
        }
      };
      part(0x4e00, 0x9fa5);
      part(0x3040, 0x30ff);
      return table;
    }();
    return classes;
  }

  static const uint8_t* Next(const TextScanner& scanner, const uint8_t* p) {
    constexpr ClassSet kBorders = kNumberSet | kEastWordSet | kEastSymbolSet | kEastOtherSet;
    constexpr ClassSet kWords = kLetterSet | kMarkSet;
    const ClassedChar first = scanner.At(p);
    const uint8_t* next = p + first.bytes;
    if (first.In(kWords)) return scanner.Run<kWords>(next);
    if (first.In(kNumberSet)) return Digits<3>(scanner, next);
    if (first.In(kEastWordSet)) return scanner.Run<kEastWordSet>(next);
    if (first.In(kEastSymbolSet)) return scanner.Run<kEastSymbolSet>(next);
    const ClassedChar second = scanner.AtOrEnd(next);
    if (first.In(kEastOtherSet)) {
      return second.In(kEastWordSet)
                 ? scanner.Run<kEastWordSet>(next)
                 : Unmatched<kEastOtherSet, kEastWordSet>(scanner, next, second);
    }
    if (first.In(kSymbolSet)) {
      if (*p < 0x80 && next < scanner.end() && *next < 0x80 && second.In(kLetterSet))
        return scanner.AsciiLetters(next);
      return scanner.LineEnds(scanner.Run<kSymbolSet>(next));
    }
    if (second.In(kWords) && *p != '\n' && *p != '\r') return scanner.Run<kWords>(next);
    if (*p == ' ' && second.In(kSymbolSet))
      return scanner.LineEnds(scanner.Run<kSymbolSet>(next + second.bytes));
    if (first.In(kSpaceSet)) return WhiteSpace<false, kBorders>(scanner, p);
    return Unmatched<kOtherSet, kWords>(scanner, next, second);
  }

 private:
  // From a character of no class on that ends at `p`, before `c`: up to where the pattern matches again.
  template <ClassSet kOthers, ClassSet kWords>
  static const uint8_t* Unmatched(const TextScanner& scanner, const uint8_t* p, ClassedChar c) {
    while (c.In(kOthers)) {
      const ClassedChar after = scanner.AtOrEnd(p + c.bytes);
      if (after.In(kWords)) break;
      p += c.bytes;
      c = after;
    }
    return p;
  }
};

}  // namespace mt
