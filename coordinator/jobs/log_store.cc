#include "coordinator/jobs/log_store.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "common/log.h"
#include "coordinator/store/records.pb.h"

namespace mt {
namespace {

constexpr uint64_t kIndexEvery = 64 << 10;  // one index entry per so many bytes
constexpr uint32_t kMaxEntry = 32 << 20;    // a longer length is a damaged entry

struct Segment {
  int64_t first_sequence = 0;
  std::string path;
  uint64_t size = 0;                                // valid bytes
  std::vector<std::pair<int64_t, uint64_t>> index;  // sequence, offset; ascending
  int64_t last_sequence = 0;
  std::map<std::pair<int, int>, int64_t> ends;  // by attempt and rank, as JobLog::end_offsets
};

std::string SummaryPath(const Segment& segment) { return absl::StrCat(segment.path, ".summary"); }

// A summary only saves time: one that cannot be written is made again at the next start.
void WriteSummary(Env* env, const Segment& segment) {
  store::LogSegmentSummary summary;
  summary.set_bytes(segment.size);
  summary.set_last_sequence(segment.last_sequence);
  for (const auto& [sequence, offset] : segment.index) {
    summary.add_index()->set_sequence(sequence);
    summary.mutable_index()->rbegin()->set_offset(offset);
  }
  for (const auto& [key, end_offset] : segment.ends) {
    store::LogSegmentSummary::End& end = *summary.add_ends();
    end.set_attempt(key.first);
    end.set_rank(key.second);
    end.set_end_offset(end_offset);
  }
  const absl::Status status =
      WriteFileAtomically(env, SummaryPath(segment), summary.SerializeAsString());
  if (!status.ok()) {
    MT_LOG(Warning) << "writing " << SummaryPath(segment) << ": " << status.ToString();
  }
}

bool ReadSummary(Env* env, uint64_t file_bytes, Segment& segment) {
  const auto text = ReadFile(env, SummaryPath(segment));
  store::LogSegmentSummary summary;
  // The segment may end in torn bytes behind what the summary counts, but never before.
  if (!text.ok() || !summary.ParseFromString(*text) || summary.bytes() > file_bytes ||
      summary.last_sequence() < segment.first_sequence)
    return false;
  segment.size = summary.bytes();
  segment.last_sequence = summary.last_sequence();
  for (const auto& entry : summary.index())
    segment.index.emplace_back(entry.sequence(), entry.offset());
  for (const auto& end : summary.ends())
    segment.ends[{end.attempt(), end.rank()}] = end.end_offset();
  return true;
}

// Reads entries from `offset` until the valid end, a torn entry, or `visit` answers false.
absl::Status Scan(
    Env* env, const Segment& segment, uint64_t offset, uint64_t end,
    const std::function<bool(store::LogRecord record, uint64_t offset, uint64_t next)>& visit) {
  MT_ASSIGN_OR_RETURN(const auto file, env->NewRandomAccessFile(segment.path));
  std::string buffer;
  while (offset + 4 <= end) {
    char header[4];
    MT_ASSIGN_OR_RETURN(const size_t got, file->Read(offset, 4, header));
    if (got < 4) break;
    uint32_t length;
    std::memcpy(&length, header, 4);
    if (length > kMaxEntry || offset + 4 + length > end) break;
    buffer.resize(length);
    MT_ASSIGN_OR_RETURN(const size_t count, file->Read(offset + 4, length, buffer.data()));
    store::LogRecord record;
    if (count < length || !record.ParseFromString(buffer) || record.chunk().sequence() <= 0) break;
    const uint64_t next = offset + 4 + length;
    if (!visit(std::move(record), offset, next)) break;
    offset = next;
  }
  return absl::OkStatus();
}

// What the segment's summary says of an entry of it.
void Note(Segment& segment, const store::LogRecord& record, uint64_t at) {
  const v1::LogChunk& chunk = record.chunk();
  if (segment.index.empty() || at - segment.index.back().second >= kIndexEvery)
    segment.index.emplace_back(chunk.sequence(), at);
  segment.last_sequence = std::max(segment.last_sequence, chunk.sequence());
  int64_t& end = segment.ends[{chunk.attempt(), chunk.rank()}];
  end = std::max(end, record.end_offset());
}

bool Matches(const v1::LogChunk& chunk, const LogStore::Filter& filter) {
  return chunk.sequence() > filter.after_sequence &&
         (filter.all_ranks || chunk.rank() == filter.rank) &&
         (filter.attempt == 0 || chunk.attempt() == filter.attempt);
}

}  // namespace

struct LogStore::JobLog {
  std::string folder;
  std::deque<Segment> segments;
  std::unique_ptr<WritableFile> file;  // of the last segment, when this process writes it
  int64_t last_sequence = 0;
  bool told_dropped = false;
  std::map<std::pair<int, int>, int64_t>
      end_offsets;  // by attempt and rank: how far its log file is stored
};

LogStore::LogStore(Env* env, std::string directory, Limits limits)
    : env_(env), directory_(std::move(directory)), limits_(limits) {}
LogStore::~LogStore() = default;

absl::StatusOr<LogStore::JobLog*> LogStore::Open(const std::string& job_id) {
  std::unique_ptr<JobLog>& slot = jobs_[job_id];
  if (slot != nullptr) return slot.get();
  auto log = std::make_unique<JobLog>();
  log->folder = JoinPath(directory_, job_id);
  const auto names = env_->List(log->folder);
  if (!names.ok() && names.status().code() != absl::StatusCode::kNotFound) return names.status();
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    if (!absl::EndsWith(name, ".log")) continue;  // a summary
    Segment segment;
    if (!absl::SimpleAtoi(name.substr(0, name.find('.')), &segment.first_sequence)) continue;
    segment.path = JoinPath(log->folder, name);
    MT_ASSIGN_OR_RETURN(const FileInfo info, env_->Stat(segment.path));
    if (!ReadSummary(env_, info.size_bytes, segment)) {
      scanned_bytes_ += static_cast<int64_t>(info.size_bytes);
      MT_RETURN_IF_ERROR(Scan(env_, segment, 0, info.size_bytes,
                              [&](const store::LogRecord& record, uint64_t at, uint64_t next) {
                                Note(segment, record, at);
                                segment.size = next;
                                return true;
                              }));
      if (segment.last_sequence > 0) WriteSummary(env_, segment);
    }
    log->last_sequence = std::max(log->last_sequence, segment.last_sequence);
    for (const auto& [key, end_offset] : segment.ends) {
      int64_t& end = log->end_offsets[key];
      end = std::max(end, end_offset);
    }
    log->segments.push_back(std::move(segment));
  }
  slot = std::move(log);
  return slot.get();
}

