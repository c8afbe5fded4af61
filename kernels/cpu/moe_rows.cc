// Rows between tokens and experts, and the heads of latent attention: bound by memory.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/moe_rows.cc"
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

template <typename T>
struct CombineBody {
  const mt_moe_rows_args& args;
  int64_t row;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t c) const {
    T* token = static_cast<T*>(args.tokens) + row * args.columns + c;
    const float* weights = static_cast<const float*>(args.weights);
    auto sum = args.accumulate != 0 ? Read(d, token) : hn::Zero(d);
    for (int64_t i = row * args.top_k; i < (row + 1) * args.top_k; ++i) {
      if (args.position[i] < 0) continue;
      const auto x =
          Read(d, static_cast<const T*>(args.sorted) + args.position[i] * args.columns + c);
      sum = weights != nullptr ? hn::MulAdd(hn::Set(d, weights[i]), x, sum) : hn::Add(sum, x);
    }
    Write(sum, d, token);
  }
};

template <typename T>
void CombineOf(const mt_moe_rows_args& args, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) ForEach(0, args.columns, CombineBody<T>{args, row});
}

void CombineRows(const mt_moe_rows_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return CombineOf<Bf16>(args, first, last);
  CombineOf<float>(args, first, last);
}

// gradient = weight token; returns <token, sorted>. gradient may be sorted.
template <typename T>
float ScaleAndDot(const T* token, const T* sorted, float weight, int64_t count, T* gradient) {
  const Full d;
  const One one;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector dot0 = hn::Zero(d), dot1 = hn::Zero(d);
  double rest = 0;
  int64_t c = 0;
  for (; c + 2 * lanes <= count; c += 2 * lanes) {
    const Vector x0 = Read(d, token + c), x1 = Read(d, token + c + lanes);
    dot0 = hn::MulAdd(x0, Read(d, sorted + c), dot0);
    dot1 = hn::MulAdd(x1, Read(d, sorted + c + lanes), dot1);
    Write(hn::Mul(x0, hn::Set(d, weight)), d, gradient + c);
    Write(hn::Mul(x1, hn::Set(d, weight)), d, gradient + c + lanes);
  }
  for (; c < count; ++c) {
    const auto x = Read(one, token + c);
    rest += static_cast<double>(hn::GetLane(x)) *
            static_cast<double>(hn::GetLane(Read(one, sorted + c)));
    Write(hn::Mul(x, hn::Set(one, weight)), one, gradient + c);
  }
  return static_cast<float>(rest + static_cast<double>(Sum(hn::Add(dot0, dot1))));
}

// Sorted rows [first, last).
template <typename T>
void CombineBackwardOf(const mt_moe_rows_args& args, int64_t first, int64_t last) {
  const int64_t C = args.columns;
  for (int64_t i = first; i < last; ++i) {
    T* gradient = static_cast<T*>(args.sorted_gradient) + i * C;
    const int64_t choice = args.source[i];
    if (choice < 0) {
      std::fill_n(gradient, C, T{0});
      continue;
    }
    static_cast<float*>(args.weight_gradient)[choice] =
        ScaleAndDot(static_cast<const T*>(args.tokens) + choice / args.top_k * C,
                    static_cast<const T*>(args.sorted) + i * C,
                    static_cast<const float*>(args.weights)[choice], C, gradient);
  }
}

void CombineBackwardRows(const mt_moe_rows_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return CombineBackwardOf<Bf16>(args, first, last);
  CombineBackwardOf<float>(args, first, last);
}

// The shared part of the keys: the sum over heads, in order.
template <typename T>
struct SumHeadsBody {
  const T* from;
  int64_t heads, stride;
  T* to;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t j) const {
    auto sum = hn::Zero(d);
    for (int64_t h = 0; h < heads; ++h) sum = hn::Add(sum, Read(d, from + h * stride + j));
    Write(sum, d, to + j);
  }
};

