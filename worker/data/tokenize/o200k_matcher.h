// The patterns of o200k (GPT-4o, gpt-oss) and of Mistral's Tekken, matched by hand; word_matchers.h says how.
#pragma once

#include "worker/data/tokenize/word_matchers.h"

namespace mt {

// With U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and W = [\p{Ll}\p{Lm}\p{Lo}\p{M}], which share what has no case:
//   [^\r\n\p{L}\p{N}]?U*W+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?U+W*(?i:…)?|
//   \p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
// kDigits: how many \p{N}; kContractions: whether there is (?i:…)?.
template <int kDigits, bool kContractions>
struct O200kMatcher {
  static const uint8_t* Classes() { return UnicodeClasses(); }

  static const uint8_t* Next(const TextScanner& scanner, const uint8_t* p) {
    const ClassedChar first = scanner.At(p);
    if (first.In(kLetterSet)) return Suffix(scanner, Word(scanner, p).end);
    const uint8_t* next = p + first.bytes;
    if (first.In(kNumberSet)) return Digits<kDigits>(scanner, next);
    const ClassedChar second = scanner.AtOrEnd(next);
    if (second.In(kLetterSet | kMarkSet) && *p != '\n' && *p != '\r') {
      const WordEnd word = Word(scanner, next);
      // A mark before capitals: U*W+ is tried without its prefix before U+W* is with it, and then the mark is all of it.
      return Suffix(scanner, first.In(kMarkSet) && !word.has_lower ? next : word.end);
    }
    if (first.In(kMarkSet)) return Suffix(scanner, next);
    if (first.In(kNotWordSet)) return LineEndsAndSlashes(scanner, scanner.Run<kNotWordSet>(next));
    if (*p == ' ' && second.In(kNotWordSet))
      return LineEndsAndSlashes(scanner, scanner.Run<kNotWordSet>(next + second.bytes));
    return WhiteSpace<false>(scanner, p);
  }

 private:
  struct WordEnd {
    const uint8_t* end;
    bool has_lower;  // matched by U*W+, not by U+W*
  };
  // At a letter or a mark.
  static WordEnd Word(const TextScanner& scanner, const uint8_t* p) {
    constexpr ClassSet kCapitals = kUpperSet | SetOf(UnicodeClass::kTitle);
    constexpr ClassSet kBoth = kUncasedSet | kMarkSet;
    // U* as far as it goes. Where W+ finds nothing after it, it gives back all behind its last character of both sets.
    const uint8_t* last_both = nullptr;
    p = scanner.Run<kCapitals>(p);
    ClassedChar c = scanner.AtOrEnd(p);
    while (c.In(kBoth)) {
      last_both = scanner.Run<kBoth>(p + c.bytes);
      p = scanner.Run<kCapitals>(last_both);
      c = scanner.AtOrEnd(p);
    }
    if (c.In(kLowerSet)) return {scanner.Run<kLowerSet | kBoth>(p + c.bytes), true};
    if (last_both != nullptr) return {last_both, true};
    return {p, false};
  }
  static const uint8_t* Suffix(const TextScanner& scanner, const uint8_t* p) {
    if (!kContractions || p == scanner.end() || *p != '\'') return p;
    return p + Contraction<true>(p, scanner.end());
  }
  static const uint8_t* LineEndsAndSlashes(const TextScanner& scanner, const uint8_t* p) {
    while (p < scanner.end() && (*p == '\n' || *p == '\r' || *p == '/')) ++p;
    return p;
  }
};

}  // namespace mt
