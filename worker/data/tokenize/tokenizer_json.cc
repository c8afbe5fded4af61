#include "worker/data/tokenize/tokenizer_json.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "common/log.h"
#include "worker/data/tokenize/byte_alphabet.h"
#include "worker/data/tokenize/json_fields.h"
#include "worker/data/tokenize/tokenizer_json_stages.h"
#include "worker/data/tokenize/utf8.h"

namespace mt {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;

constexpr int64_t kMaxIds = int64_t{1} << 28;

class Reader {
 public:
  Reader(std::string name, const JsonFields& file) : name_(std::move(name)), file_(file) {}

  absl::StatusOr<BpeParts> Read() {
    MT_RETURN_IF_ERROR(ReadNormalizer(file_, &parts_.normalizer));
    MT_RETURN_IF_ERROR(ReadPreTokenizer(file_, &parts_));
    MT_ASSIGN_OR_RETURN(const JsonFields model, file_.Object("model"));
    MT_RETURN_IF_ERROR(ReadModel(model));
    MT_RETURN_IF_ERROR(ReadAddedTokens());
    MT_ASSIGN_OR_RETURN(const Decoding decoding,
                        ReadDecoder(file_, parts_.vocabulary.byte_level, &parts_.decoder));
    WriteTexts(decoding);
    return std::move(parts_);
  }

 private:
  absl::Status Bad(absl::string_view place, absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(name_, ": ", place, ": ", what));
  }

  absl::Status ReadModel(const JsonFields& model) {
    MT_ASSIGN_OR_RETURN(const std::string type, model.String("type", "BPE"));
    if (type != "BPE") {
      return absl::UnimplementedError(
          absl::StrCat(model.place(), ".type \"", type,
                       "\": only BPE is known; for Unigram use the model's SentencePiece file"));
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      MT_ASSIGN_OR_RETURN(const std::string affix, model.String(key, ""));
      if (!affix.empty())
        return absl::UnimplementedError(
            absl::StrCat(model.Place(key), " \"", affix, "\" is not known: only none is"));
    }
    if (const auto dropout = model.Find("dropout")) {
      double share = 0;
      if (dropout->get(share) != simdjson::SUCCESS || share != 0) {
        return absl::UnimplementedError(
            absl::StrCat(model.Place("dropout"), ": merges are never left out; set it to null"));
      }
    }
    BpeVocabulary& vocabulary = parts_.vocabulary;
    MT_ASSIGN_OR_RETURN(vocabulary.ignore_merges, model.Bool("ignore_merges", false));
    MT_ASSIGN_OR_RETURN(vocabulary.fuse_unknown, model.Bool("fuse_unk", false));
    MT_RETURN_IF_ERROR(ReadVocabulary(model));
    MT_RETURN_IF_ERROR(ReadMerges(model));
    MT_ASSIGN_OR_RETURN(const bool byte_fallback, model.Bool("byte_fallback", false));
    MT_ASSIGN_OR_RETURN(const std::string unknown, model.String("unk_token", ""));
    if (!unknown.empty()) {
      const auto found = ids_.find(unknown);
      if (found == ids_.end())
        return Bad("model.unk_token", absl::StrCat("\"", unknown, "\" is not in model.vocab"));
      vocabulary.unknown = found->second;
    }
    if (byte_fallback) {
      for (const auto& [token, id] : ids_) {
        if (const int byte = ByteOfToken(token); byte >= 0) vocabulary.byte_fallback[byte] = id;
      }
    }
    WarnOfMissingBytes();
    return absl::OkStatus();
  }

