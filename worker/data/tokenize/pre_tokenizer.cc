#include "worker/data/tokenize/pre_tokenizer.h"

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "absl/strings/str_join.h"
#include "common/log.h"
#include "worker/data/tokenize/deepseek_matcher.h"
#include "worker/data/tokenize/o200k_matcher.h"
#include "worker/data/tokenize/regex_split.h"
#include "worker/data/tokenize/split_behaviour.h"
#include "worker/data/tokenize/word_matchers.h"

namespace mt {
namespace {

// Pieces are gathered here and then appended in one go: a vector's growth checks cost as much as a matcher.
class PieceBuffer {
 public:
  explicit PieceBuffer(std::vector<Piece>* pieces) : pieces_(pieces) {}
  ~PieceBuffer() { Flush(); }
  void Add(Piece piece) {
    buffer_[used_++] = piece;
    if (used_ == buffer_.size()) Flush();
  }

 private:
  void Flush() {
    pieces_->insert(pieces_->end(), buffer_.begin(), buffer_.begin() + used_);
    used_ = 0;
  }
  std::vector<Piece>* const pieces_;
  size_t used_ = 0;
  std::array<Piece, 256> buffer_;
};

template <typename Matcher>
class MatcherSplit : public PreTokenizer {
 public:
  explicit MatcherSplit(absl::string_view name) : name_(name) {}
  absl::Status Split(absl::string_view text, std::vector<Piece>* pieces) const override {
    uint32_t at = 0;
    return SplitSome(text, text.size(), &at, pieces);
  }
  absl::Status SplitSome(absl::string_view text, size_t max_pieces, uint32_t* at,
                         std::vector<Piece>* pieces) const override {
    const auto* begin = reinterpret_cast<const uint8_t*>(text.data());
    const TextScanner scanner(Matcher::Classes(), begin + text.size());
    PieceBuffer buffer(pieces);
    const uint8_t* p = begin + *at;
    for (size_t n = 0; n < max_pieces && p < scanner.end(); ++n) {
      const uint8_t* next = Matcher::Next(scanner, p);
      buffer.Add({static_cast<uint32_t>(p - begin), static_cast<uint32_t>(next - begin)});
      p = next;
    }
    *at = static_cast<uint32_t>(p - begin);
    return absl::OkStatus();
  }
  absl::string_view name() const override { return name_; }

 private:
  const absl::string_view name_;
};

using Factory = std::unique_ptr<PreTokenizer> (*)(absl::string_view name);
template <typename Matcher>
std::unique_ptr<PreTokenizer> Make(absl::string_view name) {
  return std::make_unique<MatcherSplit<Matcher>>(name);
}

using Llama3Matcher = Cl100kMatcher<3, kLetterSet, false>;
using TiktokenCl100kMatcher = Cl100kMatcher<3, kLetterSet, true>;
using Qwen2Matcher = Cl100kMatcher<1, kLetterSet, false>;
using Qwen35Matcher = Cl100kMatcher<1, kLetterSet | kMarkSet, false>;

// Patterns as tokenizer.json files have them, for the engine that runs those (Oniguruma): tiktoken's own spelling of cl100k is not
// among them, because {1,3}+ and $ mean something else there.
struct KnownPattern {
  absl::string_view pattern;
  absl::string_view name;
  Factory make;
};
constexpr KnownPattern kKnownPatterns[] = {
    {R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)", "GPT-2",
     Make<Gpt2Matcher>},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     "Llama 3", Make<Llama3Matcher>},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     "Qwen 2", Make<Qwen2Matcher>},
    {R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     "Qwen 3.5", Make<Qwen35Matcher>},
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|)"
     R"(\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     "o200k", Make<O200kMatcher<3, true>>},
    {R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|)"
     R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|)"
     R"(\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)",
     "Tekken", Make<O200kMatcher<1, false>>},
};

// Of several splits, one after the other.
struct KnownSequence {
  std::span<const absl::string_view> patterns;
  absl::string_view name;
  Factory make;
};
constexpr absl::string_view kDeepSeekV3[] = {
    R"(\p{N}{1,3})", "[一-龥\u3040-ゟ゠-ヿ]+",
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)"};
constexpr KnownSequence kKnownSequences[] = {
    {kDeepSeekV3, "DeepSeek V3", Make<DeepSeekV3Matcher>},
};

