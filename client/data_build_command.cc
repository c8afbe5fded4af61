#include "client/data_build_command.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "absl/strings/str_format.h"
#include "client/dataset_names.h"
#include "client/size_value.h"
#include "worker/data/build/dataset_builder.h"
#include "worker/data/build/finished_build.h"
#include "worker/data/chat/chat_encoder.h"
#include "worker/data/chat/chat_template.h"
#include "worker/data/dataset_commit.h"
#include "worker/data/dataset_source.h"
#include "worker/data/text/input_files.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt::client {
namespace {

constexpr int64_t kBadLinesShown = 10;
constexpr int kMostThreads = 4096;

// What the options are parsed into; lives as long as the application.
struct Options {
  BuildOptions build;
  std::vector<std::string> inputs, lists;
  std::vector<std::string> text_keys;  // none: "text", or "messages" of a conversation
  std::string chat;                    // a template; empty: documents are texts
  std::string loss = "assistant";
  std::string tokenizer = "byte";
  bool append_eod = true;
  double journal_seconds = 10;
};

std::string ProgressText(const BuildProgress& progress) {
  const double seconds = std::max(absl::ToDoubleSeconds(progress.elapsed), 1e-9);
  const double done = static_cast<double>(progress.input_bytes_done);
  const double total = static_cast<double>(progress.input_bytes_total);
  const double here = done - static_cast<double>(progress.input_bytes_resumed);
  const std::string left =
      here > 0 ? Seconds(absl::Seconds(std::max(total - done, 0.0) / (here / seconds))) : "?";
  return absl::StrFormat(
      "%5.1f%%  %s documents  %s tokens  %.1f MB/s  %s tokens/s  %s left",
      total == 0 ? 100.0 : 100.0 * done / total, Count(static_cast<double>(progress.documents)),
      Count(static_cast<double>(progress.tokens)), here / seconds / 1e6,
      Count(static_cast<double>(progress.tokens - progress.tokens_resumed) / seconds), left);
}

Json ResultJson(const std::string& prefix, const BuildResult& result, const Tokenizer& tokenizer) {
  return {{"prefix", Utf8(prefix)},
          {"documents", result.files.num_documents},
          {"tokens", result.files.num_tokens},
          {"token_type", std::string(TokenTypeName(result.type))},
          {"vocab_size", tokenizer.vocab_size()},
          {"bin_bytes", result.files.bin_bytes},
          {"bad_lines", result.bad_lines},
          {"duplicates", result.duplicates},
          {"empty_documents", result.empty_documents},
          {"input_bytes", result.progress.input_bytes_done},
          {"text_bytes", result.progress.text_bytes},
          {"seconds", absl::ToDoubleSeconds(result.progress.elapsed)},
          {"thread_seconds",
           {{"read", result.read_seconds},
            {"parse", result.parse_seconds},
            {"encode", result.encode_seconds},
            {"write", result.write_seconds}}}};
}

void PrintResult(const std::string& prefix, const BuildResult& result, const Tokenizer& tokenizer) {
  const BuildProgress& progress = result.progress;
  const double seconds = std::max(absl::ToDoubleSeconds(progress.elapsed), 1e-9);
  std::printf(
      "%s.bin, %s.idx: %s documents, %s tokens (%s, vocabulary %d), %s; %.1f s, %.1f MB/s, %s "
      "tokens/s\n",
      prefix.c_str(), prefix.c_str(),
      Count(static_cast<double>(result.files.num_documents)).c_str(),
      Count(static_cast<double>(result.files.num_tokens)).c_str(),
      std::string(TokenTypeName(result.type)).c_str(), tokenizer.vocab_size(),
      Bytes(static_cast<int64_t>(result.files.bin_bytes)).c_str(), seconds,
      static_cast<double>(progress.input_bytes_done - progress.input_bytes_resumed) / seconds / 1e6,
      Count(static_cast<double>(progress.tokens - progress.tokens_resumed) / seconds).c_str());
}

// One dataset: the texts under one key.
absl::StatusOr<BuildResult> BuildOne(const BuildOptions& options,
                                     const RecordEncoderFactory& encoders) {
  BuildOptions build = options;
  const bool live = isatty(STDERR_FILENO) == 1;
  const std::string clear = live ? "\r\x1b[K" : "";
  int64_t shown = 0;
  build.on_bad_line = [&](const BadLine& bad) {
    if (++shown > kBadLinesShown) return;
    Note(absl::StrCat(clear, Safe(bad.file), ":", bad.line, ": skipped: ", Safe(bad.reason)));
  };
  build.on_progress = [&](const BuildProgress& progress) {
    // A line that rewrites itself is for people; a log gets the summary only.
    if (live) std::fprintf(stderr, "\r%s\x1b[K", ProgressText(progress).c_str());
  };
  build.on_resume = [&](const BuildProgress& progress) {
    Note(absl::StrCat("going on with an interrupted build, behind ",
                      Count(static_cast<double>(progress.documents)), " documents and ",
                      Count(static_cast<double>(progress.tokens)), " tokens (",
                      Bytes(static_cast<int64_t>(progress.input_bytes_done)), " of ",
                      Bytes(static_cast<int64_t>(progress.input_bytes_total)), ")"));
  };
  absl::StatusOr<BuildResult> result = BuildDataset(Env::Real(), Clock::Real(), encoders, build);
  if (live) std::fputs("\r\x1b[K", stderr);
  if (!result.ok()) return result;
  const std::string bad_lines = absl::StrCat(Safe(build.output_prefix), ".bad.jsonl");
  if (result->bad_lines > shown || shown > kBadLinesShown) {
    Note(absl::StrCat(result->bad_lines, " bad lines in all; see ", bad_lines));
  } else if (result->bad_lines > 0) {
    Note(absl::StrCat("they are kept in ", bad_lines));
  }
  if (result->duplicates > 0)
    Note(absl::StrCat(result->duplicates, " documents were left out as copies of earlier ones"));
  return result;
}

absl::StatusOr<std::unique_ptr<RecordEncoderFactory>> NewEncoders(const Tokenizer& tokenizer,
                                                                  const Options& options) {
  if (options.chat.empty()) return NewTextEncoderFactory(&tokenizer, options.append_eod);
  ChatOptions chat{.template_name = options.chat, .append_eod = options.append_eod};
  MT_ASSIGN_OR_RETURN(chat.loss, ParseChatLoss(options.loss));
  return NewChatEncoderFactory(&tokenizer, chat);
}

// One dataset of a command.
struct Part {
  std::string key, prefix;
  // It is there, as this command would make it.
  std::optional<DatasetManifest> finished;
};

// A single key makes PREFIX; of several each has Megatron's name.
absl::StatusOr<std::vector<Part>> PartsOf(const std::vector<std::string>& keys,
                                          const std::string& prefix) {
  std::vector<Part> parts;
  for (const std::string& key : keys) {
    for (const Part& part : parts) {
      if (part.key == key)
        return absl::InvalidArgumentError(
            absl::StrCat("--text-key ", key, " is given twice; give each key once"));
    }
    if (keys.size() > 1 && (key.empty() || key.find('/') != std::string::npos)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--text-key `", key,
                       "` can be no part of a file's name, as it has to be where several are "
                       "given; build its dataset alone"));
    }
    parts.push_back({key, keys.size() > 1 ? absl::StrCat(prefix, "_", key, "_document") : prefix});
  }
  return parts;
}

