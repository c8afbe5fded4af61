// The contents of an input file from front to back: as they are, or what .gz and .zst unpack to.
//
// Nothing is unpacked further than it is asked for, so that a file that unpacks to more than any disk holds costs no memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "common/env.h"
#include "common/status.h"

namespace mt {

enum class Compression { kNone, kGzip, kZstd };

// One thread's at a time.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Fills `buffer`; fewer than `size` bytes only at the end. DATA_LOSS: a compressed file that is damaged, cut off, or followed by
  // something else; RESOURCE_EXHAUSTED: one that needs a window beyond 128 MiB to unpack. The message names file, byte and remedy.
  virtual absl::StatusOr<size_t> Read(size_t size, char* buffer) = 0;
  // Of the file itself, so far.
  virtual uint64_t file_bytes() const = 0;
  virtual std::string file_xxh3() const = 0;
};

// gzip: any number of members, and zeros behind the last (as tapes leave them); zstd: any number of frames, skippable ones too.
absl::StatusOr<std::unique_ptr<ByteSource>> OpenByteSource(Env* env, const std::string& path,
                                                           Compression compression);

}  // namespace mt
