#include "common/testing/mem_env.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace mt {
namespace {

struct Inode {
  std::string data;
  std::string durable;     // at the last Sync
  bool only_grown = true;  // since the last Sync: it begins with `durable`
  int64_t modified = 0;
};

std::string Normalize(const std::string& path) {
  const std::vector<std::string> parts = absl::StrSplit(path, '/', absl::SkipEmpty());
  return absl::StrCat("/", absl::StrJoin(parts, "/"));
}

std::string Parent(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string WithSlash(const std::string& folder) { return folder == "/" ? folder : folder + "/"; }

bool IsUnder(const std::string& path, const std::string& folder) {
  return absl::StartsWith(path, WithSlash(folder));
}

}  // namespace

struct MemEnv::State {
  using Names = std::map<std::string, std::shared_ptr<Inode>>;

  std::mutex mutex;
  Names names;          // now
  Names durable_names;  // after a crash
  std::set<std::string> folders{"/"};
  std::vector<std::pair<std::string, std::string>> folder_renames;  // not yet synced
  std::set<std::string> locks;
  uint64_t life = 1;  // of the process that has files open
  int64_t writes = 0;
  uint64_t used = 0;
  std::optional<uint64_t> capacity;
  std::function<absl::Status(absl::string_view, const std::string&)> fault;

  absl::Status Fault(absl::string_view operation, const std::string& path) {
    return fault ? fault(operation, path) : absl::OkStatus();
  }
  void Recount() {
    used = 0;
    for (const auto& [path, inode] : names) used += inode->data.size();
  }
};

namespace {

class MemWritableFile : public WritableFile {
 public:
  MemWritableFile(std::shared_ptr<MemEnv::State> state, std::shared_ptr<Inode> inode,
                  std::string path)
      : state_(std::move(state)),
        inode_(std::move(inode)),
        path_(std::move(path)),
        life_(state_->life) {}

  absl::Status Append(absl::string_view data) override {
    std::lock_guard lock(state_->mutex);
    MT_RETURN_IF_ERROR(Alive());
    MT_RETURN_IF_ERROR(state_->Fault("append", path_));
    uint64_t room = data.size();
    if (state_->capacity.has_value()) {
      room = *state_->capacity > state_->used
                 ? std::min<uint64_t>(room, *state_->capacity - state_->used)
                 : 0;
    }
    inode_->modified = ++state_->writes;
    inode_->data.append(data.data(), room);  // a full disk takes what fits, as write(2) does
    state_->used += room;
    if (room < data.size()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("write ", path_, ": No space left on device"));
    }
    return absl::OkStatus();
  }
  absl::Status Sync() override {
    std::lock_guard lock(state_->mutex);
    MT_RETURN_IF_ERROR(Alive());
    MT_RETURN_IF_ERROR(state_->Fault("sync", path_));
    if (inode_->only_grown) {
      inode_->durable.append(inode_->data, inode_->durable.size());
    } else {
      inode_->durable = inode_->data;
    }
    inode_->only_grown = true;
    return absl::OkStatus();
  }
  absl::Status Close() override { return absl::OkStatus(); }

 private:
  absl::Status Alive() const {
    if (state_->life == life_) return absl::OkStatus();
    return absl::UnavailableError(absl::StrCat(path_, ": its process is dead"));
  }

  std::shared_ptr<MemEnv::State> state_;
  std::shared_ptr<Inode> inode_;
  const std::string path_;
  const uint64_t life_;
};

class MemRandomAccessFile : public RandomAccessFile {
 public:
  MemRandomAccessFile(std::shared_ptr<MemEnv::State> state, std::shared_ptr<Inode> inode,
                      std::string path)
      : state_(std::move(state)), inode_(std::move(inode)), path_(std::move(path)) {}

