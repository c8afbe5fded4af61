#include "worker/data/sample/sample_index.h"

#include <algorithm>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(NumpyRandomStateTest, StreamEqualsNumpys) {
  NumpyRandomState random(1234);
  EXPECT_EQ(random.Next32(), 822569775u);
  EXPECT_EQ(random.Next32(), 2137449171u);
  EXPECT_EQ(random.Next32(), 2671936806u);
  EXPECT_EQ(random.Next32(), 3512589365u);
}

std::vector<int> ShuffledTen(NumpyRandomState& random) {
  std::vector<int> values(10);
  std::iota(values.begin(), values.end(), 0);
  random.Shuffle(std::span<int>(values));
  return values;
}

TEST(NumpyRandomStateTest, ShuffleEqualsNumpysAndContinuesTheStream) {
  NumpyRandomState zero(0);
  EXPECT_THAT(ShuffledTen(zero), ElementsAre(2, 8, 4, 9, 1, 6, 7, 3, 0, 5));
  EXPECT_THAT(ShuffledTen(zero), ElementsAre(3, 5, 1, 2, 9, 8, 0, 6, 7, 4));
  NumpyRandomState forty_two(42);
  EXPECT_THAT(ShuffledTen(forty_two), ElementsAre(8, 1, 5, 0, 7, 2, 9, 4, 3, 6));
  EXPECT_THAT(ShuffledTen(forty_two), ElementsAre(0, 1, 8, 5, 3, 4, 7, 9, 6, 2));
  NumpyRandomState megatron(1234);
  EXPECT_THAT(ShuffledTen(megatron), ElementsAre(7, 2, 9, 1, 0, 8, 4, 5, 6, 3));
  EXPECT_THAT(ShuffledTen(megatron), ElementsAre(7, 3, 5, 1, 4, 8, 0, 2, 6, 9));
}

TEST(NumpyRandomStateTest, WideIntervalsTakeTwoWordsHighFirst) {
  NumpyRandomState random(1234);
  EXPECT_EQ(random.Interval(~uint64_t{0}), (uint64_t{822569775} << 32) | 2137449171u);
}

const std::vector<int32_t> kLengths = {5, 9, 3, 12, 7, 4};

template <typename T>
std::vector<T> Values(std::span<const T> values) {
  return {values.begin(), values.end()};
}

absl::StatusOr<SampleIndex> Build(int64_t num_samples, int64_t sequence_length = 8,
                                  const std::vector<int32_t>& lengths = kLengths) {
  return BuildSampleIndex(SequenceLengths(std::span<const int32_t>(lengths)),
                          {.sequences = {0, static_cast<int64_t>(lengths.size())},
                           .sequence_length = sequence_length,
                           .num_samples = num_samples,
                           .seed = 1234});
}

TEST(SampleIndexTest, OneEpochEqualsMegatrons) {
  const SampleIndex index = Build(4).value();
  EXPECT_THAT(Values(index.document_index), ElementsAre(2, 1, 5, 0, 4, 3));
  EXPECT_THAT(Values(index.sample_index),
              ElementsAre(SampleStart{0, 0}, SampleStart{1, 5}, SampleStart{3, 0},
                          SampleStart{4, 3}, SampleStart{5, 4}));
  EXPECT_THAT(Values(index.shuffle_index), ElementsAre(0, 2, 1, 3));
}

TEST(SampleIndexTest, NoNumberOfSamplesMeansOneEpoch) {
  EXPECT_EQ(Values(Build(0).value().sample_index), Values(Build(4).value().sample_index));
}

TEST(SampleIndexTest, LittleUsedFinalEpochIsShuffledApart) {
  const SampleIndex index = Build(6).value();
  EXPECT_THAT(Values(index.document_index), ElementsAre(2, 1, 5, 0, 4, 3, 0, 4, 3, 2, 5, 1));
  EXPECT_THAT(
      Values(index.sample_index),
      ElementsAre(SampleStart{0, 0}, SampleStart{1, 5}, SampleStart{3, 0}, SampleStart{4, 3},
                  SampleStart{5, 4}, SampleStart{6, 0}, SampleStart{7, 3}, SampleStart{8, 4},
                  SampleStart{9, 0}, SampleStart{11, 1}));
  EXPECT_THAT(Values(index.shuffle_index), ElementsAre(1, 3, 0, 2, 5, 4, 7, 8, 6));
}