absl::StatusOr<bool> LogStore::Append(const std::string& job_id, v1::LogChunk chunk,
                                      int64_t end_offset) {
  MT_ASSIGN_OR_RETURN(JobLog* const log, Open(job_id));
  const auto stored = log->end_offsets.find({chunk.attempt(), chunk.rank()});
  if (end_offset >= 0 && stored != log->end_offsets.end() && end_offset <= stored->second)
    return false;
  MT_RETURN_IF_ERROR(CheckRoom());
  if (log->file == nullptr || log->segments.back().size >= limits_.segment_bytes)
    MT_RETURN_IF_ERROR(Roll(job_id, *log));
  store::LogRecord record;
  chunk.set_sequence(log->last_sequence + 1);
  *record.mutable_chunk() = std::move(chunk);
  record.set_end_offset(end_offset);
  const std::string payload = record.SerializeAsString();
  const uint32_t length = static_cast<uint32_t>(payload.size());
  std::string entry(reinterpret_cast<const char*>(&length), 4);
  entry += payload;
  if (absl::Status status = log->file->Append(entry); !status.ok()) {
    // Its end may be torn: go on in a new segment.
    const absl::Status synced = log->file->Sync();
    log->file = nullptr;
    return synced.ok() ? status : synced;
  }
  Segment& segment = log->segments.back();
  Note(segment, record, segment.size);
  segment.size += entry.size();
  log->last_sequence = record.chunk().sequence();
  int64_t& end = log->end_offsets[{record.chunk().attempt(), record.chunk().rank()}];
  end = std::max(end, end_offset);
  unsynced_.insert(job_id);
  changed_.insert(job_id);
  return true;
}

