// tokenizer.json and tiktoken files, small and written here; tests/golden/tokenizers has the ones compared with Hugging Face.
#include <algorithm>
#include <random>

#include "absl/strings/escaping.h"
#include "absl/strings/str_replace.h"
#include "common/testing/mem_env.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/tokenize/tiktoken_file.h"
#include "worker/data/tokenize/tokenizer.h"
#include "worker/data/tokenize/tokenizer_json.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Byte-level: a, b, c, space and what they merge to.
constexpr absl::string_view kByteLevel = R"({
  "added_tokens": [
    {"id": 9, "content": "<|endoftext|>", "special": true},
    {"id": 10, "content": "<tool>", "special": false, "normalized": false,
     "lstrip": true, "rstrip": true},
    {"id": 11, "content": "ab!", "special": false, "single_word": true}],
  "normalizer": null,
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
  "decoder": {"type": "ByteLevel"},
  "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "Ġ": 3, "ab": 4, "bc": 5, "Ġab": 6,
                                     "abc": 7, "!": 8},
            "merges": ["b c", "a b", ["Ġ", "ab"], ["ab", "c"]]}})";

// Characters, with the tokens of two bytes, as Llama 2's.
constexpr absl::string_view kCharacters = R"({
  "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
  "decoder": {"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
  "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": {"<unk>": 0, "▁": 1, "a": 2, "b": 3, "▁a": 4, "ab": 5, "<0xC3>": 6, "<0xA9>": 7},
            "merges": [["▁", "a"], ["a", "b"]]}})";

// The 256 bytes, then `tokens`.
std::string Tiktoken(const std::vector<std::string>& tokens) {
  std::string file;
  int rank = 0;
  for (int byte = 0; byte < 256; ++byte)
    absl::StrAppend(&file, absl::Base64Escape(std::string(1, static_cast<char>(byte))), " ", rank++,
                    "\n");
  for (const std::string& token : tokens)
    absl::StrAppend(&file, absl::Base64Escape(token), " ", rank++, "\n");
  return file;
}

class BpeTokenizerTest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(env_.CreateDirectories("/t").ok()); }
  void Write(const std::string& path, absl::string_view contents) {
    ASSERT_TRUE(WriteFileAtomically(&env_, path, contents).ok());
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> Load(absl::string_view contents,
                                                  const std::string& name = "tokenizer.json") {
    Write("/t/" + name, contents);
    return NewTokenizer(&env_, "/t/" + name);
  }
  static std::vector<int32_t> Encode(const Tokenizer& tokenizer, absl::string_view text,
                                     SpecialText special = SpecialText::kOrdinary) {
    std::vector<int32_t> ids;
    EXPECT_TRUE(tokenizer.NewEncoder(special)->Encode(text, &ids).ok());
    return ids;
  }
  // What is said of `json` with one place changed.
  std::string ErrorOf(absl::string_view json, absl::string_view from, absl::string_view to) {
    const std::string changed = absl::StrReplaceAll(json, {{from, to}});
    EXPECT_NE(changed, json) << from;
    return std::string(Load(changed).status().message());
  }
  MemEnv env_;
};

TEST_F(BpeTokenizerTest, LowestRankFirstAndLeftmostOfEquals) {
  const auto tokenizer = Load(kByteLevel).value();
  EXPECT_THAT(Encode(*tokenizer, "abc"), ElementsAre(0, 5));  // "b c" outranks "a b"
  EXPECT_THAT(Encode(*tokenizer, "ab ab"), ElementsAre(4, 6));
  EXPECT_THAT(Encode(*tokenizer, "abab!"), ElementsAre(4, 4, 8));
  EXPECT_EQ(tokenizer->vocab_size(), 12);
}

TEST_F(BpeTokenizerTest, PiecesThatAreTokensStayWholeOnlyIfMergesAreIgnored) {
  const std::string ignoring = absl::StrReplaceAll(
      kByteLevel, {{R"("type": "BPE",)", R"("type": "BPE", "ignore_merges": true,)"}});
  EXPECT_THAT(Encode(*Load(ignoring).value(), "abc"), ElementsAre(7));
}

TEST_F(BpeTokenizerTest, SpecialTokensAreTextUnlessAskedFor) {
  const auto tokenizer = Load(kByteLevel).value();
  const std::string text = "a<|endoftext|>b";
  EXPECT_THAT(Encode(*tokenizer, text, SpecialText::kSpecial), ElementsAre(0, 9, 1));
  const std::vector<int32_t> ordinary = Encode(*tokenizer, text);
  EXPECT_EQ(std::count(ordinary.begin(), ordinary.end(), 9), 0);
  // Others always count; this one takes the spaces around it.
  EXPECT_THAT(Encode(*tokenizer, "a <tool>  b"), ElementsAre(0, 10, 1));
  EXPECT_THAT(Encode(*tokenizer, "a ab! b"), ElementsAre(0, 3, 11, 3, 1));
  EXPECT_THAT(Encode(*tokenizer, "aab!"), ElementsAre(0, 4, 8));  // not a word of its own
}

