#include "client/data_edit_commands.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/dataset_names.h"
#include "client/size_value.h"
#include "worker/data/dataset_commit.h"
#include "worker/data/edit/dataset_copy.h"
#include "worker/data/edit/decode.h"
#include "worker/data/edit/split_plan.h"

namespace mt::client {
namespace {

// What the options are parsed into; lives as long as the application.
struct Options {
  std::vector<std::string> prefixes;
  std::string prefix;
  std::string output;
  CopyOptions copy;
  SplitOptions split;
  std::string tokenizer;
  std::string documents;
  std::string form = "jsonl";
  std::string separator;
  std::string text_key = "text";
  bool special = false;
};

// Each dataset keeps files open.
void AllowManyFiles() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

absl::StatusOr<std::vector<IndexedDatasetSummary>> Copy(const std::vector<DatasetCopy>& copies,
                                                        CopyOptions options) {
  const bool live = isatty(STDERR_FILENO) == 1;
  options.on_progress = [live](uint64_t done, uint64_t total) {
    if (!live) return;
    std::fprintf(stderr, "\r%5.1f%%  %s of %s\x1b[K",
                 100.0 * static_cast<double>(done) / static_cast<double>(total),
                 Bytes(static_cast<int64_t>(done)).c_str(),
                 Bytes(static_cast<int64_t>(total)).c_str());
  };
  auto summaries = CopyDocuments(Env::Real(), copies, options);
  if (live) std::fputs("\r\x1b[K", stderr);
  return summaries;
}

// One line, or one object in a list, per dataset that was written.
void PrintWritten(Session* session, const std::vector<DatasetCopy>& copies,
                  const std::vector<IndexedDatasetSummary>& summaries) {
  Json list = Json::array();
  for (size_t i = 0; i < copies.size(); ++i) {
    list.push_back({{"prefix", Utf8(copies[i].prefix)},
                    {"documents", summaries[i].num_documents},
                    {"tokens", summaries[i].num_tokens},
                    {"bin_bytes", summaries[i].bin_bytes},
                    {"has_loss", !summaries[i].loss_xxh3.empty()}});
    if (session->json()) continue;
    std::printf("%s: %lld documents, %lld tokens, %s%s\n", copies[i].prefix.c_str(),
                static_cast<long long>(summaries[i].num_documents),
                static_cast<long long>(summaries[i].num_tokens),
                Bytes(static_cast<int64_t>(summaries[i].bin_bytes)).c_str(),
                summaries[i].loss_xxh3.empty() ? "" : ", with losses");
  }
  if (session->json()) session->Print(list);
}

absl::StatusOr<ExitCode> Merge(Session* session, const Options& options) {
  AllowManyFiles();
  DatasetCopy copy;
  MT_ASSIGN_OR_RETURN(copy.prefix, OutputPrefix(options.output));
  MT_ASSIGN_OR_RETURN(const std::vector<std::string> prefixes, DatasetsNamed(options.prefixes));
  std::vector<DatasetSource> sources;
  sources.reserve(prefixes.size());
  for (const std::string& prefix : prefixes) {
    MT_ASSIGN_OR_RETURN(DatasetSource source, OpenDatasetSource(Env::Real(), prefix));
    sources.push_back(std::move(source));
  }
  size_t with_manifest = 0;
  for (const DatasetSource& source : sources) {
    copy.parts.push_back({&source, 0, source.data->num_documents()});
    with_manifest += source.manifest.has_value() ? 1 : 0;
  }
  MT_ASSIGN_OR_RETURN(const auto summaries, Copy({copy}, options.copy));
  if (with_manifest != sources.size()) {
    Note(absl::StrCat(
        sources.size() - with_manifest, " of ", sources.size(),
        " datasets have no manifest: whether they were built with one tokenizer is not known, and ",
        copy.prefix, " gets none either"));
  }
  PrintWritten(session, {copy}, summaries);
  return kExitOk;
}

absl::StatusOr<ExitCode> Split(Session* session, const Options& options) {
  AllowManyFiles();
  MT_ASSIGN_OR_RETURN(const DatasetSource source,
                      OpenDatasetSource(Env::Real(), DatasetPrefix(options.prefix)));
  MT_ASSIGN_OR_RETURN(const std::vector<SplitPiece> pieces, PlanSplit(*source.data, options.split));
  MT_ASSIGN_OR_RETURN(const std::string output,
                      OutputPrefix(options.output.empty() ? options.prefix : options.output));
  std::vector<DatasetCopy> copies;
  for (const SplitPiece& piece : pieces)
    copies.push_back({absl::StrCat(output, "-", piece.name), {{&source, piece.begin, piece.end}}});
  MT_ASSIGN_OR_RETURN(const auto summaries, Copy(copies, options.copy));
  PrintWritten(session, copies, summaries);
  return kExitOk;
}

// "7", "2:5", "2:", ":5", or nothing: all.
absl::Status ParseDocuments(const std::string& text, int64_t num_documents, DecodeOptions* out) {
  out->begin = 0;
  out->end = num_documents;
  if (text.empty()) return absl::OkStatus();
  const std::vector<std::string> ends = absl::StrSplit(text, ':');
  const auto number = [](const std::string& digits, int64_t* value) {
    return digits.empty() || (absl::SimpleAtoi(digits, value) && *value >= 0);
  };
  bool right = ends.size() <= 2 && number(ends[0], &out->begin);
  if (ends.size() == 2) {
    right = right && number(ends[1], &out->end);
  } else {
    out->end = out->begin == std::numeric_limits<int64_t>::max() ? out->begin : out->begin + 1;
  }
  if (right) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--documents ", text,
                   " is not FIRST:LAST; write 2:5 for documents 2, 3 and 4, or one number"));
}

