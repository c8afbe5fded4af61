#include "worker/agent/dataset_cache.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/hash.h"
#include "common/log.h"

namespace mt {
namespace {

constexpr size_t kKeyLength = 32;

bool IsKey(const std::string& name) {
  return name.size() == kKeyLength &&
         name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

std::string Size(int64_t bytes) {
  if (bytes < 1'000'000) return absl::StrCat(bytes, " bytes");
  if (bytes < 10'000'000'000) return absl::StrCat(bytes / 1'000'000, " MB");
  return absl::StrCat(bytes / 1'000'000'000, " GB");
}

}  // namespace

std::string DatasetKey(const DatasetContents& contents) {
  std::string lines;
  for (const auto& [suffix, file] : contents)
    absl::StrAppend(&lines, suffix, " ", file.bytes, " ", file.digest, "\n");
  return Xxh3Hex(lines);
}

absl::StatusOr<std::unique_ptr<DatasetCache>> DatasetCache::Open(Env* env, std::string folder,
                                                                 int64_t limit_bytes) {
  std::unique_ptr<DatasetCache> cache(new DatasetCache(env, std::move(folder)));
  MT_RETURN_IF_ERROR(env->CreateDirectories(cache->folder_));
  MT_RETURN_IF_ERROR(cache->Load());
  cache->limit_bytes_ = limit_bytes;
  if (limit_bytes <= 0) {
    MT_ASSIGN_OR_RETURN(cache->limit_bytes_, cache->HalfOfTheDisk());
  }
  return cache;
}

// Remembered: what others write to the disk must not put data beyond the limit that was within it when its job began.
absl::StatusOr<int64_t> DatasetCache::HalfOfTheDisk() const {
  MT_ASSIGN_OR_RETURN(const uint64_t free, env_->FreeBytes(folder_));
  const int64_t now = (static_cast<int64_t>(free) + cached_bytes()) / 2;
  const std::string path = JoinPath(folder_, "limit");
  int64_t before = 0;
  const auto text = ReadFile(env_, path, 64);
  if (text.ok() && absl::SimpleAtoi(*text, &before) && before >= now) return before;
  if (const absl::Status kept = WriteFileAtomically(env_, path, absl::StrCat(now)); !kept.ok()) {
    MT_LOG(Warning) << "limit of the cache of datasets: " << kept.ToString();
  }
  return now;
}

absl::Status DatasetCache::Load() {
  MT_ASSIGN_OR_RETURN(const std::vector<std::string> names, env_->List(folder_));
  for (const std::string& name : names) {
    if (!IsKey(name)) continue;
    ReadRecord(name, datasets_[name]);
    Measure(name);
  }
  return absl::OkStatus();
}

// A line "used SECONDS", then lines "SUFFIX BYTES DIGEST MODIFIED". One that cannot be read is as good as none.
void DatasetCache::ReadRecord(const std::string& key, Dataset& dataset) {
  const auto text = ReadFile(env_, JoinPath(FolderOf(key), "record"), 4096);
  if (!text.ok()) return;
  for (const absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    if (words.size() == 2 && words[0] == "used")
      (void)absl::SimpleAtoi(words[1], &dataset.last_use);
    Verified verified;
    if (words.size() != 4 || !absl::SimpleAtoi(words[1], &verified.file.bytes) ||
        !absl::SimpleAtoi(words[3], &verified.modified_ns))
      continue;
    verified.file.suffix = words[0];
    verified.file.digest = words[2];
    dataset.verified[words[0]] = verified;
  }
  Serve(key, dataset);
}

// It only saves work: without it files are digested again.
void DatasetCache::KeepRecord(const std::string& key, const Dataset& dataset) {
  std::string text = absl::StrCat("used ", dataset.last_use, "\n");
  for (const auto& [suffix, verified] : dataset.verified) {
    absl::StrAppend(&text, suffix, " ", verified.file.bytes, " ", verified.file.digest, " ",
                    verified.modified_ns, "\n");
  }
  const absl::Status status = WriteFileAtomically(env_, JoinPath(FolderOf(key), "record"), text);
  if (!status.ok()) {
    MT_LOG(Warning) << "record of a cached dataset: " << status.ToString();
  }
}

absl::Status DatasetCache::Hold(const User& user,
                                const std::map<std::string, DatasetContents>& datasets,
                                absl::Time now) {
  int64_t wanted = 0;
  for (const auto& [key, contents] : datasets) {
    Dataset& dataset = datasets_[key];
    dataset.users.insert(user);
    dataset.full_bytes = 0;
    for (const auto& [suffix, file] : contents) dataset.full_bytes += file.bytes;
    wanted += dataset.full_bytes;
  }
  int64_t missing = 0;
  for (const auto& [key, contents] : datasets)
    missing += std::max<int64_t>(0, datasets_[key].full_bytes - datasets_[key].bytes_on_disk);
  absl::Status status;
  if (missing == 0) {
    // Nothing is to come: it may be more than the limit, which was another one when it came.
  } else if (wanted > limit_bytes_) {
    status = absl::FailedPreconditionError(absl::StrCat(
        "the job's data has ", Size(wanted), ", the cache of datasets of this node may have ",
        Size(limit_bytes_), "; raise data_cache= in the hostfile"));
  } else {
    status = MakeRoom(wanted, missing);
  }
  if (!status.ok()) {
    for (const auto& [key, contents] : datasets) datasets_[key].users.erase(user);
    return status;
  }
  for (const auto& [key, contents] : datasets) {
    datasets_[key].last_use = absl::ToUnixSeconds(now);
    MT_RETURN_IF_ERROR(env_->CreateDirectories(FolderOf(key)));
  }
  return absl::OkStatus();
}

// For `wanted` bytes of which `missing` are still to come.
absl::Status DatasetCache::MakeRoom(int64_t wanted, int64_t missing) {
  while (true) {
    int64_t promised = 0, held = 0;
    for (const auto& [key, dataset] : datasets_) {
      const int64_t bytes = dataset.users.empty()
                                ? dataset.bytes_on_disk
                                : std::max(dataset.full_bytes, dataset.bytes_on_disk);
      promised += bytes;
      if (!dataset.users.empty()) held += bytes;
    }
    MT_ASSIGN_OR_RETURN(const uint64_t free, env_->FreeBytes(folder_));
    const bool limit = promised > limit_bytes_, disk = static_cast<int64_t>(free) < missing;
    if (!limit && !disk) return absl::OkStatus();
    if (EvictOne()) continue;
    if (limit) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the job's data has ", Size(wanted), ", the cache of datasets of this node may have ",
          Size(limit_bytes_), ", and jobs that run here hold ", Size(held - wanted),
          " of it; raise data_cache= in the hostfile, or wait for those jobs"));
    }
    return absl::ResourceExhaustedError(absl::StrCat(
        "the disk of ", folder_, " has ", Size(static_cast<int64_t>(free)), " free, and ",
        Size(missing), " of the job's data are still to come; make room there"));
  }
}

bool DatasetCache::EvictOne() {
  auto oldest = datasets_.end();
  for (auto it = datasets_.begin(); it != datasets_.end(); ++it) {
    if (!it->second.users.empty()) continue;
    if (oldest == datasets_.end() || it->second.last_use < oldest->second.last_use) oldest = it;
  }
  if (oldest == datasets_.end()) return false;
  MT_LOG(Info) << "dataset " << oldest->first << " (" << Size(oldest->second.bytes_on_disk)
               << ") makes room in the cache";
  StopServing(oldest->first);
  if (const absl::Status status = env_->RemoveTree(FolderOf(oldest->first)); !status.ok()) {
    MT_LOG(Warning) << status.ToString();
  }
  datasets_.erase(oldest);
  return true;
}

void DatasetCache::Release(const User& user, absl::Time now) {
  for (auto& [key, dataset] : datasets_) {
    if (dataset.users.erase(user) == 0) continue;
    dataset.last_use = absl::ToUnixSeconds(now);
    KeepRecord(key, dataset);
    Measure(key);
  }
}

bool DatasetCache::IsVerified(const std::string& key, const CachedFile& file) const {
  const auto dataset = datasets_.find(key);
  if (dataset == datasets_.end()) return false;
  const auto verified = dataset->second.verified.find(file.suffix);
  if (verified == dataset->second.verified.end()) return false;
  const auto info = env_->Stat(PathOf(key, file.suffix));
  return info.ok() && !info->is_directory && !info->is_symlink &&
         static_cast<int64_t>(info->size_bytes) == file.bytes &&
         verified->second.file.bytes == file.bytes && verified->second.file.digest == file.digest &&
         verified->second.modified_ns == info->modified_ns;
}

void DatasetCache::SetVerified(const std::string& key, const CachedFile& file) {
  const auto info = env_->Stat(PathOf(key, file.suffix));
  if (!info.ok()) return;
  Dataset& dataset = datasets_[key];
  dataset.verified[file.suffix] = {file, info->modified_ns};
  Serve(key, dataset);
  KeepRecord(key, dataset);
  Measure(key);
}

void DatasetCache::Measure(const std::string& key) {
  Dataset& dataset = datasets_[key];
  dataset.bytes_on_disk = 0;
  const auto names = env_->List(FolderOf(key));
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    const auto info = env_->Stat(JoinPath(FolderOf(key), name));
    if (info.ok()) dataset.bytes_on_disk += static_cast<int64_t>(info->size_bytes);
  }
}

int64_t DatasetCache::cached_bytes() const {
  int64_t bytes = 0;
  for (const auto& [key, dataset] : datasets_) bytes += dataset.bytes_on_disk;
  return bytes;
}

void DatasetCache::Serve(const std::string& key, const Dataset& dataset) {
  const std::lock_guard lock(mutex_);
  for (const auto& [suffix, verified] : dataset.verified)
    served_[verified.file.digest] = {key, verified};
}

void DatasetCache::StopServing(const std::string& key) {
  const std::lock_guard lock(mutex_);
  std::erase_if(served_, [&](const auto& entry) { return entry.second.first == key; });
}

std::string DatasetCache::FindServed(const std::string& digest) const {
  std::pair<std::string, Verified> found;
  {
    const std::lock_guard lock(mutex_);
    const auto it = served_.find(digest);
    if (it == served_.end()) return "";
    found = it->second;
  }
  const std::string path = PathOf(found.first, found.second.file.suffix);
  const auto info = env_->Stat(path);
  const bool unchanged = info.ok() && !info->is_symlink &&
                         static_cast<int64_t>(info->size_bytes) == found.second.file.bytes &&
                         info->modified_ns == found.second.modified_ns;
  return unchanged ? path : "";
}

}  // namespace mt
