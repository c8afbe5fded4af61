#include "worker/data/build/dataset_builder.h"

#include "worker/data/dataset_manifest.h"

namespace mt {
namespace {

constexpr absl::Duration kProgressInterval = absl::Seconds(1);

absl::Status CheckOutput(Env* env, const BuildOptions& options) {
  if (options.inputs.empty())
    return absl::InvalidArgumentError("no input files; name .txt or .jsonl files");
  if (options.output_prefix.empty())
    return absl::InvalidArgumentError("no output prefix; give --output PREFIX");
  if (options.overwrite) return absl::OkStatus();
  for (absl::string_view suffix : {".idx", ".bin"}) {
    const std::string path = absl::StrCat(options.output_prefix, suffix);
    if (Exists(env, path)) {
      return absl::AlreadyExistsError(
          absl::StrCat(path, " exists; choose another prefix or add --overwrite"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<BuildResult> BuildDataset(Env* env, Clock* clock, const Tokenizer& tokenizer,
                                         const BuildOptions& options) {
  MT_RETURN_IF_ERROR(CheckOutput(env, options));
  if (options.append_eod && tokenizer.eod() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("tokenizer ", tokenizer.spec(),
                     " has no end-of-document id (</s>); add --no-append-eod or use another"));
  }
  BuildResult result;
  result.type = TokenTypeForVocabulary(tokenizer.vocab_size());
  BuildProgress& progress = result.progress;
  std::vector<DatasetInput> inputs;
  for (const std::string& path : options.inputs) {
    MT_ASSIGN_OR_RETURN(const auto file, env->NewRandomAccessFile(path));
    MT_ASSIGN_OR_RETURN(const uint64_t bytes, file->Size());
    inputs.push_back({path, bytes});
    progress.input_bytes_total += bytes;
  }
  const auto on_bad_line = [&](const BadLine& bad) -> absl::Status {
    ++result.bad_lines;
    if (options.strict) {
      return absl::InvalidArgumentError(
          absl::StrCat(bad.file, ":", bad.line, ": ", bad.reason,
                       "; mend the line, or leave --strict out to skip it"));
    }
    if (options.on_bad_line) options.on_bad_line(bad);
    return absl::OkStatus();
  };

  MT_ASSIGN_OR_RETURN(auto writer,
                      IndexedDatasetWriter::Create(env, options.output_prefix, result.type));
  const absl::Duration start = clock->Monotonic();
  absl::Duration reported = start;
  uint64_t finished_bytes = 0;  // of the inputs before this one
  const auto report = [&](bool always) {
    const absl::Duration now = clock->Monotonic();
    progress.elapsed = now - start;
    if (!options.on_progress || (!always && now - reported < kProgressInterval)) return;
    reported = now;
    options.on_progress(progress);
  };
  std::string document;
  std::vector<int32_t> ids;
  for (const DatasetInput& input : inputs) {
    MT_ASSIGN_OR_RETURN(const auto source,
                        OpenTextSource(env, input.path, options.text, on_bad_line));
    while (true) {
      MT_ASSIGN_OR_RETURN(const bool more, source->Next(&document));
      if (!more) break;
      ids.clear();
      MT_RETURN_IF_ERROR(tokenizer.Encode(document, &ids));
      if (options.append_eod) ids.push_back(tokenizer.eod());
      MT_RETURN_IF_ERROR(Annotate(writer->AddDocument(ids), input.path));
      ++progress.documents;
      progress.tokens += static_cast<int64_t>(ids.size());
      progress.input_bytes_done = finished_bytes + source->bytes_read();
      report(false);
    }
    finished_bytes += source->bytes_read();
    progress.input_bytes_done = finished_bytes;
  }
  if (progress.tokens == 0) {
    return absl::InvalidArgumentError(absl::StrCat("no document with text in ", inputs.size(),
                                                   " input file(s), ", result.bad_lines,
                                                   " bad line(s)"));
  }
  MT_ASSIGN_OR_RETURN(result.files, writer->Seal());
  // Between the old pair and the new one, so that a manifest never stands beside another's files.
  const absl::Status removed = env->RemoveFile(options.output_prefix + ".idx");
  if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  MT_RETURN_IF_ERROR(WriteDatasetManifest(env, options.output_prefix,
                                          {.files = result.files,
                                           .type = std::string(TokenTypeName(result.type)),
                                           .tokenizer = tokenizer.spec(),
                                           .tokenizer_digest = tokenizer.digest(),
                                           .vocab_size = tokenizer.vocab_size(),
                                           .append_eod = options.append_eod,
                                           .bad_lines = result.bad_lines,
                                           .inputs = inputs}));
  MT_RETURN_IF_ERROR(writer->Commit());
  report(true);
  return result;
}

}  // namespace mt
