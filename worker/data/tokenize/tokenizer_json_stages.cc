#include "worker/data/tokenize/tokenizer_json_stages.h"

#include <utility>

#include "absl/strings/str_join.h"

namespace mt {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;

// \p{L} and so on: the pattern of ByteLevel(use_regex), as it is written in Hugging Face's byte_level.rs.
constexpr absl::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

absl::Status Unknown(const JsonFields& stage, absl::string_view what) {
  return absl::UnimplementedError(
      absl::StrCat(stage.place(), ": ", what, "; see docs/spec/tokenizers.md"));
}

// The stages under `key`: of a Sequence, those of its list `list_key`, also of Sequences in it (they do not go deep).
absl::Status Flatten(const JsonFields& stage, absl::string_view list_key, int depth,
                     std::vector<JsonFields>* stages) {
  MT_ASSIGN_OR_RETURN(const std::string type, stage.String("type"));
  if (type != "Sequence") {
    stages->push_back(stage);
    return absl::OkStatus();
  }
  if (depth == 0) return Unknown(stage, "Sequences within Sequences go too deep");
  MT_ASSIGN_OR_RETURN(const array items, stage.Array(list_key));
  size_t index = 0;
  for (const element item : items) {
    MT_ASSIGN_OR_RETURN(const JsonFields fields,
                        ObjectAt(item, absl::StrCat(stage.Place(list_key), "[", index++, "]")));
    MT_RETURN_IF_ERROR(Flatten(fields, list_key, depth - 1, stages));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<JsonFields>> Stages(const JsonFields& file, absl::string_view key,
                                               absl::string_view list_key) {
  constexpr int kMostNested = 8;
  std::vector<JsonFields> stages;
  if (!file.Find(key)) return stages;
  MT_ASSIGN_OR_RETURN(const JsonFields stage, file.Object(key));
  MT_RETURN_IF_ERROR(Flatten(stage, list_key, kMostNested, &stages));
  return stages;
}

// {"String": text} or {"Regex": pattern}.
absl::StatusOr<SplitPattern> Pattern(const JsonFields& stage) {
  MT_ASSIGN_OR_RETURN(const JsonFields pattern, stage.Object("pattern"));
  SplitPattern result;
  result.literal = pattern.Find("String").has_value();
  MT_ASSIGN_OR_RETURN(result.pattern, pattern.String(result.literal ? "String" : "Regex"));
  if (result.pattern.empty())
    return absl::InvalidArgumentError(absl::StrCat(pattern.place(), " is empty"));
  return result;
}

absl::StatusOr<SplitBehaviour> Behaviour(const JsonFields& stage, absl::string_view otherwise) {
  constexpr std::pair<absl::string_view, SplitBehaviour> kNames[] = {
      {"Isolated", SplitBehaviour::kIsolated},
      {"Removed", SplitBehaviour::kRemoved},
      {"MergedWithPrevious", SplitBehaviour::kMergedWithPrevious},
      {"MergedWithNext", SplitBehaviour::kMergedWithNext},
      {"Contiguous", SplitBehaviour::kContiguous}};
  MT_ASSIGN_OR_RETURN(const std::string wanted, stage.String("behavior", otherwise));
  for (const auto& [name, behaviour] : kNames) {
    if (name == wanted) return behaviour;
  }
  return Unknown(stage, absl::StrCat("behavior \"", wanted, "\" is not known"));
}

// Collects splits, so that sequences which are known as a whole are seen as a whole.
class PreTokenizerReader {
 public:
  explicit PreTokenizerReader(BpeParts* parts) : parts_(parts) {}

  absl::Status Read(const std::vector<JsonFields>& stages) {
    parts_->vocabulary.byte_level = false;
    for (size_t i = 0; i < stages.size(); ++i) {
      const JsonFields& stage = stages[i];
      if (parts_->vocabulary.byte_level || !parts_->space.empty())
        return Unknown(stage, "a stage behind ByteLevel or Metaspace is not known");
      MT_ASSIGN_OR_RETURN(const std::string type, stage.String("type"));
      MT_RETURN_IF_ERROR(Add(type, stage, i == 0));
    }
    MT_RETURN_IF_ERROR(EndSplits());
    if (chain_.size() == 1) parts_->pre_tokenizer = std::move(chain_[0]);
    if (chain_.size() > 1) parts_->pre_tokenizer = NewChain(std::move(chain_));
    return absl::OkStatus();
  }

 private:
  absl::Status Add(absl::string_view type, const JsonFields& stage, bool first) {
    if (type == "Split") return AddSplit(stage);
    if (type == "ByteLevel") return AddByteLevel(stage, first);
    if (type == "Metaspace") return AddMetaspace(stage, first);
    if (type == "Digits") {
      MT_ASSIGN_OR_RETURN(const bool individual, stage.Bool("individual_digits", false));
      return Chain(NewDigits(individual));
    }
    if (type == "Punctuation") {
      MT_ASSIGN_OR_RETURN(const SplitBehaviour behaviour, Behaviour(stage, "Isolated"));
      return Chain(NewPunctuation(behaviour));
    }
    if (type == "WhitespaceSplit") {
      splits_.push_back({.pattern = "\\s", .behaviour = SplitBehaviour::kRemoved});
      return absl::OkStatus();
    }
    if (type == "Whitespace") {
      splits_.push_back(
          {.pattern = "\\w+|[^\\w\\s]+", .behaviour = SplitBehaviour::kRemoved, .invert = true});
      return absl::OkStatus();
    }
    return Unknown(stage, absl::StrCat("the pre-tokenizer ", type, " is not known"));
  }

  absl::Status AddSplit(const JsonFields& stage) {
    MT_ASSIGN_OR_RETURN(SplitPattern split, Pattern(stage));
    MT_ASSIGN_OR_RETURN(split.behaviour, Behaviour(stage, ""));
    MT_ASSIGN_OR_RETURN(split.invert, stage.Bool("invert", false));
    splits_.push_back(std::move(split));
    return absl::OkStatus();
  }

  absl::Status AddByteLevel(const JsonFields& stage, bool first) {
    parts_->vocabulary.byte_level = true;
    MT_ASSIGN_OR_RETURN(const bool prefix, stage.Bool("add_prefix_space", true));
    MT_ASSIGN_OR_RETURN(const bool pattern, stage.Bool("use_regex", true));
    if (prefix && !first)
      return Unknown(stage, "add_prefix_space behind another stage is not known");
    if (prefix) parts_->prefix_space = PrefixSpace::kAlways;
    if (pattern) splits_.push_back({.pattern = std::string(kByteLevelPattern)});
    return absl::OkStatus();
  }

  absl::Status AddMetaspace(const JsonFields& stage, bool first) {
    if (!first) return Unknown(stage, "Metaspace behind another stage is not known");
    MT_ASSIGN_OR_RETURN(parts_->space, stage.String("replacement"));
    if (parts_->space.empty()) return Unknown(stage, "an empty replacement is not known");
    MT_ASSIGN_OR_RETURN(const bool legacy_prefix, stage.Bool("add_prefix_space", true));
    MT_ASSIGN_OR_RETURN(const std::string scheme,
                        stage.String("prepend_scheme", legacy_prefix ? "always" : "never"));
    if (scheme != "always" && scheme != "first" && scheme != "never")
      return Unknown(stage, absl::StrCat("prepend_scheme \"", scheme, "\" is not known"));
    parts_->prefix_space = scheme == "always"  ? PrefixSpace::kAlways
                           : scheme == "first" ? PrefixSpace::kFirst
                                               : PrefixSpace::kNever;
    MT_ASSIGN_OR_RETURN(const bool split, stage.Bool("split", true));
    if (split) {
      splits_.push_back({.pattern = parts_->space,
                         .literal = true,
                         .behaviour = SplitBehaviour::kMergedWithNext});
    }
    return absl::OkStatus();
  }

  absl::Status Chain(std::unique_ptr<PreTokenizer> stage) {
    MT_RETURN_IF_ERROR(EndSplits());
    chain_.push_back(std::move(stage));
    return absl::OkStatus();
  }

  absl::Status EndSplits() {
    if (splits_.empty()) return absl::OkStatus();
    MT_ASSIGN_OR_RETURN(std::unique_ptr<PreTokenizer> splits, NewSplits(splits_));
    chain_.push_back(std::move(splits));
    splits_.clear();
    return absl::OkStatus();
  }

  BpeParts* const parts_;
  std::vector<SplitPattern> splits_;
  std::vector<std::unique_ptr<PreTokenizer>> chain_;
};

// One stage of a decoder; `fused`: the tokens have been joined before.
absl::Status AddDecoderStage(const JsonFields& stage, bool* fused, Decoding* decoding,
                             TokenDecoder* decoder) {
  MT_ASSIGN_OR_RETURN(const std::string type, stage.String("type"));
  if (type == "Fuse") {
    *fused = true;
    return absl::OkStatus();
  }
  if (type == "Strip") {
    if (!*fused) return Unknown(stage, "Strip before Fuse is not known");
    MT_ASSIGN_OR_RETURN(decoder->strip, stage.String("content"));
    MT_ASSIGN_OR_RETURN(const int64_t start, stage.Int("start", 0));
    MT_ASSIGN_OR_RETURN(const int64_t stop, stage.Int("stop", 0));
    constexpr int64_t kMost = 1024;
    if (start < 0 || stop < 0 || start > kMost || stop > kMost || decoder->strip.empty())
      return Unknown(stage, "strips more than 1024 characters, or none");
    decoder->strip_start = static_cast<int>(start);
    decoder->strip_stop = static_cast<int>(stop);
    return absl::OkStatus();
  }
  if (*fused) return Unknown(stage, absl::StrCat(type, " behind Fuse is not known"));
  DecoderStep step;
  if (type == "ByteLevel") {
    step.kind = DecoderStep::Kind::kByteLevel;
  } else if (type == "ByteFallback") {
    step.kind = DecoderStep::Kind::kByteFallback;
  } else if (type == "Replace") {
    step.kind = DecoderStep::Kind::kReplace;
    MT_ASSIGN_OR_RETURN(const SplitPattern pattern, Pattern(stage));
    if (!pattern.literal) return Unknown(stage, "a Regex is not known: only a String is");
    step.from = pattern.pattern;
    MT_ASSIGN_OR_RETURN(step.to, stage.String("content"));
    decoding->growth *= step.to.size() / step.from.size() + 1;
    if (decoding->growth > 1024) return Unknown(stage, "a token becomes a thousand times longer");
  } else if (type == "Metaspace") {
    step.kind = DecoderStep::Kind::kMetaspace;
    MT_ASSIGN_OR_RETURN(step.from, stage.String("replacement"));
    MT_ASSIGN_OR_RETURN(const bool legacy_prefix, stage.Bool("add_prefix_space", true));
    MT_ASSIGN_OR_RETURN(const std::string scheme,
                        stage.String("prepend_scheme", legacy_prefix ? "always" : "never"));
    if (step.from.empty()) return Unknown(stage, "an empty replacement is not known");
    if (scheme == "never") step.to = " ";
    decoding->first_differs = decoding->first_differs || scheme != "never";
  } else {
    return Unknown(stage, absl::StrCat("the decoder ", type, " is not known"));
  }
  decoding->steps.push_back(std::move(step));
  return absl::OkStatus();
}

}  // namespace

absl::Status ReadNormalizer(const JsonFields& file, Normalizer* normalizer) {
  size_t growth = 1;  // by so much replacements may lengthen a text
  constexpr std::pair<absl::string_view, Normalizer::Form> kForms[] = {
      {"NFC", Normalizer::Form::kNfc},
      {"NFD", Normalizer::Form::kNfd},
      {"NFKC", Normalizer::Form::kNfkc},
      {"NFKD", Normalizer::Form::kNfkd}};
  MT_ASSIGN_OR_RETURN(const auto stages, Stages(file, "normalizer", "normalizers"));
  for (const JsonFields& stage : stages) {
    MT_ASSIGN_OR_RETURN(const std::string type, stage.String("type"));
    bool known = false;
    for (const auto& [name, form] : kForms) {
      if (type != name) continue;
      normalizer->AddForm(form);
      known = true;
    }
    if (type == "Prepend") {
      MT_ASSIGN_OR_RETURN(std::string prefix, stage.String("prepend"));
      normalizer->AddPrepend(std::move(prefix));
    } else if (type == "Replace") {
      MT_ASSIGN_OR_RETURN(SplitPattern pattern, Pattern(stage));
      if (!pattern.literal) return Unknown(stage, "a Regex is not known: only a String is");
      MT_ASSIGN_OR_RETURN(std::string content, stage.String("content"));
      growth *= content.size() / pattern.pattern.size() + 1;
      if (growth > 1024) return Unknown(stage, "a text becomes a thousand times longer");
      normalizer->AddReplace(std::move(pattern.pattern), std::move(content));
    } else if (!known) {
      return Unknown(stage, absl::StrCat("the normalizer ", type, " is not known"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadPreTokenizer(const JsonFields& file, BpeParts* parts) {
  MT_ASSIGN_OR_RETURN(const auto stages, Stages(file, "pre_tokenizer", "pretokenizers"));
  return PreTokenizerReader(parts).Read(stages);
}

absl::StatusOr<Decoding> ReadDecoder(const JsonFields& file, bool byte_level,
                                     TokenDecoder* decoder) {
  Decoding decoding;
  MT_ASSIGN_OR_RETURN(const auto stages, Stages(file, "decoder", "decoders"));
  bool fused = false;
  for (const JsonFields& stage : stages)
    MT_RETURN_IF_ERROR(AddDecoderStage(stage, &fused, &decoding, decoder));
  if (stages.empty() && byte_level)
    decoding.steps.push_back({.kind = DecoderStep::Kind::kByteLevel});
  return decoding;
}

}  // namespace mt
