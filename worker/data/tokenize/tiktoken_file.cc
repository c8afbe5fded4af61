#include "worker/data/tokenize/tiktoken_file.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace mt {
namespace {

constexpr int64_t kMaxIds = int64_t{1} << 28;
// The longest token of the published files has 128 bytes. Cutting one at every place costs its square.
constexpr size_t kMaxTokenBytes = 512;

struct Special {
  absl::string_view content;
  int32_t behind;  // the largest rank plus one: its id there
};

struct Encoding {
  std::vector<absl::string_view> names;  // one of them is in the file's name
  int64_t ranks;                         // the published file has so many; its ids go so far
  absl::string_view split;               // NewNamedSplit's; empty: Qwen's pattern
  std::vector<Special> specials;
  absl::string_view reserved;  // and more of them, numbered
  int32_t num_reserved = 0;    // up to so far behind the ranks
};

constexpr absl::string_view kQwenPattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

// From tiktoken's openai_public.py, Llama 3's tokenizer.py and Qwen's tokenization_qwen.py.
const std::vector<Encoding>& Encodings() {
  static const auto* const encodings = new std::vector<Encoding>{
      {{"gpt2", "r50k"}, 50256, "gpt2", {{"<|endoftext|>", 0}}, "", 0},
      {{"cl100k"},
       100256,
       "cl100k",
       {{"<|endoftext|>", 1},
        {"<|fim_prefix|>", 2},
        {"<|fim_middle|>", 3},
        {"<|fim_suffix|>", 4},
        {"<|endofprompt|>", 20}},
       "",
       0},
      {{"harmony"},
       -1,
       "o200k",
       {{"<|startoftext|>", 0},
        {"<|endoftext|>", 1},
        {"<|return|>", 4},
        {"<|constrain|>", 5},
        {"<|channel|>", 7},
        {"<|start|>", 8},
        {"<|end|>", 9},
        {"<|message|>", 10},
        {"<|call|>", 14},
        {"<|endofprompt|>", 20}},
       "<|reserved_",
       1090},
      {{"o200k"}, 199998, "o200k", {{"<|endoftext|>", 1}, {"<|endofprompt|>", 20}}, "", 0},
      {{"llama3", "llama-3"},
       128000,
       "llama3",
       {{"<|begin_of_text|>", 0},
        {"<|end_of_text|>", 1},
        {"<|finetune_right_pad_id|>", 4},
        {"<|start_header_id|>", 6},
        {"<|end_header_id|>", 7},
        {"<|eom_id|>", 8},
        {"<|eot_id|>", 9},
        {"<|python_tag|>", 10}},
       "<|reserved_special_token_",
       256},
      {{"qwen"},
       151643,
       "",
       {{"<|endoftext|>", 0}, {"<|im_start|>", 1}, {"<|im_end|>", 2}},
       "<|extra_",
       208},
  };
  return *encodings;
}

absl::StatusOr<const Encoding*> EncodingOf(const std::string& path, int64_t num_ranks) {
  const absl::string_view file = absl::string_view(path).substr(path.rfind('/') + 1);
  for (const Encoding& encoding : Encodings()) {
    for (const absl::string_view name : encoding.names) {
      if (absl::StrContains(file, name)) return &encoding;
    }
  }
  for (const Encoding& encoding : Encodings()) {
    if (encoding.ranks == num_ranks) return &encoding;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      path, " has ", num_ranks,
      " tokens, which no known encoding has: put gpt2, cl100k, o200k, harmony, llama3 or qwen into "
      "the file's name to say which pattern and special tokens it goes with"));
}

class Reader {
 public:
  explicit Reader(const std::string& path) : path_(path) {}

  absl::StatusOr<BpeParts> Read(absl::string_view contents) {
    MT_RETURN_IF_ERROR(ReadLines(contents));
    MT_RETURN_IF_ERROR(FillVocabulary());
    MT_ASSIGN_OR_RETURN(const Encoding* encoding,
                        EncodingOf(path_, static_cast<int64_t>(ids_.size())));
    if (encoding->split.empty()) {
      parts_.normalizer.AddForm(Normalizer::Form::kNfc);
      MT_ASSIGN_OR_RETURN(parts_.pre_tokenizer, NewSplit({.pattern = std::string(kQwenPattern)}));
    } else {
      MT_ASSIGN_OR_RETURN(parts_.pre_tokenizer, NewNamedSplit(encoding->split));
    }
    AddMerges();
    parts_.decoder.texts = parts_.vocabulary.tokens;
    AddSpecials(*encoding);
    return std::move(parts_);
  }

