// A reader thread ahead of the trainer.
//
// The ids of a rank's micro-batches rise by the same amount from one to the next, also from step to step and while the batch ramps up
// (worker/train/trainer.cc, FetchTokens): so after one Fetch the ids of all later ones are known. They are only a guess: ids that
// were not expected are read at once, and what was read ahead is dropped. An error belongs to the Fetch of its ids alone: what is
// read ahead of the last step fails for nobody.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "worker/train/batch_source.h"

namespace mt {

class PrefetchingSource : public BatchSource {
 public:
  // `source` is called from the reader thread only. `stride`: from the first id of one Fetch to that of the next. `depth`: batches
  // that are held at most; at least 1.
  PrefetchingSource(std::unique_ptr<BatchSource> source, int64_t stride, size_t depth);
  // Waits for the batch that is being read.
  ~PrefetchingSource() override;
  PrefetchingSource(const PrefetchingSource&) = delete;
  PrefetchingSource& operator=(const PrefetchingSource&) = delete;

  absl::Status Fetch(std::span<const int64_t> sample_ids, const Batch& batch) override;
  bool masks_loss() const override { return source_->masks_loss(); }

  // Batches that Fetch found read, or being read, and batches that it had to ask for.
  int64_t hits() const { return hits_; }
  int64_t misses() const { return misses_; }

 private:
  struct Entry {
    std::vector<int64_t> ids;
    std::vector<int32_t> tokens, document_start;
    std::vector<uint8_t> loss_mask;
    absl::Status status;
    bool ready = false;
  };
  // What one sample fills of each span.
  struct Places {
    size_t tokens = 0, loss_mask = 0, document_start = 0;
    bool operator==(const Places&) const = default;
  };

  void Read();
  // The batch behind the newest one.
  std::shared_ptr<Entry> NewEntry();

  const std::unique_ptr<BatchSource> source_;
  const int64_t stride_;
  const size_t depth_;
  std::mutex mutex_;
  std::condition_variable work_, done_;
  // Under the mutex. An entry's buffers are the reader's until it is ready, then the trainer's.
  std::deque<std::shared_ptr<Entry>> entries_;  // in the order they will be asked for
  std::vector<int64_t> next_ids_;               // empty: nothing is known yet
  Places places_;
  bool stop_ = false;
  int64_t hits_ = 0, misses_ = 0;
  std::thread reader_;
};

}  // namespace mt
