// Causal grouped-query attention, one query row at a time: softmax(scale q k^T) v (Vaswani et al.
// 2017), backward by recomputing the probabilities from lse (Dao 2023, arXiv 2307.08691, algorithm
// 2, without tiles). Sinks: Xiao et al. 2023, arXiv 2309.17453, learned as in gpt-oss (OpenAI 2025,
// arXiv 2508.10925).
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/abi/attention_shape.h"
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
  const int64_t d = args.head_dim, d_v = mt_attention_v_head_dim(&args),
                group = args.heads / args.kv_heads;
  const View at_q{args.batch, args.q_stride, d}, at_k{args.batch, args.k_stride, d},
      at_v{args.batch, args.v_stride, d_v}, at_o{args.batch, args.o_stride, d_v};
  const T *q = static_cast<const T*>(args.q), *k = static_cast<const T*>(args.k),
          *v = static_cast<const T*>(args.v), *sinks = static_cast<const T*>(args.sinks);
  T* o = static_cast<T*>(args.o);
  auto* lse = static_cast<Statistic<T>*>(args.lse);
  double* p = static_cast<double*>(args.workspace);  // (keys)
  for (int64_t b = 0; b < args.batch; ++b) {
    for (int64_t h = 0; h < args.heads; ++h) {
      for (int64_t t = 0; t < args.sequence; ++t) {
        const int64_t begin = mt_attention_first_key(&args, b, t), end = mt_attention_end(&args, t);
        double maximum = sinks != nullptr ? static_cast<double>(sinks[h])
                                          : -std::numeric_limits<double>::infinity();
        for (int64_t s = begin; s < end; ++s) {
          p[s] = args.scale * Dot(q + at_q.At(t, b, h), k + at_k.At(s, b, h / group), d);
          maximum = std::max(maximum, p[s]);
        }
        double sum = sinks != nullptr ? std::exp(static_cast<double>(sinks[h]) - maximum) : 0;
        for (int64_t s = begin; s < end; ++s) sum += p[s] = std::exp(p[s] - maximum);
        for (int64_t j = 0; j < d_v; ++j) {
          double value = 0;
          for (int64_t s = begin; s < end; ++s) value += p[s] * v[at_v.At(s, b, h / group) + j];
          o[at_o.At(t, b, h) + j] = static_cast<T>(value / sum);
        }
        lse[(b * args.heads + h) * args.sequence + t] =
            static_cast<Statistic<T>>(maximum + std::log(sum));
      }
    }
  }
}

// dS = P (dP - rowsum(dO O)); dq = scale dS k, dk = scale dS^T q, dv = P^T dO, summed over the
// query heads of a key head. A sink is a logit whose value is zero: dP = 0 there, so that its dS is
// -exp(sink - lse) rowsum(dO O).
template <typename T>
void Backward(const mt_attention_args& args) {
  const int64_t T_ = args.sequence, d = args.head_dim, d_v = mt_attention_v_head_dim(&args),
                group = args.heads / args.kv_heads;
  const View at_q{args.batch, args.q_stride, d}, at_k{args.batch, args.k_stride, d},
      at_v{args.batch, args.v_stride, d_v}, at_o{args.batch, args.o_stride, d_v},
      at_do{args.batch, args.o_gradient_stride, d_v}, at_dq{args.batch, args.dq_stride, d},
      at_dk{args.batch, args.dk_stride, d}, at_dv{args.batch, args.dv_stride, d_v};
  const T *q = static_cast<const T*>(args.q), *k = static_cast<const T*>(args.k),
          *v = static_cast<const T*>(args.v), *sinks = static_cast<const T*>(args.sinks);
  const T* o = static_cast<const T*>(args.o);
  const auto* lse = static_cast<const Statistic<T>*>(args.lse);
  const T* d_o = static_cast<const T*>(args.o_gradient);
  T *dq = static_cast<T*>(args.dq), *dk = static_cast<T*>(args.dk), *dv = static_cast<T*>(args.dv);
  double* k_sum = static_cast<double*>(args.workspace);  // (T, d)
  double* v_sum = k_sum + T_ * d;                        // (T, d_v)
  double* q_sum = v_sum + T_ * d_v;                      // (d)
  double* sink_sum = q_sum + d;                          // (heads)
  std::fill(sink_sum, sink_sum + args.heads, 0.0);
  for (int64_t b = 0; b < args.batch; ++b) {
    for (int64_t kv = 0; kv < args.kv_heads; ++kv) {
      std::fill(k_sum, q_sum, 0.0);
      for (int64_t h = kv * group; h < (kv + 1) * group; ++h) {
        for (int64_t t = 0; t < T_; ++t) {
          const T *q_row = q + at_q.At(t, b, h), *do_row = d_o + at_do.At(t, b, h);
          const double delta = Dot(do_row, o + at_o.At(t, b, h), d_v);
          const double row_lse = lse[(b * args.heads + h) * T_ + t];
          std::fill(q_sum, q_sum + d, 0.0);
          const int64_t begin = mt_attention_first_key(&args, b, t),
                        end = mt_attention_end(&args, t);
          for (int64_t s = begin; s < end; ++s) {
            const T* k_row = k + at_k.At(s, b, kv);
            const double p = std::exp(args.scale * Dot(q_row, k_row, d) - row_lse);
            const double ds = args.scale * p * (Dot(do_row, v + at_v.At(s, b, kv), d_v) - delta);
            for (int64_t j = 0; j < d; ++j) {
              q_sum[j] += ds * k_row[j];
              k_sum[s * d + j] += ds * q_row[j];
            }
            for (int64_t j = 0; j < d_v; ++j) v_sum[s * d_v + j] += p * do_row[j];
          }
          if (sinks != nullptr)
            sink_sum[h] -= std::exp(static_cast<double>(sinks[h]) - row_lse) * delta;
          for (int64_t j = 0; j < d; ++j) dq[at_dq.At(t, b, h) + j] = static_cast<T>(q_sum[j]);
        }
      }
      for (int64_t s = 0; s < T_; ++s) {
        for (int64_t j = 0; j < d; ++j)
          dk[at_dk.At(s, b, kv) + j] = static_cast<T>(k_sum[s * d + j]);
        for (int64_t j = 0; j < d_v; ++j)
          dv[at_dv.At(s, b, kv) + j] = static_cast<T>(v_sum[s * d_v + j]);
      }
    }
  }
  if (args.sinks_gradient == nullptr) return;
  WithType(args.sinks_gradient_dtype, [&](auto type) {
    using G = decltype(type);
    G* gradient = static_cast<G*>(args.sinks_gradient);
    for (int64_t h = 0; h < args.heads; ++h)
      gradient[h] = static_cast<G>(gradient[h] + sink_sum[h]);
  });
}

}  // namespace

void AttentionForward(const mt_attention_args& args) {
  WithType(args.dtype, [&](auto type) { Forward<decltype(type)>(args); });
}

void AttentionBackward(const mt_attention_args& args) {
  WithType(args.dtype, [&](auto type) { Backward<decltype(type)>(args); });
}

}  // namespace mt::reference
