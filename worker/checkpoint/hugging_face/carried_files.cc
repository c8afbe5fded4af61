#include "worker/checkpoint/hugging_face/carried_files.h"

namespace mt {
namespace {

constexpr uint64_t kMaxFileBytes = uint64_t{1} << 30;
constexpr const char* kFiles[] = {"generation_config.json",
                                  "tokenizer.json",
                                  "tokenizer_config.json",
                                  "tokenizer.model",
                                  "special_tokens_map.json",
                                  "added_tokens.json",
                                  "vocab.json",
                                  "merges.txt",
                                  "chat_template.jinja",
                                  "chat_template.json",
                                  "LICENSE",
                                  "USE_POLICY.md"};

}  // namespace

absl::StatusOr<std::vector<std::string>> CarryFiles(Env* env, const std::string& from,
                                                    const std::string& to, bool config) {
  std::vector<std::string> carried;
  const auto carry = [&](const std::string& name) -> absl::Status {
    if (!Exists(env, JoinPath(from, name))) return absl::OkStatus();
    MT_ASSIGN_OR_RETURN(const std::string contents,
                        ReadFile(env, JoinPath(from, name), kMaxFileBytes));
    MT_RETURN_IF_ERROR(env->CreateDirectories(to));
    MT_RETURN_IF_ERROR(WriteFileAtomically(env, JoinPath(to, name), contents));
    carried.push_back(name);
    return absl::OkStatus();
  };
  for (const char* name : kFiles) MT_RETURN_IF_ERROR(carry(name));
  if (config) MT_RETURN_IF_ERROR(carry("config.json"));
  return carried;
}

}  // namespace mt
