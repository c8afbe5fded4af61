// XXH3-128, the digest of files and tensors: 32 lower-case hex digits.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include "absl/strings/string_view.h"

#include "common/env.h"

namespace mt {

std::string Xxh3Hex(absl::string_view data);
// Streaming form; not thread-safe.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  void Update(const void* data, size_t size);
  std::string Hex() const;

 private:
  void* state_;
};
absl::StatusOr<std::string> Xxh3HexOfFile(Env* env, const std::string& path);

}  // namespace mt
