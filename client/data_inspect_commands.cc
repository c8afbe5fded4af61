#include "client/data_inspect_commands.h"

#include <algorithm>
#include <cstdio>

#include "client/dataset_names.h"
#include "worker/data/dataset_source.h"
#include "worker/data/dataset_verifier.h"
#include "worker/data/edit/decode.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt::client {
namespace {

// What the options of these commands are parsed into; lives as long as the application.
struct Options {
  std::string tokenizer;
  std::string prefix;
  int64_t documents = 3;
  int64_t characters = 300;
  int64_t vocab_size = 0;
};

// The longest document of a bar of the histogram, and the shortest.
int64_t Longest(size_t bucket) { return (int64_t{1} << bucket) - 1; }
int64_t Shortest(size_t bucket) { return bucket == 0 ? 0 : int64_t{1} << (bucket - 1); }

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
               {"empty_sequences", report.empty_sequences},
               {"document_lengths", Json::array()}};
  for (size_t i = 0; i < report.documents_of_length.size(); ++i) {
    if (report.documents_of_length[i] == 0) continue;
    json["document_lengths"].push_back(
        {{"from", Shortest(i)}, {"to", Longest(i)}, {"documents", report.documents_of_length[i]}});
  }
  if (report.tokens_with_loss.has_value()) json["tokens_with_loss"] = *report.tokens_with_loss;
  if (report.manifest.has_value()) {
    json["tokenizer"] = Utf8(report.manifest->tokenizer);
    json["vocab_size"] = report.manifest->vocab_size;
    json["inputs"] = report.manifest->num_inputs;
  }
  return json;
}

// Tokens with a loss between ⟦ and ⟧.
absl::StatusOr<std::string> TextOf(const Tokenizer& tokenizer, std::span<const int32_t> ids,
                                   const std::vector<uint8_t>& losses) {
  if (losses.empty()) return tokenizer.Decode(ids, SpecialText::kSpecial);
  std::string text;
  size_t shown = 0;
  for (size_t begin = 0; begin < ids.size();) {
    size_t end = begin;
    while (end < ids.size() && losses[end] == losses[begin]) ++end;
    // With all before it: the first token of a text may decode to less than it does inside.
    MT_ASSIGN_OR_RETURN(const std::string whole,
                        tokenizer.Decode(ids.first(end), SpecialText::kSpecial));
    const std::string part = whole.substr(std::min(shown, whole.size()));
    shown = whole.size();
    absl::StrAppend(&text, losses[begin] != 0 ? "⟦" : "", part, losses[begin] != 0 ? "⟧" : "");
    begin = end;
  }
  return text;
}

// The text of the first documents, or their ids where no tokenizer is known.
absl::StatusOr<std::vector<std::string>> FirstDocuments(const Options& options,
                                                        const Tokenizer* tokenizer) {
  MT_ASSIGN_OR_RETURN(const DatasetSource source,
                      OpenDatasetSource(Env::Real(), DatasetPrefix(options.prefix)));
  const IndexedDataset& data = *source.data;
  std::vector<std::string> texts;
  std::vector<int32_t> ids;
  std::vector<uint8_t> losses;
  for (int64_t document = 0; document < std::min(options.documents, data.num_documents());
       ++document) {
    MT_RETURN_IF_ERROR(ReadDocument(data, document, options.characters, &ids));
    if (source.losses != nullptr) {
      losses.resize(ids.size());
      MT_RETURN_IF_ERROR(
          source.losses->Read(data.TokenOffset(data.DocumentStart(document)), losses));
    }
    if (tokenizer != nullptr) {
      MT_ASSIGN_OR_RETURN(const std::string text, TextOf(*tokenizer, ids, losses));
      texts.push_back(Utf8(text.substr(0, options.characters)));
      continue;
    }
    std::string numbers;
    for (const int32_t id : ids) absl::StrAppend(&numbers, numbers.empty() ? "" : " ", id);
    texts.push_back(numbers.substr(0, options.characters));
  }
  return texts;
}

// Null: ids are shown, because none is named and the manifest's is not on this machine.
absl::StatusOr<std::unique_ptr<Tokenizer>> TokenizerOf(const Options& options) {
  if (!options.tokenizer.empty()) return NewTokenizer(Env::Real(), options.tokenizer);
  const absl::StatusOr<DatasetManifest> manifest =
      ReadDatasetManifest(Env::Real(), DatasetPrefix(options.prefix));
  if (absl::IsNotFound(manifest.status())) return nullptr;
  if (!manifest.ok()) return manifest.status();
  absl::StatusOr<std::unique_ptr<Tokenizer>> found = NewTokenizer(Env::Real(), manifest->tokenizer);
  if (found.ok()) return found;
  Note(absl::StrCat("ids are shown, not text: ", found.status().message()));
  return nullptr;
}

std::string OfAll(int64_t part, int64_t all) {
  return absl::StrCat(part, " of ", all, " (",
                      Percent(all == 0 ? 0 : static_cast<double>(part) / static_cast<double>(all)),
                      ")");
}

