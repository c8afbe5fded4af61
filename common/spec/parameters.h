// The logical parameters of a model: names, global shapes, how the tensor-parallel split cuts them and how they start. Engine,
// planner and checkpoints all read this one list.
//
// Names are Hugging Face's for Llama, and one name for one thing whatever the architecture: GPT-2's c_attn is q_proj, k_proj and
// v_proj here, Mixtral's w1 of expert 3 is mlp.experts.3.gate_proj (worker/checkpoint/hugging_face.h translates). Blocks of
// multi-token prediction are layers from `layers` on, as DeepSeek numbers them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "mt/v1/spec.pb.h"

namespace mt {

struct LogicalParameter {
  std::string name;            // "model.layers.0.self_attn.q_proj.weight"
  std::vector<int64_t> shape;  // [out, in] for matrices
  int split_dimension =
      -1;  // cut over the tensor group: 0 = rows (column-parallel), 1 = columns (row-parallel), -1 = whole
  int64_t layer = -1;        // decoder block, -1 = embedding, positions, final norm, head
  double init_std = 0;       // normal(0, init_std) if not 0
  double init_value = 1;     // else all of it: ones for norm weights, zeros for biases
  bool weight_decay = true;  // false for 1-D tensors
  // Neighbours with the same one lie in memory without a gap, so that one product or one grouped product takes them all.
  std::string group;
  // False: no gradient and no optimizer. The balance of experts (mlp.gate.e_score_correction_bias) follows a rule of its own.
  bool trained = true;
  // Of what every tensor rank has whole: each makes the part of the gradient that is its own heads'.
  bool gradient_by_heads = false;
  uint64_t init_stream = 0;  // of the counter-based generator: a hash of the name

  int64_t Elements() const {
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    return count;
  }
};

// In the order of the forward pass: embedding, blocks, final norm, head (absent when tied). `model` is resolved (no zeros).
std::vector<LogicalParameter> ParametersOf(const v1::ModelSpec& model);
int64_t ParameterCount(const v1::ModelSpec& model);
// Those that one token meets on its way to the main prediction: all but the experts that it did not choose, and multi-token
// prediction. The embedding counts whole, as most publishers count it.
int64_t ActiveParameterCount(const v1::ModelSpec& model);

// Names of parameters outside the blocks.
inline constexpr char kEmbeddingName[] = "model.embed_tokens.weight";
inline constexpr char kPositionName[] = "model.position_embeddings.weight";
inline constexpr char kFinalNormName[] = "model.norm.weight";
inline constexpr char kFinalNormBiasName[] = "model.norm.bias";
inline constexpr char kHeadName[] = "lm_head.weight";

}  // namespace mt
