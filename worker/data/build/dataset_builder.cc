#include "worker/data/build/dataset_builder.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_split.h"
#include "worker/data/build/build_journal.h"
#include "worker/data/build/build_pipeline.h"
#include "worker/data/dataset_commit.h"
#include "worker/data/dataset_manifest.h"

#ifndef MT_VERSION
#error "MT_VERSION is given by worker/data/build/CMakeLists.txt"
#endif

namespace mt {
namespace {

using Json = nlohmann::ordered_json;
constexpr absl::Duration kProgressInterval = absl::Seconds(1);

absl::Status CheckOptions(const BuildOptions& options) {
  if (options.inputs.empty())
    return absl::InvalidArgumentError("no input files; name .txt or .jsonl files");
  if (options.output_prefix.empty())
    return absl::InvalidArgumentError("no output prefix; give --output PREFIX");
  return absl::OkStatus();
}

std::string Line(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

// One build, from its checks to its dataset. One thread's.
class Build {
 public:
  Build(Env* env, Clock* clock, const RecordEncoderFactory& encoders, const BuildOptions& options)
      : env_(env->ForSharedFiles()),
        clock_(clock),
        encoders_(encoders),
        options_(options),
        prefix_(options.output_prefix),
        start_(clock->Monotonic()) {
    result_.type = TokenTypeForVocabulary(encoders.tokenizer().vocab_size());
  }
  ~Build();

  absl::StatusOr<BuildResult> Run();

 private:
  absl::Status StatInputs();
  std::map<std::string, std::string> Identity() const;
  absl::Status Open();
  absl::Status CheckOutput(bool showing) const;
  absl::Status OpenFiles(std::unique_ptr<FileLock> lock, bool resume);
  absl::Status OpenSealed(std::unique_ptr<FileLock> lock);
  void Resumed(int64_t documents, int64_t tokens);
  absl::Status CheckFinishedInputs();
  absl::Status LoadHashes();
  absl::Status Pump();
  absl::Status Write(EncodedChunk chunk);
  absl::StatusOr<size_t> WriteDocuments(const EncodedChunk& chunk);
  absl::Status WriteBad(const EncodedChunk& chunk, size_t before);
  absl::Status EndInput(const EncodedChunk& chunk);
  absl::Status WriteJournal();
  absl::Status Seal();
  absl::Status Show();
  absl::StatusOr<DatasetManifest> Manifest();
  void Report(bool always);
  bool Full() const {
    return options_.max_documents > 0 && writer_->num_documents() >= options_.max_documents;
  }
  std::string Partial(absl::string_view name) const {
    return absl::StrCat(prefix_, ".", name, ".partial");
  }

  Env* const env_;
  Clock* const clock_;
  const RecordEncoderFactory& encoders_;
  const BuildOptions& options_;
  const std::string prefix_;
  const absl::Duration start_;
  absl::Duration reported_, journalled_;
  BuildResult result_;
  std::vector<FileInfo> infos_;  // of the inputs
  BuildJournal journal_;  // where the build is; sealed, and there is no writer if it was found so
  bool has_journal_ = false;        // on disk
  bool has_files_ = false;          // under partial names
  uint64_t finished_bytes_ = 0;     // of the inputs before the one that is read
  std::unique_ptr<FileLock> lock_;  // unless the writer has it
  DocumentHashes known_;
  std::unique_ptr<IndexedDatasetWriter> writer_;
  std::unique_ptr<SpoolFile> bad_, inputs_, hashes_;
};

Build::~Build() {
  if (has_journal_ && writer_ != nullptr) writer_->Keep();
  if (!has_files_ || journal_.sealed.has_value()) return;
  bad_.reset();
  inputs_.reset();
  hashes_.reset();
  // What an unsealed journal knows nothing of only takes room.
  for (absl::string_view name : {"idx", "manifest.json"})
    env_->RemoveFile(Partial(name)).IgnoreError();
  if (has_journal_) return;
  for (absl::string_view name : {"bad.jsonl", "inputs", "hashes"})
    env_->RemoveFile(Partial(name)).IgnoreError();
}

absl::Status Build::StatInputs() {
  for (const std::string& path : options_.inputs) {
    MT_RETURN_IF_ERROR(InputKindOf(path).status());
    MT_ASSIGN_OR_RETURN(const auto file, env_->NewRandomAccessFile(path));
    MT_ASSIGN_OR_RETURN(FileInfo info, env_->StatTarget(path));
    MT_ASSIGN_OR_RETURN(info.size_bytes, file->Size());
    result_.progress.input_bytes_total += info.size_bytes;
    infos_.push_back(info);
  }
  return absl::OkStatus();
}

std::map<std::string, std::string> Build::Identity() const {
  std::map<std::string, std::string> identity = ManifestOptions(encoders_, options_);
  Xxh3Stream paths;
  for (const std::string& path : options_.inputs) paths.Update(path.c_str(), path.size() + 1);
  identity["mt_version"] = MT_VERSION;
  identity["tokenizer"] = encoders_.tokenizer().digest();
  identity["token_type"] = std::string(TokenTypeName(result_.type));
  identity["inputs"] = absl::StrCat(options_.inputs.size(), " files, ", paths.Hex());
  return identity;
}

absl::Status Build::CheckFinishedInputs() {
  MT_ASSIGN_OR_RETURN(const std::string list,
                      ReadFile(env_, Partial("inputs"), journal_.inputs.bytes));
  size_t file = 0;
  for (absl::string_view line : absl::StrSplit(list, '\n', absl::SkipEmpty())) {
    const std::string& path = options_.inputs[file];
    const FileInfo& info = infos_[file++];
    finished_bytes_ += info.size_bytes;
    // The list is the build's own, and its digest was right.
    const Json json = Json::parse(line.begin(), line.end());
    bool same = json["bytes"] == info.size_bytes;
    if (same && json["modified_ns"] != info.modified_ns) {
      MT_ASSIGN_OR_RETURN(const std::string digest, Xxh3HexOfFile(env_, path));
      same = json["xxh3_128"] == digest;
    }
    if (!same) {
      return absl::FailedPreconditionError(
          absl::StrCat(path,
                       ": has changed since the build was interrupted; bring the old file "
                       "back, or add --restart to begin again"));
    }
  }
  return absl::OkStatus();
}

absl::Status Build::LoadHashes() {
  MT_ASSIGN_OR_RETURN(const auto file, env_->NewRandomAccessFile(Partial("hashes")));
  std::vector<DocumentHash> hashes(1 << 16);
  for (uint64_t at = 0; at < journal_.hashes.bytes;) {
    MT_ASSIGN_OR_RETURN(const size_t bytes, file->Read(at, hashes.size() * sizeof(DocumentHash),
                                                       reinterpret_cast<char*>(hashes.data())));
    for (size_t i = 0; i < bytes / sizeof(DocumentHash); ++i) known_.Insert(hashes[i]);
    at += bytes;
    if (bytes == 0) break;
  }
  return absl::OkStatus();
}

absl::Status Build::CheckOutput(bool showing) const {
  if (options_.overwrite) return absl::OkStatus();
  const bool has_index = Exists(env_, prefix_ + ".idx");
  // A commit that was stopped leaves a PREFIX.bin without its index.
  if (!has_index && (showing || !Exists(env_, prefix_ + ".bin"))) return absl::OkStatus();
  return absl::AlreadyExistsError(absl::StrCat(prefix_, has_index ? ".idx" : ".bin",
                                               " exists; choose another prefix or add "
                                               "--overwrite"));
}

absl::Status Build::Open() {
  // A journal is its build's as long as that runs.
  MT_ASSIGN_OR_RETURN(std::unique_ptr<FileLock> lock, LockDataset(env_, prefix_));
  absl::StatusOr<std::optional<BuildJournal>> found = ReadBuildJournal(env_, prefix_);
  if (!found.ok() && !options_.restart) return found.status();
  const bool has_journal = found.ok() && found->has_value();
  const bool sealed = has_journal && (*found)->sealed.has_value();
  if (has_journal) journal_ = **std::move(found);
  if (sealed && !options_.restart && !Exists(env_, Partial("idx"))) {
    // All but the tidying up is done, unless someone has put another dataset there since.
    if (CheckIdentity(prefix_, journal_, Identity()).ok() &&
        CheckSealed(env_, prefix_, journal_).ok() && CheckFinishedInputs().ok())
      return OpenSealed(std::move(lock));
    MT_RETURN_IF_ERROR(RemoveIfThere(env_, BuildJournalPath(prefix_)));
    finished_bytes_ = 0;
  }
  const bool showing = sealed && Exists(env_, Partial("idx"));
  MT_RETURN_IF_ERROR(CheckOutput(showing));
  if (options_.restart) {
    if (showing && !Exists(env_, prefix_ + ".idx"))
      MT_RETURN_IF_ERROR(RemoveIfThere(env_, prefix_ + ".bin"));
    MT_RETURN_IF_ERROR(RemoveIfThere(env_, BuildJournalPath(prefix_)));
  } else if (showing) {
    MT_RETURN_IF_ERROR(CheckIdentity(prefix_, journal_, Identity()));
    MT_RETURN_IF_ERROR(CheckSealed(env_, prefix_, journal_));
    MT_RETURN_IF_ERROR(CheckFinishedInputs());
    return OpenSealed(std::move(lock));
  }
  // Without its files a journal is one that outlived the end of its build.
  const bool resume = has_journal && !sealed && !options_.restart && Exists(env_, Partial("bin"));
  if (resume) {
    MT_RETURN_IF_ERROR(CheckIdentity(prefix_, journal_, Identity()));
  } else {
    journal_ = BuildJournal{.identity = Identity()};
  }
  return OpenFiles(std::move(lock), resume);
}

absl::Status Build::OpenFiles(std::unique_ptr<FileLock> lock, bool resume) {
  const auto state = [&](const SpoolFile::State& of) { return resume ? &of : nullptr; };
  MT_ASSIGN_OR_RETURN(
      writer_, IndexedDatasetWriter::Create(env_, prefix_, result_.type, encoders_.makes_loss(),
                                            resume ? &journal_.writer : nullptr, std::move(lock)));
  has_journal_ = resume;
  has_files_ = true;
  MT_ASSIGN_OR_RETURN(bad_, SpoolFile::Open(env_, Partial("bad.jsonl"), state(journal_.bad)));
  MT_ASSIGN_OR_RETURN(inputs_, SpoolFile::Open(env_, Partial("inputs"), state(journal_.inputs)));
  if (options_.deduplicate) {
    MT_ASSIGN_OR_RETURN(hashes_, SpoolFile::Open(env_, Partial("hashes"), state(journal_.hashes)));
  }
  if (!resume) return absl::OkStatus();
  MT_RETURN_IF_ERROR(CheckFinishedInputs());
  if (options_.deduplicate) MT_RETURN_IF_ERROR(LoadHashes());
  Resumed(writer_->num_documents(), writer_->num_tokens());
  return absl::OkStatus();
}

absl::Status Build::OpenSealed(std::unique_ptr<FileLock> lock) {
  lock_ = std::move(lock);
  has_journal_ = true;
  result_.files = journal_.sealed->files;
  Resumed(result_.files.num_documents, result_.files.num_tokens);
  return absl::OkStatus();
}

void Build::Resumed(int64_t documents, int64_t tokens) {
  result_.bad_lines = journal_.bad_lines;
  result_.duplicates = journal_.duplicates;
  result_.empty_documents = journal_.empty_documents;
  BuildProgress& progress = result_.progress;
  progress.input_bytes_done = progress.input_bytes_resumed = journal_.input_bytes;
  progress.documents = documents;
  progress.tokens = progress.tokens_resumed = tokens;
  if (options_.on_resume) options_.on_resume(progress);
}

void Build::Report(bool always) {
  const absl::Duration now = clock_->Monotonic();
  result_.progress.elapsed = now - start_;
  if (writer_ != nullptr) {
    result_.progress.documents = writer_->num_documents();
    result_.progress.tokens = writer_->num_tokens();
  }
  if (!options_.on_progress || (!always && now - reported_ < kProgressInterval)) return;
  reported_ = now;
  options_.on_progress(result_.progress);
}

// The documents that are not left out, in runs as long as they come. Returns the place that ends the chunk, as
// EncodedChunk::num_before counts: with max_documents nothing behind the last document is looked at, whatever stands in the chunk, so
// that the result does not depend on where chunks end.
absl::StatusOr<size_t> Build::WriteDocuments(const EncodedChunk& chunk) {
  const size_t token_bytes = TokenBytes(result_.type);
  size_t from = 0;                  // the run's first document
  size_t token = 0, run_token = 0;  // tokens before this document, before the run
  const auto write_run = [&](size_t to) -> absl::Status {
    const size_t tokens = token - run_token;
    MT_RETURN_IF_ERROR(writer_->AddEncoded(
        absl::string_view(chunk.bin).substr(run_token * token_bytes, tokens * token_bytes),
        std::span(chunk.lengths).subspan(from, to - from),
        chunk.loss.empty() ? std::span<const uint8_t>()
                           : std::span(chunk.loss).subspan(run_token, tokens)));
    return absl::OkStatus();
  };
  size_t document = 0;
  for (; document < chunk.lengths.size(); ++document) {
    if (options_.max_documents > 0 &&
        writer_->num_documents() + static_cast<int64_t>(document - from) >=
            options_.max_documents) {
      MT_RETURN_IF_ERROR(write_run(document));
      return document - 1;  // what has it before itself stands behind it
    }
    const DocumentHash* hash = options_.deduplicate ? &chunk.hashes[document] : nullptr;
    const bool keep = hash == nullptr || known_.Insert(*hash);
    if (keep && hash != nullptr) {
      MT_RETURN_IF_ERROR(
          hashes_->Append(absl::string_view(reinterpret_cast<const char*>(hash), sizeof(*hash))));
    }
    if (!keep) {
      ++result_.duplicates;
      MT_RETURN_IF_ERROR(write_run(document));
    }
    token += chunk.lengths[document];
    if (!keep) {
      from = document + 1;
      run_token = token;
    }
  }
  MT_RETURN_IF_ERROR(write_run(document));
  return Full() ? document - 1 : document;
}

absl::Status Build::WriteBad(const EncodedChunk& chunk, size_t before) {
  const std::string& path = options_.inputs[chunk.file];
  for (const BadRecord& bad : chunk.bad) {
    if (bad.num_before > before) break;
    if (options_.strict) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", bad.line, ": ", bad.reason,
                       "; mend the line, or leave --strict out to skip it"));
    }
    ++result_.bad_lines;
    if (options_.on_bad_line) options_.on_bad_line({path, bad.line, bad.reason});
    Json json = {{"file", path}, {"line", bad.line}, {"reason", bad.reason}};
    if (!bad.found.empty()) json["record"] = bad.found;
    MT_RETURN_IF_ERROR(bad_->Append(Line(json)));
  }
  return absl::OkStatus();
}

