// The vector exponential keeps its promise: 2 ulp, zero below, NaN stays.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/exp_test.cc"
#include "hwy/foreach_target.h"
// After foreach_target:
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace mt::cpu::HWY_NAMESPACE {

// count is a multiple of 16.
void ExpAll(const float* x, float* y, int64_t count) {
  const Full d;
  for (int64_t i = 0; i < count; i += static_cast<int64_t>(hn::Lanes(d))) {
    hn::StoreU(Exp(d, hn::LoadU(d, x + i)), d, y + i);
  }
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace mt::cpu {
HWY_EXPORT(ExpAll);

namespace {

std::vector<float> ExpOf(std::vector<float> x) {
  const size_t count = x.size();
  x.resize((count + 15) / 16 * 16);
  std::vector<float> y(x.size());
  HWY_DYNAMIC_DISPATCH(ExpAll)(x.data(), y.data(), static_cast<int64_t>(x.size()));
  y.resize(count);
  return y;
}

TEST(ExpTest, IsWithinTwoUnitsInTheLastPlace) {
  std::vector<float> x;
  for (float v = 1e-30f; v < 88.3f; v *= 1.0002f) {
    x.push_back(v);
    if (v <= 87.3f) x.push_back(-v);
  }
  const std::vector<float> y = ExpOf(x);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    const double ulp =
        std::nextafter(static_cast<float>(exact), std::numeric_limits<float>::infinity()) -
        static_cast<double>(static_cast<float>(exact));
    worst = std::max(worst, std::fabs(y[i] - exact) / ulp);
  }
  EXPECT_LE(worst, 2.0) << "over " << x.size() << " values";
  RecordProperty("worst_ulp", std::to_string(worst));
}

TEST(ExpTest, EndsAndNaN) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> y =
      ExpOf({0.0f, -0.0f, -87.4f, -1e30f, -infinity, 200.0f, infinity, NAN});
  EXPECT_EQ(y[0], 1.0f);
  EXPECT_EQ(y[1], 1.0f);
  EXPECT_EQ(y[2], 0.0f);
  EXPECT_EQ(y[3], 0.0f);
  EXPECT_EQ(y[4], 0.0f);
  EXPECT_GT(y[5], 1e38f);
  EXPECT_EQ(y[6], infinity);
  EXPECT_TRUE(std::isnan(y[7]));
}

}  // namespace
}  // namespace mt::cpu
#endif  // HWY_ONCE
