#include "worker/data/sample/gpt_dataset.h"

#include <filesystem>
#include <limits>
#include <numeric>

#include "common/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/indexed_dataset_writer.h"
#include "worker/data/sample/dataset_batch_source.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class GptDatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/gpt_dataset." + std::to_string(getpid()) + "." +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    options_ = {.prefix = folder_ + "/set", .sequence_length = 8, .num_samples = 4, .seed = 1234};
    // The documents of the golden order; token 100 d + i is the i-th of document d.
    auto writer =
        IndexedDatasetWriter::Create(Env::Real(), options_.prefix, TokenType::kUint16).value();
    int32_t document = 0;
    for (const int32_t length : {5, 9, 3, 12, 7, 4}) {
      std::vector<int32_t> tokens(length);
      std::iota(tokens.begin(), tokens.end(), 100 * document++);
      MT_CHECK_OK(writer->AddDocument(tokens));
    }
    MT_CHECK_OK(writer->Seal().status());
    MT_CHECK_OK(writer->Commit());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static absl::Status Read(const GptDataset& dataset, int64_t sample, std::span<int32_t> tokens) {
    std::vector<uint8_t> has_loss(tokens.size());
    return dataset.Read(sample, {.tokens = tokens, .has_loss = has_loss});
  }

  std::string folder_;
  GptDatasetOptions options_;
};

