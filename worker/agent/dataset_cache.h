// A node's cache of distributed datasets: where files lie, what may be believed of them, and what has to go when room is needed.
// Layout and rules: docs/spec/dataset-distribution.md.
//
// Invariants
//  - A dataset's folder is named after its content, so the same content is kept once, whatever it is called in a job.
//  - A file under its final name was whole when it got it. That it still is, is believed only while its size and time of
//    modification are those of the folder's record; without a record it must be digested again.
//  - What a user holds is never removed. What nobody holds goes in the order of its last use.
// Single-threaded, except FindServed.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "common/env.h"
#include "common/status.h"

namespace mt {

struct CachedFile {
  std::string suffix;  // bin, idx or loss
  int64_t bytes = 0;
  std::string digest;  // XXH3-128, 32 hex digits
};
// By suffix.
using DatasetContents = std::map<std::string, CachedFile>;
// XXH3-128 over the lines "SUFFIX BYTES DIGEST".
std::string DatasetKey(const DatasetContents& contents);

class DatasetCache {
 public:
  using User = std::pair<std::string, int32_t>;  // job and generation

  // Reads what is there. `limit_bytes` 0: half of what is free, what the cache holds included, as it was when the cache was first
  // opened so, or as it is now if that is more.
  static absl::StatusOr<std::unique_ptr<DatasetCache>> Open(Env* env, std::string folder,
                                                            int64_t limit_bytes);

  std::string FolderOf(const std::string& key) const { return JoinPath(folder_, key); }
  // What ranks are given in place of the job's prefix.
  std::string PrefixOf(const std::string& key) const { return JoinPath(FolderOf(key), "data"); }
  std::string PathOf(const std::string& key, const std::string& suffix) const {
    return PrefixOf(key) + "." + suffix;
  }

  // Holds these datasets for `user`, and makes room for what is missing of them; or nothing is held. FAILED_PRECONDITION: something is
  // missing of them, and they have more than the limit. RESOURCE_EXHAUSTED: for now other users hold too much, or the disk is full. Messages name sizes and remedy.
  absl::Status Hold(const User& user, const std::map<std::string, DatasetContents>& datasets,
                    absl::Time now);
  void Release(const User& user, absl::Time now);
  // The least recently used dataset that nobody holds is removed; false if there is none.
  bool EvictOne();

  // Whole under its final name, and unchanged since its digest was right.
  bool IsVerified(const std::string& key, const CachedFile& file) const;
  // Its digest was right just now: remembered, and served to other nodes.
  void SetVerified(const std::string& key, const CachedFile& file);
  // Files of the dataset have come, grown or gone.
  void Measure(const std::string& key);

  // Path of a whole file with this digest, or "". Thread-safe.
  std::string FindServed(const std::string& digest) const;

  int64_t limit_bytes() const { return limit_bytes_; }
  int64_t cached_bytes() const;

 private:
  struct Verified {
    CachedFile file;
    int64_t modified_ns = 0;
  };
  struct Dataset {
    int64_t bytes_on_disk = 0;
    int64_t full_bytes = 0;  // of all its files; known while it is held
    int64_t last_use = 0;    // seconds since the epoch
    std::map<std::string, Verified> verified;
    std::set<User> users;
  };
  DatasetCache(Env* env, std::string folder) : env_(env), folder_(std::move(folder)) {}
  absl::Status Load();
  void ReadRecord(const std::string& key, Dataset& dataset);
  void KeepRecord(const std::string& key, const Dataset& dataset);
  absl::Status MakeRoom(int64_t wanted, int64_t missing);
  absl::StatusOr<int64_t> HalfOfTheDisk() const;
  void Serve(const std::string& key, const Dataset& dataset);
  void StopServing(const std::string& key);

  Env* const env_;
  const std::string folder_;
  int64_t limit_bytes_ = 0;
  std::map<std::string, Dataset> datasets_;  // by key
  mutable std::mutex mutex_;
  std::map<std::string, std::pair<std::string, Verified>>
      served_;  // guarded by mutex_; by digest: key
};

}  // namespace mt