absl::StatusOr<std::optional<DatasetManifest>> Finished(const Part& part, BuildOptions build,
                                                        const RecordEncoderFactory& encoders) {
  if (!Exists(Env::Real(), part.prefix + ".idx")) return std::nullopt;
  absl::StatusOr<DatasetSource> source = OpenDatasetSource(Env::Real(), part.prefix);
  // A broken one, too, is in the way.
  if (!source.ok() || !source->manifest.has_value()) return std::nullopt;
  build.text.text_key = part.key;
  MT_ASSIGN_OR_RETURN(const bool same,
                      IsWhatBuildMakes(Env::Real(), *source->manifest, encoders, build));
  if (!same) return std::nullopt;
  return std::move(source->manifest);
}

// Before any work of several builds: what is in their way, and which of them an earlier run of the same command has finished. That
// there was one, parts that are missing tell; with --overwrite, a later part's journal.
absl::Status LookAround(const BuildOptions& build, const RecordEncoderFactory& encoders,
                        std::vector<Part>* parts) {
  bool interrupted = false;
  if (!build.restart) {
    for (const Part& part : *parts) {
      interrupted = interrupted || Exists(Env::Real(), BuildJournalPath(part.prefix)) ||
                    (!build.overwrite && !Exists(Env::Real(), part.prefix + ".idx"));
    }
  }
  for (Part& part : *parts) {
    if (interrupted && !Exists(Env::Real(), BuildJournalPath(part.prefix))) {
      MT_ASSIGN_OR_RETURN(part.finished, Finished(part, build, encoders));
    }
    if (part.finished.has_value() || build.overwrite) continue;
    for (absl::string_view suffix : {".idx", ".bin"}) {
      const std::string path = absl::StrCat(part.prefix, suffix);
      if (Exists(Env::Real(), path)) {
        return absl::AlreadyExistsError(
            absl::StrCat(path, " exists; choose another prefix or add --overwrite"));
      }
    }
  }
  return absl::OkStatus();
}

