// The index arithmetic of the kernels that stream over rows: everything has exactly one owner, at any size.
#include "kernels/cuda/packs.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <vector>

#include "kernels/cuda/embedding.h"
#include "kernels/cuda/rotation.h"
#include "kernels/cuda/sort_rows.h"

namespace mt::cuda {
namespace {

TEST(FlatPieces, VisitEveryItemOnceInOrder) {
  for (const uint32_t items_per_row : {1u, 2u, 7u, 255u, 256u, 1000u}) {
    const int64_t rows = 13;
    constexpr uint32_t kPiece = 64;
    int64_t expected = 0;
    for (int64_t piece = 0; piece < DivideUp(rows * items_per_row, kPiece); ++piece) {
      const RowItem first = FirstItem(piece, kPiece, items_per_row);
      for (uint32_t offset = 0; offset < kPiece; ++offset) {
        const RowItem at = ItemAfter(first, offset, items_per_row);
        if (expected >= rows * items_per_row) {
          EXPECT_GE(at.row, rows);  // the kernels' test for what is not there
          continue;
        }
        ASSERT_EQ(at.row, expected / items_per_row);
        ASSERT_EQ(at.item, expected % items_per_row);
        ++expected;
      }
    }
    EXPECT_EQ(expected, rows * items_per_row);
  }
}

TEST(FlatPieces, RowsBeyondTwoToThe31ElementsAreExact) {
  // 3e6 rows of 2^31 - 1 items: the block in the middle, and an item that needs all 32 bits.
  const uint32_t items_per_row = 0x7fffffff;
  const int64_t block = int64_t{3'000'000} * items_per_row / 1024;
  const RowItem first = FirstItem(block, 1024, items_per_row);
  EXPECT_EQ(first.row * items_per_row + first.item, block * 1024);
  EXPECT_LT(first.item, items_per_row);
  const RowItem last = ItemAfter({5, items_per_row - 1}, 1023, items_per_row);
  EXPECT_EQ(last.row, 6);
  EXPECT_EQ(last.item, 1022u);
}

TEST(Grids, StayWithinTheHardwaresLimit) {
  EXPECT_EQ(GridOf(0), 1u);
  EXPECT_EQ(GridOf(77), 77u);
  EXPECT_EQ(GridOf(int64_t{1} << 40), 0x7fffffffu);
}

TEST(SplitRows, AreAlignedPacksBetweenSingleElements) {
  for (const int bytes : {2, 4}) {
    const int pack = 16 / bytes;
    for (int misplaced = 0; misplaced < pack; ++misplaced) {
      for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{pack - 1}, int64_t{pack},
                                  int64_t{3 * pack + 1}, int64_t{1} << 40}) {
        const uintptr_t address = 4096 + static_cast<uintptr_t>(misplaced * bytes);
        const SplitRow split = SplitAt(address, count, bytes);
        EXPECT_EQ(split.head + split.packs * pack + split.tail, count);
        EXPECT_GE(split.head, 0);
        EXPECT_LT(split.head, pack);
        EXPECT_GE(split.tail, 0);
        EXPECT_LT(split.tail, pack);
        if (split.packs > 0) {
          EXPECT_EQ((address + static_cast<uintptr_t>(split.head * bytes)) % 16, 0u);
        }
      }
    }
  }
}

TEST(RowShapes, AreTheSmallestThatHoldARow) {
  enum { kForward, kBackward, kWideBackward };
  for (const int kind : {kForward, kBackward, kWideBackward}) {
    int64_t most = 0, previous = 0;
    for (int64_t columns = 4; columns <= 16384; columns += 4) {
      int64_t holds = 0;
      const auto visit = [&](auto shape) { holds = shape.threads * shape.elements; };
      const bool held = kind == kForward    ? WithForwardShape(columns, visit)
                        : kind == kBackward ? WithBackwardShape<false>(columns, visit)
                                            : WithBackwardShape<true>(columns, visit);
      if (!held) continue;
      most = columns;
      EXPECT_GE(holds, columns);
      EXPECT_GE(holds, previous);
      EXPECT_TRUE(holds < 2 * columns || columns <= 256) << columns;
      previous = holds;
    }
    EXPECT_EQ(most, 8192);
  }
}

