// Collects the first broken rule of one call's arguments. The checks of an operation are an overload of Check.
#pragma once

#include <cstdint>

#include "kernels/host/host.h"

namespace mt::host {

constexpr int64_t kLargest =
    int64_t{1} << 48;  // of one dimension; products of two sizes below are checked apart

class Checker {
 public:
  Checker(int32_t operation, bool with_pointers)
      : operation_(operation), with_pointers_(with_pointers) {}

  template <typename Args>
  bool Size(const Args& args) {
    if (args.struct_size >= sizeof(Args)) return true;
    Invalid("struct_size", args.struct_size, "smaller than this version's struct");
    return false;
  }
  void Range(const char* field, int64_t value, int64_t least, int64_t most = kLargest) {
    if (code_ == MT_OK && (value < least || value > most)) Invalid(field, value, "out of range");
  }
  void Rule(bool holds, const char* field, int64_t value, const char* why) {
    if (code_ == MT_OK && !holds) Invalid(field, value, why);
  }
  void Real(bool holds, const char* field, double value, const char* why) {
    if (code_ == MT_OK && !holds)
      code_ = Fail(MT_ERROR_INVALID, operation_, "%s = %g %s", field, value, why);
  }
  // Two sizes whose product is a number of elements.
  void Product(const char* field, int64_t a, int64_t b) {
    if (code_ == MT_OK && a > 0 && b > kLargest / a)
      Invalid(field, a, "times the other size is too large");
  }
  void Pointer(const char* field, const void* pointer, int64_t count = 1) {
    if (code_ == MT_OK && with_pointers_ && pointer == nullptr && count > 0) {
      code_ = Fail(MT_ERROR_INVALID, operation_, "%s is null", field);
    }
  }
  int32_t code() const { return code_; }

 private:
  void Invalid(const char* field, int64_t value, const char* why) {
    code_ = Fail(MT_ERROR_INVALID, operation_, "%s = %lld %s", field, static_cast<long long>(value),
                 why);
  }
  int32_t operation_;
  bool with_pointers_;
  int32_t code_ = MT_OK;
};

// moe_arguments.cc
void Check(Checker& c, const mt_moe_route_args& a, bool backward);
void Check(Checker& c, const mt_moe_sort_args& a);
enum class Rows { kGather, kCombine, kCombineBackward };
void Check(Checker& c, const mt_moe_rows_args& a, Rows operation);
void Check(Checker& c, const mt_grouped_matmul_args& a);
void Check(Checker& c, const mt_grouped_column_sum_args& a);
void Check(Checker& c, const mt_balance_update_args& a);

}  // namespace mt::host
