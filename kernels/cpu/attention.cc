// Causal grouped-query attention in tiles that stay in the second-level cache (Dao 2023, arXiv
// 2307.08691): products by dnnl_sgemm, soft-max by Highway.
//
// A tile is a block of query positions times all query heads of one key/value head, stacked: about
// 128 rows. It meets the keys up to its last position in blocks of 512: scores, on-line soft-max,
// output. What the mask hides beyond a tile's last position is never computed. Backward recomputes
// the probabilities from lse. The rows of one head lie far apart, often by a power of two, so
// everything is packed before it is multiplied.
//
// Determinism: a forward tile, and in backward a (sequence, key/value head) pair, is computed by
// one thread in a fixed order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention.cc"
#include "hwy/foreach_target.h"
// After foreach_target:
#include <cmath>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace mt::cpu::HWY_NAMESPACE {

// One row of scores against a block of keys, of which the first `visible` count: scores become
// exp(scale score - maximum), zero past `visible` up to `width`. `maximum` and `sum` are carried
// from block to block; returns what earlier sums and outputs have to be multiplied with.
float SoftmaxRow(float* scores, int64_t visible, int64_t width, float scale, float* maximum,
                 float* sum) {
  const Full d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  if (visible <= 0) {
    std::fill(scores, scores + width, 0.0f);
    return 1.0f;
  }
  const Vector lowest = hn::Set(d, std::numeric_limits<float>::lowest());
  const Vector factor = hn::Set(d, scale);
  Vector largest = lowest;
  int64_t c = 0;
  for (; c + lanes <= visible; c += lanes)
    largest = hn::Max(largest, hn::Mul(hn::LoadU(d, scores + c), factor));
  if (c < visible) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(visible - c));
    largest =
        hn::Max(largest, hn::IfThenElse(mask, hn::Mul(hn::LoadU(d, scores + c), factor), lowest));
  }
  const float before = *maximum;
  *maximum = std::max(before, Maximum(largest));
  const Vector m = hn::Set(d, *maximum);
  Vector total = hn::Zero(d);
  for (c = 0; c + lanes <= visible; c += lanes) {
    const Vector p = Exp(d, hn::MulSub(hn::LoadU(d, scores + c), factor, m));
    total = hn::Add(total, p);
    hn::StoreU(p, d, scores + c);
  }
  if (c < visible) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(visible - c));
    const Vector p =
        hn::IfThenElseZero(mask, Exp(d, hn::MulSub(hn::LoadU(d, scores + c), factor, m)));
    total = hn::Add(total, p);
    hn::StoreU(p, d, scores + c);
    c += lanes;
  }
  if (c < width) std::fill(scores + c, scores + width, 0.0f);
  const float rescale = std::isinf(before) ? 0.0f : std::exp(before - *maximum);
  *sum = *sum * rescale + Sum(total);
  return rescale;
}

// scores -> P = exp(scale score - lse); d_p -> dS = scale P (dP - delta); both zero past `visible`.
void ScoreGradientRow(float* scores, float* d_p, int64_t visible, int64_t width, float scale,
                      float lse, float delta) {
  const Full d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const Vector factor = hn::Set(d, scale), l = hn::Set(d, lse), shift = hn::Set(d, delta);
  int64_t c = 0;
  for (; c + lanes <= visible; c += lanes) {
    const Vector p = Exp(d, hn::MulSub(hn::LoadU(d, scores + c), factor, l));
    hn::StoreU(p, d, scores + c);
    hn::StoreU(hn::Mul(hn::Mul(p, factor), hn::Sub(hn::LoadU(d, d_p + c), shift)), d, d_p + c);
  }
  if (c < visible) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(visible - c));
    const Vector p =
        hn::IfThenElseZero(mask, Exp(d, hn::MulSub(hn::LoadU(d, scores + c), factor, l)));
    const Vector ds = hn::Mul(hn::Mul(p, factor), hn::Sub(hn::LoadU(d, d_p + c), shift));
    hn::StoreU(p, d, scores + c);
    hn::StoreU(hn::IfThenElseZero(mask, ds), d, d_p + c);
    c += lanes;
  }
  if (c < width) {
    std::fill(scores + c, scores + width, 0.0f);
    std::fill(d_p + c, d_p + width, 0.0f);
  }
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <dnnl.h>

