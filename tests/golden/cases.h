// The folders beside this file, one small model each (make_golden.py).
#pragma once

namespace mt {

inline constexpr const char* kGoldenCases[] = {"llama",
                                               "llama_tied",
                                               "llama_scaled",
                                               "qwen2",
                                               "qwen3",
                                               "mistral",
                                               "gpt2",
                                               "mixtral",
                                               "qwen3_moe",
                                               "deepseek_v2",
                                               "deepseek_v2_lite",
                                               "deepseek_v3",
                                               "deepseek_v3_mtp",
                                               "gpt_oss"};

// Those with samples of several documents as well.
inline constexpr const char* kPackedGoldenCases[] = {"llama", "qwen3", "gpt2", "deepseek_v3",
                                                     "gpt_oss"};

}  // namespace mt
