#include "worker/data/sample/fim.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mt {
namespace {

using ::testing::ElementsAre;

constexpr int32_t kPrefix = 901;
constexpr int32_t kMiddle = 902;
constexpr int32_t kSuffix = 903;
constexpr int32_t kEod = 900;
using Tokens = std::vector<int32_t>;

FimOptions Always(double spm_rate = 0.5) {
  return {.rate = 1,
          .spm_rate = spm_rate,
          .prefix = kPrefix,
          .middle = kMiddle,
          .suffix = kSuffix,
          .eod = kEod,
          .seed = 7};
}

Tokens Permuted(const FimOptions& options, int64_t sample, const Tokens& from, size_t room) {
  Tokens to(room, -5);
  const size_t written = PermuteFim(options, sample, from, to);
  EXPECT_LE(written, room);
  for (size_t i = written; i < room; ++i) EXPECT_EQ(to[i], -5) << "written beyond the end";
  to.resize(written);
  return to;
}

Tokens Count(int32_t first, size_t n) {
  Tokens tokens(n);
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

// Prefix, middle and suffix of a permuted document put together again; empty if it is not one.
Tokens Mended(const Tokens& document) {
  const auto at = [&](int32_t id) { return std::find(document.begin(), document.end(), id); };
  if (at(kPrefix) != document.begin() || at(kSuffix) > at(kMiddle) || at(kMiddle) == document.end())
    return {};
  Tokens prefix(document.begin() + 1, at(kSuffix));
  const Tokens suffix(at(kSuffix) + 1, at(kMiddle));
  const Tokens rest(at(kMiddle) + 1, document.end());  // the middle, or prefix and middle
  Tokens whole = prefix;
  whole.insert(whole.end(), rest.begin(), rest.end());
  whole.insert(whole.end(), suffix.begin(), suffix.end());
  return whole;
}

TEST(Fim, RateZeroChangesNothing) {
  FimOptions options = Always();
  options.rate = 0;
  const Tokens from = {1, 2, kEod, 3, 4, 5, kEod, kEod, 6};
  for (int64_t sample = 0; sample < 50; ++sample)
    ASSERT_EQ(Permuted(options, sample, from, from.size()), from);
}

// A golden sample: what a run has begun with, a resumed one goes on with, also after an upgrade.
TEST(Fim, IsTheSameFunctionForEver) {
  const Tokens from = {10, 11, 12, 13, 14, kEod, 20, 21, 22, 23, kEod};
  EXPECT_THAT(Permuted(Always(0), 3, from, 17), ElementsAre(901, 10, 11, 903, 902, 12, 13, 14, 900,
                                                            901, 903, 23, 902, 20, 21, 22, 900));
  EXPECT_THAT(Permuted(Always(1), 3, from, 17), ElementsAre(901, 903, 902, 10, 11, 12, 13, 14, 900,
                                                            901, 903, 23, 902, 20, 21, 22, 900));
}

TEST(Fim, PartsOfADocumentGiveTheDocument) {
  for (const double spm_rate : {0.0, 1.0}) {
    for (size_t n = 1; n < 40; ++n) {
      for (int64_t sample = 0; sample < 40; ++sample) {
        const Tokens from = Count(100, n);
        const Tokens to = Permuted(Always(spm_rate), sample, from, n + 10);
        ASSERT_EQ(to.size(), n + 3);
        ASSERT_EQ(Mended(to), from) << "sample " << sample;
        if (spm_rate == 1) {
          ASSERT_EQ(to[1], kSuffix);
        }
      }
    }
  }
}

TEST(Fim, DocumentsStayApartAndInOrder) {
  const Tokens from = {10, 11, 12, kEod, kEod, 20, kEod, 30, 31};
  for (int64_t sample = 0; sample < 100; ++sample) {
    Tokens to = Permuted(Always(), sample, from, 100);
    ASSERT_EQ(to.size(), from.size() + 9) << "three documents have tokens";
    std::vector<Tokens> documents(1);
    for (const int32_t token : to) {
      if (token == kEod)
        documents.emplace_back();
      else
        documents.back().push_back(token);
    }
    ASSERT_EQ(documents.size(), 4u);
    EXPECT_THAT(Mended(documents[0]), ElementsAre(10, 11, 12));
    EXPECT_THAT(documents[1], ElementsAre());
    EXPECT_THAT(Mended(documents[2]), ElementsAre(20));
    EXPECT_THAT(Mended(documents[3]), ElementsAre(30, 31));
  }
}

// However little room there is: a sample that was full is full, and what is permuted is whole.
TEST(Fim, SentinelsPushOutTheEndBeforeItIsPermuted) {
  Tokens from = Count(0, 20);
  from.push_back(kEod);
  for (const int32_t token : Count(50, 20)) from.push_back(token);
  for (size_t room = 0; room <= from.size() + 6; ++room) {
    for (int64_t sample = 0; sample < 30; ++sample) {
      const Tokens to = Permuted(Always(), sample, from, room);
      ASSERT_EQ(to.size(), room);
      const auto eod = std::find(to.begin(), to.end(), kEod);
      const Tokens first(to.begin(), eod);
      const size_t fits = first.size() - (first.size() > 3 ? 3 : 0);
      ASSERT_EQ(first.size() > 3 ? Mended(first) : first, Count(0, fits)) << room;
      if (eod == to.end()) continue;
      const Tokens second(eod + 1, to.end());
      const size_t rest = second.size() - (second.size() > 3 ? 3 : 0);
      ASSERT_EQ(second.size() > 3 ? Mended(second) : second, Count(50, rest)) << room;
    }
  }
}

TEST(Fim, RatesAndCutsAreWhatWasAskedFor) {
  FimOptions options = Always(0.25);
  options.rate = 0.4;
  const Tokens from = Count(0, 9);
  constexpr int kSamples = 40000;
  int permuted = 0;
  int prefix_first = 0;  // and a prefix that is not empty: else the two orders look alike
  for (int64_t sample = 0; sample < kSamples; ++sample) {
    const Tokens to = Permuted(options, sample, from, 12);
    if (to == from) continue;
    ++permuted;
    prefix_first += to[1] != kSuffix ? 1 : 0;
  }
  // Within five standard deviations; a prefix is not empty with 0.9^2.
  EXPECT_NEAR(permuted, 0.4 * kSamples, 5 * 98);
  EXPECT_NEAR(prefix_first, 0.4 * 0.75 * 0.81 * kSamples, 5 * 86);
}

TEST(Fim, SamplesDocumentsAndSeedsAreCutDifferently) {
  const Tokens from = Count(0, 200);
  FimOptions other = Always();
  other.seed = 8;
  EXPECT_NE(Permuted(Always(), 1, from, 203), Permuted(Always(), 2, from, 203));
  EXPECT_NE(Permuted(Always(), 1, from, 203), Permuted(other, 1, from, 203));
  Tokens twice = from;
  twice.push_back(kEod);
  twice.insert(twice.end(), from.begin(), from.end());
  const Tokens to = Permuted(Always(), 1, twice, 500);
  ASSERT_EQ(to.size(), 407u);
  EXPECT_NE(Tokens(to.begin(), to.begin() + 203), Tokens(to.begin() + 204, to.end()));
}

// Megatron takes any of the n + 1 places with the same probability; so do both of ours.
TEST(Fim, EveryPlaceIsCut) {
  const Tokens from = {1, 2};
  std::vector<int> prefixes(3);
  for (int64_t sample = 0; sample < 9000; ++sample) {
    const Tokens to = Permuted(Always(0), sample, from, 5);
    ++prefixes[static_cast<size_t>(std::find(to.begin(), to.end(), kSuffix) - to.begin()) - 1];
  }
  // The smaller of two uniform places of three: 5/9, 3/9, 1/9.
  EXPECT_NEAR(prefixes[0], 5000, 240);
  EXPECT_NEAR(prefixes[1], 3000, 230);
  EXPECT_NEAR(prefixes[2], 1000, 150);
}

}  // namespace
}  // namespace mt
