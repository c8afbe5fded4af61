#include "worker/comm/reduce.h"

#include <algorithm>
#include <type_traits>

#include "common/check.h"
#include "kernels/abi/small_floats.h"

namespace mt {
namespace {

constexpr int64_t kPiece = 1024;  // elements: the running sums stay in the first-level cache

// How a stored element becomes the number that is added, and back.
template <typename T>
struct Plain {
  using Stored = T;
  using Sum = T;
  static T Load(T value) { return value; }
  static T Store(T value) { return value; }
};
struct Bf16 {
  using Stored = uint16_t;
  using Sum = float;
  static float Load(uint16_t bits) { return mt_float_from_bf16(bits); }
  static uint16_t Store(float value) { return mt_bf16_from_float(value); }
};

template <typename Type>
void ReduceTyped(const std::vector<const void*>& inputs, void* destination, int64_t count,
                 ReduceOp op) {
  using Stored = typename Type::Stored;
  using Sum = typename Type::Sum;
  Sum sums[kPiece];
  for (int64_t first = 0; first < count; first += kPiece) {
    const int64_t length = std::min(kPiece, count - first);
    const auto* from = static_cast<const Stored*>(inputs[0]) + first;
    for (int64_t i = 0; i < length; ++i) sums[i] = Type::Load(from[i]);
    for (size_t input = 1; input < inputs.size(); ++input) {
      from = static_cast<const Stored*>(inputs[input]) + first;
      if (op == ReduceOp::kSum) {
        for (int64_t i = 0; i < length; ++i)
          sums[i] = static_cast<Sum>(sums[i] + Type::Load(from[i]));
      } else {
        for (int64_t i = 0; i < length; ++i) {
          const Sum x = Type::Load(from[i]), sum = sums[i];
          sums[i] = (x > sum || x != x) ? x : sum;
        }
      }
    }
    auto* to = static_cast<Stored*>(destination) + first;
    for (int64_t i = 0; i < length; ++i) to[i] = Type::Store(sums[i]);
  }
}

}  // namespace

size_t ElementSize(mt_dtype dtype) {
  switch (dtype) {
    case MT_F8_E4M3:
    case MT_F8_E5M2:
    case MT_U8:
      return 1;
    case MT_BF16:
      return 2;
    case MT_F32:
    case MT_I32:
      return 4;
    case MT_F64:
    case MT_I64:
      return 8;
  }
  return 0;
}

bool Reducible(mt_dtype dtype) {
  return ElementSize(dtype) > 0 && dtype != MT_F8_E4M3 && dtype != MT_F8_E5M2;
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

void Reduce(const std::vector<const void*>& inputs, void* destination, int64_t count,
            mt_dtype dtype, ReduceOp op) {
  // Sums of integers are taken unsigned: they wrap where signed ones would be undefined, and the bits are the same.
  const bool sum = op == ReduceOp::kSum;
  switch (dtype) {
    case MT_F32:
      return ReduceTyped<Plain<float>>(inputs, destination, count, op);
    case MT_F64:
      return ReduceTyped<Plain<double>>(inputs, destination, count, op);
    case MT_BF16:
      return ReduceTyped<Bf16>(inputs, destination, count, op);
    case MT_U8:
      return ReduceTyped<Plain<uint8_t>>(inputs, destination, count, op);
    case MT_I32:
      return sum ? ReduceTyped<Plain<uint32_t>>(inputs, destination, count, op)
                 : ReduceTyped<Plain<int32_t>>(inputs, destination, count, op);
    case MT_I64:
      return sum ? ReduceTyped<Plain<uint64_t>>(inputs, destination, count, op)
                 : ReduceTyped<Plain<int64_t>>(inputs, destination, count, op);
    default:
      MT_CHECK(false) << "reduction of " << DtypeName(dtype);
  }
}

}  // namespace mt