  absl::StatusOr<size_t> Read(uint64_t offset, size_t size, char* buffer) const override {
    std::lock_guard lock(state_->mutex);
    MT_RETURN_IF_ERROR(state_->Fault("read", path_));
    if (offset >= inode_->data.size()) return size_t{0};
    const size_t count = std::min<size_t>(size, inode_->data.size() - offset);
    std::memcpy(buffer, inode_->data.data() + offset, count);
    return count;
  }
  absl::StatusOr<uint64_t> Size() const override {
    std::lock_guard lock(state_->mutex);
    return static_cast<uint64_t>(inode_->data.size());
  }

 private:
  std::shared_ptr<MemEnv::State> state_;
  std::shared_ptr<Inode> inode_;
  const std::string path_;
};

class MemFileLock : public FileLock {
 public:
  MemFileLock(std::shared_ptr<MemEnv::State> state, std::string path)
      : state_(std::move(state)), path_(std::move(path)), life_(state_->life) {}
  ~MemFileLock() override {
    std::lock_guard lock(state_->mutex);
    if (state_->life == life_) state_->locks.erase(path_);
  }

 private:
  std::shared_ptr<MemEnv::State> state_;
  const std::string path_;
  const uint64_t life_;
};

absl::Status NotFound(absl::string_view what, const std::string& path) {
  return absl::NotFoundError(absl::StrCat(what, " ", path, ": No such file or directory"));
}

}  // namespace

MemEnv::MemEnv() : state_(std::make_shared<State>()) {}
MemEnv::~MemEnv() = default;

void MemEnv::Crash() {
  std::lock_guard lock(state_->mutex);
  ++state_->life;
  state_->locks.clear();
  state_->folder_renames.clear();
  state_->names = state_->durable_names;
  for (auto& [path, inode] : state_->names) {
    inode->data = inode->durable;
    inode->only_grown = true;
    for (std::string folder = Parent(path); state_->folders.insert(folder).second;
         folder = Parent(folder)) {
    }
  }
  state_->Recount();
}

void MemEnv::KillProcess() {
  std::lock_guard lock(state_->mutex);
  ++state_->life;
  state_->locks.clear();
}

void MemEnv::SetCapacity(std::optional<uint64_t> bytes) {
  std::lock_guard lock(state_->mutex);
  state_->capacity = bytes;
}

void MemEnv::SetFault(std::function<absl::Status(absl::string_view, const std::string&)> fault) {
  std::lock_guard lock(state_->mutex);
  state_->fault = std::move(fault);
}

absl::Status MemEnv::CorruptByte(const std::string& path, uint64_t offset) {
  std::lock_guard lock(state_->mutex);
  const auto it = state_->names.find(Normalize(path));
  if (it == state_->names.end()) return NotFound("corrupt", path);
  Inode& inode = *it->second;
  if (offset >= inode.data.size())
    return absl::OutOfRangeError(absl::StrCat(path, " has ", inode.data.size(), " bytes"));
  inode.data[offset] ^= 1;
  inode.only_grown = false;
  if (offset < inode.durable.size()) inode.durable[offset] = inode.data[offset];
  return absl::OkStatus();
}

absl::Status MemEnv::TruncateFile(const std::string& path, uint64_t size) {
  std::lock_guard lock(state_->mutex);
  const auto it = state_->names.find(Normalize(path));
  if (it == state_->names.end()) return NotFound("truncate", path);
  Inode& inode = *it->second;
  inode.data.resize(std::min<uint64_t>(size, inode.data.size()));
  inode.durable.resize(std::min<uint64_t>(size, inode.durable.size()));
  inode.only_grown = false;
  state_->Recount();
  return absl::OkStatus();
}

uint64_t MemEnv::UsedBytes() {
  std::lock_guard lock(state_->mutex);
  return state_->used;
}

