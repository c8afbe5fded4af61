// The hashes of all documents that a build has kept: what --deduplicate compares.
#pragma once

#include <array>
#include <cstdint>
#include <mutex>
#include <shared_mutex>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/string_view.h"

namespace mt {

// XXH3-128: two of 10^12 different documents are equal in it with probability 10^-15.
struct DocumentHash {
  uint64_t high = 0, low = 0;
  bool operator==(const DocumentHash&) const = default;
  template <typename H>
  friend H AbslHashValue(H h, const DocumentHash& hash) {
    return H::combine(std::move(h), hash.low);
  }
};
DocumentHash HashDocument(absl::string_view record);

// Thread-safe.
class DocumentHashes {
 public:
  // False if it is there already.
  bool Insert(const DocumentHash& hash) {
    Shard& shard = shards_[hash.high % shards_.size()];
    std::lock_guard lock(shard.mutex);
    return shard.hashes.insert(hash).second;
  }
  bool Contains(const DocumentHash& hash) const {
    const Shard& shard = shards_[hash.high % shards_.size()];
    std::shared_lock lock(shard.mutex);
    return shard.hashes.contains(hash);
  }

 private:
  struct Shard {
    mutable std::shared_mutex mutex;
    absl::flat_hash_set<DocumentHash> hashes;
  };
  std::array<Shard, 64> shards_;
};

}  // namespace mt
