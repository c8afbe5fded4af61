// Events that the coordinator has not acknowledged, kept over a crash of the daemon.
//
// File <path>: records `u32 length, u64 XXH3-64 of the payload, payload`, little-endian; the
// payload is a serialized WorkerEvent, or an empty-bodied one that only moves the counters:
// sequence = S acknowledged. A torn or damaged tail (a crash in the middle of a write) is cut off
// at the last whole record; nothing behind it was promised to anyone.
//
// Invariants
//  - Sequences grow, also over restarts, as long as the file lives (a report that was replaced by a
//  newer one leaves a
//    gap). What was synced is never given another number. (A machine crash may lose unsynced tails
//    and so reuse their numbers: the coordinator therefore keeps its high-water mark per
//    incarnation, and a new incarnation starts at zero.)
//  - Pending() is exactly what was appended and not acknowledged, in order.
//  - Bounded: above `limit_bytes` log lines are dropped and counted, of step and rank reports only
//  the newest of a rank are
//    kept; at the next room a line says how many lines are missing. Every other event is always
//    kept: lost exits or shards would be lost truth.
//  - A failed write (disk full) keeps the event in memory and is tried again with the next one.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <tuple>

#include "common/env.h"
#include "mt/v1/worker.pb.h"

namespace mt {

class Spool {
 public:
  // Reads what is there. DATA_LOSS only if the file cannot be read at all.
  static absl::StatusOr<std::unique_ptr<Spool>> Open(Env* env, std::string path,
                                                     int64_t limit_bytes = 16 << 20);

  // Gives the event its sequence and keeps it at the end of Pending() (or drops and counts it).
  // Exits, shards, manifests and other truths are synced before it returns.
  void Append(v1::WorkerEvent event);
  // Forgets everything up to and including `sequence`. A sequence that was never given is ignored.
  void Acknowledge(int64_t sequence);

  const std::deque<v1::WorkerEvent>& Pending() const { return pending_; }
  int64_t next_sequence() const { return next_sequence_; }
  int64_t pending_bytes() const { return pending_bytes_; }
  int64_t dropped_lines() const { return dropped_lines_; }  // since the start

 private:
  Spool(Env* env, std::string path, int64_t limit_bytes)
      : env_(env), path_(std::move(path)), limit_bytes_(limit_bytes) {}
  absl::Status Load();
  absl::Status Begin();
  absl::Status Rewrite();
  bool IsOvergrown() const;
  void Keep(v1::WorkerEvent event);
  bool MakeRoom(const v1::WorkerEvent& event);
  void MarkDrops(const v1::WorkerEvent& event);

  Env* const env_;
  const std::string path_;
  const int64_t limit_bytes_;
  std::unique_ptr<WritableFile>
      file_;  // null after a failed write: the next append rewrites the file
  std::deque<v1::WorkerEvent> pending_;
  int64_t pending_bytes_ = 0;
  int64_t file_bytes_ = 0;
  int64_t next_sequence_ = 1;
  int64_t dropped_lines_ = 0;
  std::map<std::tuple<std::string, int32_t, int32_t>, int64_t> unmarked_drops_;  // lines, per rank
};

}  // namespace mt
