// Tokenizers against ids made by Hugging Face's `tokenizers` (make_goldens.py). The proof over hundreds of megabytes is compare.sh.
#include <fstream>
#include <nlohmann/json.hpp>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt {
namespace {

using Ids = std::vector<int32_t>;

const std::string kFolder = MT_SOURCE_DIR "/tests/golden/tokenizers/";

const nlohmann::json& Goldens() {
  static const nlohmann::json goldens =
      nlohmann::json::parse(std::ifstream(kFolder + "goldens.json"));
  return goldens;
}

std::unique_ptr<Tokenizer> Load(const std::string& path) {
  auto tokenizer = NewTokenizer(Env::Real(), kFolder + path);
  if (!tokenizer.ok()) ADD_FAILURE() << tokenizer.status();
  return tokenizer.ok() ? std::move(*tokenizer) : nullptr;
}

class TokenizerGoldenTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    tokenizer_ = Load(GetParam() + "/tokenizer.json");
    ASSERT_NE(tokenizer_, nullptr);
  }
  const nlohmann::json& golden() const { return Goldens()["tokenizers"][GetParam()]; }
  // What the golden file says of text i; it names only what differs from `otherwise`.
  template <typename T>
  static T At(const nlohmann::json& exceptions, size_t i, const T& otherwise) {
    const auto at = exceptions.find(std::to_string(i));
    return at == exceptions.end() ? otherwise : at->get<T>();
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(TokenizerGoldenTest, IdsAndTextsAreHuggingFaces) {
  const auto special = tokenizer_->NewEncoder(SpecialText::kSpecial);
  const auto ordinary = tokenizer_->NewEncoder(SpecialText::kOrdinary);
  for (int pass = 0; pass < 2; ++pass) {  // the second from the encoders' caches
    for (size_t i = 0; i < Goldens()["texts"].size(); ++i) {
      const std::string text = Goldens()["texts"][i];
      SCOPED_TRACE(::testing::PrintToString(text));
      const Ids expected = golden()["special"][i];
      Ids ids;
      ASSERT_TRUE(special->Encode(text, &ids).ok());
      EXPECT_EQ(ids, expected);
      ids.clear();
      ASSERT_TRUE(ordinary->Encode(text, &ids).ok());
      EXPECT_EQ(ids, At(golden()["ordinary"], i, expected));
      EXPECT_EQ(tokenizer_->Decode(expected).value(), At(golden()["decoded"], i, text));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Families, TokenizerGoldenTest,
                         ::testing::Values("gpt2", "llama3", "qwen", "deepseek_v3", "deepseek_v2",
                                           "gpt_oss", "llama2"),
                         [](const auto& info) { return info.param; });

// The same vocabulary in tiktoken's format.
TEST(TiktokenGoldenTest, IdsAreThoseOfTheConvertedFile) {
  const auto tokenizer = Load("gpt_oss/o200k_small.tiktoken");
  ASSERT_NE(tokenizer, nullptr);
  const nlohmann::json& golden = Goldens()["tokenizers"]["gpt_oss"];
  for (size_t i = 0; i < Goldens()["texts"].size(); ++i) {
    const std::string text = Goldens()["texts"][i];
    const auto exception = golden["ordinary"].find(std::to_string(i));
    const Ids expected = exception == golden["ordinary"].end() ? golden["special"][i] : *exception;
    Ids ids;
    ASSERT_TRUE(tokenizer->Encode(text, &ids).ok());
    EXPECT_EQ(ids, expected) << text;
  }
}

}  // namespace
}  // namespace mt
