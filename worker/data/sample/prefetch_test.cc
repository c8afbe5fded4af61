#include "worker/data/sample/prefetch.h"

#include <atomic>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mt {
namespace {

using ::testing::ElementsAre;

// Sample i is i, i + 1; ids from `end` on are OUT_OF_RANGE.
class Counting : public BatchSource {
 public:
  Counting(int64_t end, std::atomic<int>* fetches) : end_(end), fetches_(fetches) {}
  absl::Status Fetch(std::span<const int64_t> ids, const Batch& batch) override {
    ++*fetches_;
    for (size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] >= end_) return absl::OutOfRangeError("behind the end");
      for (size_t t = 0; t < 2 && !batch.tokens.empty(); ++t)
        batch.tokens[2 * i + t] = static_cast<int32_t>(ids[i] + static_cast<int64_t>(t));
      if (!batch.loss_mask.empty()) batch.loss_mask[i] = ids[i] % 2;
      if (!batch.document_start.empty()) batch.document_start[i] = static_cast<int32_t>(ids[i]);
    }
    return absl::OkStatus();
  }
  bool masks_loss() const override { return true; }

 private:
  const int64_t end_;
  std::atomic<int>* const fetches_;
};

class PrefetchTest : public ::testing::Test {
 protected:
  std::unique_ptr<PrefetchingSource> Source(int64_t end, int64_t stride, size_t depth) {
    return std::make_unique<PrefetchingSource>(std::make_unique<Counting>(end, &fetches_), stride,
                                               depth);
  }
  std::atomic<int> fetches_ = 0;
};

TEST_F(PrefetchTest, BatchesInAStrideAreReadAheadAndRight) {
  const auto source = Source(1 << 20, 6, 3);
  EXPECT_TRUE(source->masks_loss());
  std::vector<int32_t> tokens(4), starts(2);
  std::vector<uint8_t> mask(2);
  for (int64_t first = 4; first < 4 + 6 * 100; first += 6) {
    const int64_t ids[] = {first, first + 1};
    const auto id = static_cast<int32_t>(first);
    ASSERT_TRUE(
        source->Fetch(ids, {.tokens = tokens, .loss_mask = mask, .document_start = starts}).ok());
    ASSERT_THAT(tokens, ElementsAre(id, id + 1, id + 1, id + 2));
    ASSERT_THAT(mask, ElementsAre(0, 1));
    ASSERT_THAT(starts, ElementsAre(id, id + 1));
  }
  EXPECT_EQ(source->misses(), 1);
  EXPECT_EQ(source->hits(), 99);
  EXPECT_LE(fetches_, 103);  // never further ahead than the depth
}

TEST_F(PrefetchTest, UnexpectedIdsAndOtherPartsAreReadAtOnce) {
  const auto source = Source(1 << 20, 1, 4);
  std::vector<int32_t> tokens(2), starts(1);
  for (const int64_t id : {7, 8, 3, 4, 5, 5, 100, 0, 1}) {
    ASSERT_TRUE(source->Fetch({&id, 1}, {.tokens = tokens}).ok());
    ASSERT_THAT(tokens, ElementsAre(id, id + 1));
  }
  EXPECT_EQ(source->misses(), 5);
  const int64_t id = 2;
  ASSERT_TRUE(source->Fetch({&id, 1}, {.document_start = starts}).ok());
  EXPECT_THAT(starts, ElementsAre(2));
  EXPECT_EQ(source->misses(), 6);
}

TEST_F(PrefetchTest, AnErrorIsToldToWhoAsksForItsIdsOnly) {
  const auto source = Source(3, 1, 8);
  std::vector<int32_t> tokens(2);
  for (const int64_t id : {0, 1, 2}) {
    ASSERT_TRUE(source->Fetch({&id, 1}, {.tokens = tokens}).ok()) << id;
    ASSERT_THAT(tokens, ElementsAre(id, id + 1));
  }
  for (const int64_t id : {3, 4, 3}) {
    EXPECT_EQ(source->Fetch({&id, 1}, {.tokens = tokens}).code(), absl::StatusCode::kOutOfRange);
  }
  const int64_t id = 1;
  ASSERT_TRUE(source->Fetch({&id, 1}, {.tokens = tokens}).ok());
  EXPECT_THAT(tokens, ElementsAre(1, 2));
}

}  // namespace
}  // namespace mt
