#include "kernels/abi/philox.h"

#include <gtest/gtest.h>

namespace mt {
namespace {

// Numbers of the paper's own test vectors (Random123 kat_vectors, philox4x32 10 rounds).
TEST(PhiloxTest, KnownAnswers) {
  const mt_philox_block zeros = mt_philox(0, 0, 0);
  EXPECT_EQ(zeros.word[0], 0x6627e8d5u);
  EXPECT_EQ(zeros.word[1], 0xe169c58du);
  EXPECT_EQ(zeros.word[2], 0xbc57ac4cu);
  EXPECT_EQ(zeros.word[3], 0x9b00dbd8u);
  const mt_philox_block ones = mt_philox(~uint64_t{0}, ~uint64_t{0}, ~uint64_t{0});
  EXPECT_EQ(ones.word[0], 0x408f276du);
  EXPECT_EQ(ones.word[1], 0x41c83b0eu);
  EXPECT_EQ(ones.word[2], 0xa20bc7c6u);
  EXPECT_EQ(ones.word[3], 0x6d5451fdu);
}

TEST(PhiloxTest, NormalsHaveTheRightMoments) {
  const int64_t n = 200000;
  double sum = 0, square = 0, fourth = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double x = mt_normal(42, 3, static_cast<uint64_t>(i));
    sum += x;
    square += x * x;
    fourth += x * x * x * x;
  }
  EXPECT_NEAR(sum / n, 0, 0.01);
  EXPECT_NEAR(square / n, 1, 0.015);
  EXPECT_NEAR(fourth / n, 3, 0.1);
}

}  // namespace
}  // namespace mt
