// Sums and maxima: partial results of fixed blocks, put together in block order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/reductions.cc"
#include "hwy/foreach_target.h"
// After foreach_target:
#include <cmath>

#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace mt::cpu::HWY_NAMESPACE {

// Sums of 1024 elements in float32 lanes (64 terms each at most 16 wide), those in float64.
template <typename T>
double SquaresOf(const T* data, int64_t first, int64_t last) {
  const Full d;
  const One one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  double total = 0;
  while (first < last) {
    const int64_t end = std::min(last, first + 1024);
    Vector sum0 = hn::Zero(d), sum1 = hn::Zero(d);
    int64_t i = first;
    for (; i + 2 * lanes <= end; i += 2 * lanes) {
      const Vector x0 = Read(d, data + i), x1 = Read(d, data + i + lanes);
      sum0 = hn::MulAdd(x0, x0, sum0);
      sum1 = hn::MulAdd(x1, x1, sum1);
    }
    total += Sum(hn::Add(sum0, sum1));
    for (; i < end; ++i) {
      const double x = hn::GetLane(Read(one, data + i));
      total += x * x;
    }
    first = end;
  }
  return total;
}

// Terms of either sign may cancel: float64 lanes.
template <typename T>
double SumOf(const T* data, int64_t first, int64_t last) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> half;
  const One one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  int64_t i = first;
  for (; i + 2 * lanes <= last; i += 2 * lanes) {
    sum0 = hn::Add(sum0, hn::PromoteTo(d, Read(half, data + i)));
    sum1 = hn::Add(sum1, hn::PromoteTo(d, Read(half, data + i + lanes)));
  }
  double total = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
  for (; i < last; ++i) total += static_cast<double>(hn::GetLane(Read(one, data + i)));
  return total;
}

double SquaredSumRange(const mt_squared_sum_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return SquaresOf(static_cast<const Bf16*>(args.data), first, last);
  return SquaresOf(static_cast<const float*>(args.data), first, last);
}

double SumRange(const mt_squared_sum_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return SumOf(static_cast<const Bf16*>(args.data), first, last);
  return SumOf(static_cast<const float*>(args.data), first, last);
}

// Bits of max |x|: as integers they are ordered like the magnitudes, NaN above infinity.
template <typename T>
uint32_t LargestOf(const T* data, int64_t first, int64_t last) {
  const Full d;
  const One one;
  const hn::Rebind<uint32_t, Full> du;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  auto largest = hn::Zero(du);
  int64_t i = first;
  for (; i + lanes <= last; i += lanes)
    largest = hn::Max(largest, hn::BitCast(du, hn::Abs(Read(d, data + i))));
  uint32_t bits = hn::GetLane(hn::MaxOfLanes(du, largest));
  for (; i < last; ++i) {
    const hn::Rebind<uint32_t, One> du1;
    bits = std::max(bits, hn::GetLane(hn::BitCast(du1, hn::Abs(Read(one, data + i)))));
  }
  return bits;
}

uint32_t LargestRange(const mt_amax_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return LargestOf(static_cast<const Bf16*>(args.data), first, last);
  return LargestOf(static_cast<const float*>(args.data), first, last);
}

// Rows [first, last) added into sum (C), overwritten.
template <typename T>
void ColumnsOf(const mt_column_sum_args& args, int64_t first, int64_t last, float* sum) {
  const Full d;
  const One one;
  const int64_t C = args.columns, lanes = static_cast<int64_t>(hn::Lanes(d));
  std::fill(sum, sum + C, 0.0f);
  for (int64_t r = first; r < last; ++r) {
    const T* row = static_cast<const T*>(args.data) + r * args.row_stride;
    int64_t c = 0;
    for (; c + lanes <= C; c += lanes)
      hn::StoreU(hn::Add(hn::LoadU(d, sum + c), Read(d, row + c)), d, sum + c);
    for (; c < C; ++c) sum[c] += hn::GetLane(Read(one, row + c));
  }
}