void PrintReport(Session* session, const DatasetReport& report, const Tokenizer* tokenizer) {
  Table table({{"WHAT"}, {"VALUE"}});
  table.AddRow({"documents", absl::StrCat(report.num_documents)});
  if (report.num_sequences != report.num_documents)
    table.AddRow({"sequences", absl::StrCat(report.num_sequences)});
  table.AddRow({"tokens", absl::StrCat(report.num_tokens, " (",
                                       Count(static_cast<double>(report.num_tokens)), ")")});
  if (report.tokens_with_loss.has_value())
    table.AddRow({"tokens with a loss", OfAll(*report.tokens_with_loss, report.num_tokens)});
  table.AddRow({"token type", std::string(TokenTypeName(report.type))});
  table.AddRow({"size", Bytes(static_cast<int64_t>(report.bin_bytes))});
  table.AddRow({"largest id", report.largest_id < 0 ? "" : absl::StrCat(report.largest_id)});
  if (tokenizer != nullptr) {
    const bool fits = report.largest_id < tokenizer->vocab_size();
    table.AddRow({"vocabulary", absl::StrCat(tokenizer->vocab_size(), " ids",
                                             fits ? "" : ": too few, another tokenizer's?")});
    if (tokenizer->eod() >= 0) {
      table.AddRow({absl::StrCat("end with id ", tokenizer->eod()),
                    OfAll(report.documents_with_eod, report.num_documents)});
    }
  }
  table.AddRow(
      {"sequence length", absl::StrCat(report.shortest, " to ", report.longest, " tokens")});
  table.AddRow({"empty sequences", absl::StrCat(report.empty_sequences)});
  if (report.manifest.has_value()) {
    table.AddRow({"tokenizer", absl::StrCat(Safe(report.manifest->tokenizer), ", vocabulary ",
                                            report.manifest->vocab_size)});
    table.AddRow({"made from", absl::StrCat(report.manifest->num_inputs, " files")});
  }
  table.Print(session->wide());
}

void PrintLengths(const DatasetReport& report) {
  const int64_t most =
      *std::max_element(report.documents_of_length.begin(), report.documents_of_length.end());
  if (most == 0) return;
  std::printf("\n");
  Table table({{"TOKENS", false, true}, {"DOCUMENTS", false, true}, {""}});
  size_t first = 0;
  size_t last = report.documents_of_length.size() - 1;
  while (report.documents_of_length[first] == 0) ++first;
  while (report.documents_of_length[last] == 0) --last;
  for (size_t i = first; i <= last; ++i) {
    const int64_t documents = report.documents_of_length[i];
    std::string bar;
    for (int64_t width = (documents * 40 + most - 1) / most; width > 0; --width) bar += "▇";
    table.AddRow({i <= 1 ? absl::StrCat(i) : absl::StrCat(Shortest(i), "–", Longest(i)),
                  absl::StrCat(documents), bar.empty() ? " " : bar});
  }
  table.Print(false);
}

absl::StatusOr<ExitCode> Inspect(Session* session, const Options& options) {
  const std::string prefix = DatasetPrefix(options.prefix);
  MT_ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, TokenizerOf(options));
  MT_ASSIGN_OR_RETURN(
      const DatasetReport report,
      ScanDataset(Env::Real(), prefix, tokenizer == nullptr ? -1 : tokenizer->eod()));
  const bool fits = tokenizer == nullptr || report.largest_id < tokenizer->vocab_size();
  if (!fits) {
    Note(absl::StrCat(prefix, ".bin has id ", report.largest_id, ", but tokenizer ",
                      tokenizer->spec(), " has ", tokenizer->vocab_size(),
                      " ids: it was built with another one; ids are shown, not text"));
  }
  MT_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                      FirstDocuments(options, fits ? tokenizer.get() : nullptr));
  if (session->json()) {
    Json json = ReportJson(prefix, report);
    if (tokenizer != nullptr && tokenizer->eod() >= 0)
      json["documents_with_eod"] = report.documents_with_eod;
    json["first_documents"] = texts;
    session->Print(json);
    return kExitOk;
  }
  PrintReport(session, report, tokenizer.get());
  PrintLengths(report);
  for (size_t i = 0; i < texts.size(); ++i)
    std::printf("\n[document %zu] %s\n", i, Safe(texts[i]).c_str());
  return kExitOk;
}

absl::StatusOr<ExitCode> Verify(Session* session, const Options& options) {
  const std::string prefix = DatasetPrefix(options.prefix);
  MT_ASSIGN_OR_RETURN(const DatasetReport report,
                      VerifyDataset(Env::Real(), prefix, options.vocab_size));
  if (session->json()) {
    session->Print(ReportJson(prefix, report));
    return kExitOk;
  }
  std::printf("%s: whole; %lld documents, %lld tokens, largest id %d; %s\n", prefix.c_str(),
              static_cast<long long>(report.num_documents),
              static_cast<long long>(report.num_tokens), report.largest_id,
              report.manifest.has_value() ? "digests equal the manifest's"
                                          : "no manifest, so no digests to compare");
  return kExitOk;
}

}  // namespace

void AddDataInspectCommands(CLI::App* data, Session* session) {
  static Options o;
  o = Options();
  CLI::App* inspect = data->add_subcommand("inspect", "What is in a .bin/.idx pair");
  inspect->add_option("PREFIX", o.prefix, "The path without .bin or .idx")->required();
  inspect->add_option("--tokenizer", o.tokenizer, "Default: the one in the manifest");
  inspect->add_option("--documents", o.documents, "Show this many")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  inspect->add_option("--characters", o.characters, "Of each document, at most")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  AddFormatOption(inspect, session);
  inspect->callback([session] { session->action = [session] { return Inspect(session, o); }; });

  CLI::App* verify = data->add_subcommand(
      "verify", "Check all of a .bin/.idx pair: structure, ids, losses, digests");
  verify->add_option("PREFIX", o.prefix, "The path without .bin or .idx")->required();
  verify
      ->add_option("--vocab", o.vocab_size,
                   "Ids must be below this; default: the manifest's vocabulary")
      ->check(CLI::NonNegativeNumber);
  AddFormatOption(verify, session);
  verify->callback([session] { session->action = [session] { return Verify(session, o); }; });
}

}  // namespace mt::client
