// Fill, copy, add, scale and AdamW: bound by memory, one pass each.
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

template <typename From, typename To>
struct CopyBody {
  const void* source;
  void* destination;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t i) const {
    Write(Read(d, static_cast<const From*>(source) + i), d, static_cast<To*>(destination) + i);
  }
};

void WidenRow(const Bf16* from, int64_t count, float* to) {
  ForEach(0, count, CopyBody<Bf16, float>{from, to});
}
void NarrowRow(const float* from, int64_t count, Bf16* to) {
  ForEach(0, count, CopyBody<float, Bf16>{from, to});
}

template <typename T>
struct AccumulateBody {
  const T* from;
  float* sum;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t i) const {
    hn::StoreU(hn::Add(hn::LoadU(d, sum + i), Read(d, from + i)), d, sum + i);
  }
};

void AccumulateRow(int32_t dtype, const void* from, int64_t offset, int64_t count, float* sum) {
  if (dtype == MT_BF16) {
    ForEach(0, count, AccumulateBody<Bf16>{static_cast<const Bf16*>(from) + offset, sum});
  } else {
    ForEach(0, count, AccumulateBody<float>{static_cast<const float*>(from) + offset, sum});
  }
}

template <typename T>
struct AddBody {
  const void* a;
  const void* b;
  void* destination;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t i) const {
    Write(hn::Add(Read(d, static_cast<const T*>(a) + i), Read(d, static_cast<const T*>(b) + i)), d,
          static_cast<T*>(destination) + i);
  }
};

void AddRange(const mt_add_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) {
    ForEach(first, last, AddBody<Bf16>{args.a, args.b, args.destination});
  } else {
    ForEach(first, last, AddBody<float>{args.a, args.b, args.destination});
  }
}

template <typename T>
struct ScaleBody {
  void* data;
  float factor;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t i) const {
    T* at = static_cast<T*>(data) + i;
    Write(hn::Mul(Read(d, at), hn::Set(d, factor)), d, at);
  }
};

void ScaleRange(const mt_scale_args& args, float factor, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) {
    ForEach(first, last, ScaleBody<Bf16>{args.data, factor});
  } else {
    ForEach(first, last, ScaleBody<float>{args.data, factor});
  }
}

template <typename Parameter, typename Gradient>
struct AdamWBody {
  Parameter* parameter;
  float *master, *exp_avg, *exp_avg_sq;
  const Gradient* gradient;
  float scale, beta1, one_minus_beta1, beta2, one_minus_beta2, keep, step_size, inverse_root, eps;
  // p = keep p - step_size m / (sqrt(v) inverse_root + eps), keep = 1 - lr decay, step_size = lr /
  // (1 - beta1^t), inverse_root = 1 / sqrt(1 - beta2^t).
  template <class D>
  HWY_INLINE void operator()(D d, int64_t i) const {
    const auto g = hn::Mul(Read(d, gradient + i), hn::Set(d, scale));
    auto m = hn::LoadU(d, exp_avg + i);
    m = hn::MulAdd(hn::Set(d, beta1), m, hn::Mul(hn::Set(d, one_minus_beta1), g));
    auto v = hn::LoadU(d, exp_avg_sq + i);
    v = hn::MulAdd(hn::Set(d, beta2), v, hn::Mul(hn::Set(d, one_minus_beta2), hn::Mul(g, g)));
    const auto root = hn::MulAdd(hn::Sqrt(v), hn::Set(d, inverse_root), hn::Set(d, eps));
    const auto update = hn::Div(hn::Mul(hn::Set(d, step_size), m), root);
    const auto p = hn::MulSub(hn::LoadU(d, master + i), hn::Set(d, keep), update);
    hn::StoreU(m, d, exp_avg + i);
    hn::StoreU(v, d, exp_avg_sq + i);
    hn::StoreU(p, d, master + i);
    if (static_cast<void*>(parameter) != master) Write(p, d, parameter + i);
  }
};

