// A file of the index cache: the digest of the rest is made right if the first bit says so, or next to nothing would be looked at. Of
// what is accepted, all of every array can be read.
#include "common/hash.h"
#include "tests/fuzz/fuzz.h"
#include "worker/data/sample/index_cache.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mt::FuzzInput input(data, size);
  const bool mend = input.Take<uint8_t>() % 2 == 1;
  std::string file = input.Rest();
  if (mend && file.size() >= 16) {
    const uint64_t whole = file.size() + 32;
    std::memcpy(file.data() + 8, &whole, sizeof(whole));
    file += mt::Xxh3Hex(file);
  }
  const std::string bytes(file);
  const auto arrays = mt::ParseIndexFile({bytes.data(), bytes.size()}, "key", nullptr);
  if (!arrays.ok()) return 0;
  uint64_t sum = 0;
  for (size_t i = 0; i < arrays->size(); ++i) {
    for (const char byte : arrays->bytes(i)) sum += static_cast<uint8_t>(byte);
    MT_CHECK(arrays->bytes(i).size() <= bytes.size());
  }
  MT_CHECK(sum <= 255 * 16 * bytes.size());
  return 0;
}