absl::Status Build::EndInput(const EncodedChunk& chunk) {
  const std::string& path = options_.inputs[chunk.file];
  const FileInfo& info = infos_[chunk.file];
  if (chunk.file_bytes != info.size_bytes) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": had ", info.size_bytes, " bytes at first and ", chunk.file_bytes,
                     " when it was read; build again when nobody writes to it"));
  }
  finished_bytes_ += info.size_bytes;
  journal_.file = chunk.file + 1;
  journal_.position = TextPosition();
  return inputs_->Append(Line({{"path", path},
                               {"bytes", info.size_bytes},
                               {"modified_ns", info.modified_ns},
                               {"xxh3_128", chunk.file_xxh3}}));
}

absl::Status Build::Write(EncodedChunk chunk) {
  const absl::Duration start = clock_->Monotonic();
  const bool ended = !chunk.file_xxh3.empty();
  if (ended) {
    MT_RETURN_IF_ERROR(EndInput(chunk));
  } else {
    MT_ASSIGN_OR_RETURN(const size_t before, WriteDocuments(chunk));
    MT_RETURN_IF_ERROR(WriteBad(chunk, before));
    for (const LeftOut& left_out : chunk.left_out) {
      if (left_out.num_before > before) break;
      result_.duplicates += left_out.duplicates;
      result_.empty_documents += left_out.empty_documents;
    }
    result_.progress.text_bytes += chunk.text_bytes;
    journal_.position = std::move(chunk.end);
  }
  result_.progress.input_bytes_done = finished_bytes_ + (ended ? 0 : chunk.file_bytes);
  if (clock_->Monotonic() - journalled_ >= options_.journal_interval) {
    MT_RETURN_IF_ERROR(WriteJournal());
  }
  result_.write_seconds += absl::ToDoubleSeconds(clock_->Monotonic() - start);
  return absl::OkStatus();
}

