#include "worker/unpack_libraries.h"

#include <unistd.h>
#include <zlib.h>

#include <vector>

#include "absl/strings/match.h"

namespace mt {
namespace {

constexpr size_t kPieceBytes = 1 << 20;
constexpr int kGzipWindow = 15 + 16;  // zlib: largest window, gzip header and trailer

// Writes what `packed` holds; fine only when its end with length and CRC has been seen.
absl::Status Inflate(Env* env, const std::string& packed, WritableFile* output) {
  MT_ASSIGN_OR_RETURN(const auto input, env->NewRandomAccessFile(packed));
  z_stream stream = {};
  if (inflateInit2(&stream, kGzipWindow) != Z_OK)
    return absl::ResourceExhaustedError("zlib: out of memory");
  const std::unique_ptr<z_stream, int (*)(z_stream*)> closer(&stream, inflateEnd);
  std::vector<char> in(kPieceBytes), out(kPieceBytes);
  uint64_t offset = 0;
  int result = Z_OK;
  while (result != Z_STREAM_END) {
    if (stream.avail_in == 0) {
      MT_ASSIGN_OR_RETURN(const size_t count, input->Read(offset, in.size(), in.data()));
      offset += count;
      stream.next_in = reinterpret_cast<Bytef*>(in.data());
      stream.avail_in = static_cast<uInt>(count);
    }
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = static_cast<uInt>(out.size());
    result = inflate(&stream, Z_NO_FLUSH);
    if (result != Z_OK && result != Z_STREAM_END) {  // Z_BUF_ERROR: nothing left to read
      return absl::DataLossError(absl::StrCat(packed, " is damaged; copy the worker bundle again"));
    }
    MT_RETURN_IF_ERROR(
        output->Append(absl::string_view(out.data(), out.size() - stream.avail_out)));
  }
  return absl::OkStatus();
}

absl::Status Unpack(Env* env, const std::string& packed, const std::string& target) {
  const std::string temporary = absl::StrCat(target, ".", getpid(), ".new");
  absl::Status status = [&]() -> absl::Status {
    MT_ASSIGN_OR_RETURN(const auto output,
                        env->NewWritableFile(temporary, Env::WriteMode::kTruncate));
    MT_RETURN_IF_ERROR(Inflate(env, packed, output.get()));
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
