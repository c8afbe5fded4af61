// What a model is made of, asked of its spec: small words, so that nobody spells them out twice. `m` is resolved; fields that
// are not set mean a plain Llama.
#pragma once

#include <algorithm>
#include <cstdint>

#include "mt/v1/spec.pb.h"

namespace mt {

inline constexpr int64_t kMostExperts = 1 << 20;  // of all blocks together

inline bool IsMla(const v1::ModelSpec& m) { return m.mla().kv_rank() > 0; }
inline bool HasExperts(const v1::ModelSpec& m) { return m.moe().experts() > 0; }
// Block `layer`; those of multi-token prediction are numbered from layers() on.
inline bool IsMoe(const v1::ModelSpec& m, int64_t layer) {
  return HasExperts(m) && layer >= m.moe().first_dense();
}
inline bool IsGated(const v1::ModelSpec& m) {
  return m.activation() != v1::ModelSpec::ACTIVATION_GELU_TANH &&
         m.activation() != v1::ModelSpec::ACTIVATION_GELU;
}
inline bool HasLayerNorm(const v1::ModelSpec& m) { return m.norm() == v1::ModelSpec::NORM_LAYER; }
inline bool HasLearnedPositions(const v1::ModelSpec& m) {
  return m.position() == v1::ModelSpec::POSITION_LEARNED;
}
// Elements of a query and key head, of a value head, and how many of the first are rotated.
inline int64_t KeyHeadDim(const v1::ModelSpec& m) {
  return IsMla(m) ? m.mla().nope_dim() + m.mla().rope_dim() : m.head_dim();
}
inline int64_t ValueHeadDim(const v1::ModelSpec& m) {
  return IsMla(m) ? m.mla().v_dim() : m.head_dim();
}
inline int64_t RotaryDim(const v1::ModelSpec& m) {
  return HasLearnedPositions(m) ? 0 : IsMla(m) ? m.mla().rope_dim() : m.head_dim();
}
// Keys that a query of block `layer` sees; 0 = all before it.
inline int64_t WindowOf(const v1::ModelSpec& m, int64_t layer) {
  const v1::WindowSpec& w = m.window();
  const int64_t period = std::max<int64_t>(1, w.period());
  return layer >= w.first_layer() && (layer - w.first_layer()) % period == 0 ? w.size() : 0;
}
inline int64_t MtpLayers(const v1::ModelSpec& m) { return m.mtp().layers(); }

// Whether any block has a dense feed-forward. Multi-token prediction's block is numbered after all others.
inline bool HasDense(const v1::ModelSpec& m) { return !IsMoe(m, 0); }

}  // namespace mt