// The manifest's unless another is named.
absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerOf(const DatasetSource& source,
                                                       const Options& options) {
  if (!options.tokenizer.empty()) return NewTokenizer(Env::Real(), options.tokenizer);
  if (source.manifest.has_value()) {
    absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
        NewTokenizer(Env::Real(), source.manifest->tokenizer);
    if (!tokenizer.ok()) {
      return Annotate(tokenizer.status(),
                      "the manifest's tokenizer cannot be used; name another with --tokenizer, or "
                      "take --as ids");
    }
    if ((*tokenizer)->digest() != source.manifest->tokenizer_digest) {
      return absl::FailedPreconditionError(absl::StrCat(
          source.manifest->tokenizer, " is not the tokenizer that ", source.data->prefix(),
          " was built with: its digest is ", (*tokenizer)->digest(), ", not ",
          source.manifest->tokenizer_digest, "; name the right one with --tokenizer"));
    }
    return tokenizer;
  }
  return absl::InvalidArgumentError(
      absl::StrCat(source.data->prefix(),
                   " has no manifest that names its tokenizer; name one with "
                   "--tokenizer, or take --as ids"));
}

absl::Status ToStdout(absl::string_view piece) {
  if (std::fwrite(piece.data(), 1, piece.size(), stdout) == piece.size()) return absl::OkStatus();
  return absl::ResourceExhaustedError("cannot write to stdout");
}

// A file that is there when it is whole.
absl::StatusOr<DecodeCounts> DecodeToFile(const DatasetSource& source, const Tokenizer* tokenizer,
                                          const DecodeOptions& decode, const std::string& path,
                                          bool overwrite) {
  Env* env = Env::Real()->ForSharedFiles();
  if (!overwrite && Exists(env, path)) {
    return absl::AlreadyExistsError(
        absl::StrCat(path, " exists; choose another file or add --overwrite"));
  }
  const std::string partial = path + ".partial";
  MT_ASSIGN_OR_RETURN(const auto file, env->NewWritableFile(partial, Env::WriteMode::kTruncate));
  std::string buffer;
  const auto decoded = [&]() -> absl::StatusOr<DecodeCounts> {
    MT_ASSIGN_OR_RETURN(const DecodeCounts counts,
                        DecodeDocuments(*source.data, tokenizer, decode,
                                        [&](absl::string_view piece) -> absl::Status {
                                          buffer.append(piece.data(), piece.size());
                                          if (buffer.size() < (1 << 20)) return absl::OkStatus();
                                          MT_RETURN_IF_ERROR(file->Append(buffer));
                                          buffer.clear();
                                          return absl::OkStatus();
                                        }));
    MT_RETURN_IF_ERROR(file->Append(buffer));
    MT_RETURN_IF_ERROR(file->Sync());
    MT_RETURN_IF_ERROR(file->Close());
    MT_RETURN_IF_ERROR(env->Rename(partial, path));
    MT_RETURN_IF_ERROR(env->SyncDirectory(DatasetFolder(path)));
    return counts;
  }();
  if (!decoded.ok()) env->RemoveFile(partial).IgnoreError();
  return decoded;
}

