// PREFIX.manifest.json: what is accepted is written and read back the same.
#include "common/testing/mem_env.h"
#include "tests/fuzz/fuzz.h"
#include "worker/data/dataset_manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mt::MemEnv env;
  MT_CHECK_OK(env.CreateDirectories("/d"));
  auto file = env.NewWritableFile("/d/set.manifest.json", mt::Env::WriteMode::kTruncate).value();
  MT_CHECK_OK(file->Append(mt::FuzzInput(data, size).Rest()));
  const auto manifest = mt::ReadDatasetManifest(&env, "/d/set");
  if (!manifest.ok()) return 0;
  MT_CHECK_OK(mt::WriteFileAtomically(&env, mt::DatasetManifestPath("/d/copy"),
                                      mt::DatasetManifestJson(*manifest)));
  const auto copy = mt::ReadDatasetManifest(&env, "/d/copy");
  MT_CHECK_OK(copy.status());
  MT_CHECK(copy->files.num_tokens == manifest->files.num_tokens &&
           copy->tokenizer == manifest->tokenizer &&
           copy->inputs.size() == manifest->inputs.size());
  return 0;
}