// A new segment to write to, and room for it.
absl::Status LogStore::Roll(const std::string& job_id, JobLog& log) {
  if (log.file != nullptr) {
    MT_RETURN_IF_ERROR(log.file->Sync());
    WriteSummary(env_, log.segments.back());
  }
  log.file = nullptr;
  MT_RETURN_IF_ERROR(env_->CreateDirectories(log.folder));
  Segment segment;
  segment.first_sequence = log.last_sequence + 1;
  segment.path = JoinPath(log.folder, absl::StrFormat("%020d.log", segment.first_sequence));
  MT_ASSIGN_OR_RETURN(auto file, env_->NewWritableFile(segment.path, Env::WriteMode::kTruncate));
  MT_RETURN_IF_ERROR(env_->SyncDirectory(log.folder));
  log.file = std::move(file);
  if (!log.segments.empty() && log.segments.back().first_sequence == segment.first_sequence)
    log.segments.pop_back();
  log.segments.push_back(std::move(segment));
  uint64_t bytes = limits_.segment_bytes;  // of the new one when it is full
  for (const Segment& each : log.segments) bytes += each.size;
  while (bytes > limits_.job_bytes && log.segments.size() > 1) {
    const Segment& oldest = log.segments.front();
    MT_RETURN_IF_ERROR(env_->RemoveFile(oldest.path));
    if (const absl::Status status = env_->RemoveFile(SummaryPath(oldest));
        !status.ok() && !absl::IsNotFound(status))
      return status;
    bytes -= oldest.size;
    if (!std::exchange(log.told_dropped, true) && on_dropped_) {
      on_dropped_(job_id,
                  absl::StrCat("the job's log has reached ", limits_.job_bytes >> 20,
                               " MiB: its oldest lines, from number ", oldest.first_sequence,
                               " on, are removed as new ones come; they stay in the "
                               "nodes' own logs"));
    }
    log.segments.pop_front();
  }
  return absl::OkStatus();
}

// Begins to store again only when there is a quarter more than the limit, so that it does not go to and fro.
absl::Status LogStore::CheckRoom() {
  const auto free = env_->FreeBytes(directory_);
  if (!free.ok()) return absl::OkStatus();  // unknown: a full disk is an error of its own
  low_on_disk_ = *free < limits_.min_free_bytes + (low_on_disk_ ? limits_.min_free_bytes / 4 : 0);
  if (!low_on_disk_) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "the disk of ", directory_, " has ", *free >> 20, " MiB free, and the last ",
      limits_.min_free_bytes >> 20,
      " MiB are kept for the coordinator's state; the lines stay in the nodes' own logs. Free some "
      "space: storing goes on by itself"));
}

absl::Status LogStore::Sync() {
  for (auto it = unsynced_.begin(); it != unsynced_.end(); it = unsynced_.erase(it)) {
    JobLog& log = *jobs_.at(*it);
    if (log.file != nullptr) MT_RETURN_IF_ERROR(log.file->Sync());
  }
  return absl::OkStatus();
}

absl::StatusOr<LogStore::Page> LogStore::Read(const std::string& job_id, const Filter& filter,
                                              size_t max_bytes) {
  MT_ASSIGN_OR_RETURN(JobLog* const log, Open(job_id));
  Page page;
  page.scanned_to = filter.after_sequence;
  size_t bytes = 0;
  uint64_t scanned = 0;
  const auto full = [&] {
    return (!page.chunks.empty() && bytes >= max_bytes) || scanned >= kScanBytes;
  };
  auto segment = std::upper_bound(
      log->segments.begin(), log->segments.end(), filter.after_sequence + 1,
      [](int64_t sequence, const Segment& s) { return sequence < s.first_sequence; });
  if (segment != log->segments.begin()) --segment;
  for (; segment != log->segments.end() && !full(); ++segment) {
    if (segment->last_sequence <= filter.after_sequence) continue;
    uint64_t offset = 0;
    const auto entry =
        std::upper_bound(segment->index.begin(), segment->index.end(), filter.after_sequence + 1,
                         [](int64_t sequence, const auto& e) { return sequence < e.first; });
    if (entry != segment->index.begin()) offset = std::prev(entry)->second;
    MT_RETURN_IF_ERROR(Scan(env_, *segment, offset, segment->size,
                            [&](store::LogRecord record, uint64_t at, uint64_t next) {
                              scanned += next - at;
                              page.scanned_to =
                                  std::max(page.scanned_to, record.chunk().sequence());
                              if (Matches(record.chunk(), filter)) {
                                bytes += record.chunk().data().size();
                                page.chunks.push_back(std::move(*record.mutable_chunk()));
                              }
                              return !full();
                            }));
  }
  scanned_bytes_ += static_cast<int64_t>(scanned);
  // A damaged entry ends its segment: nothing stopped us, so all that can be read was.
  page.at_end = !full() || page.scanned_to >= log->last_sequence;
  if (page.at_end) page.scanned_to = std::max(page.scanned_to, log->last_sequence);
  return page;
}

