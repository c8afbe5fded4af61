// Cuts text into the pieces that byte-pair encoding works on, one by one: no merge crosses the border of two pieces.
//
// The patterns that published tokenizers use (GPT-2, Llama 3 / cl100k, Qwen, o200k, DeepSeek) have matchers written by hand over
// tables of Unicode classes; any other pattern is run by PCRE2's JIT, which the log tells. Both give what the pattern's own regex
// engine gives; docs/spec/pre-tokenizers.md has the cases where engines differ, and whom we follow.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/status.h"

namespace mt {

// Bytes [begin, end) of the text.
struct Piece {
  uint32_t begin = 0;
  uint32_t end = 0;
  bool operator==(const Piece&) const = default;
};

// Immutable and thread-safe.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  // Appends the pieces of `text` (at most 2^32 - 1 bytes), in order and without overlap; usually they cover it. Bytes that are not
  // UTF-8 are each a character of no class. Matchers written by hand never fail; RESOURCE_EXHAUSTED: a pattern run by PCRE2 took more
  // steps on this text than any sane one does; names pattern and place.
  virtual absl::Status Split(absl::string_view text, std::vector<Piece>* pieces) const = 0;
  // Appends about `max_pieces` pieces of `text` from byte *at on (0, or where an earlier call left it), at least one, and moves *at
  // past them; *at is text.size() when all is done. What does not know how to stop gives all pieces at once.
  virtual absl::Status SplitSome(absl::string_view text, size_t max_pieces, uint32_t* at,
                                 std::vector<Piece>* pieces) const {
    *at = static_cast<uint32_t>(text.size());
    return Split(text, pieces);
  }
  // For the log: "GPT-2", or "PCRE2 `...`".
  virtual absl::string_view name() const = 0;
};

// What tokenizer.json calls the behaviour of a split: what becomes of the text that the pattern matched.
enum class SplitBehaviour {
  kIsolated,
  kRemoved,
  kMergedWithPrevious,
  kMergedWithNext,
  kContiguous
};

struct SplitPattern {
  std::string pattern;  // a regular expression, or plain text if `literal`
  bool literal = false;
  SplitBehaviour behaviour = SplitBehaviour::kIsolated;
  bool invert = false;
};

// By a matcher of its own if the pattern is known, else by PCRE2. INVALID_ARGUMENT: not a regular expression; says where.
absl::StatusOr<std::unique_ptr<PreTokenizer>> NewSplit(const SplitPattern& pattern);

// Each one cuts the pieces of the one before. A sequence that is known as a whole (DeepSeek's) gets one matcher.
absl::StatusOr<std::unique_ptr<PreTokenizer>> NewSplits(const std::vector<SplitPattern>& patterns);

// Patterns by name, for tiktoken files: gpt2 (also r50k, p50k), cl100k, o200k, llama3; as tiktoken and Meta's tokenizer.py run them.
// INVALID_ARGUMENT: another name; lists them.
absl::StatusOr<std::unique_ptr<PreTokenizer>> NewNamedSplit(absl::string_view name);

// As NewSplits, of what is already made; at least one.
std::unique_ptr<PreTokenizer> NewChain(std::vector<std::unique_ptr<PreTokenizer>> stages);

// tokenizer.json's `Digits` and `Punctuation`.
std::unique_ptr<PreTokenizer> NewDigits(bool individual);
std::unique_ptr<PreTokenizer> NewPunctuation(SplitBehaviour behaviour);

}  // namespace mt