void ColumnSumRows(const mt_column_sum_args& args, int64_t first, int64_t last, float* sum) {
  if (args.dtype == MT_BF16) return ColumnsOf<Bf16>(args, first, last, sum);
  ColumnsOf<float>(args, first, last, sum);
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <atomic>
#include <limits>

#include "kernels/abi/small_floats.h"

namespace mt::cpu {
HWY_EXPORT(SquaredSumRange);
HWY_EXPORT(SumRange);
HWY_EXPORT(LargestRange);
HWY_EXPORT(ColumnSumRows);

namespace {

constexpr int64_t kSumBlock = 1 << 16;  // elements per partial sum

template <typename Range>
void AddBlocks(const mt_squared_sum_args& args, const Range& range) {
  double* partial = static_cast<double*>(args.workspace);
  const int64_t blocks = CeilDivide(args.count, kSumBlock);
  ParallelBlocks(blocks, [&](int64_t block) {
    const int64_t first = block * kSumBlock;
    partial[block] = range(first, std::min(args.count, first + kSumBlock));
  });
  double sum = args.accumulate ? *args.result : 0;
  for (int64_t block = 0; block < blocks; ++block) sum += partial[block];
  *args.result = sum;
}

// At most 64 blocks of at least 16 rows.
int64_t ColumnSumBlockRows(int64_t rows) { return std::max<int64_t>(16, CeilDivide(rows, 64)); }

}  // namespace

int64_t SumWorkspace(const mt_squared_sum_args& args) {
  return 8 * CeilDivide(args.count, kSumBlock);
}

void SquaredSum(const mt_squared_sum_args& args) {
  AddBlocks(args, [&](int64_t first, int64_t last) {
    return HWY_DYNAMIC_DISPATCH(SquaredSumRange)(args, first, last);
  });
}

void Sum(const mt_squared_sum_args& args) {
  AddBlocks(args, [&](int64_t first, int64_t last) {
    return HWY_DYNAMIC_DISPATCH(SumRange)(args, first, last);
  });
}

void ClipFactor(const mt_clip_factor_args& args) {
  const bool finite =
      std::isfinite(*args.squared_norm) && (args.loss == nullptr || std::isfinite(*args.loss));
  if (!finite) {
    *args.factor = std::numeric_limits<double>::quiet_NaN();
  } else if (args.limit > 0) {
    *args.factor = std::min(1.0, args.limit / (std::sqrt(*args.squared_norm) + 1e-6));
  } else {
    *args.factor = 1;
  }
}

// The order in which blocks bring their maxima does not matter to the maximum.
void Amax(const mt_amax_args& args) {
  std::atomic<uint32_t> bits{mt_float_bits(std::fabs(*args.amax))};
  ParallelRanges(args.count, args.dtype == MT_BF16 ? 2 : 4, [&](int64_t first, int64_t last) {
    const uint32_t found = HWY_DYNAMIC_DISPATCH(LargestRange)(args, first, last);
    uint32_t seen = bits.load(std::memory_order_relaxed);
    while (seen < found && !bits.compare_exchange_weak(seen, found, std::memory_order_relaxed)) {
    }
  });
  *args.amax = mt_bits_float(bits);
}

void TakeAmax(int32_t dtype, const void* data, int64_t count, float* amax) {
  if (amax == nullptr) return;
  Amax({.struct_size = sizeof(mt_amax_args),
        .dtype = dtype,
        .data = data,
        .count = count,
        .amax = amax});
}

int64_t ColumnSumWorkspace(const mt_column_sum_args& args) {
  return 4 * args.columns * CeilDivide(args.rows, ColumnSumBlockRows(args.rows));
}

void ColumnSum(const mt_column_sum_args& args) {
  float* partial = static_cast<float*>(args.workspace);  // (blocks, C)
  const int64_t C = args.columns, block_rows = ColumnSumBlockRows(args.rows);
  const int64_t blocks = CeilDivide(args.rows, block_rows);
  ParallelBlocks(blocks, [&](int64_t block) {
    const int64_t first = block * block_rows;
    HWY_DYNAMIC_DISPATCH(ColumnSumRows)
    (args, first, std::min(args.rows, first + block_rows), partial + block * C);
  });
  float* result = static_cast<float*>(args.result);
  for (int64_t c = 0; c < C; ++c) {
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += partial[block * C + c];
    result[c] += static_cast<float>(sum);
  }
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