TEST_F(BpeTokenizerTest, DecodingGivesBytesAndDropsSpecialTokensUnlessAskedFor) {
  const auto tokenizer = Load(kByteLevel).value();
  const std::vector<int32_t> ids = {4, 9, 6, 10};
  EXPECT_EQ(tokenizer->Decode(ids).value(), "ab ab<tool>");
  EXPECT_EQ(tokenizer->Decode(ids, SpecialText::kSpecial).value(), "ab<|endoftext|> ab<tool>");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{12}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(BpeTokenizerTest, UnknownCharactersFallBackToBytesOrJoinIntoOneUnknown) {
  const auto tokenizer = Load(kCharacters).value();
  EXPECT_THAT(Encode(*tokenizer, "ab aé"), ElementsAre(4, 3, 4, 6, 7));
  EXPECT_THAT(Encode(*tokenizer, "aèü b"), ElementsAre(4, 0, 1, 3));
  EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, "ab aé")).value(), "ab aé");
}

TEST_F(BpeTokenizerTest, NormalFormCComposesWhatFollowsALetter) {
  const auto tokenizer =
      Load(absl::StrReplaceAll(kCharacters,
                               {{R"({"type": "Prepend", "prepend": "▁"})", R"({"type": "NFC"})"}}))
          .value();
  EXPECT_THAT(Encode(*tokenizer, "ae\u0301 b"), ElementsAre(2, 6, 7, 1, 3));  // é
  EXPECT_THAT(Encode(*tokenizer, "e\u0327\u0301"), Encode(*tokenizer, "e\u0301\u0327"));
  // A byte that is not UTF-8 joins nothing.
  EXPECT_THAT(Encode(*tokenizer, "e\xff\u0301"), ElementsAre(0));
}

// The three ways by which a piece gets its ids give the same: a slot, the arena, and merging; in short pieces and in long ones.
TEST_F(BpeTokenizerTest, WhatWasEncodedBeforeChangesNothing) {
  const auto tokenizer = Load(kByteLevel).value();
  const auto encoder = tokenizer->NewEncoder();
  std::mt19937 random(7);
  for (int round = 0; round < 3000; ++round) {
    std::string text;
    const size_t size = random() % (round % 50 == 0 ? 2000 : 60);
    while (text.size() < size) text += "abc "[random() % (round % 3 == 0 ? 3 : 4)];
    std::vector<int32_t> ids;
    ASSERT_TRUE(encoder->Encode(text, &ids).ok());
    ASSERT_EQ(ids, Encode(*tokenizer, text)) << text;
    ASSERT_EQ(tokenizer->Decode(ids).value(), text);
  }
}

TEST_F(BpeTokenizerTest, OfEqualRanksTheLeftmostIsJoinedInShortPiecesAndInLongOnes) {
  const auto tokenizer = Load(Tiktoken({"aa", "aaaa"}), "x.cl100k.tiktoken").value();
  for (const size_t letters : {7, 63, 64, 65, 1003}) {
    std::vector<int32_t> expected(letters / 4, 257);
    if (letters % 4 >= 2) expected.push_back(256);
    if (letters % 2 == 1) expected.push_back('a');
    EXPECT_EQ(Encode(*tokenizer, std::string(letters, 'a')), expected) << letters;
  }
}

// A million letters in one piece: merging by scanning would take hours.
TEST_F(BpeTokenizerTest, OneLongPieceIsMergedInTime) {
  const auto tokenizer = Load(kByteLevel).value();
  std::string text;
  for (int i = 0; i < 500000; ++i) text += "ab";
  EXPECT_EQ(Encode(*tokenizer, text), std::vector<int32_t>(500000, 4));
}

TEST_F(BpeTokenizerTest, TheEndOfDocumentIsTheOneNamedBesideElseAKnownOne) {
  EXPECT_EQ(Load(kByteLevel).value()->eod(), 9);
  Write("/t/tokenizer_config.json", R"({"eos_token": {"content": "<tool>"}})");
  Write("/t/generation_config.json", R"({"eos_token_id": [9, 10, 4711]})");
  const auto tokenizer = NewTokenizer(&env_, "/t").value();  // the folder
  EXPECT_EQ(tokenizer->eod(), 10);
  EXPECT_THAT(tokenizer->stop_ids(), ElementsAre(10, 9));
  EXPECT_EQ(tokenizer->special_id("<|endoftext|>"), 9);
  EXPECT_EQ(tokenizer->special_id("a"), -1);
  EXPECT_NE(tokenizer->digest(), NewTokenizer(&env_, "/t/tokenizer.json").value()->spec());
  Write("/t/tokenizer_config.json", "{");
  EXPECT_THAT(NewTokenizer(&env_, "/t").status().message(), HasSubstr("tokenizer_config.json"));
}