absl::StatusOr<ExitCode> Decode(Session*, const Options& options) {
  MT_ASSIGN_OR_RETURN(const DatasetSource source,
                      OpenDatasetSource(Env::Real(), DatasetPrefix(options.prefix)));
  DecodeOptions decode;
  MT_RETURN_IF_ERROR(ParseDocuments(options.documents, source.data->num_documents(), &decode));
  decode.form = options.form == "ids"    ? DecodeForm::kIds
                : options.form == "text" ? DecodeForm::kText
                                         : DecodeForm::kJsonl;
  decode.text_key = options.text_key;
  decode.separator = options.separator;
  if (options.special) decode.special = SpecialText::kSpecial;
  std::unique_ptr<Tokenizer> tokenizer;
  if (decode.form != DecodeForm::kIds) {
    MT_ASSIGN_OR_RETURN(tokenizer, TokenizerOf(source, options));
  }
  const absl::StatusOr<DecodeCounts> counts =
      options.output.empty()
          ? DecodeDocuments(*source.data, tokenizer.get(), decode, ToStdout)
          : DecodeToFile(source, tokenizer.get(), decode, options.output, options.copy.overwrite);
  if (!counts.ok()) return counts.status();
  if (std::fflush(stdout) != 0) return absl::ResourceExhaustedError("cannot write to stdout");
  if (counts->not_utf8 > 0) {
    Note(absl::StrCat(
        counts->not_utf8, " of ", counts->documents,
        " documents have bytes that are not UTF-8, which JSON cannot hold; they became U+FFFD. "
        "`--as text` writes them as they are"));
  }
  if (!options.output.empty()) {
    Note(absl::StrCat(options.output, ": ", counts->documents, " documents, ", counts->tokens,
                      " tokens"));
  }
  return kExitOk;
}

void AddMerge(CLI::App* data, Session* session, Options& o) {
  CLI::App* merge = data->add_subcommand(
      "merge", "Several .bin/.idx pairs into one, in the order that they are named in");
  merge
      ->add_option("PREFIX", o.prefixes,
                   "Datasets, with or without an ending, as in part*; each is taken once")
      ->required();
  merge->add_option("--output", o.output, "Prefix of the new pair")
      ->required()
      ->type_name("PREFIX");
  merge->add_flag("--overwrite", o.copy.overwrite, "Replace an existing pair");
  AddFormatOption(merge, session);
  merge->callback([session, &o] { session->action = [session, &o] { return Merge(session, o); }; });
}

void AddSplit(CLI::App* data, Session* session, Options& o) {
  CLI::App* split =
      data->add_subcommand("split", "One .bin/.idx pair into several, cut between documents");
  split->add_option("PREFIX", o.prefix, "The path without .bin or .idx")->required();
  split
      ->add_option("--shares", o.split.shares,
                   "Train, validation and test, as in data.split: writes OUTPUT-train and so on")
      ->type_name("98,1,1");
  split->add_option("--documents", o.split.max_documents, "Pieces of at most this many documents")
      ->check(CLI::PositiveNumber);
  split
      ->add_option("--size", o.split.max_bytes,
                   "Pieces of at most this size, such as 10GB: writes OUTPUT-0 and so on")
      ->transform(SizeValue());
  split->add_option("--output", o.output, "Beginning of the new prefixes; default: PREFIX")
      ->type_name("OUTPUT");
  split->add_flag("--overwrite", o.copy.overwrite, "Replace existing pairs");
  AddFormatOption(split, session);
  split->callback([session, &o] { session->action = [session, &o] { return Split(session, o); }; });
}

void AddDecode(CLI::App* data, Session* session, Options& o) {
  CLI::App* decode = data->add_subcommand("decode", "Documents of a .bin/.idx pair as text again");
  decode->add_option("PREFIX", o.prefix, "The path without .bin or .idx")->required();
  decode->add_option("--documents", o.documents, "2:5 are documents 2, 3 and 4; default: all")
      ->type_name("FIRST:LAST");
  decode->add_option("--as", o.form, "jsonl, which `data build` reads; text; or ids")
      ->check(CLI::IsMember({"jsonl", "text", "ids"}))
      ->capture_default_str();
  decode->add_option("--tokenizer", o.tokenizer, "Default: the one in the manifest");
  decode->add_option("--text-key", o.text_key, "Key of the text, with jsonl")
      ->capture_default_str();
  decode->add_option("--separator", o.separator, "A line between two documents, with text")
      ->type_name("LINE");
  decode->add_flag("--special", o.special, "Write special tokens as their text, too");
  decode
      ->add_option("--output", o.output, "A file, which is there when it is whole; default: stdout")
      ->type_name("FILE");
  decode->add_flag("--overwrite", o.copy.overwrite, "Replace an existing file");
  decode->callback(
      [session, &o] { session->action = [session, &o] { return Decode(session, o); }; });
}

}  // namespace

void AddDataEditCommands(CLI::App* data, Session* session) {
  static Options o;
  o = Options();
  AddMerge(data, session, o);
  AddSplit(data, session, o);
  AddDecode(data, session, o);
}

}  // namespace mt::client
