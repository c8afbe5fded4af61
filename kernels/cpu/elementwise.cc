// Fill, copy, add, scale, squared sum and AdamW: bound by memory, one pass each.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cc"
#include "hwy/foreach_target.h"
// After foreach_target:
#include <cmath>
#include <cstring>

#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace mt::cpu::HWY_NAMESPACE {

// Body: a functor called with (tag, index) for whole vectors, then for single elements.
template <class Body>
HWY_INLINE void ForEach(int64_t first, int64_t last, const Body& body) {
  const Full full;
  const One one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(full));
  int64_t i = first;
  for (; i + lanes <= last; i += lanes) body(full, i);
  for (; i < last; ++i) body(one, i);
}

struct AddBody {
  const float* a;
  const float* b;
  float* destination;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t i) const {
    hn::StoreU(hn::Add(hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, destination + i);
  }
};

void AddRange(const mt_add_args& args, int64_t first, int64_t last) {
  ForEach(first, last,
          AddBody{static_cast<const float*>(args.a), static_cast<const float*>(args.b),
                  static_cast<float*>(args.destination)});
}

struct ScaleBody {
  float* data;
  float factor;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t i) const {
    hn::StoreU(hn::Mul(hn::LoadU(d, data + i), hn::Set(d, factor)), d, data + i);
  }
};

void ScaleRange(float* data, float factor, int64_t first, int64_t last) {
  ForEach(first, last, ScaleBody{data, factor});
}

// Sums of 1024 elements in float32 lanes (64 terms each at most 16 wide), those in float64.
double SquaredSumRange(const float* data, int64_t first, int64_t last) {
  const Full d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  double total = 0;
  while (first < last) {
    const int64_t end = std::min(last, first + 1024);
    Vector sum0 = hn::Zero(d), sum1 = hn::Zero(d);
    int64_t i = first;
    for (; i + 2 * lanes <= end; i += 2 * lanes) {
      const Vector x0 = hn::LoadU(d, data + i), x1 = hn::LoadU(d, data + i + lanes);
      sum0 = hn::MulAdd(x0, x0, sum0);
      sum1 = hn::MulAdd(x1, x1, sum1);
    }
    total += Sum(hn::Add(sum0, sum1));
    for (; i < end; ++i) total += static_cast<double>(data[i]) * data[i];
    first = end;
  }
  return total;
}

struct AdamWBody {
  float *parameter, *master, *exp_avg, *exp_avg_sq;
  const float* gradient;
  float scale, beta1, beta2, keep, step_size, inverse_root, eps;
  // p = keep p - step_size m / (sqrt(v) inverse_root + eps), keep = 1 - lr decay, step_size = lr /
  // (1 - beta1^t), inverse_root = 1 / sqrt(1 - beta2^t).
  template <class D>
  HWY_INLINE void operator()(D d, int64_t i) const {
    const auto g = hn::Mul(hn::LoadU(d, gradient + i), hn::Set(d, scale));
    auto m = hn::LoadU(d, exp_avg + i);
    m = hn::MulAdd(hn::Set(d, beta1), m, hn::Mul(hn::Set(d, 1 - beta1), g));
    auto v = hn::LoadU(d, exp_avg_sq + i);
    v = hn::MulAdd(hn::Set(d, beta2), v, hn::Mul(hn::Set(d, 1 - beta2), hn::Mul(g, g)));
    const auto root = hn::MulAdd(hn::Sqrt(v), hn::Set(d, inverse_root), hn::Set(d, eps));
    const auto update = hn::Div(hn::Mul(hn::Set(d, step_size), m), root);
    const auto p = hn::MulSub(hn::LoadU(d, master + i), hn::Set(d, keep), update);
    hn::StoreU(m, d, exp_avg + i);
    hn::StoreU(v, d, exp_avg_sq + i);
    hn::StoreU(p, d, master + i);
    if (parameter != master) hn::StoreU(p, d, parameter + i);
  }
};

