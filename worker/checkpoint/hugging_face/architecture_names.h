// What Hugging Face calls the architectures.
#pragma once

#include <string>

#include "absl/strings/string_view.h"
#include "mt/v1/spec.pb.h"

namespace mt {

struct ArchitectureName {
  v1::Architecture architecture;
  const char* model_type;  // of config.json
  const char* class_name;  // of its `architectures`
};

inline constexpr ArchitectureName kArchitectureNames[] = {
    {v1::ARCHITECTURE_LLAMA, "llama", "LlamaForCausalLM"},
    {v1::ARCHITECTURE_QWEN2, "qwen2", "Qwen2ForCausalLM"},
    {v1::ARCHITECTURE_QWEN3, "qwen3", "Qwen3ForCausalLM"},
    {v1::ARCHITECTURE_MISTRAL, "mistral", "MistralForCausalLM"},
    {v1::ARCHITECTURE_GPT2, "gpt2", "GPT2LMHeadModel"},
    {v1::ARCHITECTURE_MIXTRAL, "mixtral", "MixtralForCausalLM"},
    {v1::ARCHITECTURE_QWEN3_MOE, "qwen3_moe", "Qwen3MoeForCausalLM"},
    {v1::ARCHITECTURE_DEEPSEEK_V2, "deepseek_v2", "DeepseekV2ForCausalLM"},
    {v1::ARCHITECTURE_DEEPSEEK_V3, "deepseek_v3", "DeepseekV3ForCausalLM"},
    {v1::ARCHITECTURE_GPT_OSS, "gpt_oss", "GptOssForCausalLM"},
};

// Null if there is none.
inline const ArchitectureName* FindModelType(absl::string_view model_type) {
  for (const ArchitectureName& name : kArchitectureNames) {
    if (name.model_type == model_type) return &name;
  }
  return nullptr;
}
inline const ArchitectureName* FindArchitecture(v1::Architecture architecture) {
  for (const ArchitectureName& name : kArchitectureNames) {
    if (name.architecture == architecture) return &name;
  }
  return nullptr;
}
inline std::string AllModelTypes() {
  std::string all;
  for (const ArchitectureName& name : kArchitectureNames)
    all += (all.empty() ? "" : ", ") + std::string(name.model_type);
  return all;
}

}  // namespace mt
