#include "worker/data/tokenize/tokenizer_config.h"

#include <limits>

#include "worker/data/tokenize/json_fields.h"

namespace mt {
namespace {

using simdjson::dom::element;

constexpr uint64_t kMaxFileBytes = uint64_t{64} << 20;

// Of models that were not trained to chat; in the order in which they are looked for.
constexpr absl::string_view kKnownEnds[] = {
    "<|endoftext|>",                            // GPT-2, Qwen, gpt-oss
    "<|end_of_text|>",                          // Llama 3
    "<\uff5cend\u2581of\u2581sentence\uff5c>",  // DeepSeek
    "</s>",                                     // Llama 2, Mistral
    "<eos>",                                    // Gemma
};

// The file's object, if there is such a file; `parser` keeps it.
absl::StatusOr<std::optional<JsonFields>> ReadObject(Env* env, const std::string& path,
                                                     simdjson::dom::parser* parser) {
  if (!Exists(env, path)) return std::nullopt;
  MT_ASSIGN_OR_RETURN(const std::string json, ReadFile(env, path, kMaxFileBytes));
  element document;
  const auto error = parser->parse(json).get(document);
  if (error != simdjson::SUCCESS)
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is not JSON (", simdjson::error_message(error), ")"));
  MT_ASSIGN_OR_RETURN(JsonFields fields, ObjectAt(document, path));
  return fields;
}

// "text", or {"content": "text"}.
absl::StatusOr<std::string> EosToken(const JsonFields& file) {
  const std::optional<element> value = file.Find("eos_token");
  if (!value) return std::string();
  if (!value->is_object()) return file.String("eos_token");
  MT_ASSIGN_OR_RETURN(const JsonFields token, file.Object("eos_token"));
  return token.String("content");
}

// A number, or a list of them.
absl::StatusOr<std::vector<int32_t>> EosIds(const JsonFields& file) {
  std::vector<int32_t> ids;
  const auto add = [&](element value) -> absl::Status {
    int64_t id;
    if (value.get(id) != simdjson::SUCCESS || id < 0 || id > std::numeric_limits<int32_t>::max())
      return absl::InvalidArgumentError(absl::StrCat(file.Place("eos_token_id"), " is no id"));
    ids.push_back(static_cast<int32_t>(id));
    return absl::OkStatus();
  };
  const std::optional<element> value = file.Find("eos_token_id");
  if (!value) return ids;
  if (!value->is_array()) {
    MT_RETURN_IF_ERROR(add(*value));
    return ids;
  }
  MT_ASSIGN_OR_RETURN(const simdjson::dom::array list, file.Array("eos_token_id"));
  for (const element id : list) MT_RETURN_IF_ERROR(add(id));
  return ids;
}

}  // namespace

absl::StatusOr<TokenizerConfig> ReadTokenizerConfig(Env* env, const std::string& path) {
  const size_t slash = path.rfind('/');
  const std::string folder = slash == path.npos ? "." : path.substr(0, slash + 1);
  TokenizerConfig config;
  simdjson::dom::parser parser;
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    if (!config.eos_token.empty()) break;
    MT_ASSIGN_OR_RETURN(const auto file, ReadObject(env, JoinPath(folder, name), &parser));
    if (!file) continue;
    MT_ASSIGN_OR_RETURN(config.eos_token, EosToken(*file));
  }
  MT_ASSIGN_OR_RETURN(const auto file,
                      ReadObject(env, JoinPath(folder, "generation_config.json"), &parser));
  if (!file) return config;
  MT_ASSIGN_OR_RETURN(config.stop_ids, EosIds(*file));
  return config;
}

int32_t EndOfDocument(const TokenizerConfig& config,
                      const absl::flat_hash_map<std::string, int32_t>& special_ids) {
  const auto id_of = [&](absl::string_view name) {
    const auto found = special_ids.find(name);
    return found == special_ids.end() ? -1 : found->second;
  };
  if (const int32_t id = id_of(config.eos_token); id >= 0) return id;
  for (const absl::string_view name : kKnownEnds) {
    if (const int32_t id = id_of(name); id >= 0) return id;
  }
  return -1;
}

}  // namespace mt
