#include "worker/data/sample/prefetch.h"

#include <algorithm>

namespace mt {

PrefetchingSource::PrefetchingSource(std::unique_ptr<BatchSource> source, int64_t stride,
                                     size_t depth)
    : source_(std::move(source)), stride_(stride), depth_(depth), reader_([this] { Read(); }) {}

PrefetchingSource::~PrefetchingSource() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  work_.notify_all();
  reader_.join();
}

std::shared_ptr<PrefetchingSource::Entry> PrefetchingSource::NewEntry() {
  auto entry = std::make_shared<Entry>();
  entry->ids = next_ids_;
  for (int64_t& id : next_ids_) id += stride_;
  entry->tokens.resize(entry->ids.size() * places_.tokens);
  entry->loss_mask.resize(entry->ids.size() * places_.loss_mask);
  entry->document_start.resize(entry->ids.size() * places_.document_start);
  return entries_.emplace_back(std::move(entry));
}

void PrefetchingSource::Read() {
  std::unique_lock lock(mutex_);
  while (true) {
    work_.wait(lock, [&] { return stop_ || (!next_ids_.empty() && entries_.size() < depth_); });
    if (stop_) return;
    const std::shared_ptr<Entry> entry = NewEntry();
    lock.unlock();
    absl::Status status = source_->Fetch(entry->ids, {.tokens = entry->tokens,
                                                      .loss_mask = entry->loss_mask,
                                                      .document_start = entry->document_start});
    lock.lock();
    entry->status = std::move(status);
    entry->ready = true;
    done_.notify_all();
  }
}

absl::Status PrefetchingSource::Fetch(std::span<const int64_t> sample_ids, const Batch& batch) {
  if (sample_ids.empty()) return absl::OkStatus();
  const size_t samples = sample_ids.size();
  const Places places = {.tokens = batch.tokens.size() / samples,
                         .loss_mask = batch.loss_mask.size() / samples,
                         .document_start = batch.document_start.size() / samples};
  std::unique_lock lock(mutex_);
  // What comes next, read already or not yet begun.
  const std::vector<int64_t>& next = entries_.empty() ? next_ids_ : entries_.front()->ids;
  const bool expected = places == places_ &&
                        std::equal(sample_ids.begin(), sample_ids.end(), next.begin(), next.end());
  ++(expected ? hits_ : misses_);
  if (!expected) {
    entries_.clear();
    places_ = places;
    next_ids_.assign(sample_ids.begin(), sample_ids.end());
    work_.notify_all();
  }
  done_.wait(lock, [&] { return !entries_.empty(); });
  const std::shared_ptr<Entry> entry = entries_.front();
  done_.wait(lock, [&] { return entry->ready; });
  entries_.pop_front();
  work_.notify_all();
  lock.unlock();
  MT_RETURN_IF_ERROR(entry->status);
  std::copy(entry->tokens.begin(), entry->tokens.end(), batch.tokens.begin());
  std::copy(entry->loss_mask.begin(), entry->loss_mask.end(), batch.loss_mask.begin());
  std::copy(entry->document_start.begin(), entry->document_start.end(),
            batch.document_start.begin());
  return absl::OkStatus();
}

}  // namespace mt