TEST(PartialRows, AreSomeButNeverMoreThanRows) {
  EXPECT_EQ(PartialRows(0, 8), 1);
  EXPECT_EQ(PartialRows(3, 8), 3);
  EXPECT_EQ(PartialRows(16384, 2048), 528);
  EXPECT_EQ(PartialRows(16384, 8192), 132);
  EXPECT_EQ(PartialRows(16384, int64_t{1} << 40), 132);
  EXPECT_EQ(PartialRows(int64_t{1} << 40, 1), 132 * 16);
}

TEST(RotaryUnits, OwnEveryElementOnceAndPairsAsTheContractSays) {
  for (const bool interleaved : {false, true}) {
    for (const auto& [head_dim, rotary, pack] : std::vector<std::array<int64_t, 3>>{
             {128, 128, 8}, {128, 64, 8}, {96, 32, 4}, {80, 16, 8}, {6, 4, 1}, {7, 2, 1}}) {
      std::set<int64_t> owned;
      for (int64_t unit = 0; unit < head_dim / (2 * pack); ++unit) {
        const UnitPlace place = PlaceOfUnit(unit, static_cast<int>(pack), rotary, interleaved);
        const bool turned = unit < rotary / (2 * pack);
        for (int64_t k = 0; k < pack; ++k) {
          EXPECT_TRUE(owned.insert(place.first + k).second);
          EXPECT_TRUE(owned.insert(place.second + k).second);
          EXPECT_EQ(place.first + k < rotary && place.second + k < rotary, turned);
          if (turned && !interleaved) {
            EXPECT_EQ(place.first + k, unit * pack + k);  // the pair whose angle the unit loads
            EXPECT_EQ(place.second + k, unit * pack + k + rotary / 2);
          }
        }
        if (interleaved) {
          EXPECT_EQ(place.first, 2 * unit * pack);
          EXPECT_EQ(place.second, place.first + pack);
        }
      }
      EXPECT_EQ(static_cast<int64_t>(owned.size()), head_dim / 2 * 2);
      EXPECT_EQ(*owned.rbegin(), head_dim / 2 * 2 - 1);
    }
  }
}

TEST(SortPlans, CoverTheKeysWithFewPasses) {
  for (const int64_t largest : {0, 1, 2, 511, 512, 32768, 128256, 262144, 0x7fffffff}) {
    const SortPlan plan = PlanSort(16384, largest);
    EXPECT_LE(plan.digit_bits, kSortDigitBits);
    EXPECT_GT(int64_t{1} << (plan.digit_bits * plan.passes), largest);
    EXPECT_LE(plan.digit_bits * (plan.passes - 1), 31) << "a shift of the last pass";
  }
  EXPECT_EQ(PlanSort(16384, 32768).passes, 2);
  EXPECT_EQ(PlanSort(16384, 128256).passes, 2);
}

TEST(Pieces, OfLongRunsHavePartialSumsOfTheirOwn) {
  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::set<int64_t> used;
    int64_t count = 0;
    for (int run = 0; run < 30; ++run) {
      const int64_t length = 1 + static_cast<int64_t>(random() % (round % 2 == 0 ? 40 : 200));
      for (int64_t first = 0; length > kPieceRows && first < length; first += kPieceRows)
        EXPECT_TRUE(used.insert(PartialPiece(count + first, count)).second);
      count += length;
    }
    if (!used.empty()) {
      EXPECT_LT(*used.rbegin(), PartialPieces(count));
    }
  }
}

}  // namespace
}  // namespace mt::cuda
