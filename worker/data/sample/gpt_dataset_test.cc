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

using ::testing::Each;
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

v1::JobSpec SpecOf(const std::string& prefix) {
  v1::JobSpec spec;
  spec.mutable_data()->add_train()->set_prefix(prefix);
  spec.mutable_data()->set_sequence_length(8);
  spec.mutable_training()->set_steps(4);
  spec.mutable_training()->set_global_batch(1);
  spec.mutable_training()->set_seed(1234);
  return spec;
}

struct Fetched {
  std::vector<int32_t> tokens, document_start;
  std::vector<uint8_t> loss_mask;
};
Fetched FetchOne(BatchSource* source, int64_t sample) {
  Fetched fetched{.tokens = std::vector<int32_t>(9),
                  .document_start = std::vector<int32_t>(8),
                  .loss_mask = std::vector<uint8_t>(8)};
  MT_CHECK_OK(source->Fetch({&sample, 1}, {.tokens = fetched.tokens,
                                           .loss_mask = fetched.loss_mask,
                                           .document_start = fetched.document_start}));
  return fetched;
}

TEST_F(GptDatasetTest, DocumentsOfAStreamBeginBehindTheEndOfTheOneBefore) {
  v1::JobSpec spec = SpecOf(options_.prefix);
  // Sample 0 is 200 201 202 100 101 102 103 104 105.
  spec.mutable_data()->set_eod(202);
  const auto source = OpenData(Env::Real(), spec, DataShare::kTrain).value();
  EXPECT_FALSE(source->masks_loss());
  Fetched fetched = FetchOne(source.get(), 0);
  EXPECT_THAT(fetched.document_start, ElementsAre(0, 0, 0, 3, 3, 3, 3, 3));
  EXPECT_THAT(fetched.loss_mask, Each(1));
  spec.mutable_data()->set_mask_eod(true);
  const auto masked = OpenData(Env::Real(), spec, DataShare::kTrain).value();
  EXPECT_TRUE(masked->masks_loss());
  EXPECT_THAT(FetchOne(masked.get(), 0).loss_mask, ElementsAre(1, 1, 0, 1, 1, 1, 1, 1));
  // A part alone, as middle pipeline stages ask for it.
  std::vector<int32_t> starts(8);
  const int64_t id = 0;
  ASSERT_TRUE(masked->Fetch({&id, 1}, {.document_start = starts}).ok());
  EXPECT_EQ(starts, fetched.document_start);
}

