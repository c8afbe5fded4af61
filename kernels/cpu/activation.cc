// SwiGLU and GELU: bound by memory, one exponential per element.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activation.cc"
#include "hwy/foreach_target.h"
// After foreach_target:
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace mt::cpu::HWY_NAMESPACE {

// g sigmoid(alpha g) (u + offset), g and u cut off at the limit.
struct Gated {
  float limit, alpha, offset;
  explicit Gated(const mt_swiglu_args& args)
      : limit(args.limit != 0 ? static_cast<float>(args.limit)
                              : std::numeric_limits<float>::infinity()),
        alpha(args.alpha != 0 ? static_cast<float>(args.alpha) : 1),
        offset(static_cast<float>(args.offset)) {}
  // Not hn::Min: NaN stays.
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V Above(D d, V v) const {
    const V most = hn::Set(d, limit);
    return hn::IfThenElse(hn::Gt(v, most), most, v);
  }
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V Both(D d, V v) const {
    const V least = hn::Set(d, -limit);
    return hn::IfThenElse(hn::Lt(v, least), least, Above(d, v));
  }
};

template <typename T>
struct SwigluForwardBody {
  Gated gated;
  const T *gate, *up;
  T* output;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t c) const {
    const auto g = gated.Above(d, Read(d, gate + c));
    const auto u = hn::Add(gated.Both(d, Read(d, up + c)), hn::Set(d, gated.offset));
    const auto sigmoid = Sigmoid(d, hn::Mul(g, hn::Set(d, gated.alpha)));
    Write(hn::Mul(hn::Mul(g, sigmoid), u), d, output + c);
  }
};

template <typename T>
struct SwigluBackwardBody {
  Gated gated;
  const T *gate, *up, *dy;
  T *d_gate, *d_up, *output;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t c) const {
    const auto raw_gate = Read(d, gate + c), raw_up = Read(d, up + c), grad = Read(d, dy + c);
    const auto most = hn::Set(d, gated.limit), one = hn::Set(d, 1.0f);
    const auto g = gated.Above(d, raw_gate);
    const auto u = hn::Add(gated.Both(d, raw_up), hn::Set(d, gated.offset));
    const auto scaled = hn::Mul(g, hn::Set(d, gated.alpha));
    const auto sigmoid = Sigmoid(d, scaled);
    const auto silu = hn::Mul(g, sigmoid);
    // d g sigmoid(alpha g) / d g = sigmoid (1 + alpha g (1 - sigmoid))
    const auto slope = hn::Mul(sigmoid, hn::MulAdd(scaled, hn::Sub(one, sigmoid), one));
    Write(hn::IfThenZeroElse(hn::Gt(raw_gate, most), hn::Mul(hn::Mul(grad, u), slope)), d,
          d_gate + c);
    Write(hn::IfThenZeroElse(hn::Gt(hn::Abs(raw_up), most), hn::Mul(grad, silu)), d, d_up + c);
    if (output != nullptr) Write(hn::Mul(silu, u), d, output + c);
  }
};

template <typename T>
void SwigluForwardOf(const mt_swiglu_args& args, int64_t first, int64_t last) {
  const int64_t D = args.columns;
  for (int64_t i = first; i < last; ++i) {
    const T* gate = static_cast<const T*>(args.gate_up) + i * 2 * D;
    ForEach(
        0, D,
        SwigluForwardBody<T>{Gated(args), gate, gate + D, static_cast<T*>(args.output) + i * D});
  }
}

void SwigluForwardRows(const mt_swiglu_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return SwigluForwardOf<Bf16>(args, first, last);
  SwigluForwardOf<float>(args, first, last);
}

template <typename T>
void SwigluBackwardOf(const mt_swiglu_args& args, int64_t first, int64_t last) {
  const int64_t D = args.columns;
  for (int64_t i = first; i < last; ++i) {
    const T* gate = static_cast<const T*>(args.gate_up) + i * 2 * D;
    T* d_gate = static_cast<T*>(args.gate_up_gradient) + i * 2 * D;
    T* output = args.output != nullptr ? static_cast<T*>(args.output) + i * D : nullptr;
    ForEach(0, D,
            SwigluBackwardBody<T>{Gated(args), gate, gate + D,
                                  static_cast<const T*>(args.output_gradient) + i * D, d_gate,
                                  d_gate + D, output});
  }
}

void SwigluBackwardRows(const mt_swiglu_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return SwigluBackwardOf<Bf16>(args, first, last);
  SwigluBackwardOf<float>(args, first, last);
}

constexpr float kRoot = 0.797884560802865f;  // sqrt(2 / pi)

