#include "worker/data/build/build_pipeline.h"

#include <algorithm>
#include <system_error>

namespace mt {

BuildPipeline::BuildPipeline(Env* env, Clock* clock, const RecordEncoderFactory& encoders,
                             const BuildOptions& options, TokenType type, size_t file,
                             TextPosition position, const DocumentHashes* known)
    : env_(env),
      clock_(clock),
      encoders_(encoders),
      options_(options),
      text_(options.text),
      type_(type),
      first_file_(file),
      start_(std::move(position)),
      known_(known),
      inputs_(options.inputs.size()),
      first_open_(file),
      next_(file, 0) {
  text_.raw_json = encoders.wants_json();
  const int threads = options.threads > 0
                          ? options.threads
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  for (int i = 0; i < threads; ++i) {
    try {
      threads_.emplace_back([this] { Work(); });
    } catch (const std::system_error& error) {
      started_ = absl::FailedPreconditionError(
          absl::StrCat("thread ", i + 1, " of ", threads, " cannot be started: ", error.what(),
                       "; use fewer with --threads, or raise the limit (ulimit -u)"));
      return;
    }
  }
}

BuildPipeline::~BuildPipeline() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

BuildPipeline::StageTimes BuildPipeline::times() {
  std::lock_guard lock(mutex_);
  return times_;
}

bool BuildPipeline::MayBegin(size_t file) const {
  if (file != next_.first) return in_flight_ < options_.memory_bytes / 2;
  return in_flight_ < options_.memory_bytes || inputs_[file].in_flight == 0;
}

bool BuildPipeline::Take(Key* key) {
  std::unique_lock lock(mutex_);
  while (true) {
    while (first_open_ < inputs_.size() && inputs_[first_open_].ended) ++first_open_;
    if (stopping_ || first_open_ == inputs_.size()) return false;
    size_t file = first_open_;
    while (file < inputs_.size() && (inputs_[file].busy || inputs_[file].ended)) ++file;
    if (file < inputs_.size() && MayBegin(file)) {
      Input& input = inputs_[file];
      input.busy = true;
      *key = {file, input.num_read++};
      input.in_flight += options_.chunk_bytes;
      in_flight_ += options_.chunk_bytes;
      return true;
    }
    work_.wait(lock);
  }
}

absl::Status BuildPipeline::WaitForTurn(const Key& key) {
  std::unique_lock lock(mutex_);
  work_.wait(lock, [&] { return stopping_ || next_ == key; });
  return stopping_ ? absl::CancelledError("the build has stopped") : absl::OkStatus();
}

absl::Status BuildPipeline::Read(const Key& key, TextChunk* chunk, EncodedChunk* encoded) {
  Input& input = inputs_[key.first];
  if (input.reader == nullptr) {
    MT_ASSIGN_OR_RETURN(input.reader, ChunkReader::Open(env_, options_.inputs[key.first], text_,
                                                        options_.chunk_bytes));
    if (key.first == first_file_) MT_RETURN_IF_ERROR(input.reader->SkipTo(start_));
  }
  MT_ASSIGN_OR_RETURN(const bool more, input.reader->Next(chunk, [&] { return WaitForTurn(key); }));
  if (more) {
    encoded->end = chunk->end;
    encoded->file_bytes = chunk->file_bytes;
  } else {
    encoded->file_bytes = input.reader->file_bytes();
    encoded->file_xxh3 = input.reader->file_xxh3();
  }
  return absl::OkStatus();
}

void BuildPipeline::Work() {
  ChunkEncoder encoder(clock_, encoders_, text_, type_, known_);
  TextChunk chunk;
  Key key;
  absl::Duration parsed, encoded;
  while (Take(&key)) {
    Result result;
    result.chunk.file = key.first;
    const absl::Duration start = clock_->Monotonic();
    result.status = Read(key, &chunk, &result.chunk);
    const bool ended = !result.status.ok() || !result.chunk.file_xxh3.empty();
    Input& input = inputs_[key.first];
    const TextFormat format = input.reader == nullptr ? TextFormat::kTxt : input.reader->format();
    if (ended) input.reader.reset();
    {
      std::lock_guard lock(mutex_);
      times_.read += clock_->Monotonic() - start;
      input.busy = false;
      input.ended = ended;
    }
    work_.notify_all();
    if (!ended) result.status = encoder.Encode(chunk, format, &result.chunk);
    // What one large record needed is not kept.
    if (chunk.buffer.capacity() > ChunkReader::kLargeBytes) chunk = TextChunk();
    result.bytes = result.chunk.memory_bytes();
    std::lock_guard lock(mutex_);
    times_.parse += encoder.parse_time() - std::exchange(parsed, encoder.parse_time());
    times_.encode += encoder.encode_time() - std::exchange(encoded, encoder.encode_time());
    input.in_flight += result.bytes - options_.chunk_bytes;
    in_flight_ += result.bytes - options_.chunk_bytes;
    encoded_.emplace(key, std::move(result));
    results_.notify_one();
  }
}

absl::StatusOr<std::optional<EncodedChunk>> BuildPipeline::Next(absl::Duration patience) {
  MT_RETURN_IF_ERROR(started_);
  std::unique_lock lock(mutex_);
  if (taken_ > 0) {
    in_flight_ -= std::exchange(taken_, 0);
    work_.notify_all();
  }
  const bool there = results_.wait_for(lock, absl::ToChronoNanoseconds(patience),
                                       [&] { return encoded_.contains(next_); });
  if (!there) return std::nullopt;
  auto node = encoded_.extract(next_);
  Result& result = node.mapped();
  inputs_[next_.first].in_flight -= result.bytes;
  taken_ = result.bytes;
  next_ =
      result.chunk.file_xxh3.empty() ? Key{next_.first, next_.second + 1} : Key{next_.first + 1, 0};
  work_.notify_all();
  MT_RETURN_IF_ERROR(result.status);
  return std::move(result.chunk);
}

}  // namespace mt
