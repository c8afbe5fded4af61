// The emulated matrix instructions against plain loops, with the layouts written down once more as the PTX ISA's formulas state
// them (chapter 9.7.14, "Warp-level matrix instructions"): element i of a lane's fragment -> row and column.
#include "kernels/cuda/vendor/mma.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

namespace mt::cuda::mma {
namespace {

struct Place {
  int row, column;
};
int Group(int lane) { return lane >> 2; }
int ThreadInGroup(int lane) { return lane % 4; }
// 9.7.14.5.8, multiplicand A, .bf16: a0..a7
Place OfA(int lane, int i) {
  return {i < 2 || (4 <= i && i < 6) ? Group(lane) : Group(lane) + 8,
          ThreadInGroup(lane) * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
}
// multiplicand B: b0..b3
Place OfB(int lane, int i) {
  return {ThreadInGroup(lane) * 2 + (i & 1) + (i >= 2 ? 8 : 0), Group(lane)};
}
// accumulators: c0..c3
Place OfC(int lane, int i) {
  return {i < 2 ? Group(lane) : Group(lane) + 8, ThreadInGroup(lane) * 2 + (i & 1)};
}

struct Data {
  uint16_t a[16][16], b[16][8];
  float c[16][8], result[16][8];
};

void MultiplyKernel(Data* data) {
  const int lane = static_cast<int>(threadIdx.x);
  uint32_t a[4], b[2];
  float c[4];
  const auto pair = [](uint16_t low, uint16_t high) {
    return static_cast<uint32_t>(high) << 16 | low;
  };
  for (int r = 0; r < 4; ++r) {
    const Place low = OfA(lane, 2 * r), high = OfA(lane, 2 * r + 1);
    a[r] = pair(data->a[low.row][low.column], data->a[high.row][high.column]);
  }
  for (int r = 0; r < 2; ++r) {
    const Place low = OfB(lane, 2 * r), high = OfB(lane, 2 * r + 1);
    b[r] = pair(data->b[low.row][low.column], data->b[high.row][high.column]);
  }
  for (int i = 0; i < 4; ++i) c[i] = data->c[OfC(lane, i).row][OfC(lane, i).column];
  MultiplyAdd(c, a, b[0], b[1]);
  for (int i = 0; i < 4; ++i) data->result[OfC(lane, i).row][OfC(lane, i).column] = c[i];
}

TEST(MmaTest, MultipliesSixteenByEightBySixteen) {
  std::mt19937 random(1);
  Data data;
  // Small integers: every order of additions gives the same number.
  const auto fill = [&](uint16_t* values, int count) {
    for (int i = 0; i < count; ++i)
      values[i] = mt_bf16_from_float(static_cast<float>(static_cast<int>(random() % 31) - 15));
  };
  fill(&data.a[0][0], 16 * 16);
  fill(&data.b[0][0], 16 * 8);
  for (auto& row : data.c) {
    for (float& value : row) value = static_cast<float>(random() % 100);
  }
  ASSERT_EQ(MT_LAUNCH(MultiplyKernel, dim3(1), dim3(32), 0, nullptr, &data), cudaSuccess);
  for (int m = 0; m < 16; ++m) {
    for (int n = 0; n < 8; ++n) {
      float expected = data.c[m][n];
      for (int k = 0; k < 16; ++k)
        expected += mt_float_from_bf16(data.a[m][k]) * mt_float_from_bf16(data.b[k][n]);
      EXPECT_EQ(data.result[m][n], expected) << m << ", " << n;
    }
  }
}

struct Matrices {
  alignas(16) uint16_t rows[32][8];  // four matrices of 8 x 8, one below the other
  uint32_t plain[32][4], transposed[32][4];
};

void LoadKernel(Matrices* data) {
  const int lane = static_cast<int>(threadIdx.x);
  // Lanes 0..7 bring the rows of the first matrix, 8..15 those of the second, and so on.
  LoadMatrices(data->plain[lane], AddressOf(data->rows[lane]));
  LoadMatricesTransposed(data->transposed[lane], AddressOf(data->rows[lane]));
}

// ldmatrix: "each thread receives ... row lane / 4, elements 2 (lane % 4) and the next"; with .trans the matrix is loaded in
// column-major order.
TEST(MmaTest, LoadsFourMatrices) {
  Matrices data;
  for (uint16_t i = 0; i < 256; ++i) data.rows[i / 8][i % 8] = i;
  ASSERT_EQ(MT_LAUNCH(LoadKernel, dim3(1), dim3(32), 0, nullptr, &data), cudaSuccess);
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t matrix = 0; matrix < 4; ++matrix) {
      const auto element = [&](uint32_t row, uint32_t column) {
        return 64 * matrix + 8 * row + column;
      };
      const uint32_t i = lane / 4, j = lane % 4 * 2;
      EXPECT_EQ(data.plain[lane][matrix], element(i, j) | element(i, j + 1) << 16);
      EXPECT_EQ(data.transposed[lane][matrix], element(j, i) | element(j + 1, i) << 16);
    }
  }
}

// The registers of two products beside each other are the A of the next one.
TEST(MmaTest, ProductsAreTheNextMultiplicand) {
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 8; ++i) {
      const Place c = OfC(lane, i % 4), a = OfA(lane, i);
      EXPECT_EQ(a.row, c.row);
      EXPECT_EQ(a.column, c.column + i / 4 * 8);
    }
  }
}

struct Copied {
  alignas(16) char from[40], to[40];
  char before[40], after_first[40];
};

void CopyKernel(Copied* data) {
  CopyAsync(AddressOf(data->to), data->from, true);
  CopyWordAsync(AddressOf(data->to + 36), data->from + 36, true);
  CommitCopies();
  CopyAsync(AddressOf(data->to + 16), data->from + 16, false);
  CopyWordAsync(AddressOf(data->to + 32), nullptr, false);
  CommitCopies();
  std::memcpy(data->before, data->to, 40);
  WaitForCopies<1>();
  std::memcpy(data->after_first, data->to, 40);
  WaitForCopies<0>();
}

TEST(MmaTest, CopiesArriveWhenTheirGroupIsWaitedFor) {
  ASSERT_EQ(setenv("MT_EMULATOR_SEED", "0", 1), 0);
  Copied data;
  std::memset(data.from, 'f', 40);
  std::memset(data.to, '.', 40);
  ASSERT_EQ(MT_LAUNCH(CopyKernel, dim3(1), dim3(1), 0, nullptr, &data), cudaSuccess);
  const std::string f16(16, 'f'), f4(4, 'f');
  EXPECT_EQ(std::string(data.before, 40), std::string(40, '.'));
  EXPECT_EQ(std::string(data.after_first, 40), f16 + std::string(20, '.') + f4);
  EXPECT_EQ(std::string(data.to, 40), f16 + std::string(20, '\0') + f4);
}

}  // namespace
}  // namespace mt::cuda::mma
