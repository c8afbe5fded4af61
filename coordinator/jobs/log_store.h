// The ranks' output as it arrived, per job, numbered. Files under `<directory>/<job id>/`: segments named by the first
// sequence in them, each a run of (u32 little-endian length, LogRecord) entries.
//
// Invariant: a job's sequences are 1, 2, 3, ... in file order, and an entry that Sync() has covered survives a crash. A torn
// end of a segment (crash while writing) is ignored: what was in it had not been acknowledged and comes again. Every start
// of the coordinator begins a new segment, so a torn end is never written behind.
// Lines that a worker sends twice (its offset says so) are stored once. Runs on the coordinator's loop.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "common/env.h"
#include "mt/v1/jobs.pb.h"

namespace mt {

class LogStore {
 public:
  using SubscriptionId = uint64_t;
  struct Filter {
    int rank = 0;
    bool all_ranks = true;
    int attempt = 0;  // 0 = any
    int64_t after_sequence = 0;
  };

  LogStore(Env* env, std::string directory);
  ~LogStore();

  // Numbers and appends one chunk (its `sequence` is set here). `end_offset` is where the chunk ends in the rank's own log
  // file; -1: it is not from there, and is stored always. Returns false without storing when that was stored before.
  // RESOURCE_EXHAUSTED when the disk is full.
  absl::StatusOr<bool> Append(const std::string& job_id, v1::LogChunk chunk, int64_t end_offset);
  // Makes everything appended durable.
  absl::Status Sync();
  // Up to `max_bytes` (at least one chunk if there is any) of chunks that match, in order. Empty = at the present end.
  absl::StatusOr<std::vector<v1::LogChunk>> Read(const std::string& job_id, const Filter& filter,
                                                 size_t max_bytes = 256 << 10);
  // The sequence after which the last `lines` lines that match begin; use it as `after_sequence`.
  absl::StatusOr<int64_t> SequenceBeforeTail(const std::string& job_id, const Filter& filter,
                                             int64_t lines);
  int64_t LastSequence(const std::string& job_id);

  // `callback` runs on the loop after chunks of the job were appended; it then calls Read.
  SubscriptionId Subscribe(const std::string& job_id, std::function<void()> callback);
  void Unsubscribe(SubscriptionId id);
  // Tells the subscribers of every job that changed since the last call.
  void Notify();

 private:
  struct JobLog;
  absl::StatusOr<JobLog*> Open(const std::string& job_id);

  Env* const env_;
  const std::string directory_;
  std::map<std::string, std::unique_ptr<JobLog>> jobs_;
  std::set<std::string> unsynced_, changed_;
  std::map<SubscriptionId, std::pair<std::string, std::function<void()>>> subscriptions_;
  SubscriptionId last_subscription_ = 0;
};

}  // namespace mt