void AdamWRange(const mt_adamw_args& args, int64_t first, int64_t last) {
  const double scale =
      args.gradient_scale *
      (args.gradient_scale_pointer != nullptr ? *args.gradient_scale_pointer : 1.0);
  const double step = static_cast<double>(args.step);
  AdamWBody body;
  body.parameter = static_cast<float*>(args.parameter);
  body.master = static_cast<float*>(args.master);
  body.exp_avg = static_cast<float*>(args.exp_avg);
  body.exp_avg_sq = static_cast<float*>(args.exp_avg_sq);
  body.gradient = static_cast<const float*>(args.gradient);
  body.scale = static_cast<float>(scale);
  body.beta1 = static_cast<float>(args.beta1);
  body.beta2 = static_cast<float>(args.beta2);
  body.keep = static_cast<float>(1 - args.lr * args.weight_decay);
  body.step_size = static_cast<float>(args.lr / (1 - std::pow(args.beta1, step)));
  body.inverse_root = static_cast<float>(1 / std::sqrt(1 - std::pow(args.beta2, step)));
  body.eps = static_cast<float>(args.eps);
  ForEach(first, last, body);
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/abi/philox.h"

namespace mt::cpu {
HWY_EXPORT(AddRange);
HWY_EXPORT(ScaleRange);
HWY_EXPORT(SquaredSumRange);
HWY_EXPORT(AdamWRange);
HWY_EXPORT(TargetName);

namespace {
constexpr int64_t kSquaredSumBlock = 1 << 16;  // elements per partial sum
}

void Fill(const mt_fill_args& args) {
  const float value = static_cast<float>(args.value);
  float* data = static_cast<float*>(args.data);
  ParallelRanges(args.count, 4,
                 [&](int64_t first, int64_t last) { std::fill(data + first, data + last, value); });
}

void FillNormal(const mt_fill_normal_args& args) {
  ParallelRanges(args.rows, 64 * args.columns, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      float* row = static_cast<float*>(args.data) + r * args.columns;
      const uint64_t begin = args.first_index + static_cast<uint64_t>(r) * args.row_stride;
      double pair[2];
      for (int64_t c = 0; c < args.columns; ++c) {
        const uint64_t index = begin + static_cast<uint64_t>(c);
        if (c == 0 || (index & 1) == 0)
          mt_normal_pair(args.seed, args.stream, index >> 1, &pair[0], &pair[1]);
        row[c] = static_cast<float>(args.mean + args.std * pair[index & 1]);
      }
    }
  });
}

namespace {
template <typename From, typename To>
void Cast(const mt_copy_args& args) {
  const From* source = static_cast<const From*>(args.source);
  To* destination = static_cast<To*>(args.destination);
  ParallelRanges(args.count, sizeof(From) + sizeof(To), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) destination[i] = static_cast<To>(source[i]);
  });
}
}  // namespace

void Copy(const mt_copy_args& args) {
  if (args.source_dtype == args.destination_dtype) {
    const int64_t size = args.source_dtype == MT_F64 ? 8 : 4;
    const char* source = static_cast<const char*>(args.source);
    char* destination = static_cast<char*>(args.destination);
    ParallelRanges(args.count, 2 * size, [&](int64_t first, int64_t last) {
      std::memmove(destination + first * size, source + first * size,
                   static_cast<size_t>((last - first) * size));
    });
  } else if (args.source_dtype == MT_F32) {
    Cast<float, double>(args);
  } else {
    Cast<double, float>(args);
  }
}

void Add(const mt_add_args& args) {
  ParallelRanges(args.count, 12, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(AddRange)(args, first, last);
  });
}

void Scale(const mt_scale_args& args) {
  const float factor =
      static_cast<float>(args.factor_pointer != nullptr ? *args.factor_pointer : args.factor);
  ParallelRanges(args.count, 8, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(ScaleRange)(static_cast<float*>(args.data), factor, first, last);
  });
}

int64_t SquaredSumWorkspace(const mt_squared_sum_args& args) {
  return 8 * CeilDivide(args.count, kSquaredSumBlock);
}

void SquaredSum(const mt_squared_sum_args& args) {
  double* partial = static_cast<double*>(args.workspace);
  const int64_t blocks = CeilDivide(args.count, kSquaredSumBlock);
  ParallelBlocks(blocks, [&](int64_t block) {
    const int64_t first = block * kSquaredSumBlock;
    partial[block] =
        HWY_DYNAMIC_DISPATCH(SquaredSumRange)(static_cast<const float*>(args.data), first,
                                              std::min(args.count, first + kSquaredSumBlock));
  });
  double sum = args.accumulate ? *args.result : 0;
  for (int64_t block = 0; block < blocks; ++block) sum += partial[block];
  *args.result = sum;
}

void AdamW(const mt_adamw_args& args) {
  ParallelRanges(args.count, 28, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(AdamWRange)(args, first, last);
  });
}

const char* InstructionSet() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace mt::cpu
#endif  // HWY_ONCE
