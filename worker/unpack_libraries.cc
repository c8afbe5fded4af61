#include "worker/unpack_libraries.h"

#include <unistd.h>
#include <zlib.h>

#include <vector>

#include "absl/strings/match.h"

namespace mt {
namespace {

absl::Status Unpack(Env* env, const std::string& packed, const std::string& target) {
  gzFile raw = gzopen(packed.c_str(), "rb");
  if (raw == nullptr) return absl::NotFoundError(absl::StrCat("cannot open ", packed));
  std::unique_ptr<gzFile_s, int (*)(gzFile)> input(raw, gzclose_r);
  const std::string temporary = absl::StrCat(target, ".", getpid(), ".new");
  absl::Status status = [&]() -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto output,
                        env->NewWritableFile(temporary, Env::WriteMode::kTruncate));
    std::vector<char> piece(1 << 20);
    int count = 0;
    while ((count = gzread(raw, piece.data(), static_cast<unsigned>(piece.size()))) > 0) {
      MT_RETURN_IF_ERROR(
          output->Append(absl::string_view(piece.data(), static_cast<size_t>(count))));
    }
    // Closing tells whether the last read ended in the middle of the stream.
    const int closed = gzclose_r(input.release());
    if (count < 0 || closed != Z_OK) {
      return absl::DataLossError(absl::StrCat(packed, " is damaged; copy the worker bundle again"));
    }
    MT_RETURN_IF_ERROR(output->Sync());
    MT_RETURN_IF_ERROR(output->Close());
    return env->Rename(temporary, target);
  }();
  if (!status.ok()) (void)env->RemoveFile(temporary);
  return status;
}

}  // namespace

absl::Status UnpackLibrariesIn(Env* env, const std::string& folder) {
  MT_ASSIGN_OR_RETURN(const std::vector<std::string> names, env->List(folder));
  for (const std::string& name : names) {
    if (!absl::EndsWith(name, ".gz") || !absl::StrContains(name, ".so")) continue;
    const std::string target = JoinPath(folder, name.substr(0, name.size() - 3));
    if (!Exists(env, target)) MT_RETURN_IF_ERROR(Unpack(env, JoinPath(folder, name), target));
  }
  return absl::OkStatus();
}

absl::Status UnpackLibraries(Env* env) {
  char path[4096];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof(path));
  if (size <= 0) return absl::OkStatus();  // no /proc: not started from a bundle by us
  const std::string program(path, static_cast<size_t>(size));
  return UnpackLibrariesIn(env, program.substr(0, program.rfind('/')));
}

}  // namespace mt
