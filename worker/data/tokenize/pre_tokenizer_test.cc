#include "worker/data/tokenize/pre_tokenizer.h"

#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/tokenize/regex_split.h"
#include "worker/data/tokenize/unicode_classes.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> PiecesOf(const PreTokenizer& split, absl::string_view text) {
  std::vector<Piece> pieces;
  EXPECT_TRUE(split.Split(text, &pieces).ok());
  std::vector<std::string> texts;
  for (const Piece& piece : pieces)
    texts.emplace_back(text.substr(piece.begin, piece.end - piece.begin));
  return texts;
}

constexpr char kGpt2[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr char kLlama3[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

TEST(PreTokenizerTest, Gpt2CutsAsItsPatternSays) {
  const auto split = NewSplit({.pattern = kGpt2}).value();
  EXPECT_EQ(split->name(), "GPT-2");
  EXPECT_THAT(PiecesOf(*split, "I'll say  \"don't\" 3 times\n\n x "),
              ElementsAre("I", "'ll", " say", " ", " \"", "don", "'t", "\"", " 3", " times", "\n\n",
                          " x", " "));
}

TEST(PreTokenizerTest, Llama3CutsAsItsPatternSays) {
  const auto split = NewSplit({.pattern = kLlama3}).value();
  EXPECT_EQ(split->name(), "Llama 3");
  EXPECT_THAT(
      PiecesOf(*split, "I'LL (say) 12345!\n\n  x \n y"),
      ElementsAre("I", "'LL", " (", "say", ")", " ", "123", "45", "!\n\n", " ", " x", " \n", " y"));
}

// Every pattern with a matcher of its own, and the name by which the matcher tells itself.
struct Known {
  std::vector<std::string> patterns;
  std::string name;
};
void PrintTo(const Known& known, std::ostream* out) { *out << known.name; }
std::vector<Known> KnownSplits() {
  const std::string words =
      R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+@|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*@|)";
  const std::string rest = R"(| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const auto with = [](std::string text, const std::string& suffix) {
    for (size_t at; (at = text.find('@')) != std::string::npos;) text.replace(at, 1, suffix);
    return text;
  };
  std::string qwen = kLlama3;
  qwen.replace(qwen.find("{1,3}"), 5, "");
  const std::string qwen35 =
      R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
  const std::string deepseek =
      "[!\"#$%&'()*+,\\-./"
      ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]"
      "+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+";
  return {
      {{kGpt2}, "GPT-2"},
      {{kLlama3}, "Llama 3"},
      {{qwen}, "Qwen 2"},
      {{qwen35}, "Qwen 3.5"},
      {{with(words, "(?i:'s|'t|'re|'ve|'m|'ll|'d)?") + R"(\p{N}{1,3})" + rest}, "o200k"},
      {{with(words, "") + R"(\p{N})" + rest}, "Tekken"},
      {{R"(\p{N}{1,3})", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", deepseek}, "DeepSeek V3"},
  };
}

// Both ways to run a known split.
struct Pair {
  std::unique_ptr<PreTokenizer> matcher, regex;
};
Pair BothWays(const Known& known) {
  std::vector<SplitPattern> patterns;
  std::vector<std::unique_ptr<PreTokenizer>> stages;
  for (const std::string& pattern : known.patterns) {
    patterns.push_back({.pattern = pattern});
    stages.push_back(NewRegexSplit(patterns.back()).value());
  }
  return {NewSplits(patterns).value(), NewChain(std::move(stages))};
}

std::string Utf8(uint32_t c) {
  std::string out;
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += {static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};
  } else if (c < 0x10000) {
    out += {static_cast<char>(0xe0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3f)),
            static_cast<char>(0x80 | (c & 0x3f))};
  } else {
    out += {static_cast<char>(0xf0 | c >> 18), static_cast<char>(0x80 | (c >> 12 & 0x3f)),
            static_cast<char>(0x80 | (c >> 6 & 0x3f)), static_cast<char>(0x80 | (c & 0x3f))};
  }
  return out;
}

