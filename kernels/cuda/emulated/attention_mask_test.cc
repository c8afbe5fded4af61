// The tiles that attention visits and masks are those that the contract's rule, asked about every pair of a query and a key, says.
#include "kernels/cuda/attention_mask.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>
#include <vector>

namespace mt::cuda {
namespace {

// Documents of the given lengths, the last as long as it takes, in every sequence: (T, B).
std::vector<int32_t> Starts(int T, int B, const std::vector<int>& lengths) {
  std::vector<int32_t> starts(static_cast<size_t>(T * B));
  size_t document = 0;
  int start = 0;
  for (int t = 0; t < T; ++t) {
    if (document < lengths.size() && t - start == lengths[document]) {
      start = t;
      ++document;
    }
    for (int b = 0; b < B; ++b) starts[static_cast<size_t>(t * B + b)] = start;
  }
  return starts;
}

mt_attention_args Arguments(int T, int B, int window, const std::vector<int32_t>& starts) {
  return {.sequence = T,
          .batch = B,
          .heads = 1,
          .kv_heads = 1,
          .head_dim = 8,
          .causal = 1,
          .window = window,
          .document_start = starts.empty() ? nullptr : starts.data()};
}

bool Sees(const mt_attention_args& args, int b, int query, int key) {
  return key >= mt_attention_first_key(&args, b, query) && key < mt_attention_end(&args, query);
}
// Pairs within a tile of queries and keys that are there: all of them, and those that see each other.
struct Pairs {
  int all = 0, seen = 0;
};
Pairs CountPairs(const mt_attention_args& args, int b, int first_query, int queries, int first_key,
                 int keys) {
  Pairs pairs;
  const int T = static_cast<int>(args.sequence);
  for (int q = first_query; q < std::min(first_query + queries, T); ++q) {
    for (int k = first_key; k < std::min(first_key + keys, T); ++k) {
      ++pairs.all;
      pairs.seen += Sees(args, b, q, k) ? 1 : 0;
    }
  }
  return pairs;
}

// Every tile that is visited has a pair, no other one has, and a tile that is not masked has no pair to hide.
template <int kQueries, int kKeys>
void ExpectRightTiles(const mt_attention_args& args) {
  const AttentionMask mask = MaskOf(args);
  const int T = mask.queries;
  for (int b = 0; b < mask.batch; ++b) {
    for (int query = 0; query < T; query += kQueries) {
      const KeyRange keys = KeysOf<kQueries, kKeys>(mask, b, query);
      ASSERT_EQ(keys.begin % kKeys, 0);
      const int latest = mask.DocumentStart(b, query + kQueries - 1);
      for (int key = 0; key < T; key += kKeys) {
        const Pairs pairs = CountPairs(args, b, query, kQueries, key, kKeys);
        const bool visited = key >= keys.begin && key < keys.end;
        ASSERT_EQ(visited, pairs.seen > 0) << "queries at " << query << ", keys at " << key;
        if (visited && !NeedsMask<kQueries, kKeys>(mask, query, latest, key)) {
          ASSERT_EQ(pairs.seen, pairs.all) << "queries at " << query << ", keys at " << key;
        }
      }
    }
    for (int key = 0; key < T; key += kKeys) {
      const QueryTiles tiles = QueriesOf<kQueries, kKeys>(mask, b, key);
      for (int tile = 0; tile * kQueries < T; ++tile) {
        const bool visited = tile >= tiles.first && tile < tiles.first + tiles.count;
        ASSERT_EQ(visited, CountPairs(args, b, tile * kQueries, kQueries, key, kKeys).seen > 0)
            << "keys at " << key << ", queries at " << tile * kQueries;
      }
    }
  }
}

TEST(AttentionMaskTest, TilesAreThoseWithAPairThatSeesEachOther) {
  std::mt19937_64 random(11);
  const auto between = [&](int low, int high) {
    return std::uniform_int_distribution<int>(low, high)(random);
  };
  for (int round = 0; round < 60; ++round) {
    const int T = between(1, 200), B = between(1, 2), longest = between(1, 150);
    std::vector<int> lengths;
    while (std::accumulate(lengths.begin(), lengths.end(), 0) < T)
      lengths.push_back(between(1, longest));
    std::vector<int32_t> starts = Starts(T, B, lengths);
    if (B == 2) {  // another sequence
      const std::vector<int32_t> others = Starts(T, B, {between(1, 90), between(1, 90)});
      for (size_t i = 1; i < starts.size(); i += 2) starts[i] = others[i];
    }
    const int window = round % 3 == 0 ? between(1, 200) : 0;
    if (round % 5 == 0) starts.clear();
    SCOPED_TRACE(testing::Message() << "round " << round << ", " << T << " tokens");
    const mt_attention_args args = Arguments(T, B, window, starts);
    ExpectRightTiles<64, 64>(args);  // the portable kernels
    ExpectRightTiles<128, 64>(args);
    ExpectRightTiles<64, 32>(args);
    ExpectRightTiles<32, 64>(args);
    if (testing::Test::HasFatalFailure()) return;
  }
}

struct Visited {
  int keys = 0, queries = 0;  // tiles, of both directions
};
Visited Count(int T, const std::vector<int32_t>& starts) {
  const mt_attention_args args = Arguments(T, 1, 0, starts);
  const AttentionMask mask = MaskOf(args);
  Visited visited;
  for (int query = 0; query < T; query += 128) {
    const KeyRange keys = KeysOf<128, 64>(mask, 0, query);
    visited.keys += (keys.end - keys.begin + 63) / 64;
  }
  for (int key = 0; key < T; key += 64) visited.queries += QueriesOf<64, 64>(mask, 0, key).count;
  return visited;
}

// A sequence of 4096 tokens, tiles of the kernels for heads of 64.
TEST(AttentionMaskTest, WorkFollowsTheDocumentsLengths) {
  const int T = 4096;
  const Visited whole = Count(T, {});
  EXPECT_EQ(whole.keys, 2 * 32 * 33 / 2);  // 32 tiles of queries, 2 tiles of keys under each
  EXPECT_EQ(whole.queries, 64 * 65 / 2);
  const Visited one = Count(T, Starts(T, 1, {}));
  EXPECT_EQ(one.keys, whole.keys);
  EXPECT_EQ(one.queries, whole.queries);
  const Visited eight = Count(T, Starts(T, 1, std::vector<int>(8, 512)));
  EXPECT_EQ(eight.keys, 8 * (2 * 4 * 5 / 2));  // 160 of 1056
  EXPECT_EQ(eight.queries, 8 * (8 * 9 / 2));   // 288 of 2080
  const Visited tokens = Count(T, Starts(T, 1, std::vector<int>(T, 1)));
  EXPECT_EQ(tokens.keys, 2 * 32);  // the diagonal alone
  EXPECT_EQ(tokens.queries, 64);
  // A border in the middle of tiles costs the tiles that both documents share.
  const Visited shifted = Count(T, Starts(T, 1, {512 + 32, 512, 512, 512, 512, 512, 512}));
  EXPECT_GT(shifted.keys, eight.keys);
  EXPECT_LT(shifted.keys, whole.keys / 4);
}

}  // namespace
}  // namespace mt::cuda
