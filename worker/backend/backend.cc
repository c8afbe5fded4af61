#include "worker/backend/backend.h"

#include <dlfcn.h>
#include <sys/stat.h>
#include <unistd.h>

#include <climits>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "worker/backend/abi_status.h"

namespace mt {
namespace {

constexpr const char* kOrder[] = {"cuda", "musa", "txda", "cpu"};

std::vector<std::string> SearchPath() {
  std::vector<std::string> folders;
  if (const char* path = std::getenv("MT_BACKEND_PATH"); path != nullptr) {
    for (const auto& folder : absl::StrSplit(path, ':', absl::SkipEmpty()))
      folders.emplace_back(folder);
  }
  char executable[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", executable, sizeof executable);
  if (length > 0) {
    std::string folder(executable, static_cast<size_t>(length));
    folder.resize(folder.rfind('/'));
    folders.push_back(folder);
    folders.push_back(folder + "/../lib");
    folders.push_back(folder + "/../bin");
  }
  return folders;
}

bool IsFile(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

absl::StatusOr<std::unique_ptr<Backend>> Open(const std::string& name) {
  const bool plain =
      !name.empty() &&
      name.find_first_not_of("abcdefghijklmnopqrstuvwxyz0123456789_") == std::string::npos;
  if (!plain)
    return absl::InvalidArgumentError(
        absl::StrCat("backend '", name, "': a name is of a-z, 0-9 and _"));
  const std::string file = "libmt_backend_" + name + ".so";
  std::string path;
  const std::vector<std::string> folders = SearchPath();
  for (const std::string& folder : folders) {
    if (path.empty() && IsFile(folder + "/" + file)) path = folder + "/" + file;
  }
  if (path.empty()) {
    return absl::NotFoundError(absl::StrCat("backend '", name, "': no ", file, " in ",
                                            absl::StrJoin(folders, ", "),
                                            "; set MT_BACKEND_PATH to its folder"));
  }
  // libgomp reads this when it is loaded. Its idle threads spin for milliseconds by default, which
  // robs the other ranks of a host that share the cores; about a tenth of that still bridges the
  // gap between two operations.
  if (std::getenv("OMP_WAIT_POLICY") == nullptr) setenv("GOMP_SPINCOUNT", "10000", /*overwrite=*/0);
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return absl::FailedPreconditionError(absl::StrCat("backend '", name, "': ", dlerror()));
  const auto entry = reinterpret_cast<mt_backend_entry>(dlsym(library, MT_BACKEND_ENTRY_SYMBOL));
  const mt_backend* abi = entry != nullptr ? entry() : nullptr;
  if (abi == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("backend '", name, "': ", path, " has no usable ", MT_BACKEND_ENTRY_SYMBOL));
  }
  if (abi->abi_major != MT_BACKEND_ABI_MAJOR || abi->struct_size < sizeof(mt_backend)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "backend '", name, "': ", path, " has ABI ", abi->abi_major, ".", abi->abi_minor,
        "; this program needs ", MT_BACKEND_ABI_MAJOR, ".x: install the backend of this release"));
  }
  mt_device_info info = {};
  info.struct_size = sizeof info;
  if (abi->probe(&info) <= 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "backend '", name, "': ", info.detail[0] != '\0' ? info.detail : "its probe declined"));
  }
  return std::make_unique<Backend>(abi, info, path);
}

}  // namespace

absl::Status Backend::ToStatus(int32_t code, absl::string_view what) const {
  if (code == MT_OK) return absl::OkStatus();
  std::string message = absl::StrCat(what, " on backend ", abi_->name, ": ", abi_->error_message());
  if (code <= MT_ERROR_DEVICE) absl::StrAppend(&message, " (code ", code, ")");
  return AbiStatus(code, message);
}

absl::StatusOr<const Backend*> LoadBackend(absl::string_view name) {
  // Leaked on purpose: libraries are never unloaded. A failure is not remembered, so that a fixed
  // path can be tried again.
  static std::mutex* mutex = new std::mutex;
  static auto* loaded = new std::map<std::string, std::unique_ptr<Backend>>;
  const std::lock_guard lock(*mutex);
  const std::string key(name);
  if (const auto it = loaded->find(key); it != loaded->end()) return it->second.get();
  MT_ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend, Open(key));
  return loaded->emplace(key, std::move(backend)).first->second.get();
}

absl::StatusOr<const Backend*> ChooseBackend(absl::string_view requested) {
  if (!requested.empty() && requested != "auto") return LoadBackend(requested);
  std::vector<std::string> reasons;
  for (const char* name : kOrder) {
    absl::StatusOr<const Backend*> backend = LoadBackend(name);
    if (backend.ok()) return backend;
    reasons.emplace_back(backend.status().message());
  }
  return absl::NotFoundError(
      absl::StrCat("no backend is usable here: ", absl::StrJoin(reasons, "; ")));
}

std::vector<std::string> DescribeBackends() {
  std::vector<std::string> lines;
  for (const char* name : {"cuda", "musa", "txda", "cpu", "reference"}) {
    const absl::StatusOr<const Backend*> backend = LoadBackend(name);
    if (backend.ok()) {
      const mt_device_info& info = (*backend)->info();
      lines.push_back((*backend)->host_memory()
                          ? name
                          : absl::StrCat(name, ": ", info.device_count, " x ", info.name));
    } else if (!absl::IsNotFound(backend.status())) {
      const std::string message(backend.status().message());
      const size_t colon = message.find(": ");
      lines.push_back(absl::StrCat(
          name, ": ", colon == std::string::npos ? message : message.substr(colon + 2)));
    }
  }
  return lines;
}

int CountDevices() {
  const absl::StatusOr<const Backend*> backend = ChooseBackend("auto");
  return backend.ok() && !(*backend)->host_memory() ? (*backend)->info().device_count : 0;
}

}  // namespace mt
