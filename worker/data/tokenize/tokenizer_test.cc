#include "worker/data/tokenize/tokenizer.h"

#include <google/protobuf/struct.pb.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ByteTokenizerTest, EveryByteComesBack) {
  const auto tokenizer = NewTokenizer(Env::Real(), "byte").value();
  EXPECT_EQ(tokenizer->vocab_size(), 257);
  EXPECT_EQ(tokenizer->eod(), 256);
  std::string all;
  for (int i = 0; i < 256; ++i) all.push_back(static_cast<char>(i));
  std::vector<int32_t> ids;
  ASSERT_TRUE(tokenizer->Encode(all, &ids).ok());
  EXPECT_EQ(ids[255], 255);
  ids.push_back(256);
  EXPECT_EQ(tokenizer->Decode(ids).value(), all);
}

TEST(ByteTokenizerTest, ForeignIdsAreRefused) {
  const auto tokenizer = NewTokenizer(Env::Real(), "byte").value();
  for (const int32_t id : {-1, 257}) {
    EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{id}).status().code(),
              absl::StatusCode::kInvalidArgument)
        << id;
  }
}

TEST(NewTokenizerTest, UnknownKindsAndMissingFilesAreNamed) {
  EXPECT_THAT(NewTokenizer(Env::Real(), "gpt2").status().message(),
              HasSubstr("\"gpt2\" is neither"));
  EXPECT_EQ(NewTokenizer(Env::Real(), "/nowhere/x.model").status().code(),
            absl::StatusCode::kNotFound);
}

// A SentencePiece model, written field by field (docs: sentencepiece_model.proto): BPE over a few
// letters.
std::string TinyModel() {
  const auto field = [](int number, const std::string& bytes) {
    return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
  };
  const auto piece = [&](const std::string& text, float score, char type) {
    std::string raw(4, '\0');
    std::memcpy(raw.data(), &score, 4);
    return field(1, field(1, text) + "\x15" + raw + "\x18" + type);
  };
  std::string model = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3);
  float score = -1;
  for (const char* text : {"ab", "\u2581ab", "\u2581", "a", "b", "c"})
    model += piece(text, score--, 1);
  model += field(2, std::string("\x18\x02", 2));  // trainer: model_type = BPE
  return model + field(3, field(1, "identity") +
                              std::string("\x18\x01", 2));  // normalizer: add_dummy_prefix
}

class SentencePieceTokenizerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    path_ = ::testing::TempDir() + "/tiny." + std::to_string(getpid()) + ".model";
  }
  void TearDown() override { std::filesystem::remove(path_); }
  absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& bytes) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
    return NewTokenizer(Env::Real(), path_);
  }
  std::string path_;
};

// This program is linked with libprotobuf, as mtctl is; the model's own copy of an older one must
// not meet it.
TEST_F(SentencePieceTokenizerTest, EncodesAndDecodesBesideProtobuf) {
  google::protobuf::Struct message;
  (*message.mutable_fields())["a"].set_number_value(3);
  const auto tokenizer = Load(TinyModel()).value();
  EXPECT_EQ(tokenizer->vocab_size(), 9);
  EXPECT_EQ(tokenizer->eod(), 2);
  std::vector<int32_t> ids;
  ASSERT_TRUE(tokenizer->Encode("ab cab", &ids).ok());
  EXPECT_THAT(ids, ElementsAre(4, 5, 8, 3));
  ids.push_back(tokenizer->eod());
  EXPECT_EQ(tokenizer->Decode(ids).value(), "ab cab");
  EXPECT_EQ(tokenizer->Decode(std::vector<int32_t>{9}).status().code(),
            absl::StatusCode::kInvalidArgument);
  google::protobuf::Struct copy;
  ASSERT_TRUE(copy.ParseFromString(message.SerializeAsString()));
  EXPECT_EQ(copy.fields().at("a").number_value(), 3);
}

TEST_F(SentencePieceTokenizerTest, FilesThatAreNoModelsAreRefused) {
  for (const std::string& bytes : {std::string(), std::string("hello, world"),
                                   TinyModel().substr(0, 40), std::string(100, '\xff')}) {
    EXPECT_EQ(Load(bytes).status().code(), absl::StatusCode::kInvalidArgument) << bytes;
  }
}

}  // namespace
}  // namespace mt
