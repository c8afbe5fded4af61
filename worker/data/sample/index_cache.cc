#include "worker/data/sample/index_cache.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "common/clock.h"
#include "common/hash.h"
#include "common/log.h"
#include "worker/data/mapped_file.h"

namespace mt {
namespace {

// magic, then these, then (offset, bytes) of each array, then the key, then the arrays, then 32 hex digits of XXH3-128 of all that.
constexpr absl::string_view kMagic = "MTINDEX1";
struct Header {
  uint64_t file_bytes;
  uint32_t num_arrays;
  uint32_t key_bytes;
};
struct Place {
  uint64_t offset;
  uint64_t bytes;
};
constexpr uint64_t kHeaderBytes = 8 + sizeof(Header);
constexpr uint64_t kDigestBytes = 32;
constexpr uint64_t kMaxArrays = 16;
constexpr uint64_t kMaxKeyBytes = 4096;
constexpr uint64_t kAlignment = 64;
constexpr absl::string_view kSuffix = ".index";
constexpr absl::string_view kPartialSuffix = ".index.partial";

// Of each order its own: who waits for one does not wait for another.
std::string LockOf(absl::string_view path) { return absl::StrCat(path, ".lock"); }

uint64_t Aligned(uint64_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

template <typename T>
absl::string_view BytesOf(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

absl::Status Damaged(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("the file of a sample order ", what));
}

}  // namespace

absl::StatusOr<IndexArrays> ParseIndexFile(std::span<const char> bytes, const std::string& key,
                                           std::shared_ptr<const void> storage) {
  if (bytes.size() < kHeaderBytes + kDigestBytes) return Damaged("is cut off in its header");
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0)
    return absl::InvalidArgumentError("the file of a sample order begins with something else");
  Header header;
  std::memcpy(&header, bytes.data() + kMagic.size(), sizeof(header));
  if (header.file_bytes != bytes.size()) return Damaged("is cut off");
  if (header.num_arrays > kMaxArrays || header.key_bytes > kMaxKeyBytes ||
      kHeaderBytes + header.num_arrays * sizeof(Place) + header.key_bytes + kDigestBytes >
          bytes.size()) {
    return Damaged("has a header of nonsense");
  }
  const uint64_t end = bytes.size() - kDigestBytes;
  if (Xxh3Hex({bytes.data(), end}) != absl::string_view(bytes.data() + end, kDigestBytes))
    return Damaged("differs from its digest");
  const char* const key_at = bytes.data() + kHeaderBytes + header.num_arrays * sizeof(Place);
  if (absl::string_view(key_at, header.key_bytes) != key)
    return absl::InvalidArgumentError("the file of a sample order is that of another order");
  std::vector<std::span<char>> arrays;
  for (uint32_t i = 0; i < header.num_arrays; ++i) {
    Place place;
    std::memcpy(&place, bytes.data() + kHeaderBytes + i * sizeof(Place), sizeof(place));
    if (place.offset % kAlignment != 0 || place.offset > end || place.bytes > end - place.offset)
      return Damaged("has an array that leaves it");
    arrays.emplace_back(const_cast<char*>(bytes.data()) + place.offset, place.bytes);
  }
  return IndexArrays(std::move(storage), std::move(arrays));
}

absl::StatusOr<IndexArrays> IndexCache::Load(const std::string& path,
                                             const std::string& key) const {
  MT_ASSIGN_OR_RETURN(std::unique_ptr<MappedFile> file, MappedFile::Open(path));
  const std::shared_ptr<MappedFile> shared = std::move(file);
  return ParseIndexFile(shared->bytes(), key, shared);
}

absl::Status IndexCache::Write(const std::string& path, const std::string& key,
                               const IndexArrays& arrays) const {
  std::vector<Place> places(arrays.size());
  uint64_t offset = kHeaderBytes + places.size() * sizeof(Place) + key.size();
  for (size_t i = 0; i < arrays.size(); ++i) {
    places[i] = {.offset = Aligned(offset), .bytes = arrays.bytes(i).size()};
    offset = places[i].offset + places[i].bytes;
  }
  const Header header = {.file_bytes = offset + kDigestBytes,
                         .num_arrays = static_cast<uint32_t>(places.size()),
                         .key_bytes = static_cast<uint32_t>(key.size())};
  MakeRoom(header.file_bytes);
  const std::string partial = absl::StrCat(path, ".partial");
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<WritableFile> file,
                      env_->NewWritableFile(partial, Env::WriteMode::kTruncate));
  Xxh3Stream digest;
  uint64_t written = 0;
  const auto append = [&](absl::string_view data) {
    digest.Update(data.data(), data.size());
    written += data.size();
    return file->Append(data);
  };
  MT_RETURN_IF_ERROR(append(kMagic));
  MT_RETURN_IF_ERROR(append(BytesOf(header)));
  for (const Place& place : places) MT_RETURN_IF_ERROR(append(BytesOf(place)));
  MT_RETURN_IF_ERROR(append(key));
  for (size_t i = 0; i < arrays.size(); ++i) {
    MT_RETURN_IF_ERROR(append(std::string(places[i].offset - written, '\0')));
    MT_RETURN_IF_ERROR(append({arrays.bytes(i).data(), arrays.bytes(i).size()}));
  }
  MT_RETURN_IF_ERROR(file->Append(digest.Hex()));
  // Not synced: what a crash of the machine leaves of it, the digest finds.
  MT_RETURN_IF_ERROR(file->Close());
  return env_->Rename(partial, path);
}

