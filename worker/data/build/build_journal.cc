#include "worker/data/build/build_journal.h"

#include <nlohmann/json.hpp>

#include "common/hash.h"
#include "worker/data/dataset_commit.h"

namespace mt {
namespace {

using Json = nlohmann::ordered_json;
constexpr int kFormatVersion = 1;

Json SpoolJson(const SpoolFile::State& state) {
  return {{"bytes", state.bytes}, {"xxh3_128", state.xxh3}};
}
SpoolFile::State SpoolOf(const Json& json) {
  return {json.at("bytes").get<uint64_t>(), json.at("xxh3_128").get<std::string>()};
}

Json SealedJson(const SealedBuild& sealed) {
  const IndexedDatasetSummary& files = sealed.files;
  return {{"documents", files.num_documents},
          {"tokens", files.num_tokens},
          {"bin", SpoolJson({files.bin_bytes, files.bin_xxh3})},
          {"idx", SpoolJson({files.idx_bytes, files.idx_xxh3})},
          {"loss", SpoolJson({files.loss_bytes, files.loss_xxh3})},
          {"manifest", SpoolJson(sealed.manifest)}};
}
SealedBuild SealedOf(const Json& json) {
  const SpoolFile::State bin = SpoolOf(json.at("bin")), idx = SpoolOf(json.at("idx")),
                         loss = SpoolOf(json.at("loss"));
  return {.files = {.num_documents = json.at("documents").get<int64_t>(),
                    .num_tokens = json.at("tokens").get<int64_t>(),
                    .bin_bytes = bin.bytes,
                    .idx_bytes = idx.bytes,
                    .bin_xxh3 = bin.xxh3,
                    .idx_xxh3 = idx.xxh3,
                    .loss_bytes = loss.bytes,
                    .loss_xxh3 = loss.xxh3},
          .manifest = SpoolOf(json.at("manifest"))};
}

BuildJournal Parse(const Json& json) {
  BuildJournal journal;
  journal.identity = json.at("identity").get<std::map<std::string, std::string>>();
  journal.file = json.at("file").get<size_t>();
  journal.position.offset = json.at("offset").get<uint64_t>();
  journal.position.line = json.at("line").get<int64_t>();
  journal.position.xxh3 = json.at("offset_xxh3_128").get<std::string>();
  journal.input_bytes = json.at("input_bytes").get<uint64_t>();
  journal.writer.num_documents = json.at("documents").get<int64_t>();
  journal.writer.num_tokens = json.at("tokens").get<int64_t>();
  journal.writer.bin = SpoolOf(json.at("bin"));
  journal.writer.lengths = SpoolOf(json.at("lengths"));
  journal.writer.loss = SpoolOf(json.at("loss"));
  journal.writer.open_loss.bits = json.at("loss").at("open_bits").get<uint8_t>();
  journal.writer.open_loss.num_bits = json.at("loss").at("num_open_bits").get<uint8_t>();
  journal.bad = SpoolOf(json.at("bad"));
  journal.inputs = SpoolOf(json.at("inputs"));
  journal.hashes = SpoolOf(json.at("hashes"));
  journal.bad_lines = json.at("bad_lines").get<int64_t>();
  journal.duplicates = json.at("duplicates").get<int64_t>();
  journal.empty_documents = json.at("empty_documents").get<int64_t>();
  if (json.contains("sealed")) journal.sealed = SealedOf(json.at("sealed"));
  return journal;
}

}  // namespace

absl::Status WriteBuildJournal(Env* env, const std::string& prefix, const BuildJournal& journal) {
  Json json;
  json["format_version"] = kFormatVersion;
  json["identity"] = journal.identity;
  json["file"] = journal.file;
  json["offset"] = journal.position.offset;
  json["line"] = journal.position.line;
  json["offset_xxh3_128"] = journal.position.xxh3;
  json["input_bytes"] = journal.input_bytes;
  json["documents"] = journal.writer.num_documents;
  json["tokens"] = journal.writer.num_tokens;
  json["bin"] = SpoolJson(journal.writer.bin);
  json["lengths"] = SpoolJson(journal.writer.lengths);
  json["loss"] = SpoolJson(journal.writer.loss);
  json["loss"]["open_bits"] = journal.writer.open_loss.bits;
  json["loss"]["num_open_bits"] = journal.writer.open_loss.num_bits;
  json["bad"] = SpoolJson(journal.bad);
  json["inputs"] = SpoolJson(journal.inputs);
  json["hashes"] = SpoolJson(journal.hashes);
  json["bad_lines"] = journal.bad_lines;
  json["duplicates"] = journal.duplicates;
  json["empty_documents"] = journal.empty_documents;
  if (journal.sealed.has_value()) json["sealed"] = SealedJson(*journal.sealed);
  return ReplaceLockedFile(env, BuildJournalPath(prefix),
                           json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
}

absl::StatusOr<std::optional<BuildJournal>> ReadBuildJournal(Env* env, const std::string& prefix) {
  const absl::StatusOr<std::string> text = ReadFile(env, BuildJournalPath(prefix));
  if (absl::IsNotFound(text.status())) return std::nullopt;
  if (!text.ok()) return text.status();
  // Numbers are whole here: another kind would be cast to one without a look at its size.
  const auto whole = [](int, Json::parse_event_t event, const Json& value) {
    return event != Json::parse_event_t::value || !value.is_number_float();
  };
  const Json json = Json::parse(*text, whole, false);
  // The library reports a missing key or a wrong type only by exception; none leaves this function.
  try {
    if (!json.is_discarded() && json.at("format_version").get<int>() == kFormatVersion)
      return Parse(json);
  } catch (const Json::exception&) {
  }
  return absl::DataLossError(absl::StrCat(BuildJournalPath(prefix),
                                          ": is not the journal of an interrupted build of this "
                                          "version; add --restart to throw away what it did"));
}

absl::Status CheckIdentity(const std::string& prefix, const BuildJournal& journal,
                           const std::map<std::string, std::string>& now) {
  const std::map<std::string, std::string>& before = journal.identity;
  for (const auto& [name, value] : now) {
    const auto found = before.find(name);
    if (found != before.end() && found->second == value) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        BuildJournalPath(prefix), ": an interrupted build with another ", name, " (",
        found == before.end() ? "none" : absl::StrCat("`", found->second, "`"), ", now `", value,
        "`); run it as it was to go on with it, or add --restart to throw away what it did"));
  }
  for (const auto& [name, value] : before) {
    if (now.contains(name)) continue;
    return absl::FailedPreconditionError(absl::StrCat(
        BuildJournalPath(prefix), ": an interrupted build with ", name, " `", value,
        "`; run it as it was to go on with it, or add --restart to throw away what it did"));
  }
  return absl::OkStatus();
}