// What the patterns decide on, and broken UTF-8; with any character now and then.
std::string RandomText(std::mt19937* draw) {
  static const std::vector<std::string> units = {"a",
                                                 "b",
                                                 "Z",
                                                 "s",
                                                 "t",
                                                 "re",
                                                 "LL",
                                                 "'",
                                                 "'s",
                                                 "'S",
                                                 "'\u017f",
                                                 "\u017f",
                                                 "1",
                                                 "23",
                                                 "\u0663",
                                                 "\u00bd",
                                                 " ",
                                                 " ",
                                                 "  ",
                                                 "\t",
                                                 "\n",
                                                 "\r\n",
                                                 "\u00a0",
                                                 "\u3000",
                                                 "\u0085",
                                                 "\u2028",
                                                 "!",
                                                 "/",
                                                 "-",
                                                 "\u20ac",
                                                 "\u00ab",
                                                 "\u0301",
                                                 "\u0903",
                                                 "\u01c5",
                                                 "\u02b0",
                                                 "\u5b57",
                                                 "\u30a2",
                                                 "\u3042",
                                                 "\u3001",
                                                 "\u30fb",
                                                 "\u309b",
                                                 "\u3099",
                                                 "\u3097",
                                                 "\u30fc",
                                                 "\ufb01",
                                                 "\u00e9",
                                                 "\u00c9",
                                                 "\u0416",
                                                 "\u0436",
                                                 "\U0001f600",
                                                 "\u200d",
                                                 "\u180e",
                                                 "\ufeff",
                                                 "\uffff",
                                                 std::string(1, '\0'),
                                                 "\x01",
                                                 "\x7f",
                                                 "\x80",
                                                 "\xff",
                                                 "\xc3",
                                                 "\xe2\x82",
                                                 "\xed\xa0\x80",
                                                 "\xf4\x90\x80\x80",
                                                 "\xc0\x80",
                                                 "\U00010d50",
                                                 "\U0002ebf0",
                                                 "\U0001e030",
                                                 "abcdefgh",
                                                 "ABCDEFGHIJ",
                                                 "Hello",
                                                 "worldwide",
                                                 "         "};
  std::string text;
  for (uint32_t n = (*draw)() % 40; n > 0; --n) {
    if ((*draw)() % 16 == 0) {
      text += Utf8((*draw)() % ((*draw)() % 2 == 0 ? 0x800 : kCodePoints));
    } else {
      text += units[(*draw)() % units.size()];
    }
  }
  return text;
}

class KnownSplitTest : public ::testing::TestWithParam<Known> {};

TEST_P(KnownSplitTest, HasAMatcherOfItsOwn) {
  EXPECT_EQ(BothWays(GetParam()).matcher->name(), GetParam().name);
}

TEST_P(KnownSplitTest, MatcherAndRegexAgreeOnRandomTexts) {
  const Pair split = BothWays(GetParam());
  std::mt19937 draw(1);
  for (int i = 0; i < 30000; ++i) {
    const std::string text = RandomText(&draw);
    ASSERT_EQ(PiecesOf(*split.matcher, text), PiecesOf(*split.regex, text))
        << ::testing::PrintToString(text);
  }
}

TEST_P(KnownSplitTest, MatcherAndRegexAgreeOnEveryCharacter) {
  const Pair split = BothWays(GetParam());
  for (uint32_t c = 0; c < kCodePoints; ++c) {
    if (c >= 0xd800 && c < 0xe000) continue;
    const bool ideograph =
        UnicodeClasses()[c] == static_cast<uint8_t>(UnicodeClass::kOtherLetter) && c > 0x3400;
    const bool plain =
        UnicodeClasses()[c] == static_cast<uint8_t>(UnicodeClass::kOther) && c > 0x3000;
    if ((ideograph || plain) && c % 61 != 0) continue;  // the same thing thousands of times
    const std::string u = Utf8(c);
    const std::string text = u + " " + u + "'" + u + "x" + u + "1" + u + "\n" + u + u + " \n " + u +
                             "!" + u + "A" + u + "b" + u;
    ASSERT_EQ(PiecesOf(*split.matcher, text), PiecesOf(*split.regex, text)) << c;
  }
}

TEST_P(KnownSplitTest, PiecesComeTheSameSomeAtATime) {
  const Pair split = BothWays(GetParam());
  std::mt19937 draw(2);
  for (int i = 0; i < 300; ++i) {
    const std::string text = RandomText(&draw) + RandomText(&draw);
    std::vector<Piece> at_once, parts;
    ASSERT_TRUE(split.matcher->Split(text, &at_once).ok());
    for (uint32_t at = 0; at < text.size();) {
      const uint32_t before = at;
      ASSERT_TRUE(split.matcher->SplitSome(text, 3, &at, &parts).ok());
      ASSERT_GT(at, before);
    }
    ASSERT_EQ(at_once, parts);
  }
}

INSTANTIATE_TEST_SUITE_P(Patterns, KnownSplitTest, ::testing::ValuesIn(KnownSplits()),
                         [](const auto& info) {
                           std::string name = info.param.name;
                           std::erase_if(name, [](char c) { return !std::isalnum(c); });
                           return name;
                         });

// tiktoken's own cl100k: what \s++$ changes.
TEST(PreTokenizerTest, NamedCl100kKeepsWhiteSpaceAtTheEndTogether) {
  const auto split = NewNamedSplit("cl100k").value();
  EXPECT_THAT(PiecesOf(*split, "a\n  "), ElementsAre("a", "\n  "));
  EXPECT_THAT(PiecesOf(*NewNamedSplit("llama3").value(), "a\n  "), ElementsAre("a", "\n", "  "));
  EXPECT_THAT(NewNamedSplit("gpt5").status().message(), HasSubstr("gpt2, r50k"));
}