 private:
  absl::Status ReadLines(absl::string_view contents) {
    size_t number = 0;
    for (const absl::string_view line : absl::StrSplit(contents, '\n')) {
      ++number;
      if (line.empty()) continue;
      const size_t space = line.find(' ');
      std::string token;
      int64_t rank;
      if (space == line.npos || !absl::Base64Unescape(line.substr(0, space), &token) ||
          token.empty() || token.size() > kMaxTokenBytes ||
          !absl::SimpleAtoi(line.substr(space + 1), &rank) || rank < 0 || rank >= kMaxIds) {
        return Bad(number, absl::StrCat("is not a token of at most ", kMaxTokenBytes,
                                        " bytes in base64, a space and a rank"));
      }
      if (!ids_.emplace(std::move(token), static_cast<int32_t>(rank)).second)
        return Bad(number, "has a token that was there before");
      largest_ = std::max(largest_, rank);
    }
    return absl::OkStatus();
  }

  absl::Status FillVocabulary() {
    // The published files have a hole at most.
    if (largest_ >= 2 * static_cast<int64_t>(ids_.size())) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": the largest rank is ", largest_,
                                                     ", but there are only ", ids_.size(),
                                                     " tokens"));
    }
    std::vector<std::string>& tokens = parts_.vocabulary.tokens;
    tokens.resize(static_cast<size_t>(largest_ + 1));
    for (const auto& [token, id] : ids_) {
      std::string& place = tokens[static_cast<size_t>(id)];
      if (!place.empty())
        return absl::InvalidArgumentError(
            absl::StrCat(path_, ": the rank ", id, " is there twice"));
      place = token;
    }
    for (int byte = 0; byte < 256; ++byte) {
      if (!ids_.contains(std::string(1, static_cast<char>(byte))))
        return absl::InvalidArgumentError(
            absl::StrCat(path_, ": no token is the byte ", byte,
                         " alone, so some texts could not be written; is the file complete?"));
    }
    return absl::OkStatus();
  }

  // tiktoken joins the neighbours whose concatenation has the lowest rank: every way to cut a token in two is a merge, and all of
  // them have the token's rank.
  void AddMerges() {
    BpeVocabulary& vocabulary = parts_.vocabulary;
    vocabulary.ignore_merges = true;
    for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
      const absl::string_view token = vocabulary.tokens[id];
      for (size_t cut = 1; cut < token.size(); ++cut) {
        const auto left = ids_.find(token.substr(0, cut));
        if (left == ids_.end()) continue;
        const auto right = ids_.find(token.substr(cut));
        if (right == ids_.end()) continue;
        vocabulary.merges.push_back({.left = left->second,
                                     .right = right->second,
                                     .result = static_cast<int32_t>(id),
                                     .rank = static_cast<uint32_t>(id)});
      }
    }
  }

  void AddSpecials(const Encoding& encoding) {
    const int32_t base = static_cast<int32_t>(largest_ + 1);
    for (const Special& special : encoding.specials)
      AddSpecial(std::string(special.content), base + special.behind);
    // Reserved tokens fill what is left; Llama's and Qwen's count from 0, harmony's are called by their ids.
    const bool by_id = encoding.reserved == "<|reserved_";
    int32_t next = 0;
    for (int32_t behind = 0; behind < encoding.num_reserved; ++behind) {
      const int32_t id = base + behind;
      const bool taken = static_cast<size_t>(id) < is_special_.size() && is_special_[id];
      if (taken && !(by_id && behind == 20)) continue;  // <|endofprompt|> has two names
      AddSpecial(absl::StrCat(encoding.reserved, by_id ? id : next++, "|>"), id);
    }
  }

  void AddSpecial(std::string content, int32_t id) {
    const size_t size = static_cast<size_t>(id) + 1;
    if (parts_.decoder.texts.size() < size) parts_.decoder.texts.resize(size);
    if (is_special_.size() < size) is_special_.resize(size);
    is_special_[static_cast<size_t>(id)] = true;
    parts_.decoder.specials.emplace(id, content);
    parts_.special_ids.emplace(content, id);
    parts_.raw_added.Add({.content = std::move(content), .id = id, .special = true});
  }

  absl::Status Bad(size_t line, absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(path_, ":", line, ": ", what));
  }

  const std::string path_;
  absl::flat_hash_map<std::string, int32_t> ids_;
  int64_t largest_ = -1;
  std::vector<bool> is_special_;  // by id
  BpeParts parts_;
};

}  // namespace

bool IsTiktokenFile(absl::string_view contents) {
  const absl::string_view line = contents.substr(0, contents.find('\n'));
  const size_t space = line.find(' ');
  int64_t rank;
  std::string token;
  return space != line.npos && line.size() < 2 * kMaxTokenBytes &&
         absl::SimpleAtoi(line.substr(space + 1), &rank) &&
         absl::Base64Unescape(line.substr(0, space), &token);
}

absl::StatusOr<BpeParts> ParseTiktokenFile(const std::string& path, absl::string_view contents) {
  return Reader(path).Read(contents);
}

}  // namespace mt
