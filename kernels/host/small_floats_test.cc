// kernels/abi/small_floats.h against another definition: the values of all codes by the formula of each format, and rounding as a
// search for the nearest of them.
#include "kernels/abi/small_floats.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

namespace mt {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// An FP8 format by its paper: Micikevicius et al. 2022, table 1.
struct Format {
  const char* name;
  int exponent_bits, mantissa_bits, bias;
  bool has_infinity;  // E4M3 spends all but one of those codes on numbers
  uint8_t (*encode)(float);
  float (*decode)(uint8_t);

  double Value(int code) const {
    const int exponent = (code & 0x7f) >> mantissa_bits,
              fraction = code & ((1 << mantissa_bits) - 1);
    const double sign = (code & 0x80) != 0 ? -1 : 1;
    const int top = (1 << exponent_bits) - 1;
    if (exponent == top && has_infinity)
      return fraction == 0 ? sign * HUGE_VAL : std::numeric_limits<double>::quiet_NaN();
    if ((code & 0x7f) == 0x7f) return std::numeric_limits<double>::quiet_NaN();
    if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - mantissa_bits);
    return sign * std::ldexp(1 + std::ldexp(fraction, -mantissa_bits), exponent - bias);
  }
};

class Fp8Test : public ::testing::TestWithParam<Format> {
 protected:
  // Codes of the finite non-negative numbers, in increasing order: a property of the format, too.
  std::vector<int> Codes() const {
    std::vector<int> codes;
    for (int code = 0; code < 0x80; ++code) {
      if (std::isfinite(GetParam().Value(code))) codes.push_back(code);
    }
    return codes;
  }
  // Nearest code of a finite value, ties to the one whose last bit is zero, beyond the largest the largest.
  int Nearest(double value) const {
    const std::vector<int> codes = Codes();
    int best = codes[0];
    for (const int code : codes) {
      const double distance = std::fabs(GetParam().Value(code) - std::fabs(value));
      const double least = std::fabs(GetParam().Value(best) - std::fabs(value));
      if (distance < least || (distance == least && code % 2 == 0)) best = code;
    }
    return std::signbit(value) ? best | 0x80 : best;
  }
  void ExpectNearest(float value) const {
    ASSERT_EQ(GetParam().encode(value), Nearest(value)) << value;
    ASSERT_EQ(GetParam().encode(-value), Nearest(-static_cast<double>(value))) << -value;
  }
};

TEST_P(Fp8Test, EveryCodeHasItsValueAndComesBack) {
  for (int code = 0; code < 256; ++code) {
    const double value = GetParam().Value(code);
    const float decoded = GetParam().decode(static_cast<uint8_t>(code));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(decoded)) << code;
      EXPECT_EQ(GetParam().encode(decoded) & 0x7f, 0x7f) << code;
    } else {
      EXPECT_EQ(decoded, value) << code;
      EXPECT_EQ(std::signbit(decoded), code >= 0x80) << code;
      if (std::isfinite(value)) {
        EXPECT_EQ(GetParam().encode(decoded), code);
      }
    }
  }
}

TEST_P(Fp8Test, TiesGoToEvenAndNeighboursToTheirSide) {
  const std::vector<int> codes = Codes();
  for (size_t i = 0; i + 1 < codes.size(); ++i) {
    const auto low = static_cast<float>(GetParam().Value(codes[i]));
    const auto high = static_cast<float>(GetParam().Value(codes[i + 1]));
    const float middle = (low + high) / 2;  // exact: both have few bits
    ExpectNearest(middle);
    ExpectNearest(std::nextafter(middle, 0.0f));
    ExpectNearest(std::nextafter(middle, kInfinity));
    ASSERT_EQ(GetParam().encode(std::nextafter(middle, 0.0f)), codes[i]);
    ASSERT_EQ(GetParam().encode(std::nextafter(middle, kInfinity)), codes[i + 1]);
  }
}

TEST_P(Fp8Test, AnyFloatGoesToTheNearest) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(-30, 20), fraction(1, 2);
  for (int i = 0; i < 20000; ++i)
    ExpectNearest(std::ldexp(fraction(random), static_cast<int>(exponent(random))));
}

TEST_P(Fp8Test, SaturatesAndKeepsNaN) {
  const int largest = Codes().back();
  for (const float value : {static_cast<float>(GetParam().Value(largest)) * 1.5f, 1e30f,
                            std::numeric_limits<float>::max(), kInfinity}) {
    EXPECT_EQ(GetParam().encode(value), largest);
    EXPECT_EQ(GetParam().encode(-value), largest | 0x80);
  }
  EXPECT_TRUE(std::isnan(GetParam().decode(GetParam().encode(NAN))));
  EXPECT_EQ(GetParam().encode(0.0f), 0);
  EXPECT_EQ(GetParam().encode(-0.0f), 0x80);
  EXPECT_EQ(GetParam().encode(std::numeric_limits<float>::denorm_min()), 0);
}

INSTANTIATE_TEST_SUITE_P(
    Formats, Fp8Test,
    ::testing::Values(Format{"E4M3", 4, 3, 7, false, mt_e4m3_from_float, mt_float_from_e4m3},
                      Format{"E5M2", 5, 2, 15, true, mt_e5m2_from_float, mt_float_from_e5m2}),
    [](const auto& info) { return info.param.name; });

