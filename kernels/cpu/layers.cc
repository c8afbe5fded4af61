// Embedding, RMSNorm, RoPE and SwiGLU: bound by memory; the residual addition is fused into the
// norm.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/layers.cc"
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

void RmsNormForwardRows(const mt_rmsnorm_args& args, int64_t first, int64_t last) {
  const Full d;
  const int64_t C = args.columns, lanes = static_cast<int64_t>(hn::Lanes(d));
  const float* weight = static_cast<const float*>(args.weight);
  for (int64_t i = first; i < last; ++i) {
    const float* x = static_cast<const float*>(args.x) + i * C;
    const float* residual =
        args.residual != nullptr ? static_cast<const float*>(args.residual) + i * C : nullptr;
    float* output = static_cast<float*>(args.output) + i * C;
    // s goes to `sum` if the caller keeps it, else to `output`, where the second pass finds it.
    float* s = args.sum != nullptr ? static_cast<float*>(args.sum) + i * C : output;
    Vector square0 = hn::Zero(d), square1 = hn::Zero(d);
    double rest = 0;
    int64_t c = 0;
    const auto load = [&](int64_t at) HWY_ATTR {
      const Vector v = hn::LoadU(d, x + at);
      return residual != nullptr ? hn::Add(v, hn::LoadU(d, residual + at)) : v;
    };
    for (; c + 2 * lanes <= C; c += 2 * lanes) {
      const Vector v0 = load(c), v1 = load(c + lanes);
      square0 = hn::MulAdd(v0, v0, square0);
      square1 = hn::MulAdd(v1, v1, square1);
      hn::StoreU(v0, d, s + c);
      hn::StoreU(v1, d, s + c + lanes);
    }
    for (; c < C; ++c) {
      const float v = residual != nullptr ? x[c] + residual[c] : x[c];
      rest += static_cast<double>(v) * v;
      s[c] = v;
    }
    const double square = rest + static_cast<double>(Sum(hn::Add(square0, square1)));
    const float rstd =
        static_cast<float>(1 / std::sqrt(square / static_cast<double>(C) + args.eps));
    static_cast<float*>(args.rstd)[i] = rstd;
    const Vector r = hn::Set(d, rstd);
    for (c = 0; c + lanes <= C; c += lanes) {
      hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, s + c), r), hn::LoadU(d, weight + c)), d, output + c);
    }
    for (; c < C; ++c) output[c] = s[c] * rstd * weight[c];
  }
}

// Rows [first, last): the input gradient, and the block's share of the weight gradient,
// overwritten, in dw (C).
void RmsNormBackwardRows(const mt_rmsnorm_args& args, int64_t first, int64_t last, float* dw) {
  const Full d;
  const int64_t C = args.columns, lanes = static_cast<int64_t>(hn::Lanes(d));
  const float* weight = static_cast<const float*>(args.weight);
  std::fill(dw, dw + C, 0.0f);
  for (int64_t i = first; i < last; ++i) {
    const float* s = static_cast<const float*>(args.sum) + i * C;
    const float* dy = static_cast<const float*>(args.output_gradient) + i * C;
    const float* extra = args.residual_gradient != nullptr
                             ? static_cast<const float*>(args.residual_gradient) + i * C
                             : nullptr;
    float* dx = static_cast<float*>(args.input_gradient) + i * C;
    const float rstd = static_cast<const float*>(args.rstd)[i];
    const Vector r = hn::Set(d, rstd);
    Vector dot = hn::Zero(d);
    double rest = 0;
    int64_t c = 0;
    for (; c + lanes <= C; c += lanes) {
      const Vector sv = hn::LoadU(d, s + c), g = hn::LoadU(d, dy + c);
      dot = hn::MulAdd(hn::Mul(hn::LoadU(d, weight + c), g), sv, dot);
      hn::StoreU(hn::MulAdd(g, hn::Mul(sv, r), hn::LoadU(d, dw + c)), d, dw + c);
    }
    for (; c < C; ++c) {
      rest += static_cast<double>(weight[c]) * dy[c] * s[c];
      dw[c] += dy[c] * (s[c] * rstd);
    }
    const double mean = (rest + static_cast<double>(Sum(dot))) / static_cast<double>(C);
    const float factor = static_cast<float>(static_cast<double>(rstd) * rstd * rstd * mean);
    const Vector f = hn::Set(d, factor);
    for (c = 0; c + lanes <= C; c += lanes) {
      Vector value = hn::Mul(r, hn::Mul(hn::LoadU(d, weight + c), hn::LoadU(d, dy + c)));
      value = hn::NegMulAdd(hn::LoadU(d, s + c), f, value);
      if (extra != nullptr) value = hn::Add(value, hn::LoadU(d, extra + c));
      hn::StoreU(value, d, dx + c);
    }
    for (; c < C; ++c)
      dx[c] = rstd * (weight[c] * dy[c]) - s[c] * factor + (extra != nullptr ? extra[c] : 0.0f);
  }
}