template <typename Parameter, typename Gradient>
void AdamWElements(const mt_adamw_args& args, float scale, int64_t first, int64_t last) {
  const double step = static_cast<double>(args.step);
  AdamWBody<Parameter, Gradient> body;
  body.parameter = static_cast<Parameter*>(args.parameter);
  body.master = static_cast<float*>(args.master);
  body.exp_avg = static_cast<float*>(args.exp_avg);
  body.exp_avg_sq = static_cast<float*>(args.exp_avg_sq);
  body.gradient = static_cast<const Gradient*>(args.gradient);
  body.scale = scale;
  body.beta1 = static_cast<float>(args.beta1);
  body.one_minus_beta1 = static_cast<float>(1 - args.beta1);  // in float32 it would lose digits
  body.beta2 = static_cast<float>(args.beta2);
  body.one_minus_beta2 = static_cast<float>(1 - args.beta2);
  body.keep = static_cast<float>(1 - args.lr * args.weight_decay);
  body.step_size = static_cast<float>(args.lr / (1 - std::pow(args.beta1, step)));
  body.inverse_root = static_cast<float>(1 / std::sqrt(1 - std::pow(args.beta2, step)));
  body.eps = static_cast<float>(args.eps);
  ForEach(first, last, body);
}

void AdamWRange(const mt_adamw_args& args, float scale, int64_t first, int64_t last) {
  const bool small_gradient = args.gradient_dtype == MT_BF16;
  if (args.dtype == MT_BF16) {
    if (small_gradient) return AdamWElements<Bf16, Bf16>(args, scale, first, last);
    return AdamWElements<Bf16, float>(args, scale, first, last);
  }
  if (small_gradient) return AdamWElements<float, Bf16>(args, scale, first, last);
  AdamWElements<float, float>(args, scale, first, last);
}

const char* TargetName() { return hwy::TargetName(HWY_TARGET); }

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "kernels/abi/philox.h"
#include "kernels/abi/small_floats.h"

namespace mt::cpu {
HWY_EXPORT(WidenRow);
HWY_EXPORT(NarrowRow);
HWY_EXPORT(AccumulateRow);
HWY_EXPORT(AddRange);
HWY_EXPORT(ScaleRange);
HWY_EXPORT(AdamWRange);
HWY_EXPORT(TargetName);

void Widen(const Bf16* from, int64_t count, float* to) {
  HWY_DYNAMIC_DISPATCH(WidenRow)(from, count, to);
}
void Narrow(const float* from, int64_t count, Bf16* to) {
  HWY_DYNAMIC_DISPATCH(NarrowRow)(from, count, to);
}
void Accumulate(int32_t dtype, const void* from, int64_t offset, int64_t count, float* sum) {
  HWY_DYNAMIC_DISPATCH(AccumulateRow)(dtype, from, offset, count, sum);
}

namespace {

template <typename T>
void FillWith(const mt_fill_args& args, T value) {
  T* data = static_cast<T*>(args.data);
  ParallelRanges(args.count, sizeof(T),
                 [&](int64_t first, int64_t last) { std::fill(data + first, data + last, value); });
}

}  // namespace

void Fill(const mt_fill_args& args) {
  if (args.dtype == MT_BF16) {
    FillWith(args, mt_bf16_from_double(args.value));
  } else {
    FillWith(args, static_cast<float>(args.value));
  }
}

void FillNormal(const mt_fill_normal_args& args) {
  const bool small = args.dtype == MT_BF16;
  ParallelRanges(args.rows, 64 * args.columns, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      float* row = static_cast<float*>(args.data) + (small ? 0 : r * args.columns);
      Bf16* small_row = static_cast<Bf16*>(args.data) + (small ? r * args.columns : 0);
      const uint64_t begin = args.first_index + static_cast<uint64_t>(r) * args.row_stride;
      double pair[2];
      for (int64_t c = 0; c < args.columns; ++c) {
        const uint64_t index = begin + static_cast<uint64_t>(c);
        if (c == 0 || (index & 1) == 0)
          mt_normal_pair(args.seed, args.stream, index >> 1, &pair[0], &pair[1]);
        const double value = args.mean + args.std * pair[index & 1];
        if (small) {
          small_row[c] = mt_bf16_from_double(value);
        } else {
          row[c] = static_cast<float>(value);
        }
      }
    }
  });
}