absl::Status CheckSealed(Env* env, const std::string& prefix, const BuildJournal& journal) {
  const auto check = [&](absl::string_view name, uint64_t bytes, const std::string& xxh3) {
    std::string path = absl::StrCat(prefix, ".", name, ".partial");
    if (!Exists(env, path)) path = absl::StrCat(prefix, ".", name);
    const absl::StatusOr<FileInfo> info = env->Stat(path);
    if (info.ok() && info->size_bytes == bytes) {
      const absl::StatusOr<std::string> digest = Xxh3HexOfFile(env, path);
      if (!digest.ok()) return digest.status();
      if (*digest == xxh3) return absl::OkStatus();
    }
    return absl::DataLossError(
        absl::StrCat(path, ": its ", bytes, " bytes are not what was written before"));
  };
  const IndexedDatasetSummary& files = journal.sealed->files;
  const SpoolFile::State& manifest = journal.sealed->manifest;
  MT_RETURN_IF_ERROR(check("bin", files.bin_bytes, files.bin_xxh3));
  MT_RETURN_IF_ERROR(check("idx", files.idx_bytes, files.idx_xxh3));
  if (!files.loss_xxh3.empty())
    MT_RETURN_IF_ERROR(check("loss", files.loss_bytes, files.loss_xxh3));
  if (journal.bad_lines > 0)
    MT_RETURN_IF_ERROR(check("bad.jsonl", journal.bad.bytes, journal.bad.xxh3));
  MT_RETURN_IF_ERROR(check("inputs", journal.inputs.bytes, journal.inputs.xxh3));
  return check("manifest.json", manifest.bytes, manifest.xxh3);
}

}  // namespace mt
