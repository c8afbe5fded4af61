// Causal grouped-query attention, one query row at a time: softmax(scale q k^T) v (Vaswani et al.
// 2017), backward by recomputing the probabilities from lse (Dao 2023, arXiv 2307.08691, algorithm
// 2, without tiles).
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/operations.h"

namespace mt::reference {
namespace {

// Where row (t, b) of head h lies.
struct View {
  int64_t batch, stride, head_dim;
  int64_t At(int64_t t, int64_t b, int64_t h) const {
    return (t * batch + b) * stride + h * head_dim;
  }
};

template <typename T>
double Dot(const T* a, const T* b, int64_t count) {
  double sum = 0;
  for (int64_t j = 0; j < count; ++j) sum += static_cast<double>(a[j]) * static_cast<double>(b[j]);
  return sum;
}

template <typename T>
void Forward(const mt_attention_args& args) {
  const int64_t T_ = args.sequence, d = args.head_dim, group = args.heads / args.kv_heads;
  const View at_q{args.batch, args.q_stride, d}, at_k{args.batch, args.k_stride, d},
      at_v{args.batch, args.v_stride, d}, at_o{args.batch, args.o_stride, d};
  const T *q = static_cast<const T*>(args.q), *k = static_cast<const T*>(args.k),
          *v = static_cast<const T*>(args.v);
  T* o = static_cast<T*>(args.o);
  auto* lse = static_cast<Statistic<T>*>(args.lse);
  double* p = static_cast<double*>(args.workspace);  // (T)
  for (int64_t b = 0; b < args.batch; ++b) {
    for (int64_t h = 0; h < args.heads; ++h) {
      for (int64_t t = 0; t < T_; ++t) {
        const int64_t keys = args.causal ? t + 1 : T_;
        double maximum = -std::numeric_limits<double>::infinity();
        for (int64_t s = 0; s < keys; ++s) {
          p[s] = args.scale * Dot(q + at_q.At(t, b, h), k + at_k.At(s, b, h / group), d);
          maximum = std::max(maximum, p[s]);
        }
        double sum = 0;
        for (int64_t s = 0; s < keys; ++s) sum += p[s] = std::exp(p[s] - maximum);
        for (int64_t j = 0; j < d; ++j) {
          double value = 0;
          for (int64_t s = 0; s < keys; ++s) value += p[s] * v[at_v.At(s, b, h / group) + j];
          o[at_o.At(t, b, h) + j] = static_cast<T>(value / sum);
        }
        lse[(b * args.heads + h) * T_ + t] = static_cast<Statistic<T>>(maximum + std::log(sum));
      }
    }
  }
}

// dS = P (dP - rowsum(dO O)); dq = scale dS k, dk = scale dS^T q, dv = P^T dO, summed over the
// query heads of a key head.
template <typename T>
void Backward(const mt_attention_args& args) {
  const int64_t T_ = args.sequence, d = args.head_dim, group = args.heads / args.kv_heads;
  const View at_q{args.batch, args.q_stride, d}, at_k{args.batch, args.k_stride, d},
      at_v{args.batch, args.v_stride, d}, at_o{args.batch, args.o_stride, d},
      at_do{args.batch, args.o_gradient_stride, d}, at_dq{args.batch, args.dq_stride, d},
      at_dk{args.batch, args.dk_stride, d}, at_dv{args.batch, args.dv_stride, d};
  const T *q = static_cast<const T*>(args.q), *k = static_cast<const T*>(args.k),
          *v = static_cast<const T*>(args.v);
  const T* o = static_cast<const T*>(args.o);
  const auto* lse = static_cast<const Statistic<T>*>(args.lse);
  const T* d_o = static_cast<const T*>(args.o_gradient);
  T *dq = static_cast<T*>(args.dq), *dk = static_cast<T*>(args.dk), *dv = static_cast<T*>(args.dv);
  double* k_sum = static_cast<double*>(args.workspace);  // (T, d)
  double* v_sum = k_sum + T_ * d;                        // (T, d)
  double* q_sum = v_sum + T_ * d;                        // (d)
  for (int64_t b = 0; b < args.batch; ++b) {
    for (int64_t kv = 0; kv < args.kv_heads; ++kv) {
      std::fill(k_sum, k_sum + 2 * T_ * d, 0.0);
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        for (int64_t t = 0; t < T_; ++t) {
          const T *q_row = q + at_q.At(t, b, h), *do_row = d_o + at_do.At(t, b, h);
          const double delta = Dot(do_row, o + at_o.At(t, b, h), d);
          const double row_lse = lse[(b * args.heads + h) * T_ + t];
          std::fill(q_sum, q_sum + d, 0.0);
          for (int64_t s = 0; s < (args.causal ? t + 1 : T_); ++s) {
            const T* k_row = k + at_k.At(s, b, kv);
            const double p = std::exp(args.scale * Dot(q_row, k_row, d) - row_lse);
            const double ds = args.scale * p * (Dot(do_row, v + at_v.At(s, b, kv), d) - delta);
            for (int64_t j = 0; j < d; ++j) {
              q_sum[j] += ds * k_row[j];
              k_sum[s * d + j] += ds * q_row[j];
              v_sum[s * d + j] += p * do_row[j];
            }
          }
          for (int64_t j = 0; j < d; ++j) dq[at_dq.At(t, b, h) + j] = static_cast<T>(q_sum[j]);
        }
      }
      for (int64_t s = 0; s < T_; ++s) {
        for (int64_t j = 0; j < d; ++j) {
          dk[at_dk.At(s, b, kv) + j] = static_cast<T>(k_sum[s * d + j]);
          dv[at_dv.At(s, b, kv) + j] = static_cast<T>(v_sum[s * d + j]);
        }
      }
    }
  }
}

}  // namespace

void AttentionForward(const mt_attention_args& args) {
  WithType(args.dtype, [&](auto type) { Forward<decltype(type)>(args); });
}

void AttentionBackward(const mt_attention_args& args) {
  WithType(args.dtype, [&](auto type) { Backward<decltype(type)>(args); });
}

}  // namespace mt::reference