namespace {

int64_t SizeOf(int32_t dtype) { return dtype == MT_F64 ? 8 : dtype == MT_BF16 ? 2 : 4; }

float Narrowed(double value, float*) { return static_cast<float>(value); }
Bf16 Narrowed(double value, Bf16*) { return mt_bf16_from_double(value); }
double Widened(float value) { return value; }
double Widened(Bf16 value) { return mt_float_from_bf16(value); }

template <typename To>
void FromDouble(const mt_copy_args& args) {
  const double* source = static_cast<const double*>(args.source);
  To* destination = static_cast<To*>(args.destination);
  ParallelRanges(args.count, 8 + sizeof(To), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) destination[i] = Narrowed(source[i], destination);
  });
}

template <typename From>
void ToDouble(const mt_copy_args& args) {
  const From* source = static_cast<const From*>(args.source);
  double* destination = static_cast<double*>(args.destination);
  ParallelRanges(args.count, sizeof(From) + 8, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) destination[i] = Widened(source[i]);
  });
}

}  // namespace

void Copy(const mt_copy_args& args) {
  const int32_t from = args.source_dtype, to = args.destination_dtype;
  const int64_t size = SizeOf(from);
  if (from == to) {
    const char* source = static_cast<const char*>(args.source);
    char* destination = static_cast<char*>(args.destination);
    ParallelRanges(args.count, 2 * size, [&](int64_t first, int64_t last) {
      std::memmove(destination + first * size, source + first * size,
                   static_cast<size_t>((last - first) * size));
    });
  } else if (from == MT_F64) {
    to == MT_F32 ? FromDouble<float>(args) : FromDouble<Bf16>(args);
  } else if (to == MT_F64) {
    from == MT_F32 ? ToDouble<float>(args) : ToDouble<Bf16>(args);
  } else {
    ParallelRanges(args.count, 6, [&](int64_t first, int64_t last) {
      if (from == MT_BF16) {
        Widen(static_cast<const Bf16*>(args.source) + first, last - first,
              static_cast<float*>(args.destination) + first);
      } else {
        Narrow(static_cast<const float*>(args.source) + first, last - first,
               static_cast<Bf16*>(args.destination) + first);
      }
    });
  }
}

void Add(const mt_add_args& args) {
  ParallelRanges(args.count, 3 * SizeOf(args.dtype), [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(AddRange)(args, first, last);
  });
}

void Scale(const mt_scale_args& args) {
  const float factor =
      static_cast<float>(args.factor_pointer != nullptr ? *args.factor_pointer : args.factor);
  ParallelRanges(args.count, 2 * SizeOf(args.dtype), [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(ScaleRange)(args, factor, first, last);
  });
}

void AdamW(const mt_adamw_args& args) {
  double scale = args.gradient_scale;
  if (args.gradient_scale_pointer != nullptr) {
    // A gradient that is not finite costs the step, not the model.
    if (!std::isfinite(*args.gradient_scale_pointer)) return;
    scale *= *args.gradient_scale_pointer;
  }
  ParallelRanges(args.count, 28, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(AdamWRange)(args, static_cast<float>(scale), first, last);
  });
}

// A few numbers per layer.
void BalanceUpdate(const mt_balance_update_args& args) {
  if (args.gradient_scale_pointer != nullptr && !std::isfinite(*args.gradient_scale_pointer))
    return;
  float* bias = static_cast<float*>(args.bias);
  const float* load = static_cast<const float*>(args.load);
  for (int64_t i = 0; i < args.count; ++i) {
    const double missing = args.target - static_cast<double>(load[i]);
    const int sign = (missing > 0) - (missing < 0);
    bias[i] = static_cast<float>(static_cast<double>(bias[i]) + args.rate * sign);
  }
  if (args.dtype == MT_BF16) {
    Narrow(bias, args.count, static_cast<Bf16*>(args.parameter));
  } else if (args.parameter != args.bias) {
    std::copy_n(bias, args.count, static_cast<float*>(args.parameter));
  }
}

const char* InstructionSet() { return HWY_DYNAMIC_DISPATCH(TargetName)(); }

}  // namespace mt::cpu
#endif  // HWY_ONCE
