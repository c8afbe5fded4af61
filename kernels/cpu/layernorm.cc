// LayerNorm: bound by memory; the residual addition is fused in, as into RMSNorm.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/layernorm.cc"
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

// The sum of term(tag, c) over a row: whole vectors in float32 lanes, the rest in float64.
template <class Term>
HWY_INLINE double SumOver(int64_t count, const Term& term) {
  const Full d;
  const One one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  double rest = 0;
  int64_t c = 0;
  for (; c + 2 * lanes <= count; c += 2 * lanes) {
    sum0 = hn::Add(sum0, term(d, c));
    sum1 = hn::Add(sum1, term(d, c + lanes));
  }
  for (; c < count; ++c) rest += static_cast<double>(hn::GetLane(term(one, c)));
  return rest + static_cast<double>(Sum(hn::Add(sum0, sum1)));
}

template <typename T>
struct SumBody {  // s = x + residual, as it is stored
  const T *x, *residual;
  T* s;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, int64_t c) const {
    auto v = Read(d, x + c);
    if (residual != nullptr) v = Rounded<T>(d, hn::Add(v, Read(d, residual + c)));
    Write(v, d, s + c);
    return v;
  }
};
template <typename T>
struct SquareBody {  // (s - mean)^2
  const T* s;
  float mean;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, int64_t c) const {
    const auto v = hn::Sub(Read(d, s + c), hn::Set(d, mean));
    return hn::Mul(v, v);
  }
};
template <typename T>
struct NormBody {
  const T *s, *weight, *bias;
  float mean, rstd;
  T* output;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t c) const {
    const auto h = hn::Mul(hn::Sub(Read(d, s + c), hn::Set(d, mean)), hn::Set(d, rstd));
    Write(hn::MulAdd(h, Read(d, weight + c), Read(d, bias + c)), d, output + c);
  }
};

template <typename T>
void LayerNormForwardOf(const mt_layernorm_args& args, int64_t first, int64_t last) {
  const int64_t C = args.columns;
  for (int64_t i = first; i < last; ++i) {
    T* output = static_cast<T*>(args.output) + i * C;
    // s goes to `sum` if the caller keeps it, else to `output`, where the next passes find it.
    T* s = args.sum != nullptr ? static_cast<T*>(args.sum) + i * C : output;
    const T* residual =
        args.residual != nullptr ? static_cast<const T*>(args.residual) + i * C : nullptr;
    const double total = SumOver(C, SumBody<T>{static_cast<const T*>(args.x) + i * C, residual, s});
    const float mean = static_cast<float>(total / static_cast<double>(C));
    const double square = SumOver(C, SquareBody<T>{s, mean});
    const float rstd =
        static_cast<float>(1 / std::sqrt(square / static_cast<double>(C) + args.eps));
    static_cast<float*>(args.mean)[i] = mean;
    static_cast<float*>(args.rstd)[i] = rstd;
    ForEach(0, C,
            NormBody<T>{s, static_cast<const T*>(args.weight), static_cast<const T*>(args.bias),
                        mean, rstd, output});
  }
}

void LayerNormForwardRows(const mt_layernorm_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return LayerNormForwardOf<Bf16>(args, first, last);
  LayerNormForwardOf<float>(args, first, last);
}

// With h = (s - mean) rstd and g = weight dy.
template <typename T>
struct Gradient {
  const T *s, *dy, *weight, *extra;
  float mean, rstd;
  T* dx;
  float *dw, *db;  // added to
  template <class D>
  HWY_INLINE hn::Vec<D> H(D d, int64_t c) const {
    return hn::Mul(hn::Sub(Read(d, s + c), hn::Set(d, mean)), hn::Set(d, rstd));
  }
  template <class D>
  HWY_INLINE hn::Vec<D> G(D d, int64_t c) const {
    return hn::Mul(Read(d, weight + c), Read(d, dy + c));
  }
};
template <typename T>
struct GBody {
  const Gradient<T>& row;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, int64_t c) const {
    return row.G(d, c);
  }
};
template <typename T>
struct GHBody {  // and the block's shares of the parameters' gradients
  const Gradient<T>& row;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, int64_t c) const {
    const auto h = row.H(d, c), g = Read(d, row.dy + c);
    hn::StoreU(hn::MulAdd(g, h, hn::LoadU(d, row.dw + c)), d, row.dw + c);
    hn::StoreU(hn::Add(g, hn::LoadU(d, row.db + c)), d, row.db + c);
    return hn::Mul(row.G(d, c), h);
  }
};
template <typename T>
struct InputBody {
  const Gradient<T>& row;
  float mean_g, mean_gh;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t c) const {
    auto v = hn::Sub(row.G(d, c), hn::Set(d, mean_g));
    v = hn::NegMulAdd(row.H(d, c), hn::Set(d, mean_gh), v);
    v = hn::Mul(v, hn::Set(d, row.rstd));
    if (row.extra != nullptr) v = hn::Add(v, Read(d, row.extra + c));
    Write(v, d, row.dx + c);
  }
};

