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

}  // namespace
}  // namespace mt
