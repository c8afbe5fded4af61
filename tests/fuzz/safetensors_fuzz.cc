// A whole safetensors file. Entries of an accepted file lie one after the other, to its end, and
// can be read.
#include "common/testing/mem_env.h"
#include "tests/fuzz/fuzz.h"
#include "worker/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mt::MemEnv env;
  MT_CHECK_OK(env.NewWritableFile("/f.safetensors", mt::Env::WriteMode::kTruncate)
                  .value()
                  ->Append(mt::FuzzInput(data, size).Rest()));
  const auto reader = mt::SafetensorsReader::Open(&env, "/f.safetensors");
  if (!reader.ok()) return 0;
  uint64_t end = 0;
  std::string bytes;
  for (const mt::SafetensorsEntry& entry : (*reader)->entries()) {
    MT_CHECK(entry.begin == end && entry.end >= entry.begin && entry.end <= size);
    end = entry.end;
    bytes.resize(entry.bytes());
    MT_CHECK_OK((*reader)->Read(entry, 0, entry.bytes(), bytes.data()));
    MT_CHECK((*reader)->Find(entry.name) != nullptr);
  }
  return 0;
}
