// One task per key head of a sequence: it goes over the tiles of queries and adds to dK and dV of all its keys, so that every sum
// has one order. P is recomputed from lse (Dao 2023, arXiv 2307.08691, algorithm 2).
#include <cmath>

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/operations.h"

namespace mt::cpu {
namespace {

struct Shape {
  explicit Shape(const mt_attention_args& args)
      : T(args.sequence),
        d(args.head_dim),
        d_v(mt_attention_v_head_dim(&args)),
        group(args.heads / args.kv_heads),
        positions(TilePositions(args)),
        rows(TileRows(args)) {}
  int64_t T, d, d_v, group, positions, rows;

  int64_t ScratchFloats() const {
    return 2 * Padded(T * d) + 2 * Padded(T * d_v) + 2 * Padded(rows * d) + Padded(rows * d_v) +
           2 * Padded(rows * kScoreStride) + 2 * Padded(rows) + Padded(d_v);
  }
};

// The task of key head kv of sequence b.
class KeyHead {
 public:
  KeyHead(const mt_attention_args& args, const Shape& shape, const Multiplier& multiply, int64_t b,
          int64_t kv, float* scratch)
      : args_(args), shape_(shape), multiply_(multiply), b_(b), kv_(kv) {
    Carver carver{scratch};
    k_ = carver.Take(shape.T * shape.d);
    dk_ = carver.Take(shape.T * shape.d);
    v_ = carver.Take(shape.T * shape.d_v);
    dv_ = carver.Take(shape.T * shape.d_v);
    q_ = carver.Take(shape.rows * shape.d);
    dq_ = carver.Take(shape.rows * shape.d);
    d_o_ = carver.Take(shape.rows * shape.d_v);
    scores_ = carver.Take(shape.rows * kScoreStride);
    d_p_ = carver.Take(shape.rows * kScoreStride);
    delta_ = carver.Take(shape.rows);
    lse_ = carver.Take(shape.rows);
    o_row_ = carver.Take(shape.d_v);
  }

  // sink_sums (group): sums over t of exp(sink - lse) delta; not written without sinks.
  void Run(double* sink_sums) const {
    const int64_t T = shape_.T;
    Rows(args_.k_stride, shape_.d).Pack(args_.k, b_, kv_, 0, T, k_);
    Rows(args_.v_stride, shape_.d_v).Pack(args_.v, b_, kv_, 0, T, v_);
    std::fill(dk_, dk_ + T * shape_.d, 0.0f);
    std::fill(dv_, dv_ + T * shape_.d_v, 0.0f);
    if (args_.sinks != nullptr) std::fill(sink_sums, sink_sums + shape_.group, 0.0);
    for (int64_t first = 0; first < T; first += shape_.positions) {
      const int64_t count = std::min(shape_.positions, T - first);
      Load(first, count);
      if (args_.sinks != nullptr) AddToSinks(count, sink_sums);
      AddKeys(first, count);
      for (int64_t g = 0; g < shape_.group; ++g)
        Rows(args_.dq_stride, shape_.d)
            .Unpack(dq_ + g * count * shape_.d, b_, kv_ * shape_.group + g, first, count, args_.dq);
    }
    Rows(args_.dk_stride, shape_.d).Unpack(dk_, b_, kv_, 0, T, args_.dk);
    Rows(args_.dv_stride, shape_.d_v).Unpack(dv_, b_, kv_, 0, T, args_.dv);
  }

 private:
  HeadRows Rows(int64_t stride, int64_t head_dim) const {
    return {args_.dtype, args_.batch, stride, head_dim};
  }

  // A tile's q, dO, lse and delta = rowsum(dO O).
  void Load(int64_t first, int64_t count) const {
    const int64_t d = shape_.d, d_v = shape_.d_v;
    for (int64_t g = 0; g < shape_.group; ++g) {
      const int64_t head = kv_ * shape_.group + g;
      Rows(args_.q_stride, d).Pack(args_.q, b_, head, first, count, q_ + g * count * d);
      Rows(args_.o_gradient_stride, d_v)
          .Pack(args_.o_gradient, b_, head, first, count, d_o_ + g * count * d_v);
      for (int64_t t = 0; t < count; ++t) {
        const int64_t row = g * count + t;
        Rows(args_.o_stride, d_v).Pack(args_.o, b_, head, first + t, 1, o_row_);
        double dot = 0;
        for (int64_t j = 0; j < d_v; ++j)
          dot += static_cast<double>(o_row_[j]) * d_o_[row * d_v + j];
        delta_[row] = static_cast<float>(dot);
        lse_[row] =
            static_cast<const float*>(args_.lse)[(b_ * args_.heads + head) * shape_.T + first + t];
      }
    }
  }

