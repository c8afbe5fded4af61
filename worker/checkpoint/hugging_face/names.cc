#include "worker/checkpoint/hugging_face/names.h"

#include <map>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "common/spec/model_traits.h"

namespace mt {
namespace {

// A parameter's name taken apart: "model.layers.3.mlp.experts.5.up_proj.weight" is layer 3, expert 5 and
// "mlp.experts.#.up_proj.weight".
struct ParsedName {
  std::string layer, expert, pattern;
};

ParsedName Parse(absl::string_view name) {
  ParsedName parsed;
  const auto take_number = [&](absl::string_view before, std::string* number) {
    const size_t at = name.find(before);
    if (at == absl::string_view::npos) return;
    const size_t begin = at + before.size(), end = name.find('.', begin);
    *number = std::string(name.substr(begin, end - begin));
  };
  if (absl::StartsWith(name, "model.layers.")) {
    take_number("model.layers.", &parsed.layer);
    take_number("mlp.experts.", &parsed.expert);
    name.remove_prefix(sizeof("model.layers.") + parsed.layer.size());
  }
  parsed.pattern = std::string(name);
  if (!parsed.expert.empty()) {
    parsed.pattern = absl::StrReplaceAll(
        name, {{absl::StrCat("mlp.experts.", parsed.expert, "."), "mlp.experts.#."}});
  }
  return parsed;
}

// How a parameter lies in a tensor.
enum class Layout {
  kSame,
  kTransposed,         // [in, out]
  kPart,               // of q, k, v side by side along the last dimension; matrices as [in, out]
  kFusedGateUp,        // [E, 2 D, C]: gate's rows, then up's
  kFusedDown,          // [E, C, D]
  kInterleavedGateUp,  // [E, C, 2 D]: columns gate, up, gate, up...; biases [E, 2 D]
  kTransposedDown,     // [E, D, C]; biases [E, C]
  kMxfp4GateUp,        // [E, 2 D, C]: rows gate, up, gate, up...
  kMxfp4Down,          // [E, C, D]
};

// # stands for the expert; a layer's prefix (`model.layers.3.`) is written before patterns that are in a block.
struct Rule {
  v1::Architecture architecture;  // UNSPECIFIED: all those whose experts are stored one by one
  const char* parameter;
  const char* tensor;
  Layout layout = Layout::kSame;
};

constexpr auto kMixtral = v1::ARCHITECTURE_MIXTRAL;
constexpr auto kGpt2 = v1::ARCHITECTURE_GPT2;
constexpr auto kGptOss = v1::ARCHITECTURE_GPT_OSS;
constexpr auto kAny = v1::ARCHITECTURE_UNSPECIFIED;

// In order of preference. A parameter that none mentions has the same name and layout there.
constexpr Rule kRules[] = {
    {kGpt2, "model.embed_tokens.weight", "wte.weight"},
    {kGpt2, "model.position_embeddings.weight", "wpe.weight"},
    {kGpt2, "model.norm.weight", "ln_f.weight"},
    {kGpt2, "model.norm.bias", "ln_f.bias"},
    {kGpt2, "input_layernorm.weight", "ln_1.weight"},
    {kGpt2, "input_layernorm.bias", "ln_1.bias"},
    {kGpt2, "self_attn.q_proj.weight", "attn.c_attn.weight", Layout::kPart},
    {kGpt2, "self_attn.k_proj.weight", "attn.c_attn.weight", Layout::kPart},
    {kGpt2, "self_attn.v_proj.weight", "attn.c_attn.weight", Layout::kPart},
    {kGpt2, "self_attn.q_proj.bias", "attn.c_attn.bias", Layout::kPart},
    {kGpt2, "self_attn.k_proj.bias", "attn.c_attn.bias", Layout::kPart},
    {kGpt2, "self_attn.v_proj.bias", "attn.c_attn.bias", Layout::kPart},
    {kGpt2, "self_attn.o_proj.weight", "attn.c_proj.weight", Layout::kTransposed},
    {kGpt2, "self_attn.o_proj.bias", "attn.c_proj.bias"},
    {kGpt2, "post_attention_layernorm.weight", "ln_2.weight"},
    {kGpt2, "post_attention_layernorm.bias", "ln_2.bias"},
    {kGpt2, "mlp.up_proj.weight", "mlp.c_fc.weight", Layout::kTransposed},
    {kGpt2, "mlp.up_proj.bias", "mlp.c_fc.bias"},
    {kGpt2, "mlp.down_proj.weight", "mlp.c_proj.weight", Layout::kTransposed},
    {kGpt2, "mlp.down_proj.bias", "mlp.c_proj.bias"},

    {kMixtral, "mlp.gate.weight", "block_sparse_moe.gate.weight"},
    {kMixtral, "mlp.gate.weight", "mlp.gate.weight"},
    {kMixtral, "mlp.experts.#.gate_proj.weight", "block_sparse_moe.experts.#.w1.weight"},
    {kMixtral, "mlp.experts.#.down_proj.weight", "block_sparse_moe.experts.#.w2.weight"},
    {kMixtral, "mlp.experts.#.up_proj.weight", "block_sparse_moe.experts.#.w3.weight"},

    {kGptOss, "mlp.gate.weight", "mlp.router.weight"},
    {kGptOss, "mlp.gate.bias", "mlp.router.bias"},
    {kGptOss, "mlp.experts.#.gate_proj.weight", "mlp.experts.gate_up_proj",
     Layout::kInterleavedGateUp},
    {kGptOss, "mlp.experts.#.up_proj.weight", "mlp.experts.gate_up_proj",
     Layout::kInterleavedGateUp},
    {kGptOss, "mlp.experts.#.gate_proj.bias", "mlp.experts.gate_up_proj_bias",
     Layout::kInterleavedGateUp},
    {kGptOss, "mlp.experts.#.up_proj.bias", "mlp.experts.gate_up_proj_bias",
     Layout::kInterleavedGateUp},
    {kGptOss, "mlp.experts.#.down_proj.weight", "mlp.experts.down_proj", Layout::kTransposedDown},
    {kGptOss, "mlp.experts.#.down_proj.bias", "mlp.experts.down_proj_bias",
     Layout::kTransposedDown},
    {kGptOss, "mlp.experts.#.gate_proj.weight", "mlp.experts.gate_up_proj", Layout::kMxfp4GateUp},
    {kGptOss, "mlp.experts.#.up_proj.weight", "mlp.experts.gate_up_proj", Layout::kMxfp4GateUp},
    {kGptOss, "mlp.experts.#.down_proj.weight", "mlp.experts.down_proj", Layout::kMxfp4Down},

    {kAny, "mlp.experts.#.gate_proj.weight", "mlp.experts.#.gate_proj.weight"},
    {kAny, "mlp.experts.#.up_proj.weight", "mlp.experts.#.up_proj.weight"},
    {kAny, "mlp.experts.#.down_proj.weight", "mlp.experts.#.down_proj.weight"},
    {kAny, "mlp.experts.#.gate_proj.weight", "mlp.experts.gate_up_proj", Layout::kFusedGateUp},
    {kAny, "mlp.experts.#.up_proj.weight", "mlp.experts.gate_up_proj", Layout::kFusedGateUp},
    {kAny, "mlp.experts.#.down_proj.weight", "mlp.experts.down_proj", Layout::kFusedDown},
};

bool Applies(const Rule& rule, v1::Architecture architecture) {
  return rule.architecture == architecture ||
         (rule.architecture == kAny && architecture != kGptOss && architecture != kGpt2);
}

std::string TensorName(const Rule& rule, const ParsedName& name) {
  const std::string tensor = absl::StrReplaceAll(rule.tensor, {{"#", name.expert}});
  if (rule.architecture == kGpt2) {
    return name.layer.empty() ? absl::StrCat("transformer.", tensor)
                              : absl::StrCat("transformer.h.", name.layer, ".", tensor);
  }
  return name.layer.empty() ? tensor : absl::StrCat("model.layers.", name.layer, ".", tensor);
}

// A matrix of `rows` rows in the rows (or, transposed, columns) from `begin` on, each `step`-th, of the tensor's slice `slice`.
struct Slice {
  int64_t slices = 1, slice = 0;
  int64_t size = 0;  // of the dimension that `rows` rows are chosen from
  int64_t begin = 0, step = 1;
  bool transposed = false;
};

HubView SliceView(const LogicalParameter& p, const Slice& s) {
  HubView view;
  const bool vector = p.shape.size() == 1;
  const int64_t columns = vector ? 1 : p.shape[1];
  view.row_stride = s.transposed ? s.step : s.step * columns;
  view.column_stride = vector || !s.transposed ? 1 : s.size;
  view.first = s.slice * s.size * columns + s.begin * (s.transposed ? 1 : columns);
  if (s.slices > 0) view.shape.push_back(s.slices);
  if (vector) {
    view.shape.push_back(s.size);
  } else if (s.transposed) {
    view.shape.insert(view.shape.end(), {columns, s.size});
  } else {
    view.shape.insert(view.shape.end(), {s.size, columns});
  }
  return view;
}

HubView ViewOf(const v1::ModelSpec& m, const LogicalParameter& p, const ParsedName& name,
               Layout layout) {
  int64_t expert = 0;
  (void)absl::SimpleAtoi(name.expert, &expert);
  const int64_t rows = p.shape[0], experts = m.moe().experts();
  const bool up = absl::StrContains(name.pattern, "up_proj");
  switch (layout) {
    case Layout::kSame:
      return SliceView(p, {.slices = 0, .size = rows});
    case Layout::kTransposed:
      return SliceView(p, {.slices = 0, .size = rows, .transposed = true});
    case Layout::kPart: {
      const int64_t query = m.heads() * m.head_dim(), key = m.kv_heads() * m.head_dim();
      const int64_t begin = absl::StrContains(name.pattern, "q_proj")   ? 0
                            : absl::StrContains(name.pattern, "k_proj") ? query
                                                                        : query + key;
      return SliceView(p,
                       {.slices = 0, .size = query + 2 * key, .begin = begin, .transposed = true});
    }
    case Layout::kFusedGateUp:
      return SliceView(
          p, {.slices = experts, .slice = expert, .size = 2 * rows, .begin = up ? rows : 0});
    case Layout::kInterleavedGateUp:
    case Layout::kMxfp4GateUp:
      return SliceView(p, {.slices = experts,
                           .slice = expert,
                           .size = 2 * rows,
                           .begin = up ? 1 : 0,
                           .step = 2,
                           .transposed = layout == Layout::kInterleavedGateUp});
    case Layout::kFusedDown:
    case Layout::kMxfp4Down:
      return SliceView(p, {.slices = experts, .slice = expert, .size = rows});
    case Layout::kTransposedDown:
      return SliceView(p, {.slices = experts, .slice = expert, .size = rows, .transposed = true});
  }
  return {};
}

// The layer of "model.layers.61.enorm.weight"; -1 if there is none.
int64_t LayerOf(absl::string_view tensor) {
  int64_t layer = -1;
  if (!absl::ConsumePrefix(&tensor, "model.layers.")) return -1;
  return absl::SimpleAtoi(tensor.substr(0, tensor.find('.')), &layer) ? layer : -1;
}

constexpr absl::string_view kCopiedEmbedding = ".embed_tokens.weight",
                            kCopiedHead = ".shared_head.head.weight";

}  // namespace

std::vector<HubView> HubViews(const v1::ModelSpec& model, const LogicalParameter& parameter) {
  const ParsedName name = Parse(parameter.name);
  std::vector<HubView> views;
  const auto add = [&](std::string tensor, Layout layout) {
    HubView view = ViewOf(model, parameter, name, layout);
    view.tensor = std::move(tensor);
    if (layout == Layout::kMxfp4GateUp || layout == Layout::kMxfp4Down)
      view.storage = HubStorage::kMxfp4;
    views.push_back(std::move(view));
  };
  for (const Rule& rule : kRules) {
    if (!Applies(rule, model.architecture()) || name.pattern != rule.parameter) continue;
    std::string tensor = TensorName(rule, name);
    const std::string bare(absl::StripPrefix(tensor, "transformer."));
    const bool has_prefix = bare != tensor;
    add(std::move(tensor), rule.layout);
    if (has_prefix) add(bare, rule.layout);
  }
  if (views.empty()) add(parameter.name, Layout::kSame);
  return views;
}

bool MayBeLeftOut(const v1::ModelSpec& model, absl::string_view tensor) {
  if (absl::EndsWith(tensor, ".rotary_emb.inv_freq") || absl::EndsWith(tensor, "_scale_inv"))
    return true;
  if (model.tie_embeddings() && tensor == kHeadName) return true;
  if (model.architecture() == v1::ARCHITECTURE_GPT2) {
    return absl::EndsWith(tensor, ".attn.bias") || absl::EndsWith(tensor, ".attn.masked_bias");
  }
  // Blocks of multi-token prediction come with copies, and as a whole where the model goes without them.
  if (LayerOf(tensor) < model.layers()) return false;
  return model.architecture() == v1::ARCHITECTURE_DEEPSEEK_V3 &&
         (MtpLayers(model) == 0 || absl::EndsWith(tensor, kCopiedEmbedding) ||
          absl::EndsWith(tensor, kCopiedHead));
}

std::vector<HubTensor> HubTensorsOf(const v1::ModelSpec& model) {
  std::vector<HubTensor> tensors;
  std::map<std::string, size_t> index;
  const auto add = [&](const std::string& name, const LogicalParameter& parameter, HubView view) {
    const auto [it, fresh] = index.emplace(name, tensors.size());
    if (fresh) tensors.push_back({.name = name, .shape = view.shape});
    HubTensor& tensor = tensors[it->second];
    tensor.keeps_float32 = !parameter.trained;
    tensor.parts.push_back({parameter, std::move(view)});
  };
  const std::vector<LogicalParameter> parameters = ParametersOf(model);
  for (const LogicalParameter& parameter : parameters) {
    HubView view = HubViews(model, parameter).front();
    const std::string name = view.tensor;
    add(name, parameter, std::move(view));
  }
  for (int64_t layer = model.layers(); layer < model.layers() + MtpLayers(model); ++layer) {
    const auto copy = [&](absl::string_view name, absl::string_view ending) {
      for (const LogicalParameter& p : parameters) {
        if (p.name == name)
          add(absl::StrCat("model.layers.", layer, ending), p, HubViews(model, p).front());
      }
    };
    copy(kEmbeddingName, kCopiedEmbedding);
    copy(model.tie_embeddings() ? kEmbeddingName : kHeadName, kCopiedHead);
  }
  return tensors;
}

}  // namespace mt