template <class D>
HWY_INLINE void RotatePair(D d, float* a, float* b, const float* cosine, const float* sine,
                           bool inverse) {
  const auto x = hn::LoadU(d, a), y = hn::LoadU(d, b), c = hn::LoadU(d, cosine);
  auto s = hn::LoadU(d, sine);
  if (inverse) s = hn::Neg(s);
  hn::StoreU(hn::NegMulAdd(y, s, hn::Mul(x, c)), d, a);
  hn::StoreU(hn::MulAdd(x, s, hn::Mul(y, c)), d, b);
}

// Rows are (t, b) pairs.
void RopeRows(const mt_rope_args& args, int64_t first, int64_t last) {
  const Full d;
  const One one;
  const int64_t half = args.head_dim / 2, lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t row = first; row < last; ++row) {
    const int64_t position = args.first_position + row / args.batch;
    const float* cosine = static_cast<const float*>(args.cos_sin) + position * args.head_dim;
    const float* sine = cosine + half;
    float* x = static_cast<float*>(args.data) + row * args.row_stride;
    for (int64_t h = 0; h < args.heads; ++h, x += args.head_dim) {
      int64_t j = 0;
      for (; j + lanes <= half; j += lanes)
        RotatePair(d, x + j, x + j + half, cosine + j, sine + j, args.inverse);
      for (; j < half; ++j)
        RotatePair(one, x + j, x + j + half, cosine + j, sine + j, args.inverse);
    }
  }
}

template <class D>
HWY_INLINE void SwigluForwardAt(D d, const float* gate, const float* up, float* output) {
  const auto g = hn::LoadU(d, gate);
  hn::StoreU(hn::Mul(hn::Mul(g, Sigmoid(d, g)), hn::LoadU(d, up)), d, output);
}

void SwigluForwardRows(const mt_swiglu_args& args, int64_t first, int64_t last) {
  const Full d;
  const int64_t D = args.columns, lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = first; i < last; ++i) {
    const float* gate = static_cast<const float*>(args.gate_up) + i * 2 * D;
    float* output = static_cast<float*>(args.output) + i * D;
    int64_t c = 0;
    for (; c + lanes <= D; c += lanes) SwigluForwardAt(d, gate + c, gate + D + c, output + c);
    for (; c < D; ++c) SwigluForwardAt(One(), gate + c, gate + D + c, output + c);
  }
}

template <class D>
HWY_INLINE void SwigluBackwardAt(D d, const float* gate, const float* up, const float* dy,
                                 float* d_gate, float* d_up, float* output) {
  const auto g = hn::LoadU(d, gate), u = hn::LoadU(d, up), grad = hn::LoadU(d, dy);
  const auto one = hn::Set(d, 1.0f);
  const auto sigmoid = Sigmoid(d, g);
  const auto silu = hn::Mul(g, sigmoid);
  // d silu / d g = sigmoid (1 + g (1 - sigmoid))
  const auto slope = hn::Mul(sigmoid, hn::MulAdd(g, hn::Sub(one, sigmoid), one));
  hn::StoreU(hn::Mul(hn::Mul(grad, u), slope), d, d_gate);
  hn::StoreU(hn::Mul(grad, silu), d, d_up);
  if (output != nullptr) hn::StoreU(hn::Mul(silu, u), d, output);
}