// Rows [first, last): the input gradient, and the block's shares of the gradients of weight and bias, overwritten, in dw and db (C).
template <typename T>
void LayerNormBackwardOf(const mt_layernorm_args& args, int64_t first, int64_t last, float* dw,
                         float* db) {
  const int64_t C = args.columns;
  std::fill_n(dw, C, 0.0f);
  std::fill_n(db, C, 0.0f);
  for (int64_t i = first; i < last; ++i) {
    const Gradient<T> row = {static_cast<const T*>(args.sum) + i * C,
                             static_cast<const T*>(args.output_gradient) + i * C,
                             static_cast<const T*>(args.weight),
                             args.residual_gradient != nullptr
                                 ? static_cast<const T*>(args.residual_gradient) + i * C
                                 : nullptr,
                             static_cast<const float*>(args.mean)[i],
                             static_cast<const float*>(args.rstd)[i],
                             static_cast<T*>(args.input_gradient) + i * C,
                             dw,
                             db};
    const double columns = static_cast<double>(C);
    const double mean_g = SumOver(C, GBody<T>{row}) / columns;
    const double mean_gh = SumOver(C, GHBody<T>{row}) / columns;
    ForEach(0, C, InputBody<T>{row, static_cast<float>(mean_g), static_cast<float>(mean_gh)});
  }
}

void LayerNormBackwardRows(const mt_layernorm_args& args, int64_t first, int64_t last, float* dw,
                           float* db) {
  if (args.dtype == MT_BF16) return LayerNormBackwardOf<Bf16>(args, first, last, dw, db);
  LayerNormBackwardOf<float>(args, first, last, dw, db);
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mt::cpu {
HWY_EXPORT(LayerNormForwardRows);
HWY_EXPORT(LayerNormBackwardRows);

void LayerNormForward(const mt_layernorm_args& args) {
  ParallelRanges(args.rows, 16 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(LayerNormForwardRows)(args, first, last);
  });
  TakeAmax(args.dtype, args.output, args.rows * args.columns, args.amax);
}

namespace {
// At most 64 blocks of at least 16 rows.
int64_t BlockRows(int64_t rows) { return std::max<int64_t>(16, CeilDivide(rows, 64)); }
}  // namespace

int64_t LayerNormBackwardWorkspace(const mt_layernorm_args& args) {
  return 8 * args.columns * CeilDivide(args.rows, BlockRows(args.rows));
}

void LayerNormBackward(const mt_layernorm_args& args) {
  float* partial = static_cast<float*>(args.workspace);  // (blocks, 2, C)
  const int64_t C = args.columns, block_rows = BlockRows(args.rows);
  const int64_t blocks = CeilDivide(args.rows, block_rows);
  ParallelBlocks(blocks, [&](int64_t block) {
    const int64_t first = block * block_rows;
    float* mine = partial + block * 2 * C;
    HWY_DYNAMIC_DISPATCH(LayerNormBackwardRows)
    (args, first, std::min(args.rows, first + block_rows), mine, mine + C);
  });
  const auto add = [&](const float* shares, void* gradient) {
    for (int64_t c = 0; c < C; ++c) {
      double sum = 0;
      for (int64_t block = 0; block < blocks; ++block)
        sum += static_cast<double>(shares[block * 2 * C + c]);
      static_cast<float*>(gradient)[c] += static_cast<float>(sum);
    }
  };
  add(partial, args.weight_gradient);
  add(partial + C, args.bias_gradient);
  TakeAmax(args.dtype, args.input_gradient, args.rows * C, args.amax);
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
