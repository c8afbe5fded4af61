// What lies beside a tokenizer file and tells where documents end: tokenizer_config.json, special_tokens_map.json and
// generation_config.json.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/env.h"
#include "common/status.h"

namespace mt {

struct TokenizerConfig {
  std::string eos_token;          // empty: not told
  std::vector<int32_t> stop_ids;  // generation_config.json's eos_token_id
};

// Of the folder that `path`, a file, lies in; files that are not there tell nothing. INVALID_ARGUMENT: one is there but broken.
absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(Env* env, const std::string& path);

// The id of config.eos_token; else that of a name that published tokenizers use, such as "<|endoftext|>"; else -1.
int32_t EndOfDocument(const TokenizerConfig& config,
                      const absl::flat_hash_map<std::string, int32_t>& special_ids);

}  // namespace mt
