#include "common/dataset/dataset_fingerprint.h"

#include <algorithm>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "common/hash.h"

namespace mt {
namespace {

// Where block `i` of a file begins. Products are below 2^64 for files up to 2^58 bytes.
uint64_t BlockOffset(uint64_t bytes, int i) {
  return (bytes - kFingerprintBlockBytes) / (kFingerprintBlocks - 1) * static_cast<uint64_t>(i) +
         (bytes - kFingerprintBlockBytes) % (kFingerprintBlocks - 1) * static_cast<uint64_t>(i) /
             (kFingerprintBlocks - 1);
}

absl::StatusOr<std::string> OfBlocks(Env* env, const std::string& path) {
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<RandomAccessFile> file, env->NewRandomAccessFile(path));
  MT_ASSIGN_OR_RETURN(const uint64_t bytes, file->Size());
  const bool whole = bytes <= kFingerprintBlocks * kFingerprintBlockBytes;
  Xxh3Stream digest;
  std::string block(kFingerprintBlockBytes, '\0');
  for (int i = 0; i < kFingerprintBlocks; ++i) {
    const uint64_t offset =
        whole ? static_cast<uint64_t>(i) * kFingerprintBlockBytes : BlockOffset(bytes, i);
    if (offset >= bytes) break;
    MT_ASSIGN_OR_RETURN(const size_t count, file->Read(offset, block.size(), block.data()));
    digest.Update(block.data(), count);
  }
  return absl::StrCat(bytes, ":", digest.Hex());
}

// Suffix to (bytes, digest).
std::map<std::string, std::pair<std::string, std::string>> Parse(const std::string& fingerprint) {
  std::map<std::string, std::pair<std::string, std::string>> files;
  for (absl::string_view part : absl::StrSplit(fingerprint, ' ', absl::SkipEmpty())) {
    const std::vector<std::string> fields = absl::StrSplit(part, ':');
    if (fields.size() == 3) files[fields[0]] = {fields[1], fields[2]};
  }
  return files;
}

}  // namespace

absl::StatusOr<std::string> DatasetFingerprint(Env* env, const std::string& prefix) {
  MT_ASSIGN_OR_RETURN(const std::string index_digest, Xxh3HexOfFile(env, prefix + ".idx"));
  MT_ASSIGN_OR_RETURN(const FileInfo index, env->Stat(prefix + ".idx"));
  MT_ASSIGN_OR_RETURN(const std::string tokens, OfBlocks(env, prefix + ".bin"));
  std::string text = absl::StrCat("idx:", index.size_bytes, ":", index_digest, " bin:", tokens);
  if (!Exists(env, prefix + ".loss")) return text;
  MT_ASSIGN_OR_RETURN(const std::string losses, OfBlocks(env, prefix + ".loss"));
  return absl::StrCat(text, " loss:", losses);
}

std::string DifferenceOf(const std::string& prefix, const std::string& here,
                         const std::string& there) {
  if (here == there) return "";
  const auto mine = Parse(here), theirs = Parse(there);
  for (const char* const suffix : {"idx", "bin", "loss"}) {
    const auto a = mine.find(suffix), b = theirs.find(suffix);
    const std::string file = absl::StrCat(prefix, ".", suffix);
    if (a == mine.end() && b == theirs.end()) continue;
    if (a == mine.end()) return absl::StrCat(file, " is missing here and is there");
    if (b == theirs.end()) return absl::StrCat(file, " is here and is missing there");
    if (a->second.first != b->second.first) {
      return absl::StrCat(file, " has ", a->second.first, " bytes here and ", b->second.first,
                          " there");
    }
    if (a->second.second != b->second.second) {
      return absl::StrCat(file, " has ", a->second.first, " bytes on both, but not the same (XXH3 ",
                          a->second.second, " here, ", b->second.second, " there)");
    }
  }
  return absl::StrCat(prefix, ": fingerprints \"", here, "\" here and \"", there, "\" there");
}

std::vector<std::string> DatasetFilesOf(Env* env, const std::string& prefix) {
  std::vector<std::string> files;
  for (const char* const suffix : {".idx", ".bin", ".loss"}) {
    if (Exists(env, prefix + suffix)) files.push_back(prefix + suffix);
  }
  return files;
}

std::vector<std::string> DatasetPrefixesOf(const v1::JobSpec& spec) {
  std::vector<std::string> prefixes;
  const auto add = [&](const auto& sources) {
    for (const v1::DataSource& source : sources) {
      if (std::find(prefixes.begin(), prefixes.end(), source.prefix()) == prefixes.end())
        prefixes.push_back(source.prefix());
    }
  };
  add(spec.data().train());
  if (spec.training().evaluation().every_steps() > 0) add(spec.data().validation());
  return prefixes;
}

}  // namespace mt
