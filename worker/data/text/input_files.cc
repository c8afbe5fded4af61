#include "worker/data/text/input_files.h"

#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace mt {
namespace {

constexpr uint64_t kLongestList = 1ull << 30;
constexpr absl::string_view kByteOrderMark = "\xEF\xBB\xBF";

// A file, or a link to one.
absl::Status CheckFile(Env* env, const std::string& path) {
  const absl::StatusOr<FileInfo> info = env->StatTarget(path);
  if (absl::IsNotFound(info.status()) && env->Stat(path).ok()) {
    return absl::NotFoundError(
        absl::StrCat(path, ": a link to a file that is not there; mend or remove it"));
  }
  if (!info.ok()) return info.status();
  if (!info->is_special) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": a pipe, a socket or a device, not a file; write what it gives to a file first"));
}

// nullopt: a file that is no folder.
absl::StatusOr<std::optional<std::vector<std::string>>> NamesIn(Env* env, const std::string& path) {
  absl::StatusOr<std::vector<std::string>> names = env->List(path);
  if (names.ok()) return *std::move(names);
  MT_RETURN_IF_ERROR(CheckFile(env, path));
  MT_RETURN_IF_ERROR(env->NewRandomAccessFile(path).status());
  return std::nullopt;
}

absl::Status AddFolder(Env* env, const std::string& folder, const std::vector<std::string>& names,
                       std::vector<std::string>* files) {
  for (const std::string& name : names) {
    if (name[0] == '.' || absl::EndsWith(name, ".manifest.json") ||
        absl::EndsWith(name, ".bad.jsonl") || absl::EndsWith(name, ".journal.json")) {
      continue;
    }
    const std::string path = JoinPath(folder, name);
    MT_ASSIGN_OR_RETURN(const FileInfo info, env->Stat(path));
    if (info.is_directory) {
      MT_ASSIGN_OR_RETURN(const std::vector<std::string> inner, env->List(path));
      MT_RETURN_IF_ERROR(AddFolder(env, path, inner, files));
    } else if (InputKindOf(path).ok() && !(info.is_symlink && env->List(path).ok())) {
      MT_RETURN_IF_ERROR(CheckFile(env, path));
      files->push_back(path);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<InputKind> InputKindOf(const std::string& path) {
  InputKind kind;
  absl::string_view name = path;
  if (absl::ConsumeSuffix(&name, ".gz")) {
    kind.compression = Compression::kGzip;
  } else if (absl::ConsumeSuffix(&name, ".zst")) {
    kind.compression = Compression::kZstd;
  }
  if (absl::EndsWith(name, ".jsonl") || absl::EndsWith(name, ".json")) {
    kind.format = TextFormat::kJsonl;
  } else if (!absl::EndsWith(name, ".txt")) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": only .txt and .jsonl files are read, also as .gz and .zst"));
  }
  return kind;
}

absl::StatusOr<std::vector<std::string>> ExpandInputs(Env* env,
                                                      const std::vector<std::string>& inputs) {
  std::vector<std::string> files;
  for (const std::string& input : inputs) {
    MT_ASSIGN_OR_RETURN(const auto names, NamesIn(env, input));
    if (!names.has_value()) {
      MT_RETURN_IF_ERROR(InputKindOf(input).status());
      files.push_back(input);
      continue;
    }
    const size_t before = files.size();
    MT_RETURN_IF_ERROR(AddFolder(env, input, *names, &files));
    if (files.size() == before) {
      return absl::InvalidArgumentError(absl::StrCat(
          input, ": no .txt or .jsonl file (also as .gz or .zst) in this folder; name another"));
    }
  }
  return files;
}

absl::StatusOr<std::vector<std::string>> ReadInputList(Env* env, const std::string& path) {
  MT_ASSIGN_OR_RETURN(const std::string text, ReadFile(env, path, kLongestList));
  std::vector<std::string> paths;
  for (absl::string_view line : absl::StrSplit(absl::StripPrefix(text, kByteOrderMark), '\n')) {
    const size_t last = line.find_last_not_of(" \t\r");
    if (last != absl::string_view::npos) paths.emplace_back(line.substr(0, last + 1));
  }
  if (paths.empty())
    return absl::InvalidArgumentError(absl::StrCat(path, ": the list names no file"));
  return paths;
}

}  // namespace mt