TEST_F(GptDatasetTest, LabelsWithoutALossAreThoseOfTheLossFile) {
  // Tokens 0..4 are document 0's, 5..13 document 1's: 100..108; 14..16 document 2's: 200..202.
  std::string bits(5, '\xff');
  bits[0] = static_cast<char>(0xff & ~(1 << 6));  // token 6: 101
  bits[1] = static_cast<char>(0xff & ~(1 << 6));  // token 14: 200, which labels nothing in sample 0
  ASSERT_TRUE(WriteFileAtomically(Env::Real(), options_.prefix + ".loss", bits).ok());
  const auto source = OpenData(Env::Real(), SpecOf(options_.prefix), DataShare::kTrain).value();
  EXPECT_TRUE(source->masks_loss());
  EXPECT_THAT(FetchOne(source.get(), 0).loss_mask, ElementsAre(1, 1, 1, 0, 1, 1, 1, 1));
  ASSERT_TRUE(WriteFileAtomically(Env::Real(), options_.prefix + ".loss", "xx").ok());
  EXPECT_EQ(OpenData(Env::Real(), SpecOf(options_.prefix), DataShare::kTrain).status().code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(CheckTrainingData(Env::Real(), SpecOf(options_.prefix)).code(),
            absl::StatusCode::kFailedPrecondition);
}

// Whatever documents are drawn: every label of every document has its loss once in an epoch, and nothing else has one.
TEST_F(GptDatasetTest, PackedSamplesHoldEachDocumentWhole) {
  v1::JobSpec spec = SpecOf(options_.prefix);
  spec.mutable_data()->set_packing(v1::DataSpec::PACKING_DOCUMENTS);
  spec.mutable_data()->set_eod(999);
  spec.mutable_training()->set_steps(1);
  const auto source = OpenData(Env::Real(), spec, DataShare::kTrain).value();
  EXPECT_TRUE(source->masks_loss());
  const BlendOptions options = BlendOptionsOf(spec, DataShare::kTrain);
  const int64_t samples = BlendedDataset::Open(Env::Real(), options).value()->num_samples();
  std::vector<int32_t> labels;
  for (int64_t sample = 0; sample < samples; ++sample) {
    const Fetched fetched = FetchOne(source.get(), sample);
    for (size_t t = 0; t < 8; ++t) {
      const auto start = static_cast<size_t>(fetched.document_start[t]);
      // A document is where its first token says.
      if (fetched.tokens[t] != 999) {
        EXPECT_EQ(fetched.tokens[t] - fetched.tokens[start], static_cast<int32_t>(t - start));
      } else {  // and so is padding
        EXPECT_EQ(fetched.tokens[start], 999);
      }
      if (fetched.loss_mask[t] == 0) continue;
      EXPECT_EQ(fetched.tokens[t + 1], fetched.tokens[t] + 1);
      labels.push_back(fetched.tokens[t + 1]);
    }
  }
  std::vector<int32_t> expected;
  for (const auto& [document, length] :
       std::vector<std::pair<int, int>>{{0, 5}, {1, 9}, {2, 3}, {3, 12}, {4, 7}, {5, 4}}) {
    for (int i = 1; i < length; ++i) expected.push_back(100 * document + i);
  }
  std::sort(labels.begin(), labels.end());
  EXPECT_EQ(labels, expected);
  // Further epochs follow, each of them whole.
  spec.mutable_training()->set_steps(3 * samples);
  EXPECT_GE(BlendedDataset::Open(Env::Real(), BlendOptionsOf(spec, DataShare::kTrain))
                .value()
                ->num_samples(),
            3 * samples);
}

TEST_F(GptDatasetTest, SharesOfABlendAreTrainedHeldOutAndTested) {
  v1::JobSpec spec = SpecOf(options_.prefix);
  spec.mutable_data()->add_train()->set_prefix(options_.prefix);
  spec.mutable_data()->mutable_train(0)->set_weight(1);
  spec.mutable_data()->set_split("2,2,2");
  spec.mutable_training()->mutable_evaluation()->set_batches(2);
  EXPECT_THAT(CheckTrainingData(Env::Real(), spec).message(), HasSubstr("some have none"));
  spec.mutable_data()->mutable_train(1)->set_weight(3);
  ASSERT_TRUE(CheckTrainingData(Env::Real(), spec).ok());
  for (const DataShare share : {DataShare::kTrain, DataShare::kValidation, DataShare::kTest}) {
    const auto source = OpenData(Env::Real(), spec, share).value();
    for (int64_t sample = 0; sample < 2; ++sample) {
      const int32_t first = 200 * static_cast<int32_t>(share);
      for (const int32_t token : FetchOne(source.get(), sample).tokens) {
        EXPECT_GE(token, first);
        EXPECT_LT(token, first + 200);
      }
    }
  }
  // Without weights: one epoch of each and no more.
  for (v1::DataSource& each : *spec.mutable_data()->mutable_train()) each.clear_weight();
  spec.mutable_data()->clear_split();
  spec.mutable_training()->set_steps(8);
  ASSERT_TRUE(CheckTrainingData(Env::Real(), spec).ok());
  EXPECT_TRUE(OpenData(Env::Real(), spec, DataShare::kTrain).ok());
  spec.mutable_training()->set_steps(9);
  EXPECT_THAT(CheckTrainingData(Env::Real(), spec).message(),
              HasSubstr("is 8 samples, but 9 are wanted"));
  EXPECT_THAT(OpenData(Env::Real(), spec, DataShare::kTrain).status().message(),
              HasSubstr("is 8 samples, but 9 are wanted"));
}

TEST_F(GptDatasetTest, RampUpTakesFewerSamplesThanStepsTimesTheBatch) {
  v1::JobSpec spec = SpecOf(options_.prefix);
  spec.mutable_training()->set_global_batch(4);
  spec.mutable_training()->mutable_batch_rampup()->set_start(2);
  spec.mutable_training()->mutable_batch_rampup()->set_increment(2);
  spec.mutable_training()->mutable_batch_rampup()->set_samples(6);
  // Steps of 2, 2, 2 samples until 6 are consumed; 4 from there on.
  EXPECT_EQ(BlendOptionsOf(spec, DataShare::kTrain).dataset.num_samples, 10);
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