absl::StatusOr<std::unique_ptr<WritableFile>> MemEnv::NewWritableFile(const std::string& raw,
                                                                      WriteMode mode) {
  const std::string path = Normalize(raw);
  std::lock_guard lock(state_->mutex);
  if (!state_->folders.contains(Parent(path))) return NotFound("open for writing", path);
  if (state_->folders.contains(path))
    return absl::InternalError(absl::StrCat("open for writing ", path, ": Is a directory"));
  auto it = state_->names.find(path);
  if (it == state_->names.end()) {
    MT_RETURN_IF_ERROR(state_->Fault("create", path));
    it = state_->names.emplace(path, std::make_shared<Inode>()).first;
  } else if (mode == WriteMode::kTruncate) {
    state_->used -= it->second->data.size();
    it->second->data.clear();
    it->second->modified = ++state_->writes;
    it->second->only_grown = it->second->durable.empty();
  }
  return std::make_unique<MemWritableFile>(state_, it->second, path);
}

absl::StatusOr<std::unique_ptr<RandomAccessFile>> MemEnv::NewRandomAccessFile(
    const std::string& raw) {
  const std::string path = Normalize(raw);
  std::lock_guard lock(state_->mutex);
  const auto it = state_->names.find(path);
  if (it == state_->names.end()) return NotFound("open", path);
  return std::make_unique<MemRandomAccessFile>(state_, it->second, path);
}

absl::Status MemEnv::Rename(const std::string& raw_from, const std::string& raw_to) {
  const std::string from = Normalize(raw_from), to = Normalize(raw_to);
  std::lock_guard lock(state_->mutex);
  MT_RETURN_IF_ERROR(state_->Fault("rename", from));
  if (!state_->folders.contains(Parent(to))) return NotFound("rename to", to);
  if (const auto it = state_->names.find(from); it != state_->names.end()) {
    const std::shared_ptr<Inode> inode = it->second;
    state_->names.erase(it);
    state_->names[to] = inode;
    state_->Recount();
    return absl::OkStatus();
  }
  if (!state_->folders.contains(from)) return NotFound("rename", from);
  if (state_->folders.contains(to) || state_->names.contains(to)) {
    return absl::AlreadyExistsError(absl::StrCat("rename ", from, " to ", to, ": File exists"));
  }
  std::set<std::string> folders;
  for (const std::string& folder : state_->folders) {
    folders.insert(folder == from || IsUnder(folder, from) ? to + folder.substr(from.size())
                                                           : folder);
  }
  state_->folders = std::move(folders);
  State::Names names;
  for (auto& [path, inode] : state_->names)
    names[IsUnder(path, from) ? to + path.substr(from.size()) : path] = inode;
  state_->names = std::move(names);
  state_->folder_renames.emplace_back(from, to);
  return absl::OkStatus();
}

absl::Status MemEnv::Truncate(const std::string& raw, uint64_t size) {
  const std::string path = Normalize(raw);
  std::lock_guard lock(state_->mutex);
  MT_RETURN_IF_ERROR(state_->Fault("truncate", path));
  const auto it = state_->names.find(path);
  if (it == state_->names.end()) return NotFound("truncate", path);
  Inode& inode = *it->second;
  if (inode.data.size() < size) {
    return absl::InvalidArgumentError(absl::StrCat("truncate ", path, ": it has ",
                                                   inode.data.size(), " bytes, fewer than ", size));
  }
  inode.data.resize(size);
  inode.modified = ++state_->writes;
  inode.only_grown = false;
  state_->Recount();
  return absl::OkStatus();
}

absl::Status MemEnv::SyncDirectory(const std::string& raw) {
  const std::string folder = Normalize(raw);
  std::lock_guard lock(state_->mutex);
  MT_RETURN_IF_ERROR(state_->Fault("sync_directory", folder));
  if (!state_->folders.contains(folder)) return NotFound("open folder", folder);
  std::erase_if(state_->folder_renames, [&](const auto& rename) {
    const auto& [from, to] = rename;
    if (Parent(to) != folder) return false;
    State::Names moved;
    for (const auto& [path, inode] : state_->durable_names) {
      moved[IsUnder(path, from) ? to + path.substr(from.size()) : path] = inode;
    }
    state_->durable_names = std::move(moved);
    return true;
  });
  // Removed: durable names whose component right below this folder exists no more.
  const std::string prefix = WithSlash(folder);
  std::erase_if(state_->durable_names, [&](const auto& entry) {
    if (!absl::StartsWith(entry.first, prefix)) return false;
    const std::string child = entry.first.substr(0, entry.first.find('/', prefix.size()));
    return !state_->names.contains(child) && !state_->folders.contains(child);
  });
  for (const auto& [path, inode] : state_->names) {
    if (Parent(path) == folder) state_->durable_names[path] = inode;
  }
  return absl::OkStatus();
}

