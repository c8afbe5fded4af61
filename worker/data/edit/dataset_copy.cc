#include "worker/data/edit/dataset_copy.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "common/hash.h"
#include "worker/data/dataset_commit.h"
#include "worker/data/spool_file.h"

namespace mt {
namespace {

constexpr size_t kPieceBytes = 1 << 20;
constexpr uint64_t kProgressBytes = 64 << 20;

std::string Name(const DatasetSource& source) { return source.data->prefix(); }

int64_t FirstToken(const IndexedDataset& data, int64_t document) {
  return data.TokenOffset(data.DocumentStart(document));
}

uint64_t FirstByte(const IndexedDataset& data, int64_t document) {
  return static_cast<uint64_t>(FirstToken(data, document)) *
         static_cast<uint64_t>(TokenBytes(data.type()));
}

uint64_t BytesOf(const DatasetPart& part) {
  return FirstByte(*part.source->data, part.end) - FirstByte(*part.source->data, part.begin);
}

int64_t SequencesOf(const DatasetPart& part) {
  return part.source->data->DocumentStart(part.end) - part.source->data->DocumentStart(part.begin);
}

bool HasLoss(const DatasetCopy& copy) {
  return std::any_of(copy.parts.begin(), copy.parts.end(),
                     [](const DatasetPart& part) { return part.source->losses != nullptr; });
}

std::string RealPath(const std::string& prefix) {
  std::error_code ignored;
  const std::filesystem::path path =
      std::filesystem::weakly_canonical(DatasetFolder(prefix), ignored);
  return (path / std::filesystem::path(prefix).filename()).string();
}

absl::Status CheckOutputs(Env* env, const std::vector<DatasetCopy>& copies, bool overwrite) {
  std::set<std::string> sources;
  std::set<std::string> outputs;
  for (const DatasetCopy& copy : copies)
    for (const DatasetPart& part : copy.parts) sources.insert(RealPath(Name(*part.source)));
  for (const DatasetCopy& copy : copies) {
    if (copy.prefix.empty() || copy.prefix.back() == '/') {
      return absl::InvalidArgumentError(
          absl::StrCat("the output `", copy.prefix, "` is no prefix; write FOLDER/NAME"));
    }
    if (sources.count(RealPath(copy.prefix)) > 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(copy.prefix, " is an input too; choose another output"));
    }
    if (!outputs.insert(RealPath(copy.prefix)).second)
      return absl::InvalidArgumentError(absl::StrCat(copy.prefix, " is written twice"));
    if (overwrite) continue;
    for (absl::string_view suffix : {".idx", ".bin"}) {
      const std::string path = absl::StrCat(copy.prefix, suffix);
      if (Exists(env, path)) {
        return absl::AlreadyExistsError(
            absl::StrCat(path, " exists; choose another output or add --overwrite"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSources(const DatasetCopy& copy) {
  if (copy.parts.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat(copy.prefix, ": no datasets to copy from; name at least one"));
  }
  const DatasetSource& first = *copy.parts.front().source;
  const DatasetSource* with_manifest = nullptr;
  for (const DatasetPart& part : copy.parts) {
    const DatasetSource& source = *part.source;
    if (source.data->type() != first.data->type()) {
      return absl::InvalidArgumentError(absl::StrCat(
          Name(source), " has ", TokenTypeName(source.data->type()), " tokens and ", Name(first),
          " has ", TokenTypeName(first.data->type()),
          ": they come from vocabularies of different sizes; build them with one tokenizer"));
    }
    if (!source.manifest.has_value()) continue;
    if (with_manifest == nullptr) with_manifest = &source;
    if (source.manifest->tokenizer_digest != with_manifest->manifest->tokenizer_digest) {
      return absl::InvalidArgumentError(
          absl::StrCat(Name(source), " was built with tokenizer ", source.manifest->tokenizer,
                       " and ", Name(*with_manifest), " with ", with_manifest->manifest->tokenizer,
                       ", whose ids mean other text; build them with one tokenizer"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRoom(Env* env, const std::vector<DatasetCopy>& copies) {
  std::map<std::string, uint64_t> wanted;
  for (const DatasetCopy& copy : copies) {
    uint64_t& bytes = wanted[DatasetFolder(copy.prefix)];
    for (const DatasetPart& part : copy.parts) {
      bytes += BytesOf(part) + 12 * static_cast<uint64_t>(SequencesOf(part)) +
               8 * static_cast<uint64_t>(part.end - part.begin);
    }
  }
  for (const auto& [folder, bytes] : wanted) {
    MT_RETURN_IF_ERROR(env->CreateDirectories(folder));
    MT_ASSIGN_OR_RETURN(const uint64_t free, env->FreeBytes(folder));
    if (bytes > free) {
      return absl::ResourceExhaustedError(
          absl::StrCat(folder, ": ", bytes, " bytes are to be written and ", free,
                       " are free; make room or choose another output"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckDigest(const DatasetSource& source, absl::string_view suffix,
                         const std::string& found, const std::string& promised) {
  if (found == promised) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(
      Name(source), suffix, ": digest ", found, ", but ", DatasetManifestPath(Name(source)),
      promised.empty() ? " has none" : absl::StrCat(" says ", promised),
      "; it was damaged or exchanged: copy it again or rebuild it with `mtctl data build`"));
}

// Digest of a source's PREFIX.bin, as far as it was read from its beginning without a gap.
struct SourceDigest {
  uint64_t bytes = 0;
  Xxh3Stream stream;
};

class Copier {
 public:
  Copier(Env* env, const std::vector<DatasetCopy>& copies, const CopyOptions& options)
      : env_(env), options_(options) {
    for (const DatasetCopy& copy : copies)
      for (const DatasetPart& part : copy.parts) total_ += BytesOf(part);
  }

  // Writes the .partial files, synced.
  absl::StatusOr<IndexedDatasetSummary> Write(const DatasetCopy& copy) {
    IndexedDatasetSummary summary;
    for (const DatasetPart& part : copy.parts) summary.num_documents += part.end - part.begin;
    MT_RETURN_IF_ERROR(WriteBin(copy, &summary));
    MT_RETURN_IF_ERROR(WriteIndex(copy, &summary));
    if (HasLoss(copy)) MT_RETURN_IF_ERROR(WriteLosses(copy, &summary));
    MT_RETURN_IF_ERROR(env_->SyncDirectory(DatasetFolder(copy.prefix)));
    return summary;
  }

  absl::Status CheckDigests() const {
    for (const auto& [source, digest] : digests_) {
      if (!source->manifest.has_value()) continue;
      const IndexedDatasetSummary& files = source->manifest->files;
      if (digest.bytes == source->data->bin_bytes()) {
        MT_RETURN_IF_ERROR(CheckDigest(*source, ".bin", digest.stream.Hex(), files.bin_xxh3));
      }
      if (source->losses == nullptr) continue;
      MT_ASSIGN_OR_RETURN(const std::string losses, Xxh3HexOfFile(env_, LossPath(Name(*source))));
      MT_RETURN_IF_ERROR(CheckDigest(*source, ".loss", losses, files.loss_xxh3));
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::unique_ptr<SpoolFile>> Create(const std::string& path) {
    return SpoolFile::Open(env_, path + ".partial");
  }

  absl::Status WriteBin(const DatasetCopy& copy, IndexedDatasetSummary* summary) {
    MT_ASSIGN_OR_RETURN(const auto bin, Create(copy.prefix + ".bin"));
    for (const DatasetPart& part : copy.parts) MT_RETURN_IF_ERROR(CopyBytes(part, bin.get()));
    MT_ASSIGN_OR_RETURN(const SpoolFile::State written, bin->Finish());
    summary->bin_bytes = written.bytes;
    summary->bin_xxh3 = written.xxh3;
    summary->num_tokens = static_cast<int64_t>(
        written.bytes / static_cast<uint64_t>(TokenBytes(copy.parts.front().source->data->type())));
    return absl::OkStatus();
  }

  absl::Status CopyBytes(const DatasetPart& part, SpoolFile* bin) {
    const IndexedDataset& data = *part.source->data;
    MT_ASSIGN_OR_RETURN(const auto file, env_->NewRandomAccessFile(data.prefix() + ".bin"));
    SourceDigest& digest = digests_[part.source];
    const uint64_t end = FirstByte(data, part.end);
    for (uint64_t offset = FirstByte(data, part.begin); offset < end;) {
      const size_t wanted = std::min<uint64_t>(end - offset, buffer_.size());
      MT_ASSIGN_OR_RETURN(const size_t bytes, file->Read(offset, wanted, buffer_.data()));
      if (bytes != wanted) {
        return absl::DataLossError(absl::StrCat(data.prefix(), ".bin: ends at byte ",
                                                offset + bytes,
                                                ", shorter than when it was opened; it was "
                                                "changed meanwhile"));
      }
      if (digest.bytes == offset) {
        digest.stream.Update(buffer_.data(), bytes);
        digest.bytes += bytes;
      }
      MT_RETURN_IF_ERROR(bin->Append(absl::string_view(buffer_.data(), bytes)));
      offset += bytes;
      Report(bytes);
    }
    return absl::OkStatus();
  }

  template <typename T>
  static absl::Status Put(SpoolFile* file, T value) {
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof(T));
    return file->Append(absl::string_view(raw, sizeof(T)));
  }

  // The three arrays one after the other, each over all parts: sequences and documents are counted on.
  static absl::Status WriteIndexOf(const DatasetCopy& copy, int64_t documents, SpoolFile* index) {
    const TokenType type = copy.parts.front().source->data->type();
    int64_t sequences = 0;
    for (const DatasetPart& part : copy.parts) sequences += SequencesOf(part);
    MT_RETURN_IF_ERROR(index->Append(kIndexMagic));
    MT_RETURN_IF_ERROR(Put(index, kIndexVersion));
    MT_RETURN_IF_ERROR(Put(index, static_cast<uint8_t>(type)));
    MT_RETURN_IF_ERROR(Put(index, static_cast<uint64_t>(sequences)));
    MT_RETURN_IF_ERROR(Put(index, static_cast<uint64_t>(documents + 1)));
    const auto for_each_length = [&](const auto& visit) -> absl::Status {
      for (const DatasetPart& part : copy.parts) {
        const IndexedDataset& data = *part.source->data;
        const int64_t end = data.DocumentStart(part.end);
        for (int64_t i = data.DocumentStart(part.begin); i < end; ++i)
          MT_RETURN_IF_ERROR(visit(data.Length(i)));
      }
      return absl::OkStatus();
    };
    MT_RETURN_IF_ERROR(for_each_length([&](int32_t length) { return Put(index, length); }));
    int64_t pointer = 0;
    MT_RETURN_IF_ERROR(for_each_length([&](int32_t length) {
      const absl::Status status = Put(index, pointer);
      pointer += int64_t{length} * TokenBytes(type);
      return status;
    }));
    int64_t before = 0;  // sequences of the parts before
    for (const DatasetPart& part : copy.parts) {
      const int64_t first = part.source->data->DocumentStart(part.begin);
      for (int64_t document = part.begin; document < part.end; ++document) {
        MT_RETURN_IF_ERROR(Put(index, before + part.source->data->DocumentStart(document) - first));
      }
      before += SequencesOf(part);
    }
    return Put(index, before);
  }

  absl::Status WriteIndex(const DatasetCopy& copy, IndexedDatasetSummary* summary) {
    MT_ASSIGN_OR_RETURN(const auto index, Create(copy.prefix + ".idx"));
    MT_RETURN_IF_ERROR(WriteIndexOf(copy, summary->num_documents, index.get()));
    MT_ASSIGN_OR_RETURN(const SpoolFile::State written, index->Finish());
    summary->idx_bytes = written.bytes;
    summary->idx_xxh3 = written.xxh3;
    return absl::OkStatus();
  }

  absl::Status WriteLosses(const DatasetCopy& copy, IndexedDatasetSummary* summary) {
    MT_ASSIGN_OR_RETURN(const auto file, Create(LossPath(copy.prefix)));
    LossPacker packer;
    std::string packed;
    std::vector<uint8_t> losses;
    for (const DatasetPart& part : copy.parts) {
      const int64_t end = FirstToken(*part.source->data, part.end);
      for (int64_t token = FirstToken(*part.source->data, part.begin); token < end;
           token += static_cast<int64_t>(losses.size())) {
        losses.assign(std::min<int64_t>(end - token, kPieceBytes), 1);
        if (part.source->losses != nullptr)
          MT_RETURN_IF_ERROR(part.source->losses->Read(token, losses));
        packed.clear();
        packer.Append(losses, &packed);
        MT_RETURN_IF_ERROR(file->Append(packed));
      }
    }
    packed.clear();
    packer.Finish(&packed);
    MT_RETURN_IF_ERROR(file->Append(packed));
    MT_ASSIGN_OR_RETURN(const SpoolFile::State written, file->Finish());
    summary->loss_bytes = written.bytes;
    summary->loss_xxh3 = written.xxh3;
    return absl::OkStatus();
  }

  void Report(uint64_t bytes) {
    const bool due = done_ / kProgressBytes != (done_ + bytes) / kProgressBytes;
    done_ += bytes;
    if (due && options_.on_progress) options_.on_progress(done_, total_);
  }

  Env* const env_;
  const CopyOptions& options_;
  uint64_t total_ = 0;
  uint64_t done_ = 0;
  std::map<const DatasetSource*, SourceDigest> digests_;
  std::vector<char> buffer_ = std::vector<char>(kPieceBytes);
};

void Add(const DatasetManifest& more, DatasetManifest* manifest) {
  manifest->append_eod &= more.append_eod;
  manifest->bad_lines += more.bad_lines;
  manifest->duplicates += more.duplicates;
  manifest->empty_documents += more.empty_documents;
  manifest->num_inputs += more.num_inputs;
  manifest->inputs_xxh3.clear();  // is over the list of one build
  const int64_t room = kListedInputs - static_cast<int64_t>(manifest->inputs.size());
  const int64_t listed = std::clamp<int64_t>(room, 0, static_cast<int64_t>(more.inputs.size()));
  manifest->inputs.insert(manifest->inputs.end(), more.inputs.begin(),
                          more.inputs.begin() + listed);
  // What all of them were built with.
  std::erase_if(manifest->options, [&](const auto& option) {
    const auto other = more.options.find(option.first);
    return other == more.options.end() || other->second != option.second;
  });
}

// What the copy was made from, as far as all of its sources know.
std::optional<DatasetManifest> ManifestOf(const DatasetCopy& copy,
                                          const IndexedDatasetSummary& files) {
  std::optional<DatasetManifest> manifest;
  std::set<const DatasetSource*> seen;
  for (const DatasetPart& part : copy.parts) {
    const DatasetSource& source = *part.source;
    if (!source.manifest.has_value()) return std::nullopt;
    if (!seen.insert(&source).second) continue;
    if (!manifest.has_value()) {
      manifest = source.manifest;
      continue;
    }
    Add(*source.manifest, &*manifest);
  }
  manifest->files = files;
  return manifest;
}

// The locks of the outputs; what was not shown is removed.
class Outputs {
 public:
  Outputs(Env* env, const std::vector<DatasetCopy>& copies) : env_(env), copies_(copies) {}
  ~Outputs() {
    for (const std::string& prefix : locked_) {
      for (absl::string_view name :
           {".bin.partial", ".idx.partial", ".loss.partial", ".manifest.json.partial"})
        env_->RemoveFile(absl::StrCat(prefix, name)).IgnoreError();
    }
  }
  absl::Status Lock() {
    for (const DatasetCopy& copy : copies_) {
      MT_ASSIGN_OR_RETURN(std::unique_ptr<FileLock> lock, LockDataset(env_, copy.prefix));
      locks_.push_back(std::move(lock));
      // Its partial files have the names of ours.
      if (Exists(env_, BuildJournalPath(copy.prefix))) {
        return absl::FailedPreconditionError(absl::StrCat(
            BuildJournalPath(copy.prefix),
            ": a build of this dataset was interrupted; run it again to finish it, remove this "
            "file to give up what it did, or choose another prefix"));
      }
      locked_.push_back(copy.prefix);
    }
    return absl::OkStatus();
  }

 private:
  Env* const env_;
  const std::vector<DatasetCopy>& copies_;
  std::vector<std::unique_ptr<FileLock>> locks_;
  std::vector<std::string> locked_;
};

}  // namespace

absl::StatusOr<std::vector<IndexedDatasetSummary>> CopyDocuments(
    Env* env, const std::vector<DatasetCopy>& copies, const CopyOptions& options) {
  env = env->ForSharedFiles();
  for (const DatasetCopy& copy : copies) MT_RETURN_IF_ERROR(CheckSources(copy));
  MT_RETURN_IF_ERROR(CheckOutputs(env, copies, options.overwrite));
  MT_RETURN_IF_ERROR(CheckRoom(env, copies));
  Outputs outputs(env, copies);
  MT_RETURN_IF_ERROR(outputs.Lock());
  Copier copier(env, copies, options);
  std::vector<IndexedDatasetSummary> summaries;
  for (const DatasetCopy& copy : copies) {
    MT_ASSIGN_OR_RETURN(IndexedDatasetSummary summary, copier.Write(copy));
    summaries.push_back(std::move(summary));
  }
  MT_RETURN_IF_ERROR(copier.CheckDigests());
  std::vector<DatasetExtras> extras;
  for (size_t i = 0; i < copies.size(); ++i) {
    const std::optional<DatasetManifest> manifest = ManifestOf(copies[i], summaries[i]);
    if (manifest.has_value())
      MT_RETURN_IF_ERROR(StageManifest(env, copies[i].prefix, *manifest).status());
    extras.push_back({.manifest = manifest.has_value(), .loss = HasLoss(copies[i])});
  }
  for (size_t i = 0; i < copies.size(); ++i)
    MT_RETURN_IF_ERROR(CommitDataset(env, copies[i].prefix, extras[i]));
  return summaries;
}

}  // namespace mt