#include <atomic>

#include "kernels/host/host.h"

namespace mt::cpu {
HWY_EXPORT(SoftmaxRow);
HWY_EXPORT(ScoreGradientRow);

namespace {

constexpr int64_t kKeyBlock = 512;
constexpr int64_t kScoreStride =
    kKeyBlock + 16;  // not a power of two: rows fall into different cache sets

// Query positions per tile: about 128 stacked rows.
int64_t TilePositions(const mt_attention_args& args) {
  return std::max<int64_t>(16, 128 / (args.heads / args.kv_heads));
}
int64_t TileRows(const mt_attention_args& args) {
  return TilePositions(args) * (args.heads / args.kv_heads);
}
int64_t Padded(int64_t floats) { return CeilDivide(floats, 16) * 16; }

// C[m,n] = op(A) op(B) + beta C, on the calling thread (inside a parallel region oneDNN stays on
// it).
struct Multiplier {
  std::atomic<int>* failed;
  void operator()(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k,
                  const float* a, int64_t lda, const float* b, int64_t ldb, float beta, float* c,
                  int64_t ldc) const {
    const dnnl_status_t status =
        dnnl_sgemm(transpose_a, transpose_b, m, n, k, 1.0f, a, lda, b, ldb, beta, c, ldc);
    if (status != dnnl_success) *failed = status;
  }
};

int32_t Outcome(int failed, int32_t operation) {
  if (failed == dnnl_success) return MT_OK;
  return host::Fail(failed == dnnl_out_of_memory ? MT_ERROR_MEMORY : MT_ERROR_DEVICE, operation,
                    "dnnl_sgemm returned %d", failed);
}

// Rows (t, b) of one head, t in [first, first + count), to or from a packed (count, d) in float32.
struct HeadRows {
  int32_t dtype;
  int64_t batch, stride, head_dim;
  int64_t At(int64_t t, int64_t b, int64_t head) const {
    return (t * batch + b) * stride + head * head_dim;
  }
  void Pack(const void* tensor, int64_t b, int64_t head, int64_t first, int64_t count,
            float* packed) const {
    for (int64_t t = 0; t < count; ++t) {
      const int64_t at = At(first + t, b, head);
      if (dtype == MT_BF16) {
        Widen(static_cast<const Bf16*>(tensor) + at, head_dim, packed + t * head_dim);
      } else {
        std::copy_n(static_cast<const float*>(tensor) + at, head_dim, packed + t * head_dim);
      }
    }
  }
  void Unpack(const float* packed, int64_t b, int64_t head, int64_t first, int64_t count,
              void* tensor) const {
    for (int64_t t = 0; t < count; ++t) {
      const int64_t at = At(first + t, b, head);
      if (dtype == MT_BF16) {
        Narrow(packed + t * head_dim, head_dim, static_cast<Bf16*>(tensor) + at);
      } else {
        std::copy_n(packed + t * head_dim, head_dim, static_cast<float*>(tensor) + at);
      }
    }
  }
};

// Hands out pieces of a workspace, 64 bytes aligned relative to its start.
struct Carver {
  float* next;
  float* Take(int64_t floats) {
    float* piece = next;
    next += Padded(floats);
    return piece;
  }
};

int64_t ForwardFloatsPerThread(const mt_attention_args& args) {
  const int64_t rows = TileRows(args);
  return 2 * Padded(rows * args.head_dim) + Padded(rows * kScoreStride) + 2 * Padded(rows);
}

int64_t BackwardFloatsPerThread(const mt_attention_args& args) {
  const int64_t rows = TileRows(args);
  return 4 * Padded(args.sequence * args.head_dim) + 3 * Padded(rows * args.head_dim) +
         2 * Padded(rows * kScoreStride) + 2 * Padded(rows) + Padded(args.head_dim);
}

}  // namespace

// Packed keys and values of all heads, then scratch per thread.
int64_t AttentionForwardWorkspace(const mt_attention_args& args) {
  const int64_t packed = 2 * args.batch * args.kv_heads * Padded(args.sequence * args.head_dim);
  return 4 * (packed + Threads() * ForwardFloatsPerThread(args));
}

int64_t AttentionBackwardWorkspace(const mt_attention_args& args) {
  return 4 * Threads() * BackwardFloatsPerThread(args);
}

int32_t AttentionForward(const mt_attention_args& args) {
  const int64_t T = args.sequence, d = args.head_dim, group = args.heads / args.kv_heads;
  const int64_t positions = TilePositions(args), rows_per_tile = TileRows(args);
  const int64_t pairs = args.batch * args.kv_heads, packed = Padded(T * d),
                tiles = CeilDivide(T, positions);
  const float scale = static_cast<float>(args.scale);
  float* keys = static_cast<float*>(args.workspace);
  float* values = keys + pairs * packed;
  float* scratch = values + pairs * packed;
  std::atomic<int> failed{dnnl_success};
  const Multiplier multiply{&failed};

  ParallelBlocks(pairs, [&](int64_t pair) {
    const int64_t b = pair / args.kv_heads, kv = pair % args.kv_heads;
    HeadRows{args.dtype, args.batch, args.k_stride, d}.Pack(args.k, b, kv, 0, T,
                                                            keys + pair * packed);
    HeadRows{args.dtype, args.batch, args.v_stride, d}.Pack(args.v, b, kv, 0, T,
                                                            values + pair * packed);
  });
  // The longest tiles first, so that threads end together.
  ParallelBlocks(pairs * tiles, [&](int64_t task) {
    const int64_t pair = task % pairs, tile = tiles - 1 - task / pairs;
    const int64_t b = pair / args.kv_heads, kv = pair % args.kv_heads;
    const int64_t first = tile * positions, count = std::min(positions, T - first),
                  rows = count * group;
    const int64_t end = args.causal ? first + count : T;  // keys that some row of the tile sees
    Carver carver{scratch + ThreadNumber() * ForwardFloatsPerThread(args)};
    float* q = carver.Take(rows_per_tile * d);
    float* o = carver.Take(rows_per_tile * d);
    float* scores = carver.Take(rows_per_tile * kScoreStride);
    float* maximum = carver.Take(rows_per_tile);
    float* sum = carver.Take(rows_per_tile);
    for (int64_t g = 0; g < group; ++g) {
      HeadRows{args.dtype, args.batch, args.q_stride, d}.Pack(args.q, b, kv * group + g, first,
                                                              count, q + g * count * d);
    }
    std::fill(maximum, maximum + rows, -std::numeric_limits<float>::infinity());
    std::fill(sum, sum + rows, 0.0f);
    for (int64_t key = 0; key < end; key += kKeyBlock) {
      const int64_t width = std::min(kKeyBlock, end - key);
      multiply('N', 'T', rows, width, d, q, d, keys + pair * packed + key * d, d, 0.0f, scores,
               kScoreStride);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t visible = args.causal ? std::min(width, first + r % count + 1 - key) : width;
        const float rescale = HWY_DYNAMIC_DISPATCH(SoftmaxRow)(scores + r * kScoreStride, visible,
                                                               width, scale, maximum + r, sum + r);
        for (int64_t j = 0; key > 0 && rescale != 1.0f && j < d; ++j) o[r * d + j] *= rescale;
      }
      multiply('N', 'N', rows, d, width, scores, kScoreStride, values + pair * packed + key * d, d,
               key > 0 ? 1.0f : 0.0f, o, d);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const float inverse = 1.0f / sum[r];
      for (int64_t j = 0; j < d; ++j) o[r * d + j] *= inverse;
      const int64_t head = kv * group + r / count;
      static_cast<float*>(args.lse)[(b * args.heads + head) * T + first + r % count] =
          maximum[r] + std::log(sum[r]);
    }
    for (int64_t g = 0; g < group; ++g) {
      HeadRows{args.dtype, args.batch, args.o_stride, d}.Unpack(
          o + g * count * d, b, kv * group + g, first, count, args.o);
    }
  });
  return Outcome(failed, MT_OP_ATTENTION_FORWARD);
}