absl::Status MemEnv::CreateDirectories(const std::string& raw) {
  const std::string path = Normalize(raw);
  std::lock_guard lock(state_->mutex);
  MT_RETURN_IF_ERROR(state_->Fault("create", path));
  for (std::string folder = path;; folder = Parent(folder)) {
    if (state_->names.contains(folder)) {
      return absl::AlreadyExistsError(
          absl::StrCat("create folder (a file is in the way) ", folder, ": File exists"));
    }
    if (folder == "/") break;
  }
  for (std::string folder = path; state_->folders.insert(folder).second; folder = Parent(folder)) {
  }
  return absl::OkStatus();
}

absl::Status MemEnv::RemoveFile(const std::string& raw) {
  const std::string path = Normalize(raw);
  std::lock_guard lock(state_->mutex);
  MT_RETURN_IF_ERROR(state_->Fault("remove", path));
  if (state_->names.erase(path) == 0) return NotFound("remove", path);
  state_->Recount();
  return absl::OkStatus();
}

absl::Status MemEnv::RemoveTree(const std::string& raw) {
  const std::string path = Normalize(raw);
  std::lock_guard lock(state_->mutex);
  MT_RETURN_IF_ERROR(state_->Fault("remove", path));
  std::erase_if(state_->names, [&](const auto& entry) {
    return entry.first == path || IsUnder(entry.first, path);
  });
  std::erase_if(state_->folders, [&](const std::string& folder) {
    return folder != "/" && (folder == path || IsUnder(folder, path));
  });
  state_->Recount();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> MemEnv::List(const std::string& raw) {
  const std::string path = Normalize(raw);
  std::lock_guard lock(state_->mutex);
  if (!state_->folders.contains(path)) return NotFound("list", path);
  const std::string prefix = WithSlash(path);
  std::set<std::string> names;
  auto add = [&](const std::string& entry) {
    if (entry != "/" && absl::StartsWith(entry, prefix)) {
      const std::string rest = entry.substr(prefix.size());
      names.insert(rest.substr(0, rest.find('/')));
    }
  };
  for (const auto& [name, inode] : state_->names) add(name);
  for (const std::string& folder : state_->folders) add(folder);
  return std::vector<std::string>(names.begin(), names.end());
}

absl::StatusOr<FileInfo> MemEnv::Stat(const std::string& raw) {
  const std::string path = Normalize(raw);
  std::lock_guard lock(state_->mutex);
  if (state_->folders.contains(path)) return FileInfo{.is_directory = true};
  const auto it = state_->names.find(path);
  if (it == state_->names.end()) return NotFound("stat", path);
  return FileInfo{.size_bytes = it->second->data.size(), .modified_ns = it->second->modified};
}

absl::StatusOr<std::unique_ptr<FileLock>> MemEnv::Lock(const std::string& raw) {
  const std::string path = Normalize(raw);
  std::lock_guard lock(state_->mutex);
  if (!state_->folders.contains(Parent(path))) return NotFound("open lock", path);
  if (!state_->names.contains(path)) state_->names.emplace(path, std::make_shared<Inode>());
  if (!state_->locks.insert(path).second) {
    return absl::FailedPreconditionError(
        absl::StrCat("lock ", path, " is held by another process"));
  }
  return std::make_unique<MemFileLock>(state_, path);
}

absl::StatusOr<uint64_t> MemEnv::FreeBytes(const std::string&) {
  std::lock_guard lock(state_->mutex);
  if (!state_->capacity.has_value()) return uint64_t{1} << 40;
  return *state_->capacity > state_->used ? *state_->capacity - state_->used : 0;
}

}  // namespace mt