TEST_F(GptDatasetTest, SamplesRunAcrossDocumentsInMegatronsOrder) {
  const auto dataset = GptDataset::Open(Env::Real(), options_).value();
  ASSERT_EQ(dataset->num_samples(), 4);
  std::vector<int32_t> tokens(9);
  // document_index 2 1 5 0 4 3; shuffle 0 2 1 3; sample 1 is walk 2, which starts at (3, 0).
  ASSERT_TRUE(Read(*dataset, 0, tokens).ok());
  EXPECT_THAT(tokens, ElementsAre(200, 201, 202, 100, 101, 102, 103, 104, 105));
  ASSERT_TRUE(Read(*dataset, 1, tokens).ok());
  EXPECT_THAT(tokens, ElementsAre(0, 1, 2, 3, 4, 400, 401, 402, 403));
  ASSERT_TRUE(Read(*dataset, 2, tokens).ok());
  EXPECT_THAT(tokens, ElementsAre(105, 106, 107, 108, 500, 501, 502, 503, 0));
  ASSERT_TRUE(Read(*dataset, 3, tokens).ok());
  EXPECT_THAT(tokens, ElementsAre(403, 404, 405, 406, 300, 301, 302, 303, 304));
  EXPECT_EQ(Read(*dataset, 4, tokens).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(Read(*dataset, -1, tokens).code(), absl::StatusCode::kOutOfRange);
}

TEST_F(GptDatasetTest, OnlyTheTrainingShareIsRead) {
  options_.split = "1,1,0";
  options_.num_samples = 20;
  const auto dataset = GptDataset::Open(Env::Real(), options_).value();
  std::vector<int32_t> tokens(9);
  for (int64_t sample = 0; sample < 20; ++sample) {
    ASSERT_TRUE(Read(*dataset, sample, tokens).ok());
    for (const int32_t token : tokens) EXPECT_LT(token, 300);
  }
}

TEST_F(GptDatasetTest, TheHeldOutShareIsWhatTrainingNeverReads) {
  v1::JobSpec spec;
  spec.mutable_data()->add_train()->set_prefix(options_.prefix);
  spec.mutable_data()->set_split("1,1,0");
  spec.mutable_data()->set_sequence_length(8);
  spec.mutable_data()->set_seed(1234);
  spec.mutable_model()->set_vocab(1000);
  spec.mutable_training()->set_steps(100);
  spec.mutable_training()->set_global_batch(2);
  spec.mutable_training()->mutable_evaluation()->set_every_steps(10);
  spec.mutable_training()->mutable_evaluation()->set_batches(3);
  ASSERT_TRUE(CheckTrainingData(Env::Real(), spec).ok());
  std::vector<int32_t> tokens(9), same(9);
  const std::vector<int64_t> first = {0}, last = {5};
  const auto source = OpenData(Env::Real(), spec, DataShare::kValidation).value();
  for (const std::vector<int64_t>& ids : {first, last}) {
    ASSERT_TRUE(source->Fetch(ids, {.tokens = tokens}).ok());
    for (const int32_t token : tokens) EXPECT_GE(token, 300);
  }
  // A prefix of its own is read whole, by the same order as any data.
  spec.mutable_data()->add_validation()->set_prefix(options_.prefix);
  options_.num_samples = 6;
  const auto whole = OpenData(Env::Real(), spec, DataShare::kValidation).value();
  ASSERT_TRUE(whole->Fetch(first, {.tokens = tokens}).ok());
  ASSERT_TRUE(Read(*GptDataset::Open(Env::Real(), options_).value(), 0, same).ok());
  EXPECT_EQ(tokens, same);
  // What is held out is checked before a rank starts, if it is evaluated.
  spec.mutable_data()->mutable_validation(0)->set_prefix(options_.prefix + "-missing");
  const absl::Status missing = CheckTrainingData(Env::Real(), spec);
  EXPECT_THAT(missing.message(), HasSubstr("data.validation: "));
  spec.mutable_data()->clear_validation();
  spec.mutable_data()->set_split("999,1,0");
  EXPECT_THAT(CheckTrainingData(Env::Real(), spec).message(),
              HasSubstr("data.split, the second share: "));
  spec.mutable_training()->clear_evaluation();
  EXPECT_TRUE(CheckTrainingData(Env::Real(), spec).ok());
}

TEST_F(GptDatasetTest, IdsOutsideTheVocabularyAreRefused) {
  options_.vocab_size = 501;
  EXPECT_THAT(GptDataset::Check(Env::Real(), options_).message(),
              HasSubstr("id 503, but model.vocab is 501"));
  const auto dataset = GptDataset::Open(Env::Real(), options_).value();
  std::vector<int32_t> tokens(9);
  EXPECT_TRUE(Read(*dataset, 0, tokens).ok());
  EXPECT_EQ(Read(*dataset, 2, tokens).code(), absl::StatusCode::kDataLoss);
  options_.vocab_size = 504;
  EXPECT_TRUE(GptDataset::Check(Env::Real(), options_).ok());
}

TEST_F(GptDatasetTest, BatchesOfAJobAreItsSamplesByNumber) {
  v1::JobSpec spec;
  spec.mutable_data()->add_train()->set_prefix(options_.prefix);
  spec.mutable_data()->set_sequence_length(8);
  spec.mutable_training()->set_steps(2);
  spec.mutable_training()->set_global_batch(2);
  spec.mutable_training()->set_seed(1234);
  const auto source = OpenData(Env::Real(), spec, DataShare::kTrain).value();
  std::vector<int32_t> tokens(18);
  const int64_t ids[] = {3, 0};
  ASSERT_TRUE(source->Fetch(ids, {.tokens = tokens}).ok());
  EXPECT_EQ(tokens[0], 403);
  EXPECT_EQ(tokens[9], 200);
  EXPECT_EQ(source->Fetch(ids, {.tokens = std::span<int32_t>(tokens).first(17)}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(CheckTrainingData(Env::Real(), spec).ok());
  spec.mutable_model()->set_vocab(104);
  EXPECT_EQ(CheckTrainingData(Env::Real(), spec).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(
      OpenData(Env::Real(), spec, DataShare::kTrain).value()->Fetch(ids, {.tokens = tokens}).code(),
      absl::StatusCode::kFailedPrecondition);
  spec.mutable_training()->set_steps(std::numeric_limits<int64_t>::max());
  EXPECT_EQ(OpenData(Env::Real(), spec, DataShare::kTrain).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(GptDatasetTest, TooLittleDataAndBadSeedsAreRefused) {
  options_.num_samples = 0;
  options_.sequence_length = 40;
  EXPECT_THAT(GptDataset::Open(Env::Real(), options_).status().message(),
              HasSubstr("40 tokens, too few"));
  options_.sequence_length = 8;
  options_.seed = int64_t{1} << 32;
  EXPECT_THAT(GptDataset::Open(Env::Real(), options_).status().message(),
              HasSubstr("data.seed: 4294967296"));
}

}  // namespace
}  // namespace mt
