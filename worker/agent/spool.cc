#include "worker/agent/spool.h"

#include <xxhash.h>

#include <algorithm>
#include <cstring>

#include "common/log.h"

namespace mt {
namespace {

constexpr size_t kHeaderBytes = 12;
constexpr int64_t kCompactBytes = 4 << 20;  // the file may grow by this much beyond what is pending
constexpr uint64_t kMaxFileBytes = 1ull << 31;

std::string Record(const v1::WorkerEvent& event) {
  const std::string payload = event.SerializeAsString();
  std::string record(kHeaderBytes, '\0');
  const uint32_t length = payload.size();
  const uint64_t check = XXH3_64bits(payload.data(), payload.size());
  std::memcpy(record.data(), &length, 4);
  std::memcpy(record.data() + 4, &check, 8);
  return record + payload;
}

// "Everything up to `sequence` is acknowledged."
v1::WorkerEvent Mark(int64_t sequence) {
  v1::WorkerEvent mark;
  mark.set_sequence(sequence);
  return mark;
}

bool IsTruth(const v1::WorkerEvent& event) {
  switch (event.body_case()) {
    case v1::WorkerEvent::kLogLines:
    case v1::WorkerEvent::kStepReport:
    case v1::WorkerEvent::kRankReport:
    case v1::WorkerEvent::kRankStarted:
    case v1::WorkerEvent::kRankReady:
      return false;
    default:
      return true;
  }
}

std::tuple<std::string, int32_t, int32_t> RankOf(const v1::WorkerEvent& event) {
  return {event.job_id(), event.generation(), event.rank()};
}

}  // namespace

absl::StatusOr<std::unique_ptr<Spool>> Spool::Open(Env* env, std::string path,
                                                   int64_t limit_bytes) {
  auto spool = std::unique_ptr<Spool>(new Spool(env, std::move(path), limit_bytes));
  MT_RETURN_IF_ERROR(spool->Load());
  return spool;
}

absl::Status Spool::Load() {
  auto contents = ReadFile(env_, path_, kMaxFileBytes);
  if (absl::IsNotFound(contents.status())) return Begin();
  if (!contents.ok()) {
    return absl::DataLossError(
        absl::StrCat("the event spool cannot be read: ", contents.status().message()));
  }
  absl::string_view rest = *contents;
  while (rest.size() >= kHeaderBytes) {
    uint32_t length;
    uint64_t check;
    std::memcpy(&length, rest.data(), 4);
    std::memcpy(&check, rest.data() + 4, 8);
    if (rest.size() - kHeaderBytes < length) break;
    const absl::string_view payload = rest.substr(kHeaderBytes, length);
    v1::WorkerEvent event;
    if (XXH3_64bits(payload.data(), payload.size()) != check ||
        !event.ParseFromArray(payload.data(), payload.size()))
      break;
    rest.remove_prefix(kHeaderBytes + length);
    next_sequence_ = std::max(next_sequence_, event.sequence() + 1);
    if (event.body_case() == v1::WorkerEvent::BODY_NOT_SET) {
      while (!pending_.empty() && pending_.front().sequence() <= event.sequence()) {
        pending_bytes_ -= pending_.front().ByteSizeLong();
        pending_.pop_front();
      }
    } else {
      pending_bytes_ += event.ByteSizeLong();
      pending_.push_back(std::move(event));
    }
  }
  if (!rest.empty()) {
    MT_LOG(Warning) << "event spool " << path_ << ": the last " << rest.size()
                    << " bytes are torn and were cut off";
  }
  return Begin();
}

// Proves at once that the folder can be written. A full disk is no reason not to start: the daemon is the one who can be told to
// remove checkpoints, and until there is room the newest events are in memory only.
absl::Status Spool::Begin() {
  absl::Status status = Rewrite();
  if (!absl::IsResourceExhausted(status)) return status;
  file_ = nullptr;
  MT_LOG(Warning) << "event spool " << path_
                  << " holds the newest events in memory only: " << status.ToString();
  return absl::OkStatus();
}

// Invariant: afterwards the file holds what memory holds, and file_ appends to it.
absl::Status Spool::Rewrite() {
  file_ = nullptr;
  std::string contents =
      Record(Mark(pending_.empty() ? next_sequence_ - 1 : pending_.front().sequence() - 1));
  for (const auto& event : pending_) contents += Record(event);
  MT_RETURN_IF_ERROR(WriteFileAtomically(env_, path_, contents));
  MT_ASSIGN_OR_RETURN(file_, env_->NewWritableFile(path_, Env::WriteMode::kAppend));
  file_bytes_ = contents.size();
  return absl::OkStatus();
}

bool Spool::IsOvergrown() const { return file_bytes_ > 2 * pending_bytes_ + kCompactBytes; }

void Spool::Append(v1::WorkerEvent event) {
  if (!MakeRoom(event)) return;
  if (event.has_log_lines()) MarkDrops(event);
  Keep(std::move(event));
}

void Spool::Keep(v1::WorkerEvent event) {
  event.set_sequence(next_sequence_++);
  const bool truth = IsTruth(event);
  const std::string record = Record(event);
  pending_bytes_ += event.ByteSizeLong();
  pending_.push_back(std::move(event));
  absl::Status status;
  if (file_ == nullptr ? truth : IsOvergrown()) {
    status = Rewrite();  // also after a failed write: tries to bring the whole file up to date
  } else if (file_ != nullptr) {
    status = file_->Append(record);
    if (status.ok() && truth) status = file_->Sync();
    file_bytes_ += record.size();
  }
  if (!status.ok()) {
    file_ = nullptr;  // what is on disk now may end in half a record: only a rewrite makes it whole
    MT_LOG(Warning) << "event spool " << path_
                    << " holds the newest events in memory only: " << status.ToString();
  }
}

void Spool::Acknowledge(int64_t sequence) {
  if (sequence >= next_sequence_ || pending_.empty() || pending_.front().sequence() > sequence)
    return;
  while (!pending_.empty() && pending_.front().sequence() <= sequence) {
    pending_bytes_ -= pending_.front().ByteSizeLong();
    pending_.pop_front();
  }
  absl::Status status;
  if (file_ == nullptr || IsOvergrown()) {
    status = Rewrite();
  } else {
    const std::string record = Record(Mark(sequence));
    status = file_->Append(record);
    file_bytes_ += record.size();
  }
  if (!status.ok()) file_ = nullptr;
}

bool Spool::MakeRoom(const v1::WorkerEvent& event) {
  if (pending_bytes_ < limit_bytes_) return true;
  if (event.has_log_lines()) {
    const std::string& data = event.log_lines().data();
    const int64_t lines = std::max<int64_t>(1, std::count(data.begin(), data.end(), '\n'));
    dropped_lines_ += lines;
    unmarked_drops_[RankOf(event)] += lines;
    return false;
  }
  if (event.has_step_report() || event.has_rank_report()) {
    const auto older =
        std::find_if(pending_.rbegin(), pending_.rend(), [&](const v1::WorkerEvent& other) {
          return other.body_case() == event.body_case() && RankOf(other) == RankOf(event);
        });
    if (older != pending_.rend()) {
      pending_bytes_ -= older->ByteSizeLong();
      pending_.erase(std::next(older).base());
    }
  }
  return true;
}

void Spool::MarkDrops(const v1::WorkerEvent& event) {
  const auto drops = unmarked_drops_.find(RankOf(event));
  if (drops == unmarked_drops_.end()) return;
  v1::WorkerEvent marker = event;
  marker.mutable_log_lines()->set_is_stderr(true);
  marker.mutable_log_lines()->set_data(
      absl::StrCat("[mt: ", drops->second,
                   " lines were not forwarded while the coordinator was away; the rank's log file "
                   "on its node has them]\n"));
  unmarked_drops_.erase(drops);
  Keep(std::move(marker));
}

}  // namespace mt
