// The threads of a build: they read chunks, encode them, and hand them over in order.
//
// Invariants, all under one mutex:
//  - A file is read by one thread at a time, front to back; a chunk is numbered as it is read. Files are begun in order.
//  - A thread that looks for work takes the first file that has more and that nobody reads from. It never waits while it holds a
//    chunk, but for one case: before a record grows beyond 64 MiB it waits until all before its chunk was taken.
//  - The file that the writer is at may always have one chunk under way. Its chunks and those of later files together hold at most
//    memory_bytes, those of later files at most half of it; a chunk counts from before it is read until the writer asks for the next.
// So the chunk that the writer needs next is always being worked on, or free to be taken by the thread that looks first: no thread
// waits for one behind it, and nothing hangs.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "worker/data/build/dataset_builder.h"
#include "worker/data/build/encoded_chunk.h"

namespace mt {

class BuildPipeline {
 public:
  struct StageTimes {
    absl::Duration read, parse, encode;
  };

  // Begins with `file` at `position`. What is pointed at must outlive the pipeline; `known` may be null.
  BuildPipeline(Env* env, Clock* clock, const RecordEncoderFactory& encoders,
                const BuildOptions& options, TokenType type, size_t file, TextPosition position,
                const DocumentHashes* known);
  // Stops the threads where they are.
  ~BuildPipeline();
  BuildPipeline(const BuildPipeline&) = delete;
  BuildPipeline& operator=(const BuildPipeline&) = delete;

  // The next chunk, in order; after the last file has ended, call it no more. nullopt: none within `patience`. An error is that of
  // the chunk whose turn it is: the same for any number of threads. FAILED_PRECONDITION: the system gives less threads than are asked for.
  absl::StatusOr<std::optional<EncodedChunk>> Next(absl::Duration patience);

  // Of all threads, up to the chunks that were handed over.
  StageTimes times();

 private:
  struct Input {
    std::unique_ptr<ChunkReader> reader;
    bool busy = false;
    bool ended = false;
    int64_t num_read = 0;    // chunks
    uint64_t in_flight = 0;  // bytes
  };
  using Key = std::pair<size_t, int64_t>;  // file, chunk
  struct Result {
    absl::Status status;
    EncodedChunk chunk;
    uint64_t bytes = 0;  // that it counts for
  };

  void Work();
  // Waits for something to read; false when there is nothing more, or the pipeline stops.
  bool Take(Key* key);
  bool MayBegin(size_t file) const;
  absl::Status Read(const Key& key, TextChunk* chunk, EncodedChunk* encoded);
  absl::Status WaitForTurn(const Key& key);

  Env* const env_;
  Clock* const clock_;
  const RecordEncoderFactory& encoders_;
  const BuildOptions& options_;
  TextSourceOptions text_;
  const TokenType type_;
  const size_t first_file_;
  const TextPosition start_;
  const DocumentHashes* const known_;

  std::mutex mutex_;
  std::condition_variable work_;     // something may be read, or it is someone's turn
  std::condition_variable results_;  // something was encoded
  std::vector<Input> inputs_;
  std::map<Key, Result> encoded_;
  size_t first_open_;   // files before it have ended
  Key next_;            // that the writer wants
  uint64_t taken_ = 0;  // bytes of the chunk that the writer has
  uint64_t in_flight_ = 0;
  bool stopping_ = false;
  StageTimes times_;
  absl::Status started_;  // set once, before Next is called
  std::vector<std::thread> threads_;
};

}  // namespace mt
