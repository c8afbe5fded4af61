#include "client/data_commands.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "client/data_edit_commands.h"
#include "client/data_inspect_commands.h"
#include "worker/data/build/dataset_builder.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt::client {
namespace {

constexpr int64_t kBadLinesShown = 10;

// What the options of these commands are parsed into; lives as long as the application.
struct Options {
  BuildOptions build;
  std::string tokenizer = "byte";
};

std::string ProgressText(const BuildProgress& progress) {
  const double seconds = std::max(absl::ToDoubleSeconds(progress.elapsed), 1e-9);
  const double share = progress.input_bytes_total == 0
                           ? 1.0
                           : static_cast<double>(progress.input_bytes_done) /
                                 static_cast<double>(progress.input_bytes_total);
  return absl::StrFormat("%5.1f%%  %s documents  %s tokens  %.1f MB/s  %s tokens/s", 100.0 * share,
                         Count(static_cast<double>(progress.documents)),
                         Count(static_cast<double>(progress.tokens)),
                         static_cast<double>(progress.input_bytes_done) / seconds / 1e6,
                         Count(static_cast<double>(progress.tokens) / seconds));
}

absl::StatusOr<ExitCode> Build(Session* session, Options& options) {
  MT_ASSIGN_OR_RETURN(const auto tokenizer, NewTokenizer(Env::Real(), options.tokenizer));
  BuildOptions build = options.build;
  const bool live = isatty(STDERR_FILENO) == 1;
  int64_t bad_lines = 0;
  build.on_bad_line = [&](const BadLine& bad) {
    if (++bad_lines > kBadLinesShown) return;
    Note(absl::StrCat(live ? "\r\x1b[K" : "", Safe(bad.file), ":", bad.line,
                      ": skipped: ", Safe(bad.reason)));
  };
  build.on_progress = [&](const BuildProgress& progress) {
    // A line that rewrites itself is for people; a log gets the summary only.
    if (live) std::fprintf(stderr, "\r%s\x1b[K", ProgressText(progress).c_str());
  };
  absl::StatusOr<BuildResult> result = BuildDataset(Env::Real(), Clock::Real(), *tokenizer, build);
  if (live) std::fputs("\r\x1b[K", stderr);
  if (!result.ok()) return result.status();
  if (result->bad_lines > kBadLinesShown) {
    Note(absl::StrCat(result->bad_lines - kBadLinesShown, " further bad lines were skipped"));
  }
  if (session->json()) {
    session->Print({{"prefix", Utf8(build.output_prefix)},
                    {"documents", result->files.num_documents},
                    {"tokens", result->files.num_tokens},
                    {"token_type", std::string(TokenTypeName(result->type))},
                    {"vocab_size", tokenizer->vocab_size()},
                    {"bin_bytes", result->files.bin_bytes},
                    {"bad_lines", result->bad_lines},
                    {"seconds", absl::ToDoubleSeconds(result->progress.elapsed)}});
    return kExitOk;
  }
  const double seconds = std::max(absl::ToDoubleSeconds(result->progress.elapsed), 1e-9);
  std::printf(
      "%s.bin, %s.idx: %s documents, %s tokens (%s, vocabulary %d), %s; %.1f s, %.1f MB/s, %s "
      "tokens/s\n",
      build.output_prefix.c_str(), build.output_prefix.c_str(),
      Count(static_cast<double>(result->files.num_documents)).c_str(),
      Count(static_cast<double>(result->files.num_tokens)).c_str(),
      std::string(TokenTypeName(result->type)).c_str(), tokenizer->vocab_size(),
      Bytes(static_cast<int64_t>(result->files.bin_bytes)).c_str(), seconds,
      static_cast<double>(result->progress.input_bytes_done) / seconds / 1e6,
      Count(static_cast<double>(result->files.num_tokens) / seconds).c_str());
  return kExitOk;
}

void AddBuild(CLI::App* data, Session* session, Options& o) {
  CLI::App* build =
      data->add_subcommand("build", "Turn .txt and .jsonl files into a Megatron .bin/.idx pair");
  build->add_option("INPUT", o.build.inputs, "Files: .txt, or .jsonl with one object per line")
      ->required();
  build
      ->add_option("--output,--output-prefix", o.build.output_prefix,
                   "Prefix of the pair; what data.train names")
      ->required()
      ->type_name("PREFIX");
  build->add_option("--tokenizer", o.tokenizer, "byte, or the path of a SentencePiece .model")
      ->capture_default_str();
  build->add_option("--text-key", o.build.text.text_key, "Key of the text in a JSONL object")
      ->capture_default_str();
  build
      ->add_option_function<std::string>(
          "--document-separator",
          [&o](const std::string& line) { o.build.text.document_separator = line; },
          "Line that separates documents in .txt files ('' = blank lines); without it a file is "
          "one document")
      ->type_name("LINE")
      ->expected(1);
  build
      ->add_option("--max-document-bytes", o.build.text.max_document_bytes,
                   "Refuse larger documents")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  build->add_flag("--append-eod,!--no-append-eod", o.build.append_eod,
                  "End each document with the end-of-document id (the default)");
  build->add_flag("--strict", o.build.strict,
                  "Stop at the first bad JSONL line; default: report, count and skip it");
  build->add_flag("--overwrite", o.build.overwrite, "Replace an existing pair");
  AddFormatOption(build, session);
  build->callback([session, &o] { session->action = [session, &o] { return Build(session, o); }; });
}

}  // namespace

void AddDataCommands(CLI::App* app, Session* session) {
  static Options o;
  CLI::App* data = app->add_subcommand(
      "data", "Training data: build, look into, check, merge, split and decode it");
  data->require_subcommand(1);
  AddBuild(data, session, o);
  AddDataInspectCommands(data, session);
  AddDataEditCommands(data, session);
}

}  // namespace mt::client
