#include "common/dataset/file_pieces.h"

#include <algorithm>

namespace mt {
namespace {

constexpr uint64_t kPieceBytes = 1 << 20;

}  // namespace

absl::Status WritePieces(Env* env, const std::string& path, const std::string& name, int64_t offset,
                         const std::function<bool(const v1::FilePiece&)>& write) {
  MT_ASSIGN_OR_RETURN(const auto file, env->NewRandomAccessFile(path));
  MT_ASSIGN_OR_RETURN(const uint64_t size, file->Size());
  if (offset < 0 || static_cast<uint64_t>(offset) > size) {
    return absl::OutOfRangeError(
        absl::StrCat("offset ", offset, " of ", name, ", which has ", size, " bytes"));
  }
  v1::FilePiece piece;
  piece.set_total_bytes(static_cast<int64_t>(size));
  auto at = static_cast<uint64_t>(offset);
  do {
    std::string& data = *piece.mutable_data();
    data.resize(std::min(kPieceBytes, size - at));
    MT_ASSIGN_OR_RETURN(const size_t count, file->Read(at, data.size(), data.data()));
    if (count != data.size())
      return absl::DataLossError(absl::StrCat(name, " became shorter while it was read"));
    piece.set_offset(static_cast<int64_t>(at));
    at += count;
    if (!write(piece)) return absl::CancelledError("the reader went away");
  } while (at < size);
  return absl::OkStatus();
}

}  // namespace mt
