#include "client/data_commands.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_format.h"
#include "worker/data/build/dataset_builder.h"
#include "worker/data/dataset_verifier.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt::client {
namespace {

constexpr int64_t kBadLinesShown = 10;

// What the options of these commands are parsed into; lives as long as the application.
struct Options {
  BuildOptions build;
  std::string tokenizer = "byte";
  std::string prefix;
  int64_t documents = 3;
  int64_t characters = 300;
  int64_t vocab_size = 0;
};

// JSON is UTF-8: a cut text, or a file's name, need not be.
std::string Utf8(const std::string& text) {
  return Json::parse(Json(text).dump(-1, ' ', false, Json::error_handler_t::replace))
      .get<std::string>();
}

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

Json ReportJson(const std::string& prefix, const DatasetReport& report) {
  Json json = {{"prefix", Utf8(prefix)},
               {"token_type", std::string(TokenTypeName(report.type))},
               {"documents", report.num_documents},
               {"sequences", report.num_sequences},
               {"tokens", report.num_tokens},
               {"bin_bytes", report.bin_bytes},
               {"largest_id", report.largest_id},
               {"shortest_sequence", report.shortest},
               {"longest_sequence", report.longest},
               {"empty_sequences", report.empty_sequences}};
  if (report.manifest.has_value()) {
    json["tokenizer"] = Utf8(report.manifest->tokenizer);
    json["vocab_size"] = report.manifest->vocab_size;
  }
  return json;
}

// The text of the first documents, or their ids where no tokenizer is known.
absl::StatusOr<std::vector<std::string>> FirstDocuments(const Options& options,
                                                        const Tokenizer* tokenizer) {
  MT_ASSIGN_OR_RETURN(const auto data, IndexedDataset::Open(Env::Real(), options.prefix));
  std::vector<std::string> texts;
  for (int64_t document = 0; document < std::min(options.documents, data->num_documents());
       ++document) {
    const int64_t first = data->DocumentStart(document);
    std::vector<int32_t> ids;
    if (first < data->DocumentStart(document + 1)) {
      ids.resize(std::min<int64_t>(options.characters, data->Length(first)));
      MT_RETURN_IF_ERROR(data->Read(first, 0, ids));
    }
    if (tokenizer != nullptr) {
      MT_ASSIGN_OR_RETURN(const std::string text, tokenizer->Decode(ids));
      texts.push_back(Utf8(text.substr(0, options.characters)));
      continue;
    }
    std::string numbers;
    for (const int32_t id : ids) absl::StrAppend(&numbers, numbers.empty() ? "" : " ", id);
    texts.push_back(numbers.substr(0, options.characters));
  }
  return texts;
}

absl::StatusOr<ExitCode> Inspect(Session* session, const Options& options, bool tokenizer_given) {
  MT_ASSIGN_OR_RETURN(const DatasetReport report, ScanDataset(Env::Real(), options.prefix));
  // The manifest's tokenizer may not be on this machine: then ids are shown.
  std::unique_ptr<Tokenizer> tokenizer;
  if (tokenizer_given) {
    MT_ASSIGN_OR_RETURN(tokenizer, NewTokenizer(Env::Real(), options.tokenizer));
  } else if (report.manifest.has_value()) {
    absl::StatusOr<std::unique_ptr<Tokenizer>> found =
        NewTokenizer(Env::Real(), report.manifest->tokenizer);
    if (found.ok()) {
      tokenizer = *std::move(found);
    } else {
      Note(absl::StrCat("ids are shown, not text: ", found.status().message()));
    }
  }
  MT_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                      FirstDocuments(options, tokenizer.get()));
  if (session->json()) {
    Json json = ReportJson(options.prefix, report);
    json["first_documents"] = texts;
    session->Print(json);
    return kExitOk;
  }
  Table table({{"WHAT"}, {"VALUE"}});
  table.AddRow({"documents", absl::StrCat(report.num_documents)});
  table.AddRow({"tokens", absl::StrCat(report.num_tokens, " (",
                                       Count(static_cast<double>(report.num_tokens)), ")")});
  table.AddRow({"token type", std::string(TokenTypeName(report.type))});
  table.AddRow({"size", Bytes(static_cast<int64_t>(report.bin_bytes))});
  table.AddRow({"largest id", report.largest_id < 0 ? "" : absl::StrCat(report.largest_id)});
  table.AddRow(
      {"sequence length", absl::StrCat(report.shortest, " to ", report.longest, " tokens")});
  table.AddRow({"empty sequences", absl::StrCat(report.empty_sequences)});
  if (report.manifest.has_value()) {
    table.AddRow({"tokenizer", absl::StrCat(Safe(report.manifest->tokenizer), ", vocabulary ",
                                            report.manifest->vocab_size)});
    table.AddRow({"made from", absl::StrCat(report.manifest->inputs.size(), " files")});
  }
  table.Print(session->wide());
  for (size_t i = 0; i < texts.size(); ++i)
    std::printf("\n[document %zu] %s\n", i, Safe(texts[i]).c_str());
  return kExitOk;
}

absl::StatusOr<ExitCode> Verify(Session* session, const Options& options) {
  MT_ASSIGN_OR_RETURN(const DatasetReport report,
                      VerifyDataset(Env::Real(), options.prefix, options.vocab_size));
  if (session->json()) {
    session->Print(ReportJson(options.prefix, report));
    return kExitOk;
  }
  std::printf("%s: whole; %lld documents, %lld tokens, largest id %d; %s\n", options.prefix.c_str(),
              static_cast<long long>(report.num_documents),
              static_cast<long long>(report.num_tokens), report.largest_id,
              report.manifest.has_value() ? "digests equal the manifest's"
                                          : "no manifest, so no digests to compare");
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
  CLI::App* data = app->add_subcommand("data", "Training data: build, inspect and verify");
  data->require_subcommand(1);
  AddBuild(data, session, o);

  CLI::App* inspect = data->add_subcommand("inspect", "What is in a .bin/.idx pair");
  inspect->add_option("PREFIX", o.prefix, "The path without .bin or .idx")->required();
  CLI::Option* tokenizer =
      inspect->add_option("--tokenizer", o.tokenizer, "Default: the one in the manifest");
  inspect->add_option("--documents", o.documents, "Show this many")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  inspect->add_option("--characters", o.characters, "Of each document, at most")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  AddFormatOption(inspect, session);
  inspect->callback([session, tokenizer] {
    session->action = [session, given = tokenizer->count() > 0] {
      return Inspect(session, o, given);
    };
  });

  CLI::App* verify =
      data->add_subcommand("verify", "Check all of a .bin/.idx pair: structure, ids, digests");
  verify->add_option("PREFIX", o.prefix, "The path without .bin or .idx")->required();
  verify
      ->add_option("--vocab", o.vocab_size,
                   "Ids must be below this; default: the manifest's vocabulary")
      ->check(CLI::NonNegativeNumber);
  AddFormatOption(verify, session);
  verify->callback([session] { session->action = [session] { return Verify(session, o); }; });
}

}  // namespace mt::client
