#include "worker/data/loss_file.h"

#include <algorithm>
#include <array>

namespace mt {

std::string LossPath(const std::string& prefix) { return prefix + ".loss"; }

absl::StatusOr<std::unique_ptr<LossFile>> LossFile::Open(Env* env, const std::string& prefix,
                                                         int64_t num_tokens) {
  std::string path = LossPath(prefix);
  MT_ASSIGN_OR_RETURN(auto file, env->NewRandomAccessFile(path));
  MT_ASSIGN_OR_RETURN(const uint64_t bytes, file->Size());
  if (bytes != LossBytes(num_tokens)) {
    return absl::DataLossError(absl::StrCat(
        path, ": ", bytes, " bytes, but ", prefix, ".bin has ", num_tokens, " tokens, which need ",
        LossBytes(num_tokens), "; copy the files of the dataset again or rebuild it"));
  }
  return std::unique_ptr<LossFile>(new LossFile(std::move(path), std::move(file), num_tokens));
}

absl::Status LossFile::Read(int64_t first_token, std::span<uint8_t> losses) const {
  const auto count = static_cast<int64_t>(losses.size());
  if (first_token < 0 || first_token > num_tokens_ || count > num_tokens_ - first_token) {
    return absl::OutOfRangeError(absl::StrCat(path_, ": tokens ", first_token, " to ",
                                              first_token + count, " of ", num_tokens_,
                                              " do not exist"));
  }
  std::array<char, 4096> raw;
  for (int64_t done = 0; done < count;) {
    const int64_t token = first_token + done;
    const int64_t skipped = token % 8;
    const int64_t tokens = std::min<int64_t>(count - done, int64_t{8} * raw.size() - skipped);
    const auto bytes = static_cast<size_t>(LossBytes(skipped + tokens));
    MT_ASSIGN_OR_RETURN(const size_t read,
                        file_->Read(static_cast<uint64_t>(token / 8), bytes, raw.data()));
    if (read != bytes) {
      return absl::DataLossError(absl::StrCat(path_, ": ends at byte ", token / 8 + read,
                                              ", shorter than when it was opened; it was changed "
                                              "during the run"));
    }
    for (int64_t i = 0; i < tokens; ++i) {
      const auto byte = static_cast<uint8_t>(raw[static_cast<size_t>((skipped + i) / 8)]);
      losses[static_cast<size_t>(done + i)] = (byte >> ((skipped + i) % 8)) & 1;
    }
    done += tokens;
  }
  return absl::OkStatus();
}

void LossPacker::Append(std::span<const uint8_t> losses, std::string* packed) {
  for (const uint8_t loss : losses) {
    open_.bits |= static_cast<uint8_t>(loss << open_.num_bits);
    if (++open_.num_bits < 8) continue;
    packed->push_back(static_cast<char>(open_.bits));
    open_ = {};
  }
}

void LossPacker::Finish(std::string* packed) {
  if (open_.num_bits > 0) packed->push_back(static_cast<char>(open_.bits));
  open_ = {};
}

}  // namespace mt
