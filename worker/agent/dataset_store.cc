#include "worker/agent/dataset_store.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "common/log.h"

namespace mt {
namespace {

constexpr int64_t kDigestBytes = 8 << 20;  // between looks at what else there is to do
constexpr absl::Duration kFirstBackOff = absl::Milliseconds(500);
constexpr absl::Duration kLongestBackOff = absl::Seconds(10);
constexpr absl::Duration kRoomInterval = absl::Seconds(5);
constexpr absl::Duration kLongestSilence = absl::Seconds(60);  // of a stream
constexpr int kWrongDigests = 2;

struct Grouped {
  std::map<std::string, std::string> key_of_prefix;
  std::map<std::string, DatasetContents> datasets;
};

// Files by the dataset that they belong to. Nothing of the request becomes part of a path but the three suffixes.
absl::StatusOr<Grouped> Group(const std::vector<v1::DatasetFile>& files) {
  std::map<std::string, DatasetContents> by_prefix;
  for (const v1::DatasetFile& file : files) {
    const size_t dot = file.path().rfind('.');
    const std::string suffix = dot == std::string::npos ? "" : file.path().substr(dot + 1);
    if (suffix != "bin" && suffix != "idx" && suffix != "loss")
      return absl::InvalidArgumentError(absl::StrCat(file.path(), " is no file of a dataset"));
    if (file.bytes() < 0 || file.xxh3_128().size() != 32)
      return absl::InvalidArgumentError(absl::StrCat(file.path(), ": no size or digest"));
    by_prefix[file.path().substr(0, dot)][suffix] = {suffix, file.bytes(), file.xxh3_128()};
  }
  Grouped grouped;
  for (const auto& [prefix, contents] : by_prefix) {
    if (!contents.contains("bin") || !contents.contains("idx"))
      return absl::InvalidArgumentError(absl::StrCat(prefix, ": .bin or .idx is missing"));
    const std::string key = DatasetKey(contents);
    grouped.key_of_prefix[prefix] = key;
    grouped.datasets[key] = contents;
  }
  return grouped;
}

}  // namespace

DatasetStore::DatasetStore(EventLoop* loop, EventLoop* agent_loop, Env* env, Random* random,
                           DatasetTransport* transport, DatasetCache* cache)
    : loop_(loop),
      agent_loop_(agent_loop),
      env_(env),
      random_(random),
      transport_(transport),
      cache_(cache),
      cached_bytes_(cache->cached_bytes()) {}

DatasetStore::~DatasetStore() {
  *alive_ = false;
  loop_->Cancel(timer_);
  loop_->Cancel(admit_timer_);
  loop_->Cancel(silence_timer_);
}

void DatasetStore::Provide(DatasetRequest request,
                           std::function<void(absl::StatusOr<ProvidedDatasets>)> done) {
  loop_->Post(
      [this, alive = alive_, request = std::move(request), done = std::move(done)]() mutable {
        const User user{request.job_id, request.generation};
        if (*alive) Begin(user, std::move(request), std::move(done));
      });
}

void DatasetStore::Release(const std::string& job_id, int32_t generation) {
  loop_->Post([this, alive = alive_, user = User{job_id, generation}] {
    if (*alive) End(user);
  });
}

std::vector<v1::DataFetch> DatasetStore::Progress() const {
  const std::lock_guard lock(mutex_);
  return progress_;
}

int64_t DatasetStore::CachedBytes() const {
  const std::lock_guard lock(mutex_);
  return cached_bytes_;
}

void DatasetStore::Begin(const User& user, DatasetRequest request,
                         std::function<void(absl::StatusOr<ProvidedDatasets>)> done) {
  Attempt& attempt = attempts_[user];
  attempt.done = std::move(done);
  absl::StatusOr<Grouped> grouped = Group(request.files);
  if (!grouped.ok()) return Answer(user, grouped.status());
  attempt.key_of_prefix = grouped->key_of_prefix;
  attempt.datasets = grouped->datasets;
  attempt.endpoints = std::move(request.endpoints);
  Admit();
}

// Whoever waits for room in the cache, the oldest first.
void DatasetStore::Admit() {
  loop_->Cancel(std::exchange(admit_timer_, 0));
  std::vector<User> waiting;
  for (const auto& [user, attempt] : attempts_) {
    if (!attempt.admitted) waiting.push_back(user);
  }
  for (const User& user : waiting) {
    const auto it = attempts_.find(user);
    if (it == attempts_.end()) continue;
    Attempt& attempt = it->second;
    const absl::Status held = cache_->Hold(user, attempt.datasets, loop_->clock()->Now());
    if (held.ok()) {
      attempt.admitted = true;
      Enqueue(attempt);
    } else if (absl::IsResourceExhausted(held)) {
      attempt.waits_for = std::string(held.message());
      if (admit_timer_ == 0) {
        admit_timer_ = loop_->After(kRoomInterval, [this] {
          admit_timer_ = 0;
          Admit();
        });
      }
    } else {
      Answer(user, held);
    }
  }
  AnswerWhoIsReady();
  Next();
}

void DatasetStore::Enqueue(const Attempt& attempt) {
  std::vector<Wanted> wants;
  for (const auto& [key, contents] : attempt.datasets) {
    for (const auto& [suffix, file] : contents) {
      const auto same = [&, key = key, suffix = suffix](const Wanted& want) {
        return want.key == key && want.file.suffix == suffix;
      };
      if (cache_->IsVerified(key, file) || std::any_of(queue_.begin(), queue_.end(), same) ||
          (transfer_ != nullptr && same(transfer_->want)))
        continue;
      Wanted& want = wants.emplace_back();
      want.key = key;
      want.file = file;
    }
  }
  // Each node in an order of its own: so they soon have different files to give each other.
  for (size_t i = wants.size(); i > 1; --i) std::swap(wants[i - 1], wants[random_->Next() % i]);
  for (Wanted& want : wants) queue_.push_back(std::move(want));
}

void DatasetStore::End(const User& user) {
  attempts_.erase(user);
  cache_->Release(user, loop_->clock()->Now());
  std::erase_if(queue_, [this](const Wanted& want) { return !IsWanted(want.key); });
  if (transfer_ != nullptr && !IsWanted(transfer_->want.key)) Drop();  // what has come stays
  Admit();
}

void DatasetStore::Drop() {
  ++turn_;  // nothing more is heard of its stream
  DropStream();
  transfer_ = nullptr;
}

// The stream may be the caller: it is destroyed by a task of its own.
void DatasetStore::DropStream() {
  loop_->Cancel(std::exchange(silence_timer_, 0));
  loop_->Post([stream = std::shared_ptr<DatasetStream>(std::move(transfer_->stream))] {});
}

bool DatasetStore::IsWanted(const std::string& key) const {
  return std::any_of(attempts_.begin(), attempts_.end(), [&](const auto& entry) {
    return entry.second.admitted && entry.second.datasets.contains(key);
  });
}

void DatasetStore::Next() {
  Publish();
  if (transfer_ != nullptr || queue_.empty()) return;
  loop_->Cancel(std::exchange(timer_, 0));
  const absl::Duration now = loop_->clock()->Monotonic();
  const auto due = std::min_element(
      queue_.begin(), queue_.end(),
      [](const Wanted& a, const Wanted& b) { return a.not_before < b.not_before; });
  if (due->not_before > now) {
    timer_ = loop_->After(due->not_before - now, [this] {
      timer_ = 0;
      Next();
    });
    return;
  }
  transfer_ = std::make_unique<Transfer>();
  transfer_->want = std::move(*due);
  queue_.erase(due);
  ++turn_;
  Look(*transfer_);
}

// What is here already: the file under its final name, or a part of it. Either is digested, some at a time.
void DatasetStore::Look(Transfer& transfer) {
  const std::string path = cache_->PathOf(transfer.want.key, transfer.want.file.suffix);
  transfer.digest = std::make_unique<Xxh3Stream>();
  transfer.offset = 0;
  for (const bool is_part : {false, true}) {
    const std::string name = is_part ? PartOf(transfer.want) : path;
    const auto info = env_->Stat(name);
    if (!info.ok()) continue;
    const auto bytes = static_cast<int64_t>(info->size_bytes);
    const bool fits =
        is_part ? bytes <= transfer.want.file.bytes : bytes == transfer.want.file.bytes;
    auto file = env_->NewRandomAccessFile(name);
    if (!fits || !file.ok()) {
      (void)env_->RemoveFile(name);
      continue;
    }
    transfer.is_part = is_part;
    transfer.reading = std::move(*file);
    break;
  }
  DigestSome();
}

void DatasetStore::DigestSome() {
  Transfer& transfer = *transfer_;
  if (transfer.reading == nullptr) return OnDigested();
  std::string block(
      std::min(kDigestBytes, std::max<int64_t>(1, transfer.want.file.bytes - transfer.offset)),
      '\0');
  const auto count = transfer.reading->Read(transfer.offset, block.size(), block.data());
  if (count.ok()) {
    transfer.digest->Update(block.data(), *count);
    transfer.offset += static_cast<int64_t>(*count);
  }
  if (!count.ok() || *count < block.size() || transfer.offset == transfer.want.file.bytes)
    return OnDigested();
  Publish();
  loop_->Post([this, alive = alive_, turn = turn_] {
    if (*alive && turn == turn_ && transfer_ != nullptr) DigestSome();
  });
}

void DatasetStore::OnDigested() {
  Transfer& transfer = *transfer_;
  const bool had_file = std::exchange(transfer.reading, nullptr) != nullptr && !transfer.is_part;
  if (had_file) {
    if (transfer.offset == transfer.want.file.bytes &&
        transfer.digest->Hex() == transfer.want.file.digest)
      return Whole();
    const std::string path = cache_->PathOf(transfer.want.key, transfer.want.file.suffix);
    MT_LOG(Warning) << path << " is not what it was when it was fetched: it is fetched again";
    (void)env_->RemoveFile(path);
    return Look(transfer);
  }
  const auto part = env_->Stat(PartOf(transfer.want));
  const bool append = part.ok() && static_cast<int64_t>(part->size_bytes) == transfer.offset;
  if (!append) {  // none, or one that cannot be read to its end
    transfer.digest = std::make_unique<Xxh3Stream>();
    transfer.offset = 0;
  }
  auto file = env_->NewWritableFile(PartOf(transfer.want),
                                    append ? Env::WriteMode::kAppend : Env::WriteMode::kTruncate);
  if (!file.ok()) return Trouble(file.status());
  transfer.writing = std::move(*file);
  for (const auto& [user, attempt] : attempts_) {
    // After a wrong digest only who made the right one is asked.
    if (transfer.want.wrong_digests > 0 || !attempt.datasets.contains(transfer.want.key)) continue;
    for (const std::string& endpoint : attempt.endpoints) {
      if (std::find(transfer.sources.begin(), transfer.sources.end(), endpoint) ==
          transfer.sources.end())
        transfer.sources.push_back(endpoint);
    }
  }
  for (size_t i = transfer.sources.size(); i > 1; --i)
    std::swap(transfer.sources[i - 1], transfer.sources[random_->Next() % i]);
  transfer.sources.push_back("");  // the coordinator comes last
  Ask();
}

void DatasetStore::Ask() {
  Transfer& transfer = *transfer_;
  if (transfer.offset == transfer.want.file.bytes) return Finish();
  if (transfer.source == transfer.sources.size()) {
    if (transfer.gone_for_good && !transfer.moved && !transfer.busy) {
      return Fail(transfer.want.key,
                  absl::DataLossError(
                      absl::StrCat("a file of the job's data cannot be had: ", transfer.trouble)));
    }
    return Postpone(transfer.trouble);
  }
  const auto on_turn = [this, alive = alive_, turn = turn_] {
    return *alive && turn == turn_ && transfer_ != nullptr;
  };
  ExpectPiece();
  transfer.stream = transport_->Read(
      transfer.sources[transfer.source], transfer.want.file.digest, transfer.offset,
      [this, on_turn](const v1::FilePiece& piece) {
        if (on_turn()) OnPiece(piece);
      },
      [this, on_turn](absl::Status status) {
        if (on_turn()) OnEnd(std::move(status));
      });
}

// Keepalives find hosts that are away; not a disk that hangs under a daemon that is well.
void DatasetStore::ExpectPiece() {
  loop_->Cancel(silence_timer_);
  silence_timer_ = loop_->After(kLongestSilence, [this] {
    silence_timer_ = 0;
    OnEnd(absl::UnavailableError(
        absl::StrCat("nothing came for ", absl::FormatDuration(kLongestSilence))));
  });
}

void DatasetStore::OnPiece(const v1::FilePiece& piece) {
  Transfer& transfer = *transfer_;
  const auto size = static_cast<int64_t>(piece.data().size());
  if (piece.offset() != transfer.offset || piece.total_bytes() != transfer.want.file.bytes ||
      size > transfer.want.file.bytes - transfer.offset) {
    return OnEnd(absl::DataLossError(absl::StrCat("the file there has ", piece.total_bytes(),
                                                  " bytes instead of ", transfer.want.file.bytes)));
  }
  if (const absl::Status status = transfer.writing->Append(piece.data()); !status.ok()) {
    return Trouble(status);
  }
  transfer.digest->Update(piece.data().data(), piece.data().size());
  transfer.offset += size;
  transfer.moved = transfer.moved || size > 0;
  for (auto& [user, attempt] : attempts_) {
    if (!attempt.datasets.contains(transfer.want.key)) continue;
    attempt.bytes_fetched += size;
    if (!transfer.sources[transfer.source].empty()) attempt.bytes_from_nodes += size;
  }
  ExpectPiece();
  Publish();
}

void DatasetStore::OnEnd(absl::Status status) {
  Transfer& transfer = *transfer_;
  ++turn_;
  DropStream();
  if (status.ok() && transfer.offset < transfer.want.file.bytes)
    status = absl::UnavailableError("the stream ended early");
  if (!status.ok()) {
    const std::string& source = transfer.sources[transfer.source];
    const bool gone = absl::IsDataLoss(status) || absl::IsNotFound(status);
    transfer.gone_for_good = transfer.gone_for_good || (source.empty() && gone);
    transfer.busy = transfer.busy || absl::IsResourceExhausted(status);
    // That a node has not got it either is no news.
    if (source.empty() || !gone)
      transfer.trouble =
          absl::StrCat(source.empty() ? "the coordinator" : source, ": ", status.message());
    ++transfer.source;
  }
  Ask();
}

void DatasetStore::Finish() {
  Transfer& transfer = *transfer_;
  absl::Status status = transfer.writing->Sync();
  if (status.ok()) status = transfer.writing->Close();
  if (!status.ok()) return Trouble(status);
  const std::string part = PartOf(transfer.want);
  if (transfer.digest->Hex() != transfer.want.file.digest) {
    (void)env_->RemoveFile(part);
    if (++transfer.want.wrong_digests >= kWrongDigests) {
      return Fail(transfer.want.key,
                  absl::DataLossError(absl::StrCat(
                      "a .", transfer.want.file.suffix,
                      " file of the job's data came twice and was not what the "
                      "coordinator digested; was it changed since? Submit the job again")));
    }
    transfer.want.back_off = absl::ZeroDuration();
    return Postpone("what came was not what was asked for; it is fetched once more");
  }
  const std::string path = cache_->PathOf(transfer.want.key, transfer.want.file.suffix);
  status = env_->Rename(part, path);
  if (status.ok()) status = env_->SyncDirectory(cache_->FolderOf(transfer.want.key));
  if (!status.ok()) return Trouble(status);
  Whole();
}

void DatasetStore::Whole() {
  const Wanted want = std::move(transfer_->want);
  Drop();
  cache_->SetVerified(want.key, want.file);
  AnswerWhoIsReady();
  Next();
}

// Its sources are away: another file may be luckier.
void DatasetStore::Postpone(std::string why) {
  Wanted want = std::move(transfer_->want);
  const bool moved = transfer_->moved;
  Drop();
  want.back_off =
      moved ? kFirstBackOff : std::clamp(2 * want.back_off, kFirstBackOff, kLongestBackOff);
  want.not_before = loop_->clock()->Monotonic() + want.back_off * (0.5 + 0.5 * random_->Uniform());
  want.waits_for = std::move(why);
  queue_.push_back(std::move(want));
  Next();
}

// A full disk may have room again, or gets it from datasets that nobody uses.
void DatasetStore::Trouble(const absl::Status& status) {
  cache_->Measure(transfer_->want.key);
  if (!absl::IsResourceExhausted(status)) {
    return Fail(transfer_->want.key, absl::InternalError(absl::StrCat(
                                         "the cache of datasets of this node: ", status.message(),
                                         "; mend its disk, or drain the node")));
  }
  transfer_->moved = cache_->EvictOne();
  Postpone(std::string(status.message()));
}

void DatasetStore::Fail(std::string key, const absl::Status& why) {
  std::vector<User> users;
  for (const auto& [user, attempt] : attempts_) {
    if (attempt.datasets.contains(key)) users.push_back(user);
  }
  for (const User& user : users) Answer(user, why);
}

void DatasetStore::Answer(const User& user, absl::StatusOr<ProvidedDatasets> answer) {
  agent_loop_->Post(
      [done = std::move(attempts_.at(user).done), answer]() mutable { done(std::move(answer)); });
  attempts_.erase(user);
  if (!answer.ok()) End(user);
}

void DatasetStore::AnswerWhoIsReady() {
  std::vector<User> ready;
  for (const auto& [user, attempt] : attempts_) {
    const bool whole =
        attempt.admitted &&
        std::all_of(attempt.datasets.begin(), attempt.datasets.end(), [this](const auto& dataset) {
          return std::all_of(dataset.second.begin(), dataset.second.end(), [&](const auto& file) {
            return cache_->IsVerified(dataset.first, file.second);
          });
        });
    if (whole) {
      ready.push_back(user);
    } else if (attempt.admitted) {
      Enqueue(attempt);  // what came and has been touched since
    }
  }
  for (const User& user : ready) {
    const Attempt& attempt = attempts_.at(user);
    ProvidedDatasets provided;
    for (const auto& [prefix, key] : attempt.key_of_prefix)
      provided.local_prefix[prefix] = cache_->PrefixOf(key);
    provided.bytes_fetched = attempt.bytes_fetched;
    provided.bytes_from_nodes = attempt.bytes_from_nodes;
    Answer(user, std::move(provided));
  }
}

void DatasetStore::Publish() {
  std::vector<v1::DataFetch> progress;
  for (const auto& [user, attempt] : attempts_) {
    v1::DataFetch& fetch = progress.emplace_back();
    fetch.set_job_id(user.first);
    fetch.set_generation(user.second);
    int64_t total = 0, missing = 0;
    for (const auto& [key, contents] : attempt.datasets) {
      for (const auto& [suffix, file] : contents) total += file.bytes;
    }
    std::string waits_for;
    for (const Wanted& want : queue_) {
      if (!attempt.datasets.contains(want.key)) continue;
      missing += want.file.bytes;
      if (waits_for.empty()) waits_for = want.waits_for;
    }
    if (transfer_ != nullptr && attempt.datasets.contains(transfer_->want.key)) {
      missing += transfer_->want.file.bytes - transfer_->offset;
      waits_for.clear();
    }
    if (!attempt.admitted) {
      missing = total;
      waits_for = attempt.waits_for;
    }
    fetch.set_bytes_total(total);
    fetch.set_bytes_done(total - missing);
    fetch.set_waits_for(waits_for);
  }
  const std::lock_guard lock(mutex_);
  progress_ = std::move(progress);
  cached_bytes_ = cache_->cached_bytes();
}

}  // namespace mt