absl::Status Build::WriteJournal() {
  MT_ASSIGN_OR_RETURN(journal_.writer, writer_->Sync());
  MT_ASSIGN_OR_RETURN(journal_.bad, bad_->Sync());
  MT_ASSIGN_OR_RETURN(journal_.inputs, inputs_->Sync());
  if (hashes_ != nullptr) {
    MT_ASSIGN_OR_RETURN(journal_.hashes, hashes_->Sync());
  }
  journal_.input_bytes = result_.progress.input_bytes_done;
  journal_.bad_lines = result_.bad_lines;
  journal_.duplicates = result_.duplicates;
  journal_.empty_documents = result_.empty_documents;
  MT_RETURN_IF_ERROR(WriteBuildJournal(env_, prefix_, journal_));
  has_journal_ = true;
  journalled_ = clock_->Monotonic();
  return absl::OkStatus();
}

absl::Status Build::Pump() {
  BuildPipeline pipeline(env_, clock_, encoders_, options_, result_.type, journal_.file,
                         journal_.position, options_.deduplicate ? &known_ : nullptr);
  journalled_ = clock_->Monotonic();
  while (journal_.file < options_.inputs.size() && !Full()) {
    MT_ASSIGN_OR_RETURN(std::optional<EncodedChunk> chunk, pipeline.Next(kProgressInterval));
    if (chunk.has_value()) MT_RETURN_IF_ERROR(Write(*std::move(chunk)));
    Report(false);
  }
  const BuildPipeline::StageTimes times = pipeline.times();
  result_.read_seconds = absl::ToDoubleSeconds(times.read);
  result_.parse_seconds = absl::ToDoubleSeconds(times.parse);
  result_.encode_seconds = absl::ToDoubleSeconds(times.encode);
  return absl::OkStatus();
}

