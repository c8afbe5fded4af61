#include "coordinator/jobs/log_store.h"

#include <algorithm>
#include <cstring>
#include <deque>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "common/log.h"
#include "coordinator/store/records.pb.h"

namespace mt {
namespace {

constexpr uint64_t kSegmentBytes = 16 << 20;
constexpr uint64_t kIndexEvery = 64 << 10;  // one index entry per so many bytes
constexpr uint32_t kMaxEntry = 32 << 20;    // a longer length is a damaged entry

struct Segment {
  int64_t first_sequence = 0;
  std::string path;
  uint64_t size = 0;                                // valid bytes
  std::vector<std::pair<int64_t, uint64_t>> index;  // sequence, offset; ascending
};

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
  std::map<std::pair<int, int>, int64_t>
      end_offsets;  // by attempt and rank: how far its log file is stored
};

LogStore::LogStore(Env* env, std::string directory) : env_(env), directory_(std::move(directory)) {}
LogStore::~LogStore() = default;

absl::StatusOr<LogStore::JobLog*> LogStore::Open(const std::string& job_id) {
  std::unique_ptr<JobLog>& slot = jobs_[job_id];
  if (slot != nullptr) return slot.get();
  auto log = std::make_unique<JobLog>();
  log->folder = JoinPath(directory_, job_id);
  const auto names = env_->List(log->folder);
  if (!names.ok() && names.status().code() != absl::StatusCode::kNotFound) return names.status();
  for (const std::string& name : names.ok() ? *names : std::vector<std::string>()) {
    Segment segment;
    if (!absl::SimpleAtoi(name.substr(0, name.find('.')), &segment.first_sequence)) continue;
    segment.path = JoinPath(log->folder, name);
    MT_ASSIGN_OR_RETURN(const FileInfo info, env_->Stat(segment.path));
    uint64_t valid = 0;
    MT_RETURN_IF_ERROR(Scan(env_, segment, 0, info.size_bytes,
                            [&](const store::LogRecord& record, uint64_t at, uint64_t next) {
                              const v1::LogChunk& chunk = record.chunk();
                              if (segment.index.empty() ||
                                  at - segment.index.back().second >= kIndexEvery)
                                segment.index.emplace_back(chunk.sequence(), at);
                              log->last_sequence = std::max(log->last_sequence, chunk.sequence());
                              int64_t& end = log->end_offsets[{chunk.attempt(), chunk.rank()}];
                              end = std::max(end, record.end_offset());
                              valid = next;
                              return true;
                            }));
    segment.size = valid;
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
  if (log->file == nullptr || log->segments.back().size >= kSegmentBytes) {
    if (log->file != nullptr) MT_RETURN_IF_ERROR(log->file->Sync());
    log->file = nullptr;
    MT_RETURN_IF_ERROR(env_->CreateDirectories(log->folder));
    Segment segment;
    segment.first_sequence = log->last_sequence + 1;
    segment.path = JoinPath(log->folder, absl::StrFormat("%020d.log", segment.first_sequence));
    MT_ASSIGN_OR_RETURN(auto file, env_->NewWritableFile(segment.path, Env::WriteMode::kTruncate));
    MT_RETURN_IF_ERROR(env_->SyncDirectory(log->folder));
    log->file = std::move(file);
    if (!log->segments.empty() && log->segments.back().first_sequence == segment.first_sequence)
      log->segments.pop_back();
    log->segments.push_back(std::move(segment));
  }
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
  if (segment.index.empty() || segment.size - segment.index.back().second >= kIndexEvery) {
    segment.index.emplace_back(record.chunk().sequence(), segment.size);
  }
  segment.size += entry.size();
  log->last_sequence = record.chunk().sequence();
  int64_t& end = log->end_offsets[{record.chunk().attempt(), record.chunk().rank()}];
  end = std::max(end, end_offset);
  unsynced_.insert(job_id);
  changed_.insert(job_id);
  return true;
}

absl::Status LogStore::Sync() {
  for (auto it = unsynced_.begin(); it != unsynced_.end(); it = unsynced_.erase(it)) {
    JobLog& log = *jobs_.at(*it);
    if (log.file != nullptr) MT_RETURN_IF_ERROR(log.file->Sync());
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<v1::LogChunk>> LogStore::Read(const std::string& job_id,
                                                         const Filter& filter, size_t max_bytes) {
  MT_ASSIGN_OR_RETURN(JobLog* const log, Open(job_id));
  std::vector<v1::LogChunk> chunks;
  size_t bytes = 0;
  auto segment = std::upper_bound(
      log->segments.begin(), log->segments.end(), filter.after_sequence + 1,
      [](int64_t sequence, const Segment& s) { return sequence < s.first_sequence; });
  if (segment != log->segments.begin()) --segment;
  for (; segment != log->segments.end() && (chunks.empty() || bytes < max_bytes); ++segment) {
    uint64_t offset = 0;
    const auto entry =
        std::upper_bound(segment->index.begin(), segment->index.end(), filter.after_sequence + 1,
                         [](int64_t sequence, const auto& e) { return sequence < e.first; });
    if (entry != segment->index.begin()) offset = std::prev(entry)->second;
    MT_RETURN_IF_ERROR(Scan(env_, *segment, offset, segment->size,
                            [&](store::LogRecord record, uint64_t, uint64_t) {
                              if (!Matches(record.chunk(), filter)) return true;
                              bytes += record.chunk().data().size();
                              chunks.push_back(std::move(*record.mutable_chunk()));
                              return bytes < max_bytes;
                            }));
  }
  return chunks;
}

absl::StatusOr<int64_t> LogStore::SequenceBeforeTail(const std::string& job_id,
                                                     const Filter& filter, int64_t lines) {
  MT_ASSIGN_OR_RETURN(JobLog* const log, Open(job_id));
  // Newest segment first; within it the chunks are met oldest first, so keep the last ones.
  int64_t answer = filter.after_sequence;
  for (auto segment = log->segments.rbegin(); segment != log->segments.rend(); ++segment) {
    std::deque<std::pair<int64_t, int64_t>> counts;  // sequence, lines
    int64_t total = 0;
    MT_RETURN_IF_ERROR(Scan(
        env_, *segment, 0, segment->size, [&](const store::LogRecord& record, uint64_t, uint64_t) {
          if (!Matches(record.chunk(), filter)) return true;
          counts.emplace_back(
              record.chunk().sequence(),
              std::count(record.chunk().data().begin(), record.chunk().data().end(), '\n'));
          total += counts.back().second;
          while (total - counts.front().second >= lines) {
            total -= counts.front().second;
            counts.pop_front();
          }
          return true;
        }));
    if (!counts.empty()) answer = counts.front().first - 1;
    if (total >= lines) break;
    lines -= total;
  }
  return answer;
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
