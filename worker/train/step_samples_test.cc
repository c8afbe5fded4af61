#include "worker/train/step_samples.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace mt {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kSequence = 4, kBatch = 2;

// Token t of sample i is 10 i + t. Two documents: the second begins at token 2. The label at 0 has no loss in samples of odd ids.
class Source : public BatchSource {
 public:
  explicit Source(bool masks) : masks_(masks) {}
  absl::Status Fetch(std::span<const int64_t> ids, const Batch& batch) override {
    fetched.insert(fetched.end(), ids.begin(), ids.end());
    EXPECT_TRUE(masks_ || batch.loss_mask.empty()) << "asked for masks that there are not";
    for (size_t i = 0; i < ids.size(); ++i) {
      for (size_t t = 0; t <= kSequence && !batch.tokens.empty(); ++t)
        batch.tokens[i * (kSequence + 1) + t] = static_cast<int32_t>(10 * ids[i] + t);
      for (size_t t = 0; t < kSequence; ++t) {
        if (!batch.loss_mask.empty()) batch.loss_mask[i * kSequence + t] = t > 0 || ids[i] % 2 == 0;
        if (!batch.document_start.empty()) batch.document_start[i * kSequence + t] = t < 2 ? 0 : 2;
      }
    }
    return absl::OkStatus();
  }
  bool masks_loss() const override { return masks_; }

  std::vector<int64_t> fetched;

 private:
  const bool masks_;
};

class StepSamplesTest : public testing::Test {
 protected:
  static RankShape Shape() {
    RankShape shape;
    shape.sequence = kSequence;
    shape.batch = kBatch;
    shape.rows = kSequence * kBatch;
    shape.micro_batches = 2;
    return shape;
  }
  // Rows of the kinds that are wanted, in memory of this test.
  int32_t* Rows() { return memory_.emplace_back(kSequence * kBatch, -7).data(); }
  static std::vector<int32_t> Of(const int32_t* rows) { return {rows, rows + kSequence * kBatch}; }

 private:
  std::vector<std::vector<int32_t>> memory_;
};

TEST_F(StepSamplesTest, AreMegatronsMicroBatchesRowByRow) {
  const TokenRows rows = {.input_ids = Rows(), .targets = Rows()};
  StepSamples samples(Shape(), /*vocab=*/1000, /*data_ranks=*/3, /*data_rank=*/1, rows, false);
  Source source(false);
  ASSERT_TRUE(samples.Begin(&source, 12, 2).ok());
  EXPECT_THAT(source.fetched, ElementsAre()) << "read when wanted";
  EXPECT_EQ(samples.labels().main, 16);
  EXPECT_EQ(samples.labels().mtp, 12) << "the last position has no token after the next";
  ASSERT_TRUE(samples.Write(1, rows).ok());
  EXPECT_THAT(source.fetched, ElementsAre(20, 21));
  EXPECT_THAT(Of(rows.input_ids), ElementsAre(200, 210, 201, 211, 202, 212, 203, 213));
  EXPECT_THAT(Of(rows.targets), ElementsAre(201, 211, 202, 212, 203, 213, 204, 214));
}

TEST_F(StepSamplesTest, LabelsAreCountedBeforeTheFirstIsWritten) {
  const TokenRows rows = {.targets = Rows(),
                          .next_tokens = Rows(),
                          .mtp_targets = Rows(),
                          .document_start = Rows(),
                          .positions = Rows()};
  StepSamples samples(Shape(), 1000, 1, 0, rows, true);
  Source source(true);
  ASSERT_TRUE(samples.Begin(&source, 0, 2).ok());
  EXPECT_THAT(source.fetched, ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(samples.labels().main, 2 * (4 + 3));
  // Of positions 1 to 3 all but the second document's first.
  EXPECT_EQ(samples.labels().mtp, 4 * 2);
  ASSERT_TRUE(samples.Write(0, rows).ok());
  EXPECT_EQ(source.fetched.size(), 4u) << "read once";
  EXPECT_THAT(Of(rows.targets), ElementsAre(1, -1, 2, 12, 3, 13, 4, 14));
  EXPECT_THAT(Of(rows.next_tokens), ElementsAre(1, 11, 2, 12, 3, 13, 4, 14));
  EXPECT_THAT(Of(rows.mtp_targets), ElementsAre(2, 12, -1, -1, 4, 14, -1, -1));
  EXPECT_THAT(Of(rows.document_start), ElementsAre(0, 0, 0, 0, 2, 2, 2, 2));
  EXPECT_THAT(Of(rows.positions), ElementsAre(0, 0, 1, 1, 0, 0, 1, 1));
}

// Held-out data may be masked where training data is not, and the other way round.
TEST_F(StepSamplesTest, EachSourceSaysItself) {
  const TokenRows rows = {.targets = Rows()};
  StepSamples samples(Shape(), 1000, 1, 0, rows, false);
  Source plain(false), masked(true);
  ASSERT_TRUE(samples.Begin(&masked, 0, 2).ok());
  EXPECT_EQ(samples.labels().main, 14);
  ASSERT_TRUE(samples.Begin(&plain, 0, 2).ok());
  EXPECT_EQ(samples.labels().main, 16);
  ASSERT_TRUE(samples.Write(0, rows).ok());
  EXPECT_THAT(Of(rows.targets), ElementsAre(1, 11, 2, 12, 3, 13, 4, 14));
}

TEST_F(StepSamplesTest, StagesInTheMiddleAskForDocumentsAlone) {
  class NoTokens : public Source {
   public:
    using Source::Source;
    absl::Status Fetch(std::span<const int64_t> ids, const Batch& batch) override {
      EXPECT_TRUE(batch.tokens.empty() && batch.loss_mask.empty());
      return Source::Fetch(ids, batch);
    }
  };
  const TokenRows rows = {.document_start = Rows()};
  StepSamples samples(Shape(), 1000, 1, 0, rows, false);
  NoTokens source(true);
  ASSERT_TRUE(samples.Begin(&source, 0, 2).ok());
  ASSERT_TRUE(samples.Write(0, rows).ok());
  EXPECT_THAT(Of(rows.document_start), ElementsAre(0, 0, 0, 0, 2, 2, 2, 2));
}

TEST_F(StepSamplesTest, ForeignTokensAreNamed) {
  const TokenRows rows = {.input_ids = Rows()};
  StepSamples samples(Shape(), /*vocab=*/13, 1, 0, rows, false);
  Source source(false);
  ASSERT_TRUE(samples.Begin(&source, 0, 1).ok());
  const absl::Status status = samples.Write(0, rows);
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(status.message(), HasSubstr("sample 1 has token id 13 at position 3"));
}

}  // namespace
}  // namespace mt