void SwigluBackwardRows(const mt_swiglu_args& args, int64_t first, int64_t last) {
  const Full d;
  const int64_t D = args.columns, lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t i = first; i < last; ++i) {
    const float* gate = static_cast<const float*>(args.gate_up) + i * 2 * D;
    const float* dy = static_cast<const float*>(args.output_gradient) + i * D;
    float* d_gate = static_cast<float*>(args.gate_up_gradient) + i * 2 * D;
    float* output = args.output != nullptr ? static_cast<float*>(args.output) + i * D : nullptr;
    int64_t c = 0;
    for (; c + lanes <= D; c += lanes) {
      SwigluBackwardAt(d, gate + c, gate + D + c, dy + c, d_gate + c, d_gate + D + c,
                       output != nullptr ? output + c : nullptr);
    }
    for (; c < D; ++c) {
      SwigluBackwardAt(One(), gate + c, gate + D + c, dy + c, d_gate + c, d_gate + D + c,
                       output != nullptr ? output + c : nullptr);
    }
  }
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mt::cpu {
HWY_EXPORT(RmsNormForwardRows);
HWY_EXPORT(RmsNormBackwardRows);
HWY_EXPORT(RopeRows);
HWY_EXPORT(SwigluForwardRows);
HWY_EXPORT(SwigluBackwardRows);

void EmbeddingForward(const mt_embedding_args& args) {
  const float* table = static_cast<const float*>(args.table);
  float* output = static_cast<float*>(args.output);
  const int64_t C = args.columns;
  ParallelRanges(args.rows, 8 * C, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = args.ids[i] - args.vocab_start;
      if (row >= 0 && row < args.vocab_rows) {
        std::copy_n(table + row * C, C, output + i * C);
      } else {
        std::fill_n(output + i * C, C, 0.0f);
      }
    }
  });
}

// Split by columns, so that every element of the table is added to by one thread, in increasing
// row.
void EmbeddingBackward(const mt_embedding_args& args) {
  constexpr int64_t kColumns = 128;
  const int64_t C = args.columns;
  ParallelBlocks(CeilDivide(C, kColumns), [&](int64_t block) {
    const int64_t first = block * kColumns, width = std::min(kColumns, C - first);
    for (int64_t i = 0; i < args.rows; ++i) {
      const int64_t row = args.ids[i] - args.vocab_start;
      if (row < 0 || row >= args.vocab_rows) continue;
      float* sum = static_cast<float*>(args.table_gradient) + row * C + first;
      const float* gradient = static_cast<const float*>(args.output_gradient) + i * C + first;
      for (int64_t c = 0; c < width; ++c) sum[c] += gradient[c];
    }
  });
}

void RmsNormForward(const mt_rmsnorm_args& args) {
  ParallelRanges(args.rows, 16 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(RmsNormForwardRows)(args, first, last);
  });
}

namespace {
// At most 64 blocks of at least 16 rows.
int64_t RmsNormBlockRows(int64_t rows) { return std::max<int64_t>(16, CeilDivide(rows, 64)); }
}  // namespace

int64_t RmsNormBackwardWorkspace(const mt_rmsnorm_args& args) {
  return 4 * args.columns * CeilDivide(args.rows, RmsNormBlockRows(args.rows));
}

void RmsNormBackward(const mt_rmsnorm_args& args) {
  float* partial = static_cast<float*>(args.workspace);  // (blocks, C)
  const int64_t C = args.columns, block_rows = RmsNormBlockRows(args.rows);
  const int64_t blocks = CeilDivide(args.rows, block_rows);
  ParallelBlocks(blocks, [&](int64_t block) {
    const int64_t first = block * block_rows;
    HWY_DYNAMIC_DISPATCH(RmsNormBackwardRows)
    (args, first, std::min(args.rows, first + block_rows), partial + block * C);
  });
  float* weight_gradient = static_cast<float*>(args.weight_gradient);
  for (int64_t c = 0; c < C; ++c) {
    double sum = 0;
    for (int64_t block = 0; block < blocks; ++block) sum += partial[block * C + c];
    weight_gradient[c] += static_cast<float>(sum);
  }
}

void Rope(const mt_rope_args& args) {
  ParallelRanges(args.sequence * args.batch, 8 * args.heads * args.head_dim,
                 [&](int64_t first, int64_t last) {
                   HWY_DYNAMIC_DISPATCH(RopeRows)(args, first, last);
                 });
}

void SwigluForward(const mt_swiglu_args& args) {
  ParallelRanges(args.rows, 12 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(SwigluForwardRows)(args, first, last);
  });
}

void SwigluBackward(const mt_swiglu_args& args) {
  ParallelRanges(args.rows, 24 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(SwigluBackwardRows)(args, first, last);
  });
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
