// Embedding and RMSNorm: bound by memory; the residual addition is fused into the
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

template <typename T>
void RmsNormForwardOf(const mt_rmsnorm_args& args, int64_t first, int64_t last) {
  const Full d;
  const One one;
  const int64_t C = args.columns, lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* weight = static_cast<const T*>(args.weight);
  for (int64_t i = first; i < last; ++i) {
    const T* x = static_cast<const T*>(args.x) + i * C;
    const T* residual =
        args.residual != nullptr ? static_cast<const T*>(args.residual) + i * C : nullptr;
    T* output = static_cast<T*>(args.output) + i * C;
    // s goes to `sum` if the caller keeps it, else to `output`, where the second pass finds it.
    T* s = args.sum != nullptr ? static_cast<T*>(args.sum) + i * C : output;
    Vector square0 = hn::Zero(d), square1 = hn::Zero(d);
    double rest = 0;
    int64_t c = 0;
    const auto load = [&](auto tag, int64_t at) HWY_ATTR {
      const auto v = Read(tag, x + at);
      return residual != nullptr ? Rounded<T>(tag, hn::Add(v, Read(tag, residual + at))) : v;
    };
    for (; c + 2 * lanes <= C; c += 2 * lanes) {
      const Vector v0 = load(d, c), v1 = load(d, c + lanes);
      square0 = hn::MulAdd(v0, v0, square0);
      square1 = hn::MulAdd(v1, v1, square1);
      Write(v0, d, s + c);
      Write(v1, d, s + c + lanes);
    }
    for (; c < C; ++c) {
      const auto v = load(one, c);
      rest += static_cast<double>(hn::GetLane(v)) * hn::GetLane(v);
      Write(v, one, s + c);
    }
    const double square = rest + static_cast<double>(Sum(hn::Add(square0, square1)));
    const float rstd =
        static_cast<float>(1 / std::sqrt(square / static_cast<double>(C) + args.eps));
    static_cast<float*>(args.rstd)[i] = rstd;
    const auto norm = [&](auto tag, int64_t at) HWY_ATTR {
      const auto v = hn::Mul(Read(tag, s + at), hn::Set(tag, rstd));
      Write(hn::Mul(v, Read(tag, weight + at)), tag, output + at);
    };
    for (c = 0; c + lanes <= C; c += lanes) norm(d, c);
    for (; c < C; ++c) norm(one, c);
  }
}

void RmsNormForwardRows(const mt_rmsnorm_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return RmsNormForwardOf<Bf16>(args, first, last);
  RmsNormForwardOf<float>(args, first, last);
}

// Rows [first, last): the input gradient, and the block's share of the weight gradient,
// overwritten, in dw (C).
template <typename T>
void RmsNormBackwardOf(const mt_rmsnorm_args& args, int64_t first, int64_t last, float* dw) {
  const Full d;
  const One one;
  const int64_t C = args.columns, lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* weight = static_cast<const T*>(args.weight);
  std::fill(dw, dw + C, 0.0f);
  for (int64_t i = first; i < last; ++i) {
    const T* s = static_cast<const T*>(args.sum) + i * C;
    const T* dy = static_cast<const T*>(args.output_gradient) + i * C;
    const T* extra = args.residual_gradient != nullptr
                         ? static_cast<const T*>(args.residual_gradient) + i * C
                         : nullptr;
    T* dx = static_cast<T*>(args.input_gradient) + i * C;
    const float rstd = static_cast<const float*>(args.rstd)[i];
    const Vector r = hn::Set(d, rstd);
    Vector dot = hn::Zero(d);
    double rest = 0;
    int64_t c = 0;
    for (; c + lanes <= C; c += lanes) {
      const Vector sv = Read(d, s + c), g = Read(d, dy + c);
      dot = hn::MulAdd(hn::Mul(Read(d, weight + c), g), sv, dot);
      hn::StoreU(hn::MulAdd(g, hn::Mul(sv, r), hn::LoadU(d, dw + c)), d, dw + c);
    }
    for (; c < C; ++c) {
      const float sv = hn::GetLane(Read(one, s + c)), g = hn::GetLane(Read(one, dy + c));
      rest += static_cast<double>(hn::GetLane(Read(one, weight + c))) * g * sv;
      dw[c] += g * (sv * rstd);
    }
    const double mean = (rest + static_cast<double>(Sum(dot))) / static_cast<double>(C);
    const float factor = static_cast<float>(static_cast<double>(rstd) * rstd * rstd * mean);
    const auto gradient = [&](auto tag, int64_t at) HWY_ATTR {
      auto value = hn::Mul(hn::Set(tag, rstd), hn::Mul(Read(tag, weight + at), Read(tag, dy + at)));
      value = hn::NegMulAdd(Read(tag, s + at), hn::Set(tag, factor), value);
      if (extra != nullptr) value = hn::Add(value, Read(tag, extra + at));
      Write(value, tag, dx + at);
    };
    for (c = 0; c + lanes <= C; c += lanes) gradient(d, c);
    for (; c < C; ++c) gradient(one, c);
  }
}

void RmsNormBackwardRows(const mt_rmsnorm_args& args, int64_t first, int64_t last, float* dw) {
  if (args.dtype == MT_BF16) return RmsNormBackwardOf<Bf16>(args, first, last, dw);
  RmsNormBackwardOf<float>(args, first, last, dw);
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mt::cpu {
HWY_EXPORT(RmsNormForwardRows);
HWY_EXPORT(RmsNormBackwardRows);

namespace {

int64_t SizeOf(int32_t dtype) { return dtype == MT_BF16 ? 2 : 4; }

}  // namespace

void EmbeddingForward(const mt_embedding_args& args) {
  const char* table = static_cast<const char*>(args.table);
  char* output = static_cast<char*>(args.output);
  const int64_t row_bytes = args.columns * SizeOf(args.dtype);
  ParallelRanges(args.rows, 2 * row_bytes, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = args.ids[i] - args.vocab_start;
      if (row >= 0 && row < args.vocab_rows) {
        std::copy_n(table + row * row_bytes, row_bytes, output + i * row_bytes);
      } else {
        std::fill_n(output + i * row_bytes, row_bytes, char{0});
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
      Accumulate(args.dtype, args.output_gradient, i * C + first, width, sum);
    }
  });
}

void RmsNormForward(const mt_rmsnorm_args& args) {
  ParallelRanges(args.rows, 16 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(RmsNormForwardRows)(args, first, last);
  });
  TakeAmax(args.dtype, args.output, args.rows * args.columns, args.amax);
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
  TakeAmax(args.dtype, args.input_gradient, args.rows * C, args.amax);
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