  void AddToSinks(int64_t count, double* sink_sums) const {
    for (int64_t g = 0; g < shape_.group; ++g) {
      const double sink = Element(args_.dtype, args_.sinks, kv_ * shape_.group + g);
      for (int64_t row = g * count; row < (g + 1) * count; ++row)
        sink_sums[g] += std::exp(sink - lse_[row]) * delta_[row];
    }
  }

  // The tile's part of dK and dV, and its dQ.
  void AddKeys(int64_t first, int64_t count) const {
    const int64_t d = shape_.d, d_v = shape_.d_v, rows = count * shape_.group;
    const float scale = static_cast<float>(args_.scale);
    const int64_t begin = mt_attention_first_key(&args_, b_, first),
                  end = mt_attention_end(&args_, first + count - 1);
    for (int64_t key = begin; key < end; key += kKeyBlock) {
      const int64_t width = std::min(kKeyBlock, end - key);
      const Matrix k = {k_ + key * d, d}, v = {v_ + key * d_v, d_v};
      multiply_('N', 'T', rows, width, d, {q_, d}, k, 0.0f, scores_, kScoreStride);
      multiply_('N', 'T', rows, width, d_v, {d_o_, d_v}, v, 0.0f, d_p_, kScoreStride);
      for (int64_t r = 0; r < rows; ++r)
        ScoreGradientRow(scores_ + r * kScoreStride, d_p_ + r * kScoreStride,
                         KeysOfBlock(args_, b_, first + r % count, key, width), width, scale,
                         lse_[r], delta_[r]);
      const Matrix p = {scores_, kScoreStride}, d_s = {d_p_, kScoreStride};
      multiply_('T', 'N', width, d_v, rows, p, {d_o_, d_v}, 1.0f, dv_ + key * d_v, d_v);
      multiply_('T', 'N', width, d, rows, d_s, {q_, d}, 1.0f, dk_ + key * d, d);
      multiply_('N', 'N', rows, d, width, d_s, k, key > begin ? 1.0f : 0.0f, dq_, d);
    }
  }

  const mt_attention_args& args_;
  const Shape& shape_;
  const Multiplier& multiply_;
  const int64_t b_, kv_;
  float *k_, *dk_;                // (T, d)
  float *v_, *dv_;                // (T, d_v)
  float *q_, *dq_;                // (rows, d)
  float* d_o_;                    // (rows, d_v)
  float *scores_, *d_p_;          // (rows, kScoreStride)
  float *delta_, *lse_, *o_row_;  // (rows), (rows), (d_v)
};

}  // namespace

// Sums of the sinks of every sequence (B, H) in float64, then scratch per thread.
int64_t AttentionBackwardWorkspace(const mt_attention_args& args) {
  return 4 * (2 * Padded(args.batch * args.heads) + Threads() * Shape(args).ScratchFloats());
}

int32_t AttentionBackward(const mt_attention_args& args) {
  const Shape shape(args);
  std::atomic<int> failed{0};
  const Multiplier multiply{&failed};
  double* const sink_sums = static_cast<double*>(args.workspace);
  float* const scratch = static_cast<float*>(args.workspace) + 2 * Padded(args.batch * args.heads);
  ParallelBlocks(args.batch * args.kv_heads, [&](int64_t pair) {
    const int64_t b = pair / args.kv_heads, kv = pair % args.kv_heads;
    const KeyHead task(args, shape, multiply, b, kv,
                       scratch + ThreadNumber() * shape.ScratchFloats());
    task.Run(sink_sums + b * args.heads + kv * shape.group);
  });
  if (args.sinks_gradient != nullptr) {
    auto* const gradient = static_cast<float*>(args.sinks_gradient);
    for (int64_t h = 0; h < args.heads; ++h) {
      double sum = 0;
      for (int64_t b = 0; b < args.batch; ++b) sum += sink_sums[b * args.heads + h];
      gradient[h] = static_cast<float>(gradient[h] - sum);
    }
  }
  return Outcome(failed, MT_OP_ATTENTION_BACKWARD);
}

}  // namespace mt::cpu