TEST(Fp8LimitsTest, LargestValuesAreThePapers) {
  EXPECT_EQ(mt_float_from_e4m3(0x7e), MT_E4M3_LARGEST);
  EXPECT_EQ(MT_E4M3_LARGEST, 448);
  EXPECT_EQ(mt_float_from_e5m2(0x7b), MT_E5M2_LARGEST);
  EXPECT_EQ(MT_E5M2_LARGEST, 57344);
}

// The two bfloat16 around a finite value, as distances in float64; rounding by definition.
uint16_t NearestBf16(double value) {
  const double size = std::fabs(value);
  // The largest bfloat16 not above, by bisection over the codes 0 .. 0x7f80 (infinity), which are in order.
  int low = 0, high = 0x7f80;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (static_cast<double>(mt_float_from_bf16(static_cast<uint16_t>(middle))) <= size ? low : high) =
        middle;
  }
  // Infinity stands for 2^128 when distances are compared (IEEE 754, 4.3.1).
  const double below = static_cast<double>(mt_float_from_bf16(static_cast<uint16_t>(low)));
  const double above = high == 0x7f80
                           ? std::ldexp(1, 128)
                           : static_cast<double>(mt_float_from_bf16(static_cast<uint16_t>(high)));
  int nearest = size - below < above - size ? low : high;
  if (size - below == above - size) nearest = low % 2 == 0 ? low : high;
  return static_cast<uint16_t>(nearest | (std::signbit(value) ? 0x8000 : 0));
}

TEST(Bf16Test, EveryCodeComesBack) {
  for (int code = 0; code < 0x10000; ++code) {
    const float value = mt_float_from_bf16(static_cast<uint16_t>(code));
    const uint16_t back = mt_bf16_from_float(value);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(mt_float_from_bf16(back)));
    } else {
      ASSERT_EQ(back, code);
      ASSERT_EQ(mt_bf16_from_double(value), code);
      // The formula: 1 + 7 mantissa bits, bias 127.
      const int exponent = (code >> 7) & 0xff, fraction = code & 0x7f;
      if (exponent == 0xff) continue;
      const double size =
          exponent == 0 ? std::ldexp(fraction, -133) : std::ldexp(128 + fraction, exponent - 134);
      ASSERT_EQ(std::fabs(value), size) << code;
    }
  }
}

TEST(Bf16Test, TiesGoToEvenAndNeighboursToTheirSide) {
  for (int code = 0; code < 0x7f80; ++code) {
    const uint32_t tie = (static_cast<uint32_t>(code) << 16) | 0x8000;
    const int even = code % 2 == 0 ? code : code + 1;
    ASSERT_EQ(mt_bf16_from_float(mt_bits_float(tie)), even);
    ASSERT_EQ(mt_bf16_from_float(mt_bits_float(tie - 1)), code);
    ASSERT_EQ(mt_bf16_from_float(mt_bits_float(tie + 1)), code + 1);
    ASSERT_EQ(mt_bf16_from_float(-mt_bits_float(tie)), even | 0x8000);
    const double exact = mt_bits_float(tie);
    ASSERT_EQ(mt_bf16_from_double(exact), even);
    // Float64 next to the tie, which float32 cannot tell from it: rounding twice would be wrong.
    ASSERT_EQ(mt_bf16_from_double(std::nextafter(exact, 0.0)), code);
    ASSERT_EQ(mt_bf16_from_double(std::nextafter(exact, HUGE_VAL)), code + 1);
  }
}

TEST(Bf16Test, AnyNumberGoesToTheNearest) {
  std::mt19937_64 random(2);
  std::uniform_real_distribution<double> exponent(-140, 129), fraction(1, 2);
  for (int i = 0; i < 200000; ++i) {
    const double value =
        std::ldexp(fraction(random), static_cast<int>(exponent(random))) * (i % 2 ? 1 : -1);
    ASSERT_EQ(mt_bf16_from_double(value), NearestBf16(value)) << value;
    const auto single = static_cast<float>(value);
    if (std::isfinite(single)) {
      ASSERT_EQ(mt_bf16_from_float(single), NearestBf16(single)) << single;
    }
  }
}

TEST(Bf16Test, EndsAndNaN) {
  EXPECT_EQ(mt_bf16_from_float(kInfinity), 0x7f80);
  EXPECT_EQ(mt_bf16_from_float(-kInfinity), 0xff80);
  EXPECT_EQ(mt_bf16_from_float(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_EQ(mt_bf16_from_double(1e300), 0x7f80);
  EXPECT_EQ(mt_bf16_from_double(1e-300), 0);
  EXPECT_EQ(mt_bf16_from_double(-1e-300), 0x8000);
  EXPECT_TRUE(std::isnan(mt_float_from_bf16(mt_bf16_from_float(NAN))));
  EXPECT_TRUE(std::isnan(mt_float_from_bf16(mt_bf16_from_double(NAN))));
  EXPECT_TRUE(std::isnan(mt_float_from_bf16(mt_bf16_from_float(mt_bits_float(0x7f800001)))));
}

}  // namespace
}  // namespace mt
