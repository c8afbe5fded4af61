#include "common/spec/model_flops.h"

#include <algorithm>

#include "common/spec/model_traits.h"

namespace mt {
namespace {

double AttentionMatrices(const v1::ModelSpec& m) {
  const int64_t C = m.hidden(), H = m.heads();
  if (!IsMla(m)) return static_cast<double>(C * m.head_dim() * 2 * (H + m.kv_heads()));
  const v1::MlaSpec& a = m.mla();
  const int64_t query = H * KeyHeadDim(m);
  const int64_t queries = a.q_rank() > 0 ? a.q_rank() * (C + query) : C * query;
  return static_cast<double>(queries + C * (a.kv_rank() + a.rope_dim()) +
                             a.kv_rank() * H * (a.nope_dim() + a.v_dim()) + C * H * a.v_dim());
}

// That one token meets in block `layer`.
double FeedForwardMatrices(const v1::ModelSpec& m, int64_t layer) {
  const int64_t C = m.hidden(), matrices = IsGated(m) ? 3 : 2;
  if (!IsMoe(m, layer)) return static_cast<double>(matrices * C * m.ffn());
  const v1::MoeSpec& moe = m.moe();
  return static_cast<double>(C * moe.experts() + 3 * C * moe.top_k() * moe.ffn() +
                             matrices * C * moe.shared_ffn());
}

// Keys that a query of block `layer` sees on the average.
double KeysSeen(const v1::ModelSpec& m, int64_t layer, int64_t sequence_length) {
  const double T = static_cast<double>(sequence_length);
  const int64_t window = WindowOf(m, layer);
  if (window == 0 || window >= sequence_length) return T / 2;
  const double w = static_cast<double>(window);
  return w - w * w / (2 * T);
}

}  // namespace

double ModelFlops(const v1::ModelSpec& m, int64_t sequence_length, int64_t tokens) {
  const double C = static_cast<double>(m.hidden()), head = C * static_cast<double>(m.vocab());
  const double key_and_value = static_cast<double>(m.heads() * (KeyHeadDim(m) + ValueHeadDim(m)));
  double matrices = head, scores = 0;
  for (int64_t layer = 0; layer < m.layers() + MtpLayers(m); ++layer) {
    matrices += AttentionMatrices(m) + FeedForwardMatrices(m, layer);
    if (layer >= m.layers()) matrices += 2 * C * C + head;
    scores += key_and_value * KeysSeen(m, layer, sequence_length);
  }
  return static_cast<double>(tokens) * 6 * (matrices + scores);
}

}  // namespace mt