// 0.5 (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) = sigmoid(2 sqrt(2/pi) (z + 0.044715 z^3)): no cancellation for negative z.
struct Tanh {
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V Share(D d, V z) const {
    const V inner = hn::MulAdd(hn::Mul(z, z), hn::Set(d, 0.044715f), hn::Set(d, 1.0f));
    return Sigmoid(d, hn::Mul(hn::Mul(z, inner), hn::Set(d, 2 * kRoot)));
  }
  // of z Share(z)
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V Slope(D d, V z) const {
    const V share = Share(d, z), one = hn::Set(d, 1.0f);
    const V inner = hn::MulAdd(hn::Mul(z, z), hn::Set(d, 3 * 0.044715f), one);
    const V rate =
        hn::Mul(hn::Mul(share, hn::Sub(one, share)), hn::Mul(inner, hn::Set(d, 2 * kRoot)));
    return hn::MulAdd(z, rate, share);
  }
};

// The normal distribution function, 0.5 erfc(-z / sqrt 2). erfc(x) = t exp(p(t) - x^2), t = 1 / (1 + x / 2), for x >= 0 within 3e-7
// of it: p interpolates ln(erfc(x) exp(x^2) / t) in the Chebyshev nodes of 0 <= x <= 10.
struct Erf {
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V Share(D d, V z) const {
    constexpr float kTerms[] = {1.19532768f, -0.7464699f, -0.03986632f, -0.019508f,
                                0.04139596f, 0.38528363f, 0.99878246f,  -1.26545493f};
    const V one = hn::Set(d, 1.0f);
    const V x = hn::Mul(hn::Abs(z), hn::Set(d, 0.70710678f));
    const V t = hn::Div(one, hn::MulAdd(x, hn::Set(d, 0.5f), one));
    V p = hn::MulAdd(t, hn::Set(d, 0.14804605f), hn::Set(d, -0.69753659f));
    for (const float term : kTerms) p = hn::MulAdd(p, t, hn::Set(d, term));
    const V half = hn::Mul(hn::Mul(t, hn::Set(d, 0.5f)), Exp(d, hn::NegMulAdd(x, x, p)));
    return hn::IfThenElse(hn::Lt(z, hn::Zero(d)), half, hn::Sub(one, half));
  }
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V Slope(D d, V z) const {
    const V density = Exp(d, hn::Mul(hn::Mul(z, z), hn::Set(d, -0.5f)));
    return hn::MulAdd(hn::Mul(z, density), hn::Set(d, 0.5f * kRoot), Share(d, z));
  }
};

template <typename T, class Form>
struct GeluBody {
  const T *x, *bias, *dy;
  T* to;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t c) const {
    auto z = Read(d, x + c);
    if (bias != nullptr) z = hn::Add(z, Read(d, bias + c));
    const auto value = dy == nullptr ? hn::Mul(z, Form().Share(d, z))
                                     : hn::Mul(Read(d, dy + c), Form().Slope(d, z));
    Write(value, d, to + c);
  }
};

template <typename T>
void GeluOf(const mt_gelu_args& args, bool backward, int64_t first, int64_t last) {
  const int64_t C = args.columns;
  const T* bias = static_cast<const T*>(args.bias);
  for (int64_t i = first; i < last; ++i) {
    const T* x = static_cast<const T*>(args.x) + i * C;
    const T* dy = backward ? static_cast<const T*>(args.output_gradient) + i * C : nullptr;
    T* to = static_cast<T*>(backward ? args.input_gradient : args.output) + i * C;
    if (args.tanh_approximation) {
      ForEach(0, C, GeluBody<T, Tanh>{x, bias, dy, to});
    } else {
      ForEach(0, C, GeluBody<T, Erf>{x, bias, dy, to});
    }
  }
}

void GeluRows(const mt_gelu_args& args, bool backward, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return GeluOf<Bf16>(args, backward, first, last);
  GeluOf<float>(args, backward, first, last);
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mt::cpu {
HWY_EXPORT(SwigluForwardRows);
HWY_EXPORT(SwigluBackwardRows);
HWY_EXPORT(GeluRows);

void SwigluForward(const mt_swiglu_args& args) {
  ParallelRanges(args.rows, 12 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(SwigluForwardRows)(args, first, last);
  });
  TakeAmax(args.dtype, args.output, args.rows * args.columns, args.amax);
}

void SwigluBackward(const mt_swiglu_args& args) {
  ParallelRanges(args.rows, 24 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(SwigluBackwardRows)(args, first, last);
  });
  TakeAmax(args.dtype, args.gate_up_gradient, args.rows * 2 * args.columns, args.amax);
}

void GeluForward(const mt_gelu_args& args) {
  ParallelRanges(args.rows, 8 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(GeluRows)(args, false, first, last);
  });
  TakeAmax(args.dtype, args.output, args.rows * args.columns, args.amax);
}

void GeluBackward(const mt_gelu_args& args) {
  ParallelRanges(args.rows, 12 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(GeluRows)(args, true, first, last);
  });
  TakeAmax(args.dtype, args.input_gradient, args.rows * args.columns, args.amax);
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