  absl::Status ReadVocabulary(const JsonFields& model) {
    MT_ASSIGN_OR_RETURN(const JsonFields vocab, model.Object("vocab"));
    const simdjson::dom::object object = vocab.object();
    ids_.reserve(object.size());
    int64_t largest = -1;
    for (const auto& [token, value] : object) {
      int64_t id;
      if (value.get(id) != simdjson::SUCCESS || id < 0 || id >= kMaxIds)
        return Bad(absl::StrCat("model.vocab[\"", View(token), "\"]"), "is not an id below 2^28");
      if (!ids_.emplace(View(token), static_cast<int32_t>(id)).second)
        return Bad("model.vocab", absl::StrCat("\"", View(token), "\" is there twice"));
      largest = std::max(largest, id);
    }
    // Ids need not be dense; a table of them must not be much larger than the file, though.
    if (largest >= 4 * static_cast<int64_t>(ids_.size()) + 1024) {
      return Bad("model.vocab", absl::StrCat("the largest id is ", largest, ", but there are only ",
                                             ids_.size(), " tokens"));
    }
    if (ids_.empty()) return Bad("model.vocab", "has no tokens");
    names_.resize(static_cast<size_t>(largest + 1));
    parts_.vocabulary.tokens.resize(names_.size());
    std::vector<bool> seen(names_.size());
    for (const auto& [token, id] : ids_) {
      const size_t at = static_cast<size_t>(id);
      if (seen[at])
        return Bad("model.vocab", absl::StrCat("the id ", id, " is there twice: \"", names_[at],
                                               "\" and \"", token, "\""));
      seen[at] = true;
      names_[at] = std::string(token);
      if (!parts_.vocabulary.byte_level) {
        parts_.vocabulary.tokens[at] = names_[at];
      } else if (auto bytes = BytesOfLetters(token)) {
        parts_.vocabulary.tokens[at] = *std::move(bytes);
      }
    }
    return absl::OkStatus();
  }

  // "a b", or ["a", "b"]; in order of rank.
  absl::Status ReadMerges(const JsonFields& model) {
    MT_ASSIGN_OR_RETURN(const array merges, model.Array("merges"));
    parts_.vocabulary.merges.reserve(merges.size());
    std::string joined;
    uint32_t rank = 0;
    for (const element merge : merges) {
      absl::string_view left, right;
      if (!Halves(merge, &left, &right)) {
        return Bad(absl::StrCat("model.merges[", rank, "]"),
                   "is neither \"left right\" nor [\"left\", \"right\"]");
      }
      joined.assign(left.data(), left.size());
      joined.append(right.data(), right.size());
      BpeMerge found = {.rank = rank};
      for (const auto& [token, id] : {std::pair<absl::string_view, int32_t*>{left, &found.left},
                                      {right, &found.right},
                                      {joined, &found.result}}) {
        const auto entry = ids_.find(token);
        if (entry == ids_.end()) {
          return Bad(absl::StrCat("model.merges[", rank, "]"),
                     absl::StrCat("\"", token, "\" is not in model.vocab"));
        }
        *id = entry->second;
      }
      parts_.vocabulary.merges.push_back(found);
      ++rank;
    }
    return absl::OkStatus();
  }

  static bool Halves(element merge, absl::string_view* left, absl::string_view* right) {
    array pair;
    std::string_view text, first, second;
    if (merge.get(pair) == simdjson::SUCCESS) {
      if (pair.size() != 2 || pair.at(0).get(first) != simdjson::SUCCESS ||
          pair.at(1).get(second) != simdjson::SUCCESS)
        return false;
    } else {
      if (merge.get(text) != simdjson::SUCCESS) return false;
      const size_t space = text.find(' ');
      if (space == text.npos || text.find(' ', space + 1) != text.npos) return false;
      first = text.substr(0, space);
      second = text.substr(space + 1);
    }
    *left = View(first);
    *right = View(second);
    return true;
  }

  void WarnOfMissingBytes() const {
    if (!parts_.vocabulary.byte_level || parts_.vocabulary.unknown >= 0) return;
    int missing = 0;
    for (int byte = 0; byte < 256; ++byte) {
      std::string letter;
      AppendUtf8(LetterOfByte(static_cast<unsigned char>(byte)), &letter);
      missing += ids_.contains(letter) ? 0 : 1;
    }
    if (missing > 0) {
      MT_LOG(Warning) << name_ << ": the vocabulary lacks " << missing
                      << " of the 256 bytes; text that has them loses them";
    }
  }