// Not while somebody writes it. The lock goes as well, and last.
bool IndexCache::Remove(const std::string& path, const std::string& lock_path) const {
  const absl::StatusOr<std::unique_ptr<FileLock>> lock = env_->Lock(lock_path);
  if (!lock.ok() || !env_->RemoveFile(path).ok()) return false;
  static_cast<void>(env_->RemoveFile(lock_path));
  return true;
}

// What is partial is nobody's if its lock can be had.
void IndexCache::MakeRoom(uint64_t bytes) const {
  struct Entry {
    int64_t modified_ns;
    std::string path;
    uint64_t bytes;
  };
  std::vector<Entry> entries;
  uint64_t total = bytes;
  const absl::StatusOr<std::vector<std::string>> names = env_->List(folder_);
  if (!names.ok()) return;
  for (const std::string& name : *names) {
    const std::string path = JoinPath(folder_, name);
    if (absl::EndsWith(name, kPartialSuffix)) {
      Remove(path, LockOf(absl::StripSuffix(path, ".partial")));
    }
    if (!absl::EndsWith(name, kSuffix)) continue;
    const absl::StatusOr<FileInfo> info = env_->Stat(path);
    if (!info.ok()) continue;
    entries.push_back({info->modified_ns, path, info->size_bytes});
    total += info->size_bytes;
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.modified_ns < b.modified_ns; });
  for (const Entry& entry : entries) {
    const absl::StatusOr<uint64_t> free = env_->FreeBytes(folder_);
    if (total <= options_.max_bytes && (!free.ok() || *free >= bytes)) return;
    if (Remove(entry.path, LockOf(entry.path))) total -= entry.bytes;
  }
}

absl::StatusOr<IndexArrays> IndexCache::BuildFile(const std::string& path, const std::string& key,
                                                  const Build& build) const {
  MT_ASSIGN_OR_RETURN(IndexArrays built, build());
  absl::Status status = Write(path, key, built);
  if (status.ok()) {
    // The shared pages in place of our own.
    absl::StatusOr<IndexArrays> loaded = Load(path, key);
    if (loaded.ok()) return loaded;
    status = loaded.status();
  }
  static_cast<void>(env_->RemoveFile(absl::StrCat(path, ".partial")));
  MT_LOG(Warning) << "a sample order stays in memory, and is built by every rank: "
                  << status.message();
  return built;
}

absl::StatusOr<IndexArrays> IndexCache::Get(const std::string& key, const Build& build) const {
  if (key.size() > kMaxKeyBytes)
    return absl::InvalidArgumentError(absl::StrCat("a key of ", key.size(), " bytes"));
  const std::string path = JoinPath(folder_, absl::StrCat(Xxh3Hex(key), kSuffix));
  const std::string lock_path = LockOf(path);
  absl::Status status = env_->CreateDirectories(folder_);
  const absl::Duration deadline = Clock::Real()->Monotonic() + options_.patience;
  while (status.ok()) {
    absl::StatusOr<IndexArrays> arrays = Load(path, key);
    if (arrays.ok()) return arrays;
    const absl::StatusOr<std::unique_ptr<FileLock>> lock = env_->Lock(lock_path);
    if (lock.ok()) {
      // Whoever had the lock before may have built it.
      arrays = Load(path, key);
      if (arrays.ok()) return arrays;
      if (!absl::IsNotFound(arrays.status())) {
        MT_LOG(Warning) << path << ": " << arrays.status().message() << "; it is built again";
      }
      return BuildFile(path, key, build);
    }
    if (!absl::IsFailedPrecondition(lock.status())) {
      status = lock.status();
    } else if (Clock::Real()->Monotonic() > deadline) {
      status = absl::DeadlineExceededError(absl::StrCat(lock_path, " is held for longer than ",
                                                        absl::FormatDuration(options_.patience)));
    } else {
      absl::SleepFor(absl::Milliseconds(20));
    }
  }
  MT_LOG(Warning) << "a sample order stays in memory: " << status.message();
  return build();
}

absl::StatusOr<SampleIndex> IndexCache::SampleIndexOf(const SequenceLengths& lengths,
                                                      const SampleIndexOptions& options) const {
  const auto& range = options.sequences;
  const std::string key = absl::StrCat(
      "samples 1 lengths ", lengths.size(), " ", lengths.Digest(), " sequences ", range.begin, " ",
      range.end, " T ", options.sequence_length, " N ", options.num_samples, " seed ", options.seed,
      options.pack_documents ? " packed" : "");
  MT_ASSIGN_OR_RETURN(IndexArrays arrays, Get(key, [&]() -> absl::StatusOr<IndexArrays> {
                        MT_ASSIGN_OR_RETURN(SampleIndex index, BuildSampleIndex(lengths, options));
                        return index.arrays;
                      }));
  return SampleIndex(std::move(arrays));
}

}  // namespace mt