Json FinishedJson(const Part& part) {
  return {{"prefix", Utf8(part.prefix)},
          {"documents", part.finished->files.num_documents},
          {"tokens", part.finished->files.num_tokens},
          {"token_type", part.finished->type},
          {"vocab_size", part.finished->vocab_size},
          {"bin_bytes", part.finished->files.bin_bytes},
          {"bad_lines", part.finished->bad_lines},
          {"duplicates", part.finished->duplicates},
          {"empty_documents", part.finished->empty_documents},
          {"finished_before", true}};
}

// What would be taken as it is, and then do nothing.
absl::Status CheckSeparator(const std::optional<std::string>& separator) {
  if (!separator.has_value()) return absl::OkStatus();
  const char* wrong = nullptr;
  if (separator->find('\n') != std::string::npos) wrong = "has a line feed in it";
  if (!separator->empty() && separator->back() == '\r') wrong = "ends in a carriage return";
  if (separator->size() > kMaxSeparatorBytes) wrong = "is longer than 64 KiB";
  if (wrong == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--document-separator ", wrong,
                   ", so that no line equals it; give the line without its end ('' means blank "
                   "lines)"));
}

absl::StatusOr<ExitCode> Build(Session* session, const Options& options) {
  BuildOptions build = options.build;
  MT_RETURN_IF_ERROR(CheckSeparator(build.text.document_separator));
  MT_ASSIGN_OR_RETURN(build.output_prefix, OutputPrefix(options.build.output_prefix));
  std::vector<std::string> keys = options.text_keys;
  if (keys.empty()) keys = {options.chat.empty() ? "text" : "messages"};
  MT_ASSIGN_OR_RETURN(std::vector<Part> parts, PartsOf(keys, build.output_prefix));
  MT_ASSIGN_OR_RETURN(const auto tokenizer, NewTokenizer(Env::Real(), options.tokenizer));
  std::vector<std::string> inputs = options.inputs;
  for (const std::string& list : options.lists) {
    MT_ASSIGN_OR_RETURN(const std::vector<std::string> listed, ReadInputList(Env::Real(), list));
    inputs.insert(inputs.end(), listed.begin(), listed.end());
  }
  MT_ASSIGN_OR_RETURN(build.inputs, ExpandInputs(Env::Real(), inputs));
  build.journal_interval = absl::Seconds(options.journal_seconds);
  MT_ASSIGN_OR_RETURN(const auto encoders, NewEncoders(*tokenizer, options));
  if (parts.size() > 1) MT_RETURN_IF_ERROR(LookAround(build, *encoders, &parts));
  Json results = Json::array();
  for (const Part& part : parts) {
    if (part.finished.has_value()) {
      Note(absl::StrCat(Safe(part.prefix), " was finished by an earlier run and is left as it is"));
      results.push_back(FinishedJson(part));
      continue;
    }
    build.text.text_key = part.key;
    build.output_prefix = part.prefix;
    MT_ASSIGN_OR_RETURN(const BuildResult result, BuildOne(build, *encoders));
    results.push_back(ResultJson(part.prefix, result, *tokenizer));
    if (!session->json()) PrintResult(part.prefix, result, *tokenizer);
  }
  if (session->json()) session->Print(parts.size() > 1 ? results : results[0]);
  return kExitOk;
}