template <typename T>
void SumRopeOf(const mt_mla_expand_args& args, int64_t first, int64_t last) {
  const int64_t width = args.nope_dim + args.rope_dim;
  for (int64_t n = first; n < last; ++n) {
    ForEach(
        0, args.rope_dim,
        SumHeadsBody<T>{static_cast<const T*>(args.key) + n * args.heads * width + args.nope_dim,
                        args.heads, width, static_cast<T*>(args.key_rope) + n * args.rope_dim});
  }
}

void SumRopeRows(const mt_mla_expand_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return SumRopeOf<Bf16>(args, first, last);
  SumRopeOf<float>(args, first, last);
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mt::cpu {
HWY_EXPORT(CombineRows);
HWY_EXPORT(CombineBackwardRows);
HWY_EXPORT(SumRopeRows);

namespace {
int64_t SizeOf(int32_t dtype) { return dtype == MT_BF16 ? 2 : 4; }
}  // namespace

void MoeGather(const mt_moe_rows_args& args) {
  const int64_t row_bytes = args.columns * SizeOf(args.dtype);
  const char* tokens = static_cast<const char*>(args.tokens);
  char* sorted = static_cast<char*>(args.sorted);
  ParallelRanges(args.rows * args.top_k, 2 * row_bytes, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) {
      if (args.source[i] < 0) {
        std::fill_n(sorted + i * row_bytes, row_bytes, char{0});
      } else {
        std::copy_n(tokens + args.source[i] / args.top_k * row_bytes, row_bytes,
                    sorted + i * row_bytes);
      }
    }
  });
}

void MoeCombine(const mt_moe_rows_args& args) {
  ParallelRanges(args.rows, 4 * (args.top_k + 2) * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(CombineRows)(args, first, last);
  });
}

void MoeCombineBackward(const mt_moe_rows_args& args) {
  const int64_t choices = args.rows * args.top_k;
  for (int64_t i = 0; i < choices; ++i) {
    if (args.position[i] < 0) static_cast<float*>(args.weight_gradient)[i] = 0;
  }
  ParallelRanges(choices, 12 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(CombineBackwardRows)(args, first, last);
  });
}

namespace {

// Calls copy(head of kv, head of key, head of value, row's rope), addresses of bytes, for every head of rows [first, last).
template <typename Body>
void ForEachHead(const mt_mla_expand_args& args, const Body& body) {
  const int64_t size = SizeOf(args.dtype), nope = args.nope_dim * size, rope = args.rope_dim * size,
                v = args.v_dim * size;
  ParallelRanges(args.rows, 2 * args.heads * (nope + rope + v), [&](int64_t first, int64_t last) {
    for (int64_t head = first * args.heads; head < last * args.heads; ++head) {
      body(static_cast<char*>(args.kv) + head * (nope + v),
           static_cast<char*>(args.key) + head * (nope + rope),
           static_cast<char*>(args.value) + head * v,
           static_cast<char*>(args.key_rope) + head / args.heads * rope);
    }
  });
}

}  // namespace

void MlaExpandForward(const mt_mla_expand_args& args) {
  const int64_t size = SizeOf(args.dtype), nope = args.nope_dim * size, rope = args.rope_dim * size,
                v = args.v_dim * size;
  ForEachHead(args, [&](const char* kv, char* key, char* value, const char* key_rope) {
    std::copy_n(kv, nope, key);
    std::copy_n(key_rope, rope, key + nope);
    std::copy_n(kv + nope, v, value);
  });
}

void MlaExpandBackward(const mt_mla_expand_args& args) {
  const int64_t size = SizeOf(args.dtype), nope = args.nope_dim * size, v = args.v_dim * size;
  ForEachHead(args, [&](char* kv, const char* key, const char* value, const char*) {
    std::copy_n(key, nope, kv);
    std::copy_n(value, v, kv + nope);
  });
  ParallelRanges(args.rows, args.heads * args.rope_dim * size, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(SumRopeRows)(args, first, last);
  });
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
