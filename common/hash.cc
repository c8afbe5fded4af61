#include "common/hash.h"

#include <xxhash.h>

#include <vector>

#include "absl/strings/str_format.h"
#include "common/check.h"

namespace mt {
namespace {

std::string Hex(XXH128_hash_t hash) {
  return absl::StrFormat("%016x%016x", hash.high64, hash.low64);
}

}  // namespace

std::string Xxh3Hex(absl::string_view data) { return Hex(XXH3_128bits(data.data(), data.size())); }

Xxh3Stream::Xxh3Stream() : state_(XXH3_createState()) {
  MT_CHECK(state_ != nullptr);
  XXH3_128bits_reset(static_cast<XXH3_state_t*>(state_));
}
Xxh3Stream::~Xxh3Stream() { XXH3_freeState(static_cast<XXH3_state_t*>(state_)); }
void Xxh3Stream::Update(const void* data, size_t size) {
  XXH3_128bits_update(static_cast<XXH3_state_t*>(state_), data, size);
}
std::string Xxh3Stream::Hex() const {
  return mt::Hex(XXH3_128bits_digest(static_cast<const XXH3_state_t*>(state_)));
}

absl::StatusOr<std::string> Xxh3HexOfFile(Env* env, const std::string& path) {
  MT_ASSIGN_OR_RETURN(const auto file, env->NewRandomAccessFile(path));
  Xxh3Stream hash;
  std::vector<char> buffer(1 << 20);
  for (uint64_t offset = 0;;) {
    MT_ASSIGN_OR_RETURN(const size_t count, file->Read(offset, buffer.size(), buffer.data()));
    if (count == 0) return hash.Hex();
    hash.Update(buffer.data(), count);
    offset += count;
  }
}

}  // namespace mt
