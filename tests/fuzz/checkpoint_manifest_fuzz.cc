// A checkpoint's manifest: what is accepted is valid, and prints to what reads back the same.
#include "tests/fuzz/fuzz.h"
#include "worker/checkpoint/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto manifest = mt::ManifestFromJson(mt::FuzzInput(data, size).Rest());
  if (!manifest.ok()) return 0;
  const auto json = mt::ManifestToJson(*manifest);
  MT_CHECK_OK(json.status());
  const auto copy = mt::ManifestFromJson(*json);
  MT_CHECK_OK(copy.status());
  MT_CHECK(copy->SerializeAsString() == manifest->SerializeAsString());
  return 0;
}
