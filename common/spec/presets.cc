#include "common/spec/presets.h"

#include <google/protobuf/text_format.h>

#include "absl/strings/match.h"
#include "absl/strings/str_replace.h"
#include "common/check.h"
#include "common/spec/yaml.h"

namespace mt {
namespace {

struct Preset {
  const char* name;
  const char* family;  // what its sizes have in common
  const char* sizes;
};

// Radford et al. 2019; huggingface.co/openai-community/gpt2*.
constexpr char kGpt2[] = "architecture: ARCHITECTURE_GPT2 vocab: 50257 max_positions: 1024";
// Brown et al. 2020 (arXiv 2005.14165), table 2.1, with attention to every position in every block. Its 1.3B has 24 heads of 128
// and its 13B a width of 5140, which do not go with its other columns: 16 heads and 5120 here.
constexpr char kGpt3[] = "architecture: ARCHITECTURE_GPT2 vocab: 50257 max_positions: 2048";
constexpr char kLlama2[] = "architecture: ARCHITECTURE_LLAMA vocab: 32000 max_positions: 4096";
constexpr char kLlama3[] =
    "architecture: ARCHITECTURE_LLAMA vocab: 128256 max_positions: 8192 rope_theta: 500000 "
    "kv_heads: 8";
constexpr char kLlama31[] =
    "architecture: ARCHITECTURE_LLAMA vocab: 128256 max_positions: 131072 rope_theta: 500000 "
    "kv_heads: 8 rope { scaling: SCALING_LLAMA3 factor: 8 low_freq_factor: 1 high_freq_factor: 4 "
    "original_max_positions: 8192 }";
constexpr char kLlama32[] =
    "architecture: ARCHITECTURE_LLAMA vocab: 128256 max_positions: 131072 rope_theta: 500000 "
    "kv_heads: 8 tie_embeddings: true rope { scaling: SCALING_LLAMA3 factor: 32 "
    "low_freq_factor: 1 high_freq_factor: 4 original_max_positions: 8192 }";
// Of the base models, not of the instructed ones: 14B and above differ in norm_eps.
constexpr char kQwen25[] = "architecture: ARCHITECTURE_QWEN2 rope_theta: 1000000";
constexpr char kQwen3[] =
    "architecture: ARCHITECTURE_QWEN3 vocab: 151936 max_positions: 40960 rope_theta: 1000000 "
    "norm_eps: 1e-6 kv_heads: 8 head_dim: 128";
constexpr char kMistral[] =
    "architecture: ARCHITECTURE_MISTRAL layers: 32 hidden: 4096 heads: 32 kv_heads: 8 ffn: 14336 "
    "max_positions: 32768";
constexpr char kMixtral[] =
    "architecture: ARCHITECTURE_MIXTRAL vocab: 32000 rope_theta: 1000000 kv_heads: 8 "
    "moe { experts: 8 top_k: 2 balance: BALANCE_BATCH }";
constexpr char kQwen3Moe[] =
    "architecture: ARCHITECTURE_QWEN3_MOE vocab: 151936 max_positions: 40960 rope_theta: 1000000 "
    "norm_eps: 1e-6 kv_heads: 4 head_dim: 128 "
    "moe { experts: 128 top_k: 8 balance: BALANCE_BATCH balance_coefficient: 0.001 }";
// DeepSeek-V2 (arXiv 2405.04434) and its Lite: initial weights as in section 3.1.2 there.
constexpr char kDeepSeekV2[] =
    "architecture: ARCHITECTURE_DEEPSEEK_V2 vocab: 102400 max_positions: 163840 norm_eps: 1e-6 "
    "init_std: 0.006 rope { scaling: SCALING_YARN factor: 40 beta_fast: 32 beta_slow: 1 "
    "original_max_positions: 4096 mscale: 0.707 mscale_all_dim: 0.707 } "
    "mla { kv_rank: 512 nope_dim: 128 rope_dim: 64 v_dim: 128 } "
    "moe { top_k: 6 first_dense: 1 balance_coefficient: 0.001 }";
// DeepSeek-V3 (arXiv 2412.19437), section 4.2.
constexpr char kDeepSeekV3[] =
    "architecture: ARCHITECTURE_DEEPSEEK_V3 vocab: 129280 max_positions: 163840 norm_eps: 1e-6 "
    "init_std: 0.006 rope { scaling: SCALING_YARN factor: 40 beta_fast: 32 beta_slow: 1 "
    "original_max_positions: 4096 mscale: 1 mscale_all_dim: 1 } "
    "mla { kv_rank: 512 q_rank: 1536 nope_dim: 128 rope_dim: 64 v_dim: 128 } "
    "moe { top_k: 8 first_dense: 3 scale: 2.5 groups: 8 top_groups: 4 selection_bias_rate: 0.001 "
    "balance_coefficient: 0.0001 } mtp { layers: 1 }";
constexpr char kGptOss[] =
    "architecture: ARCHITECTURE_GPT_OSS vocab: 201088 max_positions: 131072 rope_theta: 150000 "
    "hidden: 2880 heads: 64 kv_heads: 8 head_dim: 64 window { size: 128 } "
    "rope { scaling: SCALING_YARN factor: 32 beta_fast: 32 beta_slow: 1 truncate: false "
    "original_max_positions: 4096 } moe { top_k: 4 ffn: 2880 }";

constexpr Preset kPresets[] = {
    {"gpt2", kGpt2, "layers: 12 hidden: 768 heads: 12 ffn: 3072"},
    {"gpt2-medium", kGpt2, "layers: 24 hidden: 1024 heads: 16 ffn: 4096"},
    {"gpt2-large", kGpt2, "layers: 36 hidden: 1280 heads: 20 ffn: 5120"},
    {"gpt2-xl", kGpt2, "layers: 48 hidden: 1600 heads: 25 ffn: 6400"},
    {"gpt3-125m", kGpt3, "layers: 12 hidden: 768 heads: 12 ffn: 3072"},
    {"gpt3-350m", kGpt3, "layers: 24 hidden: 1024 heads: 16 ffn: 4096"},
    {"gpt3-760m", kGpt3, "layers: 24 hidden: 1536 heads: 16 ffn: 6144"},
    {"gpt3-1.3b", kGpt3, "layers: 24 hidden: 2048 heads: 16 ffn: 8192"},
    {"gpt3-2.7b", kGpt3, "layers: 32 hidden: 2560 heads: 32 ffn: 10240"},
    {"gpt3-6.7b", kGpt3, "layers: 32 hidden: 4096 heads: 32 ffn: 16384"},
    {"gpt3-13b", kGpt3, "layers: 40 hidden: 5120 heads: 40 ffn: 20480"},
    {"gpt3-175b", kGpt3, "layers: 96 hidden: 12288 heads: 96 ffn: 49152 init_std: 0.006"},
    {"llama2-7b", kLlama2, "layers: 32 hidden: 4096 heads: 32 ffn: 11008"},
    {"llama2-13b", kLlama2, "layers: 40 hidden: 5120 heads: 40 ffn: 13824"},
    {"llama2-70b", kLlama2, "layers: 80 hidden: 8192 heads: 64 kv_heads: 8 ffn: 28672"},
    {"llama3-8b", kLlama3, "layers: 32 hidden: 4096 heads: 32 ffn: 14336"},
    {"llama3-70b", kLlama3, "layers: 80 hidden: 8192 heads: 64 ffn: 28672"},
    {"llama3.1-8b", kLlama31, "layers: 32 hidden: 4096 heads: 32 ffn: 14336"},
    {"llama3.1-70b", kLlama31, "layers: 80 hidden: 8192 heads: 64 ffn: 28672"},
    {"llama3.1-405b", kLlama31, "layers: 126 hidden: 16384 heads: 128 ffn: 53248"},
    {"llama3.2-1b", kLlama32, "layers: 16 hidden: 2048 heads: 32 ffn: 8192"},
    {"llama3.2-3b", kLlama32, "layers: 28 hidden: 3072 heads: 24 ffn: 8192"},
    {"qwen2.5-0.5b", kQwen25,
     "layers: 24 hidden: 896 heads: 14 kv_heads: 2 ffn: 4864 vocab: 151936 norm_eps: 1e-6 "
     "max_positions: 32768 tie_embeddings: true"},
    {"qwen2.5-1.5b", kQwen25,
     "layers: 28 hidden: 1536 heads: 12 kv_heads: 2 ffn: 8960 vocab: 151936 norm_eps: 1e-6 "
     "max_positions: 131072 tie_embeddings: true"},
    {"qwen2.5-3b", kQwen25,
     "layers: 36 hidden: 2048 heads: 16 kv_heads: 2 ffn: 11008 vocab: 151936 norm_eps: 1e-6 "
     "max_positions: 32768 tie_embeddings: true"},
    {"qwen2.5-7b", kQwen25,
     "layers: 28 hidden: 3584 heads: 28 kv_heads: 4 ffn: 18944 vocab: 152064 norm_eps: 1e-6 "
     "max_positions: 131072"},
    {"qwen2.5-14b", kQwen25,
     "layers: 48 hidden: 5120 heads: 40 kv_heads: 8 ffn: 13824 vocab: 152064 norm_eps: 1e-5 "
     "max_positions: 131072"},
    {"qwen2.5-32b", kQwen25,
     "layers: 64 hidden: 5120 heads: 40 kv_heads: 8 ffn: 27648 vocab: 152064 norm_eps: 1e-5 "
     "max_positions: 131072"},
    {"qwen2.5-72b", kQwen25,
     "layers: 80 hidden: 8192 heads: 64 kv_heads: 8 ffn: 29568 vocab: 152064 norm_eps: 1e-5 "
     "max_positions: 131072"},
    {"qwen3-0.6b", kQwen3, "layers: 28 hidden: 1024 heads: 16 ffn: 3072 tie_embeddings: true"},
    {"qwen3-1.7b", kQwen3, "layers: 28 hidden: 2048 heads: 16 ffn: 6144 tie_embeddings: true"},
    {"qwen3-4b", kQwen3, "layers: 36 hidden: 2560 heads: 32 ffn: 9728 tie_embeddings: true"},
    {"qwen3-8b", kQwen3, "layers: 36 hidden: 4096 heads: 32 ffn: 12288"},
    {"qwen3-14b", kQwen3, "layers: 40 hidden: 5120 heads: 40 ffn: 17408"},
    {"qwen3-32b", kQwen3, "layers: 64 hidden: 5120 heads: 64 ffn: 25600"},
    {"mistral-7b-v0.1", kMistral, "vocab: 32000 window { size: 4096 }"},
    {"mistral-7b-v0.3", kMistral, "vocab: 32768 rope_theta: 1000000"},
    {"mixtral-8x7b", kMixtral,
     "layers: 32 hidden: 4096 heads: 32 ffn: 14336 max_positions: 32768 "
     "moe { balance_coefficient: 0.02 }"},
    {"mixtral-8x22b", kMixtral,
     "layers: 56 hidden: 6144 heads: 48 ffn: 16384 max_positions: 65536 "
     "moe { balance_coefficient: 0.001 }"},
    {"qwen3-30b-a3b", kQwen3Moe, "layers: 48 hidden: 2048 heads: 32 ffn: 6144 moe { ffn: 768 }"},
    {"qwen3-235b-a22b", kQwen3Moe,
     "layers: 94 hidden: 4096 heads: 64 ffn: 12288 moe { ffn: 1536 }"},
    {"deepseek-v2-lite", kDeepSeekV2,
     "layers: 27 hidden: 2048 heads: 16 ffn: 10944 "
     "moe { experts: 64 ffn: 1408 shared_ffn: 2816 }"},
    {"deepseek-v2", kDeepSeekV2,
     "layers: 60 hidden: 5120 heads: 128 ffn: 12288 mla { q_rank: 1536 } "
     "moe { experts: 160 ffn: 1536 shared_ffn: 3072 groups: 8 top_groups: 3 scale: 16 }"},
    {"deepseek-v3", kDeepSeekV3,
     "layers: 61 hidden: 7168 heads: 128 ffn: 18432 "
     "moe { experts: 256 ffn: 2048 shared_ffn: 2048 }"},
    {"gpt-oss-20b", kGptOss, "layers: 24 moe { experts: 32 }"},
    {"gpt-oss-120b", kGptOss, "layers: 36 moe { experts: 128 }"},
};

void Merge(const char* text, v1::ModelSpec* model) {
  v1::ModelSpec part;
  const bool parsed = google::protobuf::TextFormat::ParseFromString(text, &part);
  MT_CHECK(parsed) << text;
  model->MergeFrom(part);
}

// NearestWord compares words that are joined by underscores, as keys are.
std::string Underscored(absl::string_view name) { return absl::StrReplaceAll(name, {{"-", "_"}}); }

}  // namespace

bool IsFolderPreset(absl::string_view name) { return absl::StartsWith(name, "hf:"); }

std::vector<std::string> PresetNames() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.push_back(preset.name);
  return names;
}

absl::StatusOr<v1::ModelSpec> PresetModel(absl::string_view name) {
  std::vector<std::string> words;
  for (const Preset& preset : kPresets) {
    words.push_back(Underscored(preset.name));
    if (name != preset.name) continue;
    v1::ModelSpec model;
    Merge(preset.family, &model);
    Merge(preset.sizes, &model);
    return model;
  }
  const std::string nearest = NearestWord(name, words);
  std::string remedy = "`mtctl model list` has all";
  for (const Preset& preset : kPresets) {
    if (Underscored(preset.name) == nearest)
      remedy = absl::StrCat("did you mean `", preset.name, "`? (", remedy, ")");
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no preset is called `", name.substr(0, 40), "`; ", remedy));
}

}  // namespace mt
