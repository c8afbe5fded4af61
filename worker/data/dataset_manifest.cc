#include "worker/data/dataset_manifest.h"

#include <nlohmann/json.hpp>

#include <algorithm>

namespace mt {
namespace {

constexpr int kFormatVersion = 1;

}  // namespace

std::string DatasetManifestPath(const std::string& prefix) { return prefix + ".manifest.json"; }

std::string DatasetManifestJson(const DatasetManifest& manifest) {
  nlohmann::ordered_json json;
  json["format_version"] = kFormatVersion;
  json["documents"] = manifest.files.num_documents;
  json["tokens"] = manifest.files.num_tokens;
  json["token_type"] = manifest.type;
  json["tokenizer"] = {{"spec", manifest.tokenizer},
                       {"digest", manifest.tokenizer_digest},
                       {"vocab_size", manifest.vocab_size}};
  json["append_eod"] = manifest.append_eod;
  json["bad_lines_skipped"] = manifest.bad_lines;
  json["duplicates_left_out"] = manifest.duplicates;
  json["empty_left_out"] = manifest.empty_documents;
  if (!manifest.mt_version.empty()) json["mt_version"] = manifest.mt_version;
  if (!manifest.options.empty()) json["options"] = manifest.options;
  json["bin"] = {{"bytes", manifest.files.bin_bytes}, {"xxh3_128", manifest.files.bin_xxh3}};
  json["idx"] = {{"bytes", manifest.files.idx_bytes}, {"xxh3_128", manifest.files.idx_xxh3}};
  if (!manifest.files.loss_xxh3.empty()) {
    json["loss"] = {{"bytes", manifest.files.loss_bytes}, {"xxh3_128", manifest.files.loss_xxh3}};
  }
  json["inputs"] = nlohmann::ordered_json::array();
  for (const DatasetInput& input : manifest.inputs) {
    json["inputs"].push_back({{"path", input.path}, {"bytes", input.bytes}});
    if (!input.xxh3.empty()) json["inputs"].back()["xxh3_128"] = input.xxh3;
  }
  json["num_inputs"] = std::max<int64_t>(manifest.num_inputs, manifest.inputs.size());
  if (!manifest.inputs_xxh3.empty()) json["inputs_xxh3_128"] = manifest.inputs_xxh3;
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

absl::StatusOr<DatasetManifest> ReadDatasetManifest(Env* env, const std::string& prefix) {
  MT_ASSIGN_OR_RETURN(const std::string text, ReadFile(env, DatasetManifestPath(prefix)));
  const auto broken = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(DatasetManifestPath(prefix), ": ", what,
                                                   "; remove it or build the data again"));
  };
  // Numbers are whole here: another kind would be cast to one without a look at its size.
  const auto whole = [](int, nlohmann::json::parse_event_t event, const nlohmann::json& value) {
    return event != nlohmann::json::parse_event_t::value || !value.is_number_float();
  };
  const nlohmann::json json = nlohmann::json::parse(text, whole, false);
  if (json.is_discarded()) return broken("is not JSON");
  DatasetManifest manifest;
  // The library reports a missing key or a wrong type only by exception; none leaves this function.
  try {
    if (json.at("format_version").get<int>() != kFormatVersion)
      return broken("has another format_version");
    manifest.files.num_documents = json.at("documents").get<int64_t>();
    manifest.files.num_tokens = json.at("tokens").get<int64_t>();
    manifest.type = json.at("token_type").get<std::string>();
    manifest.tokenizer = json.at("tokenizer").at("spec").get<std::string>();
    manifest.tokenizer_digest = json.at("tokenizer").at("digest").get<std::string>();
    manifest.vocab_size = json.at("tokenizer").at("vocab_size").get<int64_t>();
    manifest.append_eod = json.at("append_eod").get<bool>();
    manifest.bad_lines = json.at("bad_lines_skipped").get<int64_t>();
    manifest.files.bin_bytes = json.at("bin").at("bytes").get<uint64_t>();
    manifest.files.bin_xxh3 = json.at("bin").at("xxh3_128").get<std::string>();
    manifest.files.idx_bytes = json.at("idx").at("bytes").get<uint64_t>();
    manifest.files.idx_xxh3 = json.at("idx").at("xxh3_128").get<std::string>();
    if (json.contains("loss")) {
      manifest.files.loss_bytes = json.at("loss").at("bytes").get<uint64_t>();
      manifest.files.loss_xxh3 = json.at("loss").at("xxh3_128").get<std::string>();
    }
    for (const nlohmann::json& input : json.at("inputs")) {
      manifest.inputs.push_back({input.at("path").get<std::string>(),
                                 input.at("bytes").get<uint64_t>(), input.value("xxh3_128", "")});
    }
    // Not in the manifests of earlier versions.
    manifest.num_inputs = json.value("num_inputs", static_cast<int64_t>(manifest.inputs.size()));
    manifest.inputs_xxh3 = json.value("inputs_xxh3_128", "");
    manifest.duplicates = json.value("duplicates_left_out", int64_t{0});
    manifest.empty_documents = json.value("empty_left_out", int64_t{0});
    manifest.mt_version = json.value("mt_version", "");
    manifest.options = json.value("options", std::map<std::string, std::string>());
  } catch (const nlohmann::json::exception& error) {
    return broken(error.what());
  }
  return manifest;
}

}  // namespace mt