TEST(SampleIndexTest, MostlyUsedFinalEpochIsShuffledTogether) {
  const SampleIndex index = Build(9).value();
  EXPECT_THAT(Values(index.document_index), ElementsAre(1, 2, 5, 2, 3, 4, 1, 0, 4, 5, 0, 3));
  EXPECT_THAT(
      Values(index.sample_index),
      ElementsAre(SampleStart{0, 0}, SampleStart{0, 8}, SampleStart{3, 0}, SampleStart{4, 5},
                  SampleStart{5, 1}, SampleStart{6, 2}, SampleStart{7, 1}, SampleStart{8, 4},
                  SampleStart{10, 1}, SampleStart{11, 4}));
  EXPECT_THAT(Values(index.shuffle_index), ElementsAre(7, 3, 5, 1, 4, 8, 0, 2, 6));
}

// Whatever the lengths: enough samples, a permutation, and a walk that advances by exactly T tokens
// and stays inside.
TEST(SampleIndexTest, EveryOrderIsCompleteAndInside) {
  NumpyRandomState random(7);
  for (int round = 0; round < 300; ++round) {
    std::vector<int32_t> lengths(1 + random.Interval(6));
    for (int32_t& length : lengths) length = static_cast<int32_t>(random.Interval(9));
    lengths[0] += 1;
    const int64_t sequence_length = 1 + static_cast<int64_t>(random.Interval(12));
    const int64_t num_samples = 1 + static_cast<int64_t>(random.Interval(40));
    const SampleIndex index = Build(num_samples, sequence_length, lengths).value();
    ASSERT_GE(index.num_samples(), num_samples);
    std::vector<uint32_t> sorted = Values(index.shuffle_index);
    std::sort(sorted.begin(), sorted.end());
    for (size_t i = 0; i < sorted.size(); ++i) ASSERT_EQ(sorted[i], i);
    std::vector<int64_t> before{0};
    for (const int32_t document : index.document_index)
      before.push_back(before.back() + lengths[document]);
    for (size_t i = 0; i < index.sample_index.size(); ++i) {
      const SampleStart at = index.sample_index[i];
      // The first may start at an empty document, which the reader skips.
      if (i > 0) {
        ASSERT_LT(at.offset, lengths[index.document_index[at.position]]);
      }
      ASSERT_EQ(before[at.position] + at.offset, static_cast<int64_t>(i) * sequence_length);
    }
  }
}

TEST(SampleIndexTest, ImpossibleSizesAreRefused) {
  EXPECT_THAT(Build(4, 0).status().message(), HasSubstr("data.sequence_length: 0"));
  EXPECT_THAT(Build(-1).status().message(), HasSubstr("steps * global_batch"));
  EXPECT_THAT(Build(1, 8, {0, 0}).status().message(), HasSubstr("is empty"));
  EXPECT_THAT(Build(0, 100).status().message(), HasSubstr("too few for one sample of 100"));
  EXPECT_THAT(Build((int64_t{1} << 32) - 2, 2147483646, {1}).status().message(),
              HasSubstr("add text or train fewer"));
}

TEST(SplitSequencesTest, CutsWhereMegatronDoes) {
  const auto cuts = [](absl::string_view split, int64_t sequences) {
    std::vector<std::pair<int64_t, int64_t>> pairs;
    const std::vector<SequenceRange> ranges = SplitSequences(split, sequences).value();
    for (const SequenceRange& range : ranges) pairs.emplace_back(range.begin, range.end);
    return pairs;
  };
  using Pair = std::pair<int64_t, int64_t>;
  EXPECT_THAT(cuts("1,0,0", 7), ElementsAre(Pair{0, 7}, Pair{7, 7}, Pair{7, 7}));
  EXPECT_THAT(cuts("969,30,1", 1000), ElementsAre(Pair{0, 969}, Pair{969, 999}, Pair{999, 1000}));
  EXPECT_THAT(cuts("1,1", 5), ElementsAre(Pair{0, 2}, Pair{2, 5}, Pair{5, 5}))
      << "2.5 rounds to even";
  EXPECT_THAT(cuts("1,1", 7), ElementsAre(Pair{0, 4}, Pair{4, 7}, Pair{7, 7}))
      << "3.5 rounds to even";
  EXPECT_THAT(cuts("99", 3), ElementsAre(Pair{0, 3}, Pair{3, 3}, Pair{3, 3}));
}

TEST(SplitSequencesTest, NonsenseIsRefused) {
  for (absl::string_view split :
       {"", "a", "1,,1", "-1,2", "0,0,0", "1,1,1,1", "nan", "inf,1", "1e308,1e308"}) {
    EXPECT_EQ(SplitSequences(split, 10).status().code(), absl::StatusCode::kInvalidArgument)
        << split;
  }
}

}  // namespace
}  // namespace mt