absl::Status LogStore::SearchTail(const std::string& job_id, const Filter& filter, Tail& tail) {
  MT_ASSIGN_OR_RETURN(JobLog* const log, Open(job_id));
  if (tail.before_sequence == 0) {
    tail.before_sequence = log->last_sequence + 1;
    tail.after_sequence = filter.after_sequence;
  }
  uint64_t scanned = 0;
  while (!tail.done && scanned < kScanBytes) {
    // The stretch between two index entries that ends where the search stands.
    auto segment = std::lower_bound(
        log->segments.begin(), log->segments.end(), tail.before_sequence,
        [](const Segment& s, int64_t sequence) { return s.first_sequence < sequence; });
    if (segment == log->segments.begin() || tail.before_sequence <= filter.after_sequence + 1) {
      tail.done = true;
      break;
    }
    --segment;
    const auto entry =
        std::lower_bound(segment->index.begin(), segment->index.end(), tail.before_sequence,
                         [](const auto& e, int64_t sequence) { return e.first < sequence; });
    if (entry == segment->index.begin()) {  // nothing in it
      tail.before_sequence = segment->first_sequence;
      continue;
    }
    const uint64_t from = std::prev(entry)->second;
    const uint64_t to = entry == segment->index.end() ? segment->size : entry->second;
    std::deque<std::pair<int64_t, int64_t>> counts;  // sequence, lines; the last ones
    int64_t total = 0;
    MT_RETURN_IF_ERROR(
        Scan(env_, *segment, from, to, [&](const store::LogRecord& record, uint64_t, uint64_t) {
          const v1::LogChunk& chunk = record.chunk();
          if (!Matches(chunk, filter) || chunk.sequence() >= tail.before_sequence) return true;
          counts.emplace_back(chunk.sequence(),
                              std::count(chunk.data().begin(), chunk.data().end(), '\n'));
          total += counts.back().second;
          while (total - counts.front().second >= tail.lines) {
            total -= counts.front().second;
            counts.pop_front();
          }
          return true;
        }));
    scanned += to - from;
    if (!counts.empty()) tail.after_sequence = counts.front().first - 1;
    tail.before_sequence = std::prev(entry)->first;
    tail.lines -= total;
    tail.done = tail.lines <= 0;
  }
  scanned_bytes_ += static_cast<int64_t>(scanned);
  return absl::OkStatus();
}

int64_t LogStore::LastSequence(const std::string& job_id) {
  const auto log = Open(job_id);
  return log.ok() ? (*log)->last_sequence : 0;
}

LogStore::SubscriptionId LogStore::Subscribe(const std::string& job_id,
                                             std::function<void()> callback) {
  subscriptions_[++last_subscription_] = {job_id, std::move(callback)};
  return last_subscription_;
}

void LogStore::Unsubscribe(SubscriptionId id) { subscriptions_.erase(id); }

void LogStore::Notify() {
  if (changed_.empty()) return;
  const std::set<std::string> changed = std::exchange(changed_, {});
  std::vector<SubscriptionId> ids;
  for (const auto& [id, subscription] : subscriptions_) {
    if (changed.contains(subscription.first)) ids.push_back(id);
  }
  for (const SubscriptionId id : ids) {
    const auto it = subscriptions_.find(id);  // an earlier callback may have removed it
    if (it == subscriptions_.end()) continue;
    const auto callback = it->second.second;
    callback();
  }
}

}  // namespace mt
