#include "common/spec/parameters.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace mt {
namespace {

// FNV-1a: stable for ever, since initial weights depend on it.
uint64_t HashOfName(const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const unsigned char c : name) hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

LogicalParameter Matrix(std::string name, int64_t rows, int64_t columns, int split, int64_t layer,
                        double std) {
  LogicalParameter p{.name = std::move(name),
                     .shape = {rows, columns},
                     .split_dimension = split,
                     .layer = layer,
                     .init_std = std};
  p.init_stream = HashOfName(p.name);
  return p;
}

LogicalParameter Norm(std::string name, int64_t size, int64_t layer) {
  LogicalParameter p{
      .name = std::move(name), .shape = {size}, .layer = layer, .weight_decay = false};
  p.init_stream = HashOfName(p.name);
  return p;
}

}  // namespace

std::vector<LogicalParameter> ParametersOf(const v1::ModelSpec& m) {
  const double std = m.init_std(),
               residual_std = std / std::sqrt(2.0 * static_cast<double>(m.layers()));
  const int64_t query = m.heads() * m.head_dim(), key = m.kv_heads() * m.head_dim();
  std::vector<LogicalParameter> all;
  all.push_back(Matrix(kEmbeddingName, m.vocab(), m.hidden(), 0, -1, std));
  for (int64_t layer = 0; layer < m.layers(); ++layer) {
    const std::string at = absl::StrCat("model.layers.", layer, ".");
    all.push_back(Norm(at + "input_layernorm.weight", m.hidden(), layer));
    all.push_back(Matrix(at + "self_attn.q_proj.weight", query, m.hidden(), 0, layer, std));
    all.push_back(Matrix(at + "self_attn.k_proj.weight", key, m.hidden(), 0, layer, std));
    all.push_back(Matrix(at + "self_attn.v_proj.weight", key, m.hidden(), 0, layer, std));
    all.push_back(
        Matrix(at + "self_attn.o_proj.weight", m.hidden(), query, 1, layer, residual_std));
    all.push_back(Norm(at + "post_attention_layernorm.weight", m.hidden(), layer));
    all.push_back(Matrix(at + "mlp.gate_proj.weight", m.ffn(), m.hidden(), 0, layer, std));
    all.push_back(Matrix(at + "mlp.up_proj.weight", m.ffn(), m.hidden(), 0, layer, std));
    all.push_back(Matrix(at + "mlp.down_proj.weight", m.hidden(), m.ffn(), 1, layer, residual_std));
  }
  all.push_back(Norm(kFinalNormName, m.hidden(), -1));
  if (!m.tie_embeddings()) all.push_back(Matrix(kHeadName, m.vocab(), m.hidden(), 0, -1, std));
  return all;
}

int64_t ParameterCount(const v1::ModelSpec& model) {
  int64_t count = 0;
  for (const LogicalParameter& p : ParametersOf(model)) count += p.Elements();
  return count;
}

double ModelFlops(const v1::ModelSpec& m, int64_t sequence_length, int64_t tokens) {
  const double query = static_cast<double>(m.heads() * m.head_dim()),
               key = static_cast<double>(m.kv_heads() * m.head_dim());
  const double hidden = static_cast<double>(m.hidden()), layers = static_cast<double>(m.layers());
  const double matrices =
      layers * (hidden * (2 * query + 2 * key) + 3 * hidden * static_cast<double>(m.ffn())) +
      hidden * static_cast<double>(m.vocab());
  return static_cast<double>(tokens) *
         (6 * matrices + 6 * layers * query * static_cast<double>(sequence_length));
}

}  // namespace mt
