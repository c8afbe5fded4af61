// The patterns of GPT-2 and those that came from it (cl100k, Llama 3, Qwen), matched by hand.
//
// A matcher is a pure function: Next(scanner, p) is the end of the match that the pattern has at `p`, where some text is left.
// Every pattern here matches at every place, so matches cover the text. Alternatives are tried in the pattern's order, as a
// backtracking engine does; the comments quote the alternative.
#pragma once

#include "worker/data/tokenize/text_scanner.h"

namespace mt {

// Bytes of the contraction ('s 't 'm 'd 're 've 'll) that begins with the apostrophe at `p`, or 0. Without regard to case, 's is
// also 'ſ: U+017F folds to s, in every engine.
template <bool kIgnoreCase>
inline int Contraction(const uint8_t* p, const uint8_t* end) {
  const auto letter = [&](int i) -> int {
    if (end - p <= i) return 0;
    return kIgnoreCase && p[i] >= 'A' && p[i] <= 'Z' ? p[i] | 0x20 : p[i];
  };
  const int first = letter(1);
  switch (first) {
    case 's':
    case 't':
    case 'm':
    case 'd':
      return 2;
    case 'r':
    case 'v':
      return letter(2) == 'e' ? 3 : 0;
    case 'l':
      return letter(2) == 'l' ? 3 : 0;
    case 0xc5:
      return kIgnoreCase && letter(2) == 0xbf ? 3 : 0;
    default:
      return 0;
  }
}

// `\s+(?!\S)|\s+` where `run_end` ends the white space that begins at `p`: all of it at the end of the text, else all but the last
// character, which is left to the word that follows; at least one.
inline const uint8_t* AllButLast(const uint8_t* p, const uint8_t* run_end, bool at_end) {
  if (at_end) return run_end;
  const uint8_t* last = run_end - 1;
  while ((*last & 0xc0) == 0x80) --last;
  return last == p ? run_end : last;
}

// `\s*[\r\n]+|\s+(?!\S)|\s+`; with kWholeAtEnd `\s++$` comes first. Characters of kBorders end the text for the look-ahead.
template <bool kWholeAtEnd, ClassSet kBorders = 0>
inline const uint8_t* WhiteSpace(const TextScanner& scanner, const uint8_t* p) {
  const uint8_t* run_end = scanner.Run<kSpaceSet>(p);
  const bool at_end =
      run_end == scanner.end() || (kBorders != 0 && scanner.At(run_end).In(kBorders));
  if (kWholeAtEnd && at_end) return run_end;
  for (const uint8_t* last = run_end; last > p; --last) {
    if (last[-1] == '\n' || last[-1] == '\r') return last;
  }
  return AllButLast(p, run_end, at_end);
}

// \p{N}{1,kMost}, the first of which ends at `p`.
template <int kMost>
inline const uint8_t* Digits(const TextScanner& scanner, const uint8_t* p) {
  for (int i = 1; i < kMost; ++i) {
    const ClassedChar c = scanner.AtOrEnd(p);
    if (!c.In(kNumberSet)) break;
    p += c.bytes;
  }
  return p;
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
struct Gpt2Matcher {
  static const uint8_t* Classes() { return UnicodeClasses(); }
  static const uint8_t* Next(const TextScanner& scanner, const uint8_t* p) {
    if (*p == '\'') {
      if (const int bytes = Contraction<false>(p, scanner.end()); bytes != 0) return p + bytes;
    }
    const uint8_t* word = p + (*p == ' ' && p + 1 < scanner.end() ? 1 : 0);
    const ClassedChar first = scanner.At(word);
    if (first.In(kLetterSet)) return scanner.Run<kLetterSet>(word + first.bytes);
    if (first.In(kNumberSet)) return scanner.Run<kNumberSet>(word + first.bytes);
    if (first.In(kNotWordSet)) return scanner.Run<kNotWordSet>(word + first.bytes);
    const uint8_t* run_end = scanner.Run<kSpaceSet>(word);
    return AllButLast(p, run_end, run_end == scanner.end());
  }
};

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
// kDigits: how many \p{N} (Qwen: one). kLetters: what stands for \p{L} where words are made (Qwen 3.5: with marks).
// kWholeAtEnd: cl100k as tiktoken has it, with \s++$ before the line ends.
template <int kDigits, ClassSet kLetters, bool kWholeAtEnd>
struct Cl100kMatcher {
  static const uint8_t* Classes() { return UnicodeClasses(); }
  static const uint8_t* Next(const TextScanner& scanner, const uint8_t* p) {
    constexpr ClassSet kRest = kNotWordSet & ~kLetters;
    const ClassedChar first = scanner.At(p);
    if (first.In(kLetters)) return scanner.Run<kLetters>(p + first.bytes);
    if (first.In(kNumberSet)) return Digits<kDigits>(scanner, p + first.bytes);
    if (*p == '\'') {
      if (const int bytes = Contraction<true>(p, scanner.end()); bytes != 0) return p + bytes;
    }
    const uint8_t* next = p + first.bytes;
    const ClassedChar second = scanner.AtOrEnd(next);
    if (second.In(kLetters) && *p != '\n' && *p != '\r')
      return scanner.Run<kLetters>(next + second.bytes);
    if (first.In(kRest)) return scanner.LineEnds(scanner.Run<kRest>(next));
    if (*p == ' ' && second.In(kRest))
      return scanner.LineEnds(scanner.Run<kRest>(next + second.bytes));
    return WhiteSpace<kWholeAtEnd>(scanner, p);
  }
};

}  // namespace mt