struct NamedPattern {
  absl::string_view name;
  Factory make;
};
constexpr NamedPattern kNamedPatterns[] = {
    {"gpt2", Make<Gpt2Matcher>},     {"r50k", Make<Gpt2Matcher>},
    {"p50k", Make<Gpt2Matcher>},     {"cl100k", Make<TiktokenCl100kMatcher>},
    {"llama3", Make<Llama3Matcher>}, {"o200k", Make<O200kMatcher<3, true>>},
};

// Some files have line ends themselves where others have \r and \n.
std::string WithEscapedLineEnds(absl::string_view pattern) {
  std::string escaped;
  for (const char c : pattern) {
    if (c == '\r') {
      escaped += "\\r";
    } else if (c == '\n') {
      escaped += "\\n";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

// The known patterns match all of the text, so that what is between matches, and what becomes of it, does not matter.
bool KeepsMatchesApart(const SplitPattern& pattern) {
  return pattern.behaviour == SplitBehaviour::kIsolated ||
         (pattern.behaviour == SplitBehaviour::kRemoved && pattern.invert);
}

// The known sequence that `patterns` have from `first` on, or null.
const KnownSequence* KnownAt(const std::vector<SplitPattern>& patterns, size_t first) {
  for (const KnownSequence& known : kKnownSequences) {
    if (patterns.size() - first < known.patterns.size()) continue;
    const auto same = [](absl::string_view text, const SplitPattern& pattern) {
      return !pattern.literal && !pattern.invert &&
             pattern.behaviour == SplitBehaviour::kIsolated &&
             WithEscapedLineEnds(pattern.pattern) == text;
    };
    if (std::equal(known.patterns.begin(), known.patterns.end(), patterns.begin() + first, same))
      return &known;
  }
  return nullptr;
}

class Chain : public PreTokenizer {
 public:
  explicit Chain(std::vector<std::unique_ptr<PreTokenizer>> stages) : stages_(std::move(stages)) {
    name_ = absl::StrJoin(stages_, ", then ", [](std::string* out, const auto& stage) {
      absl::StrAppend(out, stage->name());
    });
  }
  absl::Status Split(absl::string_view text, std::vector<Piece>* pieces) const override {
    std::vector<Piece> now = {{0, static_cast<uint32_t>(text.size())}}, next;
    for (const auto& stage : stages_) {
      next.clear();
      for (const Piece& piece : now) {
        const size_t before = next.size();
        MT_RETURN_IF_ERROR(stage->Split(text.substr(piece.begin, piece.end - piece.begin), &next));
        for (size_t i = before; i < next.size(); ++i) {
          next[i].begin += piece.begin;
          next[i].end += piece.begin;
        }
      }
      std::swap(now, next);
    }
    pieces->insert(pieces->end(), now.begin(), now.end());
    return absl::OkStatus();
  }
  absl::string_view name() const override { return name_; }

 private:
  const std::vector<std::unique_ptr<PreTokenizer>> stages_;
  std::string name_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PreTokenizer>> NewSplit(const SplitPattern& pattern) {
  if (!pattern.literal && KeepsMatchesApart(pattern)) {
    const std::string escaped = WithEscapedLineEnds(pattern.pattern);
    for (const KnownPattern& known : kKnownPatterns) {
      if (known.pattern == escaped) return known.make(known.name);
    }
  }
  MT_ASSIGN_OR_RETURN(auto split, NewRegexSplit(pattern));
  MT_LOG(Info) << "no matcher of its own for " << split->name() << ": splitting runs slower";
  return split;
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> NewSplits(const std::vector<SplitPattern>& patterns) {
  std::vector<std::unique_ptr<PreTokenizer>> stages;
  for (size_t i = 0; i < patterns.size();) {
    if (const KnownSequence* known = KnownAt(patterns, i); known != nullptr) {
      stages.push_back(known->make(known->name));
      i += known->patterns.size();
      continue;
    }
    const SplitPattern& pattern = patterns[i++];
    MT_ASSIGN_OR_RETURN(stages.emplace_back(), NewSplit(pattern));
  }
  return NewChain(std::move(stages));
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> NewNamedSplit(absl::string_view name) {
  std::vector<absl::string_view> names;
  for (const NamedPattern& known : kNamedPatterns) {
    if (known.name == name) return known.make(known.name);
    names.push_back(known.name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("pattern \"", name, "\" is none of ", absl::StrJoin(names, ", ")));
}

std::unique_ptr<PreTokenizer> NewChain(std::vector<std::unique_ptr<PreTokenizer>> stages) {
  if (stages.size() == 1) return std::move(stages[0]);
  return std::make_unique<Chain>(std::move(stages));
}

}  // namespace mt
