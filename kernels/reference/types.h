// The element types of the reference backend. Each converts to float exactly and from any number with one rounding to nearest
// even, so that the loops read the same for all of them.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "kernels/abi/mt_backend.h"
#include "kernels/abi/small_floats.h"

namespace mt::reference {

struct Bf16 {
  uint16_t bits = 0;
  Bf16() = default;
  template <typename Number>
  requires std::is_arithmetic_v<Number>
  explicit Bf16(Number value) : bits(mt_bf16_from_double(static_cast<double>(value))) {}
  operator float() const { return mt_float_from_bf16(bits); }
};

// FP8 data are only read; QUANTIZE writes their codes.
struct E4M3 {
  uint8_t code;
  operator float() const { return mt_float_from_e4m3(code); }
};
struct E5M2 {
  uint8_t code;
  operator float() const { return mt_float_from_e5m2(code); }
};

// Of sums, exponentials and rotation tables (kernels/abi/mt_backend.h).
template <typename T>
using Statistic = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls `function` with an element of the given type; the caller has refused other types.
template <typename Function>
void WithType(int32_t dtype, Function&& function) {
  switch (dtype) {
    case MT_F64:
      return function(double{});
    case MT_BF16:
      return function(Bf16{});
    default:
      return function(float{});
  }
}
template <typename Function>
void WithFp8(int32_t dtype, Function&& function) {
  if (dtype == MT_F8_E4M3) {
    function(E4M3{});
  } else {
    function(E5M2{});
  }
}
inline bool IsFp8(int32_t dtype) { return dtype == MT_F8_E4M3 || dtype == MT_F8_E5M2; }

// max |x| of what an operation stores, NaN once any was; null = nobody asks.
class LargestMagnitude {
 public:
  explicit LargestMagnitude(float* amax) : amax_(amax) {}
  ~LargestMagnitude() {
    if (amax_ == nullptr) return;
    See(*amax_);
    *amax_ = static_cast<float>(largest_);
  }
  LargestMagnitude(const LargestMagnitude&) = delete;
  LargestMagnitude& operator=(const LargestMagnitude&) = delete;
  void See(double value) {
    const double size = std::fabs(value);
    if (size > largest_ || std::isnan(size)) largest_ = size;
  }

 private:
  float* amax_;
  double largest_ = 0;
};

}  // namespace mt::reference