  // Ids as Hugging Face gives them: the model's for a token that it has, else the next one.
  absl::Status ReadAddedTokens() {
    if (!file_.Find("added_tokens")) return absl::OkStatus();
    MT_ASSIGN_OR_RETURN(const array added, file_.Array("added_tokens"));
    absl::flat_hash_map<std::string, bool> seen;
    int64_t next = static_cast<int64_t>(ids_.size());
    for (const element item : added) {
      MT_ASSIGN_OR_RETURN(const JsonFields fields,
                          ObjectAt(item, absl::StrCat(name_, ": added_tokens[", seen.size(), "]")));
      AddedToken token;
      MT_ASSIGN_OR_RETURN(token.content, fields.String("content"));
      MT_ASSIGN_OR_RETURN(const int64_t id, fields.Int("id", -1));
      MT_ASSIGN_OR_RETURN(token.special, fields.Bool("special", false));
      MT_ASSIGN_OR_RETURN(token.normalized, fields.Bool("normalized", !token.special));
      MT_ASSIGN_OR_RETURN(token.single_word, fields.Bool("single_word", false));
      MT_ASSIGN_OR_RETURN(token.strip_left, fields.Bool("lstrip", false));
      MT_ASSIGN_OR_RETURN(token.strip_right, fields.Bool("rstrip", false));
      if (token.content.empty() || !seen.emplace(token.content, true).second)
        return absl::InvalidArgumentError(absl::StrCat(
            fields.Place("content"), " \"", token.content, "\" is empty, or there twice"));
      const auto known = ids_.find(token.content);
      const int64_t expected = known != ids_.end() ? known->second : next;
      if (id != expected) {
        return absl::InvalidArgumentError(
            absl::StrCat(fields.Place("id"), " of \"", token.content, "\" is ", id, ", but ",
                         known != ids_.end() ? "model.vocab gives it " : "the next free id is ",
                         expected, "; Hugging Face would take that one"));
      }
      if (id >= kMaxIds) return Bad(fields.Place("id"), "is not an id below 2^28");
      next = std::max(next, id + 1);
      token.id = static_cast<int32_t>(id);
      MT_RETURN_IF_ERROR(AddToken(token));
    }
    return absl::OkStatus();
  }

  absl::Status AddToken(AddedToken token) {
    const size_t at = static_cast<size_t>(token.id);
    if (names_.size() <= at) names_.resize(at + 1);
    names_[at] = token.content;
    if (verbatim_.size() <= at) verbatim_.resize(at + 1);
    verbatim_[at] = token.special ? Verbatim::kNothing : Verbatim::kContent;
    parts_.special_ids[token.content] = token.id;
    if (!token.normalized) {
      parts_.raw_added.Add(token);
      return absl::OkStatus();
    }
    std::string buffer;
    token.content = std::string(parts_.normalizer.Normalize(token.content, &buffer));
    if (!token.content.empty()) parts_.normalized_added.Add(token);
    return absl::OkStatus();
  }

  // What every id is written as.
  void WriteTexts(const Decoding& decoding) {
    TokenDecoder& decoder = parts_.decoder;
    decoder.texts.resize(names_.size());
    if (decoding.first_differs) decoder.first_texts.resize(names_.size());
    verbatim_.resize(names_.size());
    for (size_t id = 0; id < names_.size(); ++id) {
      if (verbatim_[id] == Verbatim::kNothing) {
        decoder.specials[static_cast<int32_t>(id)] = names_[id];
        continue;
      }
      if (verbatim_[id] == Verbatim::kContent) {
        decoder.texts[id] = names_[id];
        if (decoding.first_differs) decoder.first_texts[id] = names_[id];
        continue;
      }
      decoder.texts[id] = TokenText(names_[id], decoding.steps, false);
      if (decoding.first_differs)
        decoder.first_texts[id] = TokenText(names_[id], decoding.steps, true);
    }
  }

  enum class Verbatim : uint8_t { kDecoded, kContent, kNothing };

  const std::string name_;
  const JsonFields& file_;
  BpeParts parts_;
  absl::flat_hash_map<absl::string_view, int32_t> ids_;  // of model.vocab, by what is written there
  std::vector<std::string> names_;                       // the other way round; of added tokens too
  std::vector<Verbatim> verbatim_;
};

}  // namespace

absl::StatusOr<BpeParts> ParseTokenizerJson(const std::string& name, absl::string_view json) {
  simdjson::dom::parser parser;
  element document;
  const auto error = parser.parse(json.data(), json.size()).get(document);
  if (error != simdjson::SUCCESS) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, " is not JSON (", simdjson::error_message(error), "); is it complete?"));
  }
  MT_ASSIGN_OR_RETURN(const JsonFields file, ObjectAt(document, name));
  return Reader(name, file).Read();
}

}  // namespace mt
