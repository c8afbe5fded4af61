// Rotation of heads by their position, alone and after a norm of each head: bound by memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cc"
#include "hwy/foreach_target.h"
// After foreach_target:
#include <algorithm>
#include <cmath>

#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace mt::cpu::HWY_NAMESPACE {

// The elements of a head that turn together, and one row of the table.
struct Turn {
  int64_t rotated, half;
  bool interleaved;
  const float *cosine, *sine;

  template <typename Args>
  Turn(const Args& args, int64_t row)
      : rotated(args.rotary_dim != 0 ? args.rotary_dim : args.head_dim),
        half(rotated / 2),
        interleaved(args.interleaved != 0),
        cosine(static_cast<const float*>(args.cos_sin) +
               (args.positions != nullptr ? args.positions[row]
                                          : args.first_position + row / args.batch) *
                   rotated),
        sine(cosine + half) {}

  template <class D, typename T, class V = hn::Vec<D>>
  HWY_INLINE void Load(D d, const T* head, int64_t j, V& a, V& b) const {
    if (interleaved) return ReadPairs(d, head + 2 * j, a, b);
    a = Read(d, head + j);
    b = Read(d, head + half + j);
  }
  template <class D, typename T, class V = hn::Vec<D>>
  HWY_INLINE void Store(V a, V b, D d, T* head, int64_t j) const {
    if (interleaved) return WritePairs(a, b, d, head + 2 * j);
    Write(a, d, head + j);
    Write(b, d, head + half + j);
  }
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE void Rotate(D d, int64_t j, bool inverse, V& a, V& b) const {
    const V c = hn::LoadU(d, cosine + j);
    V s = hn::LoadU(d, sine + j);
    if (inverse) s = hn::Neg(s);
    const V turned = hn::NegMulAdd(b, s, hn::Mul(a, c));
    b = hn::MulAdd(a, s, hn::Mul(b, c));
    a = turned;
  }
};

template <typename T>
struct RopeBody {
  const Turn& turn;
  bool inverse;
  T* head;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t j) const {
    hn::Vec<D> a, b;
    turn.Load(d, head, j, a, b);
    turn.Rotate(d, j, inverse, a, b);
    turn.Store(a, b, d, head, j);
  }
};

// Rows are (t, b) pairs.
template <typename T>
void RopeOf(const mt_rope_args& args, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const Turn turn(args, row);
    T* head = static_cast<T*>(args.data) + row * args.row_stride;
    for (int64_t h = 0; h < args.heads; ++h, head += args.head_dim)
      ForEach(0, turn.half, RopeBody<T>{turn, args.inverse != 0, head});
  }
}

void RopeRows(const mt_rope_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return RopeOf<Bf16>(args, first, last);
  RopeOf<float>(args, first, last);
}

// y = rope(x rstd weight): pairs that turn, then the rest of a head.
template <typename T>
struct NormTurnBody {
  const Turn& turn;
  const T *x, *weight;
  float rstd;
  T* y;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t j) const {
    hn::Vec<D> a, b, weight_a, weight_b;
    const auto r = hn::Set(d, rstd);
    turn.Load(d, x, j, a, b);
    turn.Load(d, weight, j, weight_a, weight_b);
    a = hn::Mul(hn::Mul(a, r), weight_a);
    b = hn::Mul(hn::Mul(b, r), weight_b);
    turn.Rotate(d, j, false, a, b);
    turn.Store(a, b, d, y, j);
  }
};
template <typename T>
struct NormBody {
  const T *x, *weight;
  float rstd;
  T* y;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t j) const {
    Write(hn::Mul(hn::Mul(Read(d, x + j), hn::Set(d, rstd)), Read(d, weight + j)), d, y + j);
  }
};

template <typename T>
double MeanSquare(const T* x, int64_t count) {
  const Full d;
  const One one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector square = hn::Zero(d);
  double rest = 0;
  int64_t j = 0;
  for (; j + lanes <= count; j += lanes) {
    const Vector v = Read(d, x + j);
    square = hn::MulAdd(v, v, square);
  }
  for (; j < count; ++j) {
    const double v = static_cast<double>(hn::GetLane(Read(one, x + j)));
    rest += v * v;
  }
  return (rest + static_cast<double>(Sum(square))) / static_cast<double>(count);
}

