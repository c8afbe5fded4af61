// Sample orders that the ranks of a node share: whoever needs one first builds it, under a lock, into a file; all others map that
// file. Nobody waits for a certain rank, and nothing is shared between nodes.
//
// Invariants: a file's name is the digest of what its arrays are a function of (content, never paths), so that a file that is whole
// is right for ever; it appears by a rename, and ends with a digest of itself that every reader compares before it trusts an entry,
// so that one that is cut off or flipped is removed and built again. Files are never written to once they have their name: removing
// one disturbs no one who has it mapped. What cannot be cached (no space, no permission) is built in memory, with a warning.
//
// The format is in docs/spec/dataset.md, "Index cache". Whoever can write the folder is trusted: it is private to the daemon's user.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "absl/time/time.h"
#include "common/env.h"
#include "common/status.h"
#include "worker/data/sample/index_arrays.h"
#include "worker/data/sample/sample_index.h"

namespace mt {

// Thread-safe; any number of processes.
class IndexCache {
 public:
  struct Options {
    // When files are more than this together, or the disk is full, the oldest go: not below what is asked for now.
    uint64_t max_bytes = uint64_t{64} << 30;
    // How long another process' build of the same order is waited for before it is built in memory. Less than the five minutes in
    // which a rank must have started, by default (fault.start_deadline).
    absl::Duration patience = absl::Minutes(4);
  };
  IndexCache(Env* env, std::string folder) : IndexCache(env, std::move(folder), Options{}) {}
  IndexCache(Env* env, std::string folder, Options options)
      : env_(env), folder_(std::move(folder)), options_(options) {}

  // BuildSampleIndex's result for these lengths and options. Errors are its errors only.
  absl::StatusOr<SampleIndex> SampleIndexOf(const SequenceLengths& lengths,
                                            const SampleIndexOptions& options) const;

  // `build`'s arrays, which must be a function of `key` (at most 4 KiB): from the folder, or built and put there.
  using Build = std::function<absl::StatusOr<IndexArrays>()>;
  absl::StatusOr<IndexArrays> Get(const std::string& key, const Build& build) const;

 private:
  absl::StatusOr<IndexArrays> Load(const std::string& path, const std::string& key) const;
  absl::StatusOr<IndexArrays> BuildFile(const std::string& path, const std::string& key,
                                        const Build& build) const;
  absl::Status Write(const std::string& path, const std::string& key,
                     const IndexArrays& arrays) const;
  void MakeRoom(uint64_t bytes) const;
  bool Remove(const std::string& path, const std::string& lock_path) const;

  Env* const env_;
  const std::string folder_;
  const Options options_;
};

// A file of the cache: its bytes, and arrays that point into them. INVALID_ARGUMENT: of another key or format; DATA_LOSS: damaged.
absl::StatusOr<IndexArrays> ParseIndexFile(std::span<const char> bytes, const std::string& key,
                                           std::shared_ptr<const void> storage);

}  // namespace mt