void AddInputOptions(CLI::App* build, Options& o) {
  build->add_option("INPUT", o.inputs,
                    "Files: .txt, or .jsonl with one object per line, also as .gz or .zst; or "
                    "folders of them");
  build
      ->add_option("--files-from", o.lists,
                   "A file with the path of an input on each line; may be given again")
      ->allow_extra_args(false)
      ->type_name("LIST");
  build
      ->add_option(
          "--text-key", o.text_keys,
          "Key of the text in a JSONL object (text; with --chat, messages); several, as KEY,KEY or "
          "given again, make a dataset each, PREFIX_KEY_document")
      ->allow_extra_args(false)
      ->delimiter(',')
      ->type_name("KEY");
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
                   "Larger documents are bad lines")
      ->transform(SizeValue())
      ->capture_default_str();
  build->add_option("--max-documents", o.build.max_documents, "Stop after so many; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  build->add_flag("--deduplicate", o.build.deduplicate,
                  "Of documents that are equal byte for byte keep the first");
}

void AddChatOptions(CLI::App* build, Options& o) {
  CLI::Option* chat =
      build
          ->add_option("--chat", o.chat,
                       absl::StrCat("Records are conversations, written by this template: ",
                                    ChatTemplateNames()))
          ->type_name("TEMPLATE");
  build
      ->add_option("--loss", o.loss,
                   "With --chat: train on what the assistant says, or on all of it")
      ->check(CLI::IsMember({"assistant", "all"}))
      ->needs(chat)
      ->capture_default_str();
}

void AddRunOptions(CLI::App* build, Options& o) {
  build->add_flag("--append-eod,!--no-append-eod", o.append_eod,
                  "End each document with the end-of-document id (the default)");
  build->add_flag("--strict", o.build.strict,
                  "Stop at the first bad line; default: report, count and skip it, and keep it in "
                  "PREFIX.bad.jsonl");
  build->add_flag("--overwrite", o.build.overwrite, "Replace an existing pair");
  build->add_flag("--restart", o.build.restart,
                  "Throw away what an interrupted build did, instead of going on with it");
  build->add_option("--threads", o.build.threads, "0: one for each core; the result is the same")
      ->check(CLI::Range(0, kMostThreads))
      ->capture_default_str();
  build
      ->add_option("--memory", o.build.memory_bytes,
                   "For what is read or encoded and not yet written")
      ->transform(SizeValue())
      ->capture_default_str();
  build
      ->add_option("--journal-interval", o.journal_seconds,
                   "Seconds of work that a kill may cost at most")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
}

}  // namespace

std::string MeantByMegatron(absl::string_view option) {
  if (option == "--input") return "mtctl data build FILE... --output PREFIX";
  if (option == "--json-keys") return "--text-key";
  if (option == "--workers") return "--threads";
  for (absl::string_view tokenizer :
       {"--tokenizer-type", "--tokenizer-model", "--vocab-file", "--merge-file"})
    if (option == tokenizer) return "--tokenizer";
  return "";
}

void AddDataBuildCommand(CLI::App* data, Session* session) {
  static Options o;
  o = Options();
  CLI::App* build = data->add_subcommand(
      "build",
      "Turn text files into a Megatron .bin/.idx pair; run again, it goes on after a kill");
  AddInputOptions(build, o);
  build
      ->add_option("--output,--output-prefix", o.build.output_prefix,
                   "Prefix of the pair; what data.train names")
      ->required()
      ->type_name("PREFIX");
  build
      ->add_option("--tokenizer", o.tokenizer,
                   "byte, or the path of a tokenizer.json, a SentencePiece .model or a tiktoken "
                   "file (docs/spec/tokenizers.md)")
      ->capture_default_str();
  AddChatOptions(build, o);
  AddRunOptions(build, o);
  AddFormatOption(build, session);
  build->callback([session] { session->action = [session] { return Build(session, o); }; });
}

}  // namespace mt::client