absl::StatusOr<DatasetManifest> Build::Manifest() {
  const Tokenizer& tokenizer = encoders_.tokenizer();
  DatasetManifest manifest{.files = result_.files,
                           .type = std::string(TokenTypeName(result_.type)),
                           .tokenizer = tokenizer.spec(),
                           .tokenizer_digest = tokenizer.digest(),
                           .vocab_size = tokenizer.vocab_size(),
                           .append_eod = encoders_.appends_eod(),
                           .bad_lines = result_.bad_lines,
                           .duplicates = result_.duplicates,
                           .empty_documents = result_.empty_documents,
                           .mt_version = MT_VERSION,
                           .options = ManifestOptions(encoders_, options_)};
  MT_ASSIGN_OR_RETURN(const std::string list,
                      ReadFile(env_, Partial("inputs"), journal_.inputs.bytes));
  Xxh3Stream digest;
  for (absl::string_view line : absl::StrSplit(list, '\n', absl::SkipEmpty())) {
    const Json json = Json::parse(line.begin(), line.end());
    DatasetInput input{options_.inputs[manifest.num_inputs++], json["bytes"].get<uint64_t>(),
                       json["xxh3_128"].get<std::string>()};
    const std::string entry = absl::StrCat(input.path, "\t", input.bytes, "\t", input.xxh3, "\n");
    digest.Update(entry.data(), entry.size());
    if (manifest.num_inputs <= kListedInputs) manifest.inputs.push_back(std::move(input));
  }
  manifest.inputs_xxh3 = digest.Hex();
  // With max_documents the last input is not read to its end.
  if (journal_.file < options_.inputs.size() && journal_.position.offset > 0) {
    const FileInfo& info = infos_[journal_.file];
    if (manifest.num_inputs++ < kListedInputs)
      manifest.inputs.push_back({options_.inputs[journal_.file], info.size_bytes, ""});
  }
  return manifest;
}

