// model.safetensors.index.json of a Hugging Face folder. An index that is accepted names files that stay in their folder, and
// opening the folder finds in them what it promises, or says that it does not.
#include "absl/strings/match.h"
#include "common/testing/mem_env.h"
#include "tests/fuzz/fuzz.h"
#include "worker/checkpoint/hugging_face/files.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string json = mt::FuzzInput(data, size).Rest();
  const auto index = mt::ParseHubIndex(json, "index");
  if (!index.ok()) return 0;
  for (const auto& [tensor, file] : *index) {
    MT_CHECK(!file.empty() && file[0] != '.' && file.find('/') == std::string::npos);
    MT_CHECK(absl::EndsWith(file, ".safetensors"));
  }
  // One shard with the first promised tensor; further files are missing.
  const auto& [tensor, file] = *index->begin();
  std::vector<mt::SafetensorsEntry> entries = {{tensor, "F32", {1}}};
  const auto head = mt::BuildSafetensorsHead(entries, {});
  if (!head.ok()) return 0;  // a tensor called __metadata__
  mt::MemEnv env;
  MT_CHECK_OK(env.CreateDirectories("/hub"));
  MT_CHECK_OK(mt::WriteFileAtomically(&env, "/hub/model.safetensors.index.json", json));
  MT_CHECK_OK(mt::WriteFileAtomically(&env, "/hub/" + file, *head + std::string(4, '\0')));
  const auto files = mt::HubFiles::Open(&env, "/hub");
  if (!files.ok()) return 0;
  for (const auto& [name, listed] : *index) MT_CHECK((*files)->Find(name) != nullptr);
  return 0;
}
