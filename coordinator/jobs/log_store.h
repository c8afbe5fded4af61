// The ranks' output as it arrived, per job, numbered. Files under `<directory>/<job id>/`: segments named by the first
// sequence in them, each a run of (u32 little-endian length, LogRecord) entries.
//
// Invariant: a job's sequences are 1, 2, 3, ... in file order, and an entry that Sync() has covered survives a crash. A torn
// end of a segment (crash while writing) is ignored: what was in it had not been acknowledged and comes again. Every start
// of the coordinator begins a new segment, so a torn end is never written behind.
// Beside a segment lies its summary (LogSegmentSummary) once nothing is written to it any more, so that a start reads
// summaries and not the lines; where one is missing or torn the segment is read and its summary written.
// Lines that a worker sends twice (its offset says so) are stored once. Runs on the coordinator's loop, so no call reads more
// than about kScanBytes: who searches comes again.
// What is kept is bounded: per job, the oldest segment goes when there are more bytes than `job_bytes`; and nothing is stored
// while the disk has less than `min_free_bytes`, because the state database shares it and jobs need that one.
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

  struct Limits {
    uint64_t job_bytes = uint64_t{1} << 30;
    uint64_t min_free_bytes = uint64_t{1} << 30;
    uint64_t segment_bytes = 16 << 20;
  };
  // What one Read or one step of a tail's search reads at most, and one entry more.
  static constexpr uint64_t kScanBytes = 1 << 20;
  struct Page {
    std::vector<v1::LogChunk> chunks;
    int64_t scanned_to =
        0;                // everything up to here was looked at: the next read's `after_sequence`
    bool at_end = false;  // and there is no more at present
  };
  // The search for the beginning of the last lines, from the end backwards.
  struct Tail {
    int64_t lines = 0;            // still to be found
    int64_t before_sequence = 0;  // what is left to look at comes before; 0: not begun
    int64_t after_sequence = 0;   // the answer when `done`: use it as `after_sequence`
    bool done = false;
  };

  LogStore(Env* env, std::string directory) : LogStore(env, std::move(directory), Limits()) {}
  LogStore(Env* env, std::string directory, Limits limits);
  ~LogStore();

  // Numbers and appends one chunk (its `sequence` is set here). `end_offset` is where the chunk ends in the rank's own log
  // file; -1: it is not from there, and is stored always. Returns false without storing when that was stored before.
  // RESOURCE_EXHAUSTED when the disk is full or nearly so.
  absl::StatusOr<bool> Append(const std::string& job_id, v1::LogChunk chunk, int64_t end_offset);
  // Makes everything appended durable.
  absl::Status Sync();
  // Up to `max_bytes` (at least one chunk if there is any in what it scans) of chunks that match, in order.
  absl::StatusOr<Page> Read(const std::string& job_id, const Filter& filter,
                            size_t max_bytes = 256 << 10);
  // One step of the search for the last lines that match; again until it is done.
  absl::Status SearchTail(const std::string& job_id, const Filter& filter, Tail& tail);
  int64_t LastSequence(const std::string& job_id);

  // `callback` runs on the loop after chunks of the job were appended; it then calls Read.
  SubscriptionId Subscribe(const std::string& job_id, std::function<void()> callback);
  void Unsubscribe(SubscriptionId id);
  // Runs once per job and process, when its oldest lines are removed for the first time.
  void SetOnDropped(std::function<void(const std::string& job_id, const std::string& message)> f) {
    on_dropped_ = std::move(f);
  }
  // Bytes of entries that were read to answer; what the calls cost.
  int64_t scanned_bytes() const { return scanned_bytes_; }
  // Tells the subscribers of every job that changed since the last call.
  void Notify();

 private:
  struct JobLog;
  absl::StatusOr<JobLog*> Open(const std::string& job_id);
  absl::Status Roll(const std::string& job_id, JobLog& log);
  absl::Status CheckRoom();

  Env* const env_;
  const std::string directory_;
  const Limits limits_;
  std::function<void(const std::string&, const std::string&)> on_dropped_;
  int64_t scanned_bytes_ = 0;
  bool low_on_disk_ = false;
  std::map<std::string, std::unique_ptr<JobLog>> jobs_;
  std::set<std::string> unsynced_, changed_;
  std::map<SubscriptionId, std::pair<std::string, std::function<void()>>> subscriptions_;
  SubscriptionId last_subscription_ = 0;
};

}  // namespace mt
