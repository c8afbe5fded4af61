#include "worker/comm/reduce.h"

#include "common/check.h"

namespace mt {
namespace {

template <typename T>
void AccumulateTyped(T* __restrict accumulator, const T* __restrict value, int64_t count,
                     ReduceOp op) {
  if (op == ReduceOp::kSum) {
    for (int64_t i = 0; i < count; ++i) accumulator[i] += value[i];
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const T x = value[i];
      const T a = accumulator[i];
      accumulator[i] = (x > a || x != x) ? x : a;
    }
  }
}

}  // namespace

size_t ReducibleSize(mt_dtype dtype) {
  switch (dtype) {
    case MT_F32:
    case MT_I32:
      return 4;
    case MT_F64:
    case MT_I64:
      return 8;
    default:
      return 0;
  }
}

const char* DtypeName(mt_dtype dtype) {
  switch (dtype) {
    case MT_F32:
      return "F32";
    case MT_F64:
      return "F64";
    case MT_BF16:
      return "BF16";
    case MT_F8_E4M3:
      return "F8_E4M3";
    case MT_F8_E5M2:
      return "F8_E5M2";
    case MT_I32:
      return "I32";
    case MT_I64:
      return "I64";
    case MT_U8:
      return "U8";
  }
  return "an unknown type";
}

void Accumulate(void* accumulator, const void* value, int64_t count, mt_dtype dtype, ReduceOp op) {
  switch (dtype) {
    case MT_F32:
      return AccumulateTyped(static_cast<float*>(accumulator), static_cast<const float*>(value),
                             count, op);
    case MT_F64:
      return AccumulateTyped(static_cast<double*>(accumulator), static_cast<const double*>(value),
                             count, op);
    // Unsigned arithmetic wraps where signed would be undefined.
    case MT_I32:
      if (op == ReduceOp::kMax) {
        return AccumulateTyped(static_cast<int32_t*>(accumulator),
                               static_cast<const int32_t*>(value), count, op);
      }
      return AccumulateTyped(static_cast<uint32_t*>(accumulator),
                             static_cast<const uint32_t*>(value), count, op);
    case MT_I64:
      if (op == ReduceOp::kMax) {
        return AccumulateTyped(static_cast<int64_t*>(accumulator),
                               static_cast<const int64_t*>(value), count, op);
      }
      return AccumulateTyped(static_cast<uint64_t*>(accumulator),
                             static_cast<const uint64_t*>(value), count, op);
    default:
      MT_CHECK(false) << "reduction of " << DtypeName(dtype);
  }
}

}  // namespace mt