template <typename T>
void QkNormForwardOf(const mt_qk_norm_rope_args& args, int64_t first, int64_t last) {
  const int64_t d = args.head_dim;
  const T* weight = static_cast<const T*>(args.weight);
  for (int64_t row = first; row < last; ++row) {
    const Turn turn(args, row);
    for (int64_t h = 0; h < args.heads; ++h) {
      const T* x = static_cast<const T*>(args.x) + row * args.x_stride + h * d;
      T* y = static_cast<T*>(args.y) + row * args.y_stride + h * d;
      const float rstd = static_cast<float>(1 / std::sqrt(MeanSquare(x, d) + args.eps));
      static_cast<float*>(args.rstd)[row * args.heads + h] = rstd;
      ForEach(0, turn.half, NormTurnBody<T>{turn, x, weight, rstd, y});
      ForEach(turn.rotated, d, NormBody<T>{x, weight, rstd, y});
    }
  }
}

void QkNormForwardRows(const mt_qk_norm_rope_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return QkNormForwardOf<Bf16>(args, first, last);
  QkNormForwardOf<float>(args, first, last);
}

// One head's gradient g before the rotation, twice: once for what is summed, once for dx.
template <typename T>
struct HeadGradient {
  const Turn& turn;
  const T *x, *weight, *dy;
  float rstd;
  float *dw, *product;  // (d): added to; (d): weight g x

  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V Sums(D d, V g, V value, V w, V& share) const {
    share = hn::Mul(g, hn::Mul(value, hn::Set(d, rstd)));
    return hn::Mul(hn::Mul(w, g), value);
  }
  // Pairs; what belongs to the pair (a, b) lies at dw[2 j], dw[2 j + 1] if interleaved, else half a rotation apart.
  template <class D>
  HWY_INLINE void Pair(D d, int64_t j) const {
    hn::Vec<D> ga, gb, xa, xb, wa, wb, share_a, share_b, sum_a, sum_b;
    turn.Load(d, dy, j, ga, gb);
    turn.Rotate(d, j, true, ga, gb);
    turn.Load(d, x, j, xa, xb);
    turn.Load(d, weight, j, wa, wb);
    turn.Load(d, dw, j, sum_a, sum_b);
    const auto product_a = Sums(d, ga, xa, wa, share_a), product_b = Sums(d, gb, xb, wb, share_b);
    turn.Store(hn::Add(sum_a, share_a), hn::Add(sum_b, share_b), d, dw, j);
    turn.Store(product_a, product_b, d, product, j);
  }
  template <class D>
  HWY_INLINE void Single(D d, int64_t j) const {
    hn::Vec<D> share;
    const auto result = Sums(d, Read(d, dy + j), Read(d, x + j), Read(d, weight + j), share);
    Write(hn::Add(Read(d, dw + j), share), d, dw + j);
    Write(result, d, product + j);
  }
  // dx = rstd (weight g - x factor)
  template <class D, class V = hn::Vec<D>>
  HWY_INLINE V Input(D d, V g, V value, V w, float factor) const {
    return hn::Mul(hn::Set(d, rstd), hn::NegMulAdd(value, hn::Set(d, factor), hn::Mul(w, g)));
  }
  template <class D>
  HWY_INLINE void InputPair(D d, int64_t j, float factor, T* dx) const {
    hn::Vec<D> ga, gb, xa, xb, wa, wb;
    turn.Load(d, dy, j, ga, gb);
    turn.Rotate(d, j, true, ga, gb);
    turn.Load(d, x, j, xa, xb);
    turn.Load(d, weight, j, wa, wb);
    turn.Store(Input(d, ga, xa, wa, factor), Input(d, gb, xb, wb, factor), d, dx, j);
  }
  template <class D>
  HWY_INLINE void InputSingle(D d, int64_t j, float factor, T* dx) const {
    Write(Input(d, Read(d, dy + j), Read(d, x + j), Read(d, weight + j), factor), d, dx + j);
  }
};

