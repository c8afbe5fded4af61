#include "kernels/cuda/libraries.h"

#include <dlfcn.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>

#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

struct Wanted {
  const char* what;
  const char* soname;
  int least_version;
};
constexpr Wanted kCublasLt = {"cuBLASLt", "libcublasLt.so.13", 130000};
constexpr Wanted kCudnn = {"cuDNN", "libcudnn.so.9", 90100};
constexpr Wanted kNccl = {"NCCL", "libnccl.so.2", 21900};

bool IsFile(const std::string& path) {
  struct stat info;
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

std::string FolderOfThisLibrary() {
  Dl_info info;
  if (dladdr(reinterpret_cast<const void*>(&FolderOfThisLibrary), &info) == 0 ||
      info.dli_fname == nullptr)
    return "";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

std::string PathOf(void* function) {
  Dl_info info;
  return dladdr(function, &info) != 0 && info.dli_fname != nullptr ? info.dli_fname : "";
}

// What to hand to dlopen, in order: files that exist, and the bare name for the system's loader.
std::vector<std::string> Candidates(const LibrarySearch& search, const char* soname) {
  std::vector<std::string> candidates;
  const auto add = [&](const std::vector<std::string>& folders) {
    for (const std::string& folder : folders) {
      if (IsFile(folder + "/" + soname)) candidates.push_back(folder + "/" + soname);
    }
  };
  add(search.folders);
  if (search.system) candidates.emplace_back(soname);
  add(search.last_folders);
  return candidates;
}

// Tries the candidates; `accept(handle)` gives an empty string, or why this one will not do.
template <typename Accept>
int32_t Find(const LibrarySearch& search, const Wanted& wanted, Accept&& accept) {
  std::string reasons;
  for (const std::string& candidate : Candidates(search, wanted.soname)) {
    std::string reason;
    if (void* handle = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL); handle != nullptr) {
      reason = accept(handle);
      if (reason.empty()) return MT_OK;
      reason = candidate + " " + reason;
      dlclose(handle);
    } else {
      const char* error = dlerror();
      reason = error != nullptr ? error : candidate + " does not load";
    }
    reasons += (reasons.empty() ? "" : "; ") + reason;
  }
  if (reasons.empty()) reasons = "no such file in the folders that were searched";
  return host::Fail(MT_ERROR_UNSUPPORTED, 0,
                    "%s %s or newer (%s) is missing: %s; MT_CUDA_LIBRARY_PATH may name its folder",
                    wanted.what, VersionText(wanted.least_version).c_str(), wanted.soname,
                    reasons.c_str());
}

std::string CheckVersion(const Wanted& wanted, int version) {
  if (version >= wanted.least_version && version / 10000 == wanted.least_version / 10000) return "";
  return "is version " + VersionText(version);
}

template <typename Function>
bool Resolve(void* handle, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
  return *function != nullptr;
}

#define MT_RESOLVE(name) \
  if (!Resolve(handle, #name, &found.name)) return "has no " #name;

// Loads once per process; a failure may be tried again.
template <typename Library>
const Library* LoadOnce() {
  static std::mutex* mutex = new std::mutex;
  static Library* loaded = nullptr;
  const std::lock_guard lock(*mutex);
  if (loaded != nullptr) return loaded;
  auto* library = new Library;
  if (LoadLibrary(DefaultSearch(), library) != MT_OK) {
    delete library;
    return nullptr;
  }
  return loaded = library;
}

// cuDNN compiles its attention with NVRTC, which it opens by name wherever the loader looks: a copy that is already loaded is
// found too. If there is none, cuDNN says so when it needs it.
void PreloadNvrtc(const LibrarySearch& search) {
  for (const std::string& candidate : Candidates(search, "libnvrtc.so.13")) {
    if (dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL) != nullptr) return;
  }
}

}  // namespace

std::string VersionText(int version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

std::vector<std::string> FoldersOf(const std::string& entry) {
  std::vector<std::string> folders = {entry, entry + "/lib", entry + "/lib64"};
  for (const char* root : {"", "/nvidia"}) {
    for (const char* package : {"cu13", "cublas", "cudnn", "nccl", "cuda_nvrtc"}) {
      folders.push_back(entry + root + "/" + package + "/lib");
    }
  }
  return folders;
}

LibrarySearch DefaultSearch() {
  LibrarySearch search;
  if (const std::string own = FolderOfThisLibrary(); !own.empty()) search.folders.push_back(own);
  if (const char* variable = std::getenv("MT_CUDA_LIBRARY_PATH"); variable != nullptr) {
    const std::string list = variable;
    for (size_t begin = 0; begin < list.size();) {
      const size_t end = std::min(list.find(':', begin), list.size());
      if (end > begin) {
        for (std::string& folder : FoldersOf(list.substr(begin, end - begin)))
          search.folders.push_back(std::move(folder));
      }
      begin = end + 1;
    }
  }
  search.last_folders = {"/usr/local/cuda/lib64", "/usr/local/cuda/lib",
                         "/usr/local/cuda/targets/x86_64-linux/lib", "/usr/local/cuda-13/lib64",
                         "/opt/cuda/lib64"};
  return search;
}

int32_t LoadLibrary(const LibrarySearch& search, CublasLt* library) {
  return Find(search, kCublasLt, [&](void* handle) -> std::string {
    CublasLt found;
    MT_RESOLVE(cublasLtGetVersion)
    found.version = static_cast<int>(found.cublasLtGetVersion());
    if (std::string reason = CheckVersion(kCublasLt, found.version); !reason.empty()) return reason;
    MT_CUBLASLT_FUNCTIONS(MT_RESOLVE)
    found.path = PathOf(reinterpret_cast<void*>(found.cublasLtGetVersion));
    *library = found;
    return "";
  });
}

int32_t LoadLibrary(const LibrarySearch& search, Cudnn* library) {
  PreloadNvrtc(search);
  return Find(search, kCudnn, [&](void* handle) -> std::string {
    Cudnn found;
    MT_RESOLVE(cudnnGetVersion)
    found.version = static_cast<int>(found.cudnnGetVersion());
    if (std::string reason = CheckVersion(kCudnn, found.version); !reason.empty()) return reason;
    MT_CUDNN_FUNCTIONS(MT_RESOLVE)
    found.path = PathOf(reinterpret_cast<void*>(found.cudnnGetVersion));
    found.handle = handle;
    *library = found;
    return "";
  });
}

int32_t LoadLibrary(const LibrarySearch& search, Nccl* library) {
  return Find(search, kNccl, [&](void* handle) -> std::string {
    Nccl found;
    MT_RESOLVE(ncclGetVersion)
    if (found.ncclGetVersion(&found.version) != ncclSuccess) return "does not tell its version";
    if (std::string reason = CheckVersion(kNccl, found.version); !reason.empty()) return reason;
    MT_NCCL_FUNCTIONS(MT_RESOLVE)
    found.path = PathOf(reinterpret_cast<void*>(found.ncclGetVersion));
    *library = found;
    return "";
  });
}

const CublasLt* LoadCublasLt() { return LoadOnce<CublasLt>(); }
const Cudnn* LoadCudnn() { return LoadOnce<Cudnn>(); }
const Nccl* LoadNccl() { return LoadOnce<Nccl>(); }

}  // namespace mt::cuda
