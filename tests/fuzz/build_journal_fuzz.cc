// PREFIX.journal.json: what is accepted is written and read back the same.
#include "common/testing/mem_env.h"
#include "tests/fuzz/fuzz.h"
#include "worker/data/build/build_journal.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mt::MemEnv env;
  auto file = env.NewWritableFile("/set.journal.json", mt::Env::WriteMode::kTruncate).value();
  MT_CHECK_OK(file->Append(mt::FuzzInput(data, size).Rest()));
  const auto journal = mt::ReadBuildJournal(&env, "/set");
  if (!journal.ok()) return 0;
  MT_CHECK_OK(mt::WriteBuildJournal(&env, "/copy", **journal));
  const auto copy = mt::ReadBuildJournal(&env, "/copy");
  MT_CHECK_OK(copy.status());
  MT_CHECK((*copy)->file == (*journal)->file && (*copy)->identity == (*journal)->identity &&
           (*copy)->writer.bin.bytes == (*journal)->writer.bin.bytes);
  return 0;
}
