#include "worker/checkpoint/hugging_face/files.h"

#include <nlohmann/json.hpp>
#include <set>

#include "absl/strings/match.h"

namespace mt {
namespace {

constexpr char kOneFile[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = 256 << 20;

absl::Status NoSafetensors(Env* env, const std::string& folder) {
  for (const char* pickled :
       {"pytorch_model.bin", "pytorch_model.bin.index.json", "consolidated.00.pth"}) {
    if (Exists(env, JoinPath(folder, pickled))) {
      return absl::FailedPreconditionError(absl::StrCat(
          folder, " has its weights in ", pickled,
          ", a pickle, which can run programs and is never read; save them as safetensors "
          "(transformers: model.save_pretrained(folder, safe_serialization=True))"));
    }
  }
  return absl::NotFoundError(absl::StrCat(folder, " has neither ", kOneFile, " nor ", kIndex));
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> ParseHubIndex(absl::string_view json,
                                                                 const std::string& path) {
  using Json = nlohmann::json;
  const Json parsed = Json::parse(json.begin(), json.end(), nullptr, /*allow_exceptions=*/false);
  if (!parsed.is_object() || !parsed.contains("weight_map") || !parsed["weight_map"].is_object())
    return absl::DataLossError(absl::StrCat(path, " is not a JSON object with a weight_map"));
  std::map<std::string, std::string> files;
  for (const auto& [tensor, file] : parsed["weight_map"].items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.size() > 255 || name.find_first_of(std::string("/\\\0", 3)) != std::string::npos ||
        !absl::EndsWith(name, ".safetensors") || name[0] == '.') {
      return absl::DataLossError(absl::StrCat(path, ": tensor ", tensor.substr(0, 200),
                                              " lies in `", name.substr(0, 80),
                                              "`, which is not a safetensors file of this folder"));
    }
    files[tensor] = name;
  }
  if (files.empty()) return absl::DataLossError(absl::StrCat(path, ": weight_map is empty"));
  return files;
}

absl::StatusOr<std::unique_ptr<HubFiles>> HubFiles::Open(Env* env, const std::string& folder) {
  auto files = std::unique_ptr<HubFiles>(new HubFiles(folder));
  std::map<std::string, std::string> index;
  std::set<std::string> names;
  if (Exists(env, JoinPath(folder, kOneFile))) {
    names.insert(kOneFile);
  } else if (const std::string path = JoinPath(folder, kIndex); Exists(env, path)) {
    MT_ASSIGN_OR_RETURN(const std::string json, ReadFile(env, path, kMaxIndexBytes));
    MT_ASSIGN_OR_RETURN(index, ParseHubIndex(json, path));
    for (const auto& [tensor, file] : index) names.insert(file);
  } else {
    return NoSafetensors(env, folder);
  }
  for (const std::string& name : names) {
    absl::StatusOr<std::unique_ptr<SafetensorsReader>> opened =
        SafetensorsReader::Open(env, JoinPath(folder, name));
    if (!opened.ok()) {
      return Annotate(opened.status(),
                      absl::StrCat(name, " of ", folder, " (fetch this file again)"));
    }
    const SafetensorsReader* file = files->files_.emplace_back(*std::move(opened)).get();
    for (const SafetensorsEntry& entry : file->entries()) {
      const auto listed = index.find(entry.name);
      if (listed != index.end() && listed->second != name) continue;  // the index decides
      if (!files->tensors_.emplace(entry.name, Place{file, &entry}).second) {
        return absl::DataLossError(absl::StrCat(
            folder, ": tensor ", entry.name, " is in two files, and ", kIndex, " lists neither"));
      }
    }
  }
  for (const auto& [tensor, file] : index) {
    if (!files->tensors_.contains(tensor)) {
      return absl::DataLossError(absl::StrCat(folder, ": ", kIndex, " promises tensor ", tensor,
                                              " in ", file, ", which does not have it"));
    }
  }
  return files;
}

const HubFiles::Place* HubFiles::Find(const std::string& tensor) const {
  const auto it = tensors_.find(tensor);
  return it == tensors_.end() ? nullptr : &it->second;
}

}  // namespace mt