int32_t AttentionBackward(const mt_attention_args& args) {
  const int64_t T = args.sequence, d = args.head_dim, group = args.heads / args.kv_heads;
  const int64_t positions = TilePositions(args), rows_per_tile = TileRows(args);
  const float scale = static_cast<float>(args.scale);
  std::atomic<int> failed{dnnl_success};
  const Multiplier multiply{&failed};
  const HeadRows at_o{args.dtype, args.batch, args.o_stride, d},
      at_do{args.dtype, args.batch, args.o_gradient_stride, d};

  ParallelBlocks(args.batch * args.kv_heads, [&](int64_t pair) {
    const int64_t b = pair / args.kv_heads, kv = pair % args.kv_heads;
    Carver carver{static_cast<float*>(args.workspace) +
                  ThreadNumber() * BackwardFloatsPerThread(args)};
    float *k = carver.Take(T * d), *v = carver.Take(T * d), *dk = carver.Take(T * d),
          *dv = carver.Take(T * d);
    float *q = carver.Take(rows_per_tile * d), *d_o = carver.Take(rows_per_tile * d),
          *dq = carver.Take(rows_per_tile * d);
    float *scores = carver.Take(rows_per_tile * kScoreStride),
          *d_p = carver.Take(rows_per_tile * kScoreStride);
    float *delta = carver.Take(rows_per_tile), *lse = carver.Take(rows_per_tile),
          *o_row = carver.Take(d);
    HeadRows{args.dtype, args.batch, args.k_stride, d}.Pack(args.k, b, kv, 0, T, k);
    HeadRows{args.dtype, args.batch, args.v_stride, d}.Pack(args.v, b, kv, 0, T, v);
    std::fill(dk, dk + T * d, 0.0f);
    std::fill(dv, dv + T * d, 0.0f);
    for (int64_t first = 0; first < T; first += positions) {
      const int64_t count = std::min(positions, T - first), rows = count * group;
      const int64_t end = args.causal ? first + count : T;
      for (int64_t g = 0; g < group; ++g) {
        const int64_t head = kv * group + g;
        HeadRows{args.dtype, args.batch, args.q_stride, d}.Pack(args.q, b, head, first, count,
                                                                q + g * count * d);
        at_do.Pack(args.o_gradient, b, head, first, count, d_o + g * count * d);
        for (int64_t t = 0; t < count; ++t) {
          at_o.Pack(args.o, b, head, first + t, 1, o_row);
          double dot = 0;
          for (int64_t j = 0; j < d; ++j)
            dot += static_cast<double>(o_row[j]) * d_o[(g * count + t) * d + j];
          delta[g * count + t] = static_cast<float>(dot);
          lse[g * count + t] =
              static_cast<const float*>(args.lse)[(b * args.heads + head) * T + first + t];
        }
      }
      for (int64_t key = 0; key < end; key += kKeyBlock) {
        const int64_t width = std::min(kKeyBlock, end - key);
        multiply('N', 'T', rows, width, d, q, d, k + key * d, d, 0.0f, scores, kScoreStride);
        multiply('N', 'T', rows, width, d, d_o, d, v + key * d, d, 0.0f, d_p, kScoreStride);
        for (int64_t r = 0; r < rows; ++r) {
          const int64_t visible =
              args.causal ? std::min(width, first + r % count + 1 - key) : width;
          HWY_DYNAMIC_DISPATCH(ScoreGradientRow)
          (scores + r * kScoreStride, d_p + r * kScoreStride, std::max<int64_t>(visible, 0), width,
           scale, lse[r], delta[r]);
        }
        multiply('T', 'N', width, d, rows, scores, kScoreStride, d_o, d, 1.0f, dv + key * d, d);
        multiply('T', 'N', width, d, rows, d_p, kScoreStride, q, d, 1.0f, dk + key * d, d);
        multiply('N', 'N', rows, d, width, d_p, kScoreStride, k + key * d, d, key > 0 ? 1.0f : 0.0f,
                 dq, d);
      }
      for (int64_t g = 0; g < group; ++g) {
        HeadRows{args.dtype, args.batch, args.dq_stride, d}.Unpack(
            dq + g * count * d, b, kv * group + g, first, count, args.dq);
      }
    }
    HeadRows{args.dtype, args.batch, args.dk_stride, d}.Unpack(dk, b, kv, 0, T, args.dk);
    HeadRows{args.dtype, args.batch, args.dv_stride, d}.Unpack(dv, b, kv, 0, T, args.dv);
  });
  return Outcome(failed, MT_OP_ATTENTION_BACKWARD);
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