// All that takes room; with the journal at the end of it, what follows needs none and can be done again.
absl::Status Build::Seal() {
  if (writer_->num_tokens() == 0) {
    return absl::InvalidArgumentError(absl::StrCat("no document with text in ",
                                                   options_.inputs.size(), " input file(s), ",
                                                   result_.bad_lines, " bad line(s)"));
  }
  MT_ASSIGN_OR_RETURN(result_.files, writer_->Seal());
  BuildJournal sealed = journal_;
  MT_ASSIGN_OR_RETURN(sealed.bad, bad_->Finish());
  MT_ASSIGN_OR_RETURN(sealed.inputs, inputs_->Finish());
  journal_.inputs = sealed.inputs;
  sealed.input_bytes = result_.progress.input_bytes_done;
  sealed.bad_lines = result_.bad_lines;
  sealed.duplicates = result_.duplicates;
  sealed.empty_documents = result_.empty_documents;
  sealed.sealed.emplace().files = result_.files;
  MT_ASSIGN_OR_RETURN(const DatasetManifest manifest, Manifest());
  MT_ASSIGN_OR_RETURN(sealed.sealed->manifest, StageManifest(env_, prefix_, manifest));
  const absl::Status status = WriteBuildJournal(env_, prefix_, sealed);
  if (!status.ok()) {
    // It may have its name already: then what it speaks of must stay.
    const auto found = ReadBuildJournal(env_, prefix_);
    if (found.ok() && !(found->has_value() && (*found)->sealed.has_value())) return status;
  }
  journal_ = std::move(sealed);
  has_journal_ = true;
  return status;
}