TEST_F(BpeTokenizerTest, BrokenFilesAreRefusedWithTheirPlace) {
  EXPECT_THAT(Load("{\"model\": ").status().message(), HasSubstr("is not JSON"));
  EXPECT_THAT(ErrorOf(kByteLevel, R"("b c",)", R"("b x",)"),
              HasSubstr(R"(model.merges[0]: "x" is not in model.vocab)"));
  EXPECT_THAT(ErrorOf(kByteLevel, R"("b c",)", R"("bc",)"),
              HasSubstr("model.merges[0]: is neither"));
  EXPECT_THAT(ErrorOf(kByteLevel, R"("!": 8)", R"("!": 7)"), HasSubstr("the id 7 is there twice"));
  EXPECT_THAT(ErrorOf(kByteLevel, R"("!": 8)", R"("a": 8)"), HasSubstr("\"a\" is there twice"));
  EXPECT_THAT(ErrorOf(kByteLevel, R"("!": 8)", R"("!": 2000000)"), HasSubstr("largest id"));
  EXPECT_THAT(ErrorOf(kByteLevel, R"("id": 10)", R"("id": 20)"), HasSubstr("next free id is 10"));
  EXPECT_THAT(ErrorOf(kCharacters, R"("unk_token": "<unk>")", R"("unk_token": "<no>")"),
              HasSubstr("model.unk_token"));
}

TEST_F(BpeTokenizerTest, WhatIsNotKnownIsNamed) {
  const auto unimplemented = [&](absl::string_view from, absl::string_view to) {
    const auto tokenizer = Load(absl::StrReplaceAll(kByteLevel, {{from, to}}));
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kUnimplemented) << to;
    return std::string(tokenizer.status().message());
  };
  EXPECT_THAT(unimplemented(R"("type": "BPE")", R"("type": "Unigram")"), HasSubstr("Unigram"));
  EXPECT_THAT(unimplemented(R"("normalizer": null)", R"("normalizer": {"type": "Lowercase"})"),
              HasSubstr("Lowercase"));
  EXPECT_THAT(unimplemented(R"("type": "BPE",)", R"("type": "BPE", "dropout": 0.1,)"),
              HasSubstr("dropout"));
  EXPECT_THAT(unimplemented(R"("decoder": {"type": "ByteLevel"})", R"("decoder": {"type": "CTC"})"),
              HasSubstr("CTC"));
}

TEST_F(BpeTokenizerTest, TiktokenJoinsWhatHasTheLowestRank) {
  const auto tokenizer = Load(Tiktoken({"ab", "bc", "abcd"}), "x.cl100k.tiktoken").value();
  EXPECT_THAT(Encode(*tokenizer, "abc"), ElementsAre(256, 'c'));
  EXPECT_THAT(Encode(*tokenizer, "abcd"), ElementsAre(258));  // a piece that is a token
  EXPECT_THAT(Encode(*tokenizer, "xabcd"), ElementsAre('x', 256, 'c', 'd'));
  EXPECT_EQ(tokenizer->special_id("<|endoftext|>"), 260);  // one behind the end, as 100257
  EXPECT_EQ(tokenizer->eod(), 260);
  EXPECT_EQ(tokenizer->vocab_size(), 280);
  std::string every;
  for (int byte = 255; byte >= 0; --byte) every.push_back(static_cast<char>(byte));
  EXPECT_EQ(tokenizer->Decode(Encode(*tokenizer, every)).value(), every);
}

TEST_F(BpeTokenizerTest, TiktokenFilesThatAreBrokenOrUnknownAreRefused) {
  const auto error = [&](const std::string& file, const std::string& name) {
    return std::string(Load(file, name).status().message());
  };
  EXPECT_THAT(error(Tiktoken({"ab"}), "x.tiktoken"), HasSubstr("257 tokens, which no known"));
  EXPECT_THAT(error(Tiktoken({"ab", "ab"}), "gpt2.tiktoken"), HasSubstr(":258: has a token"));
  EXPECT_THAT(error(Tiktoken({}) + "YWI= x\n", "gpt2.tiktoken"), HasSubstr(":257: is not a token"));
  EXPECT_THAT(error("YQ== 0\n", "gpt2.tiktoken"), HasSubstr("no token is the byte 0"));
}

}  // namespace
}  // namespace mt