TEST(RegexSplitTest, BehavioursAreThoseOfTokenizerJson) {
  const auto pieces = [](SplitBehaviour behaviour, bool invert) {
    const auto split =
        NewSplit({.pattern = "-", .literal = true, .behaviour = behaviour, .invert = invert})
            .value();
    return PiecesOf(*split, "-the--final-");
  };
  EXPECT_THAT(pieces(SplitBehaviour::kIsolated, false),
              ElementsAre("-", "the", "-", "-", "final", "-"));
  EXPECT_THAT(pieces(SplitBehaviour::kRemoved, false), ElementsAre("the", "final"));
  EXPECT_THAT(pieces(SplitBehaviour::kRemoved, true), ElementsAre("-", "-", "-", "-"));
  EXPECT_THAT(pieces(SplitBehaviour::kMergedWithPrevious, false),
              ElementsAre("-", "the-", "-", "final-"));
  EXPECT_THAT(pieces(SplitBehaviour::kMergedWithNext, false),
              ElementsAre("-the", "-", "-final", "-"));
  EXPECT_THAT(pieces(SplitBehaviour::kContiguous, false),
              ElementsAre("-", "the", "--", "final", "-"));
}

TEST(RegexSplitTest, PatternsMeanWhatTheyMeanToOniguruma) {
  const auto pieces = [](absl::string_view pattern, absl::string_view text) {
    return PiecesOf(*NewSplit({.pattern = std::string(pattern)}).value(), text);
  };
  EXPECT_THAT(pieces(R"(\p{N}{1,3}+)", "12345678"), ElementsAre("12345678"));
  EXPECT_THAT(pieces(R"((?:ab|c){1,2}+)", "ababcabx"), ElementsAre("ababcab", "x"));
  EXPECT_THAT(pieces(R"(\s+$)", "a \nb  "), ElementsAre("a", " ", "\nb", "  "));
  EXPECT_THAT(pieces(R"(\w+)", "a\u0301_b\u203fc-d"), ElementsAre("a\u0301_b\u203fc", "-", "d"));
  EXPECT_THAT(pieces(R"(\w+)", "a\u00bdb\u2189\u24b6-"),
              ElementsAre("a\u00bdb", "\u2189", "\u24b6", "-"));
  EXPECT_THAT(pieces(R"([\w]+)", "a\u00bdb"), ElementsAre("a", "\u00bd", "b"));
  EXPECT_THAT(pieces(R"([^\s]+)", "a\u180e\u2003b"), ElementsAre("a\u180e", "\u2003", "b"));
  EXPECT_THAT(pieces(R"(\u0061+)", "baab"), ElementsAre("b", "aa", "b"));
  EXPECT_THAT(pieces(R"(\p{Lu})", "a\U00010d50b"),
              ElementsAre("a", "\U00010d50", "b"));  // Unicode 16
  EXPECT_THAT(pieces("[\u0800-\u4e00]+", "a\u0897b"),
              ElementsAre("a", "\u0897", "b"));  // so is this
  EXPECT_THAT(pieces("x*", "axxb"), ElementsAre("a", "xx", "b"));
}

TEST(RegexSplitTest, WhatIsNotAPatternIsRefusedWithItsPlace) {
  for (const auto& [pattern, says] :
       std::vector<std::pair<std::string, std::string>>{{"a(b", "byte 3"},
                                                        {"[a", "bracket"},
                                                        {R"([a&&b])", "&&"},
                                                        {R"(\h)", "\\h"},
                                                        {"(?m)a", "flag"},
                                                        {"a{2}?", "{n}?"}}) {
    const absl::Status status = NewSplit({.pattern = pattern}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << pattern;
    EXPECT_THAT(status.message(), HasSubstr(says));
    EXPECT_THAT(status.message(), HasSubstr(pattern));
  }
}

TEST(RegexSplitTest, TooMuchBacktrackingIsAnError) {
  const auto split = NewSplit({.pattern = "(?:a|aa)+$"}).value();
  std::vector<Piece> pieces;
  const absl::Status status = split->Split(std::string(60, 'a') + "c", &pieces);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
}

TEST(CharSplitTest, DigitsAndPunctuation) {
  EXPECT_THAT(PiecesOf(*NewDigits(true), "a12\u00bd b"),
              ElementsAre("a", "1", "2", "\u00bd", " b"));
  EXPECT_THAT(PiecesOf(*NewDigits(false), "a12\u00bd b"), ElementsAre("a", "12\u00bd", " b"));
  EXPECT_THAT(PiecesOf(*NewPunctuation(SplitBehaviour::kIsolated), "a$b\u00bf\u20ac_"),
              ElementsAre("a", "$", "b", "\u00bf", "\u20ac", "_"));
}

TEST(UnicodeTest, WordsAndWhiteSpace) {
  for (const uint32_t c : {0x20u, 0x85u, 0x2028u, 0x3000u}) EXPECT_TRUE(IsWhiteSpace(c)) << c;
  for (const uint32_t c : {0x200bu, 0x180eu, 0x61u, kNotUtf8}) EXPECT_FALSE(IsWhiteSpace(c)) << c;
  for (const uint32_t c : {0x61u, 0x5fu, 0x301u, 0x663u, 0x203fu, 0x24b6u, 0x2163u, 0x200du})
    EXPECT_TRUE(IsWord(c)) << c;
  for (const uint32_t c : {0x20u, 0x2du, 0xbdu, 0x200bu, kNotUtf8}) EXPECT_FALSE(IsWord(c)) << c;
}

}  // namespace
}  // namespace mt