// Units are heads of rows: [first, last) of rows * heads. dw (d) is overwritten with their share, product (d) is scratch.
template <typename T>
void QkNormBackwardOf(const mt_qk_norm_rope_args& args, int64_t first, int64_t last, float* dw,
                      float* product) {
  const int64_t d = args.head_dim;
  std::fill_n(dw, d, 0.0f);
  for (int64_t unit = first; unit < last; ++unit) {
    const int64_t row = unit / args.heads, at = unit % args.heads * d;
    const Turn turn(args, row);
    const HeadGradient<T> head = {
        turn,
        static_cast<const T*>(args.x) + row * args.x_stride + at,
        static_cast<const T*>(args.weight),
        static_cast<const T*>(args.output_gradient) + row * args.y_stride + at,
        static_cast<const float*>(args.rstd)[unit],
        dw,
        product};
    T* dx = static_cast<T*>(args.input_gradient) + row * args.x_stride + at;
    ForEach(0, turn.half, [&](auto tag, int64_t j) HWY_ATTR { head.Pair(tag, j); });
    ForEach(turn.rotated, d, [&](auto tag, int64_t j) HWY_ATTR { head.Single(tag, j); });
    double sum = 0;
    for (int64_t j = 0; j < d; ++j) sum += static_cast<double>(product[j]);
    const double r = static_cast<double>(head.rstd);
    const float factor = static_cast<float>(r * r * sum / static_cast<double>(d));
    ForEach(0, turn.half,
            [&](auto tag, int64_t j) HWY_ATTR { head.InputPair(tag, j, factor, dx); });
    ForEach(turn.rotated, d,
            [&](auto tag, int64_t j) HWY_ATTR { head.InputSingle(tag, j, factor, dx); });
  }
}

void QkNormBackwardUnits(const mt_qk_norm_rope_args& args, int64_t first, int64_t last, float* dw,
                         float* product) {
  if (args.dtype == MT_BF16) return QkNormBackwardOf<Bf16>(args, first, last, dw, product);
  QkNormBackwardOf<float>(args, first, last, dw, product);
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mt::cpu {
HWY_EXPORT(RopeRows);
HWY_EXPORT(QkNormForwardRows);
HWY_EXPORT(QkNormBackwardUnits);

void Rope(const mt_rope_args& args) {
  ParallelRanges(args.sequence * args.batch, 8 * args.heads * args.head_dim,
                 [&](int64_t first, int64_t last) {
                   HWY_DYNAMIC_DISPATCH(RopeRows)(args, first, last);
                 });
}

void QkNormRopeForward(const mt_qk_norm_rope_args& args) {
  ParallelRanges(args.sequence * args.batch, 8 * args.heads * args.head_dim,
                 [&](int64_t first, int64_t last) {
                   HWY_DYNAMIC_DISPATCH(QkNormForwardRows)(args, first, last);
                 });
}

namespace {

// Heads whose shares of the weight's gradient are added in float32, one after the other.
constexpr int64_t kBlockHeads = 512;

int64_t HeadBlocks(const mt_qk_norm_rope_args& args) {
  return CeilDivide(args.sequence * args.batch * args.heads, kBlockHeads);
}

}  // namespace

int64_t QkNormRopeBackwardWorkspace(const mt_qk_norm_rope_args& args) {
  return 8 * args.head_dim * HeadBlocks(args);
}

void QkNormRopeBackward(const mt_qk_norm_rope_args& args) {
  float* partial = static_cast<float*>(args.workspace);  // (blocks, d) shares, (blocks, d) scratch
  const int64_t d = args.head_dim, blocks = HeadBlocks(args),
                heads = args.sequence * args.batch * args.heads;
  ParallelBlocks(blocks, [&](int64_t block) {
    const int64_t first = block * kBlockHeads;
    HWY_DYNAMIC_DISPATCH(QkNormBackwardUnits)
    (args, first, std::min(heads, first + kBlockHeads), partial + block * d,
     partial + (blocks + block) * d);
  });
  float* weight_gradient = static_cast<float*>(args.weight_gradient);
  for (int64_t j = 0; j < d; ++j) {
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block)
      sum += static_cast<double>(partial[block * d + j]);
    weight_gradient[j] += static_cast<float>(sum);
  }
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