absl::Status Build::Show() {
  if (Exists(env_, Partial("idx"))) {
    MT_RETURN_IF_ERROR(CommitDataset(env_, prefix_,
                                     {.manifest = true,
                                      .loss = !result_.files.loss_xxh3.empty(),
                                      .bad_lines = result_.bad_lines > 0}));
  }
  for (absl::string_view name : {"lengths", "hashes", "bad.jsonl"})
    MT_RETURN_IF_ERROR(RemoveIfThere(env_, Partial(name)));
  MT_RETURN_IF_ERROR(RemoveIfThere(env_, BuildJournalPath(prefix_)));
  MT_RETURN_IF_ERROR(env_->SyncDirectory(DatasetFolder(prefix_)));
  has_journal_ = false;
  // As long as there is a journal, it tells whether the inputs are still the same.
  return RemoveIfThere(env_, Partial("inputs"));
}

absl::StatusOr<BuildResult> Build::Run() {
  MT_RETURN_IF_ERROR(CheckOptions(options_));
  MT_RETURN_IF_ERROR(StatInputs());
  absl::Status opened = Open();
  if (absl::IsDataLoss(opened)) {
    return Annotate(opened,
                    "what an interrupted build left is damaged; add --restart to throw it away");
  }
  MT_RETURN_IF_ERROR(opened);
  absl::Status status;
  if (!journal_.sealed.has_value()) {
    status = Pump();
    if (status.ok()) status = Seal();
  }
  if (status.ok()) status = Show();
  if (absl::IsResourceExhausted(status)) {
    return Annotate(status, has_journal_ ? "the build has stopped; make room and run it again, it "
                                           "goes on where it was"
                                         : "the build has stopped; make room and run it again");
  }
  MT_RETURN_IF_ERROR(status);
  Report(true);
  return result_;
}

}  // namespace

std::map<std::string, std::string> ManifestOptions(const RecordEncoderFactory& encoders,
                                                   const BuildOptions& options) {
  std::map<std::string, std::string> named = {
      {"encoder", encoders.description()},
      {"text_key", options.text.text_key},
      {"max_document_bytes", absl::StrCat(options.text.max_document_bytes)},
      {"deduplicate", options.deduplicate ? "yes" : "no"}};
  if (options.text.document_separator.has_value())
    named["document_separator"] = *options.text.document_separator;
  if (options.max_documents > 0) named["max_documents"] = absl::StrCat(options.max_documents);
  return named;
}

absl::StatusOr<BuildResult> BuildDataset(Env* env, Clock* clock,
                                         const RecordEncoderFactory& encoders,
                                         const BuildOptions& options) {
  return Build(env, clock, encoders, options).Run();
}

}  // namespace mt
