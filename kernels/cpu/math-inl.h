// Vector helpers for each instruction set. Include after hwy/highway.h, inside the per-target
// pattern.
#if defined(MT_KERNELS_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef MT_KERNELS_CPU_MATH_INL_H_
#undef MT_KERNELS_CPU_MATH_INL_H_
#else
#define MT_KERNELS_CPU_MATH_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/cpu/operations.h"

HWY_BEFORE_NAMESPACE();
namespace mt::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Full = hn::ScalableTag<float>;
using One = hn::CappedTag<float, 1>;  // the rest of a row, one by one
using Vector = hn::Vec<Full>;

// float32 or bfloat16 (its bits) in memory, float32 in registers.
template <class D>
HWY_INLINE hn::Vec<D> Read(D d, const float* p) {
  return hn::LoadU(d, p);
}
template <class D>
HWY_INLINE hn::Vec<D> Read(D d, const Bf16* p) {
  const hn::Rebind<uint32_t, D> du;
  const hn::Rebind<uint16_t, D> dh;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(dh, p))));
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Write(V v, D d, float* p) {
  hn::StoreU(v, d, p);
}
// To nearest even, NaN as 0x7fff: the bits of mt_bf16_from_float.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> Small(D d, V v) {
  const hn::Rebind<uint32_t, D> du;
  const hn::Rebind<uint16_t, D> dh;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu))));
  const auto nan = hn::RebindMask(du, hn::IsNaN(v));
  return hn::TruncateTo(dh, hn::IfThenElse(nan, hn::Set(du, 0x7fffu), rounded));
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE void Write(V v, D d, Bf16* p) {
  const hn::Rebind<uint16_t, D> dh;
  hn::StoreU(Small(d, v), dh, p);
}
// Every other element: p[0], p[2], ... and p[1], p[3], ...
template <class D, class V = hn::Vec<D>>
HWY_INLINE void ReadPairs(D d, const float* p, V& even, V& odd) {
  hn::LoadInterleaved2(d, p, even, odd);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE void ReadPairs(D d, const Bf16* p, V& even, V& odd) {
  const hn::Rebind<uint32_t, D> du;
  const hn::Rebind<uint16_t, D> dh;
  hn::Vec<decltype(dh)> small_even, small_odd;
  hn::LoadInterleaved2(dh, p, small_even, small_odd);
  even = hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, small_even)));
  odd = hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, small_odd)));
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE void WritePairs(V even, V odd, D d, float* p) {
  hn::StoreInterleaved2(even, odd, d, p);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE void WritePairs(V even, V odd, D d, Bf16* p) {
  const hn::Rebind<uint16_t, D> dh;
  hn::StoreInterleaved2(Small(d, even), Small(d, odd), dh, p);
}
// What a store to T and a load from it give.
template <typename T, class D, class V = hn::Vec<D>>
HWY_INLINE V Rounded(D d, V v) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return v;
  } else {
    const hn::Rebind<uint32_t, D> du;
    const auto bits = hn::BitCast(du, v);
    const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
    const auto sum = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7fffu)));
    return hn::IfThenElse(hn::IsNaN(v), v, hn::BitCast(d, hn::And(sum, hn::Set(du, 0xffff0000u))));
  }
}

// e^x within 2 ulp (1.1 seen) for x in [-87.3, 88.3] (exp_test.cc); 0 below, growing to infinity above; NaN
// stays NaN, so that a broken value is seen in the loss. x = n ln 2 + r with |r| <= ln 2 / 2 (Cody
// & Waite's two-part ln 2), then
// 1 + r + r^2 q(r), q the interpolation of degree 4 in the Chebyshev nodes of |r| <= 0.347.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp(D d, V x) {
  const hn::Rebind<int32_t, D> di;
  const V least = hn::Set(d, -87.3f);
  const V clamped = hn::Min(hn::Max(x, least), hn::Set(d, 88.3f));
  const V n = hn::Round(hn::Mul(clamped, hn::Set(d, 1.44269504088896341f)));
  V r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  V p = hn::Set(d, 1.3926268053e-3f);
  p = hn::MulAdd(p, r, hn::Set(d, 8.3632466698e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1666554109e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666576583e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.5f));
  p = hn::MulAdd(hn::Mul(p, r), r, r);
  p = hn::Add(p, hn::Set(d, 1.0f));
  const auto power = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127)));
  return hn::IfThenZeroElse(hn::Lt(x, least), hn::Mul(p, hn::BitCast(d, power)));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, Exp(d, hn::Neg(x))));
}

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

HWY_INLINE float Sum(Vector v) { return hn::GetLane(hn::SumOfLanes(Full(), v)); }
HWY_INLINE float Maximum(Vector v) { return hn::GetLane(hn::MaxOfLanes(Full(), v)); }

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
