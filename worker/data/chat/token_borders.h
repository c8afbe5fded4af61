// Which tokens of a text spell which of its bytes, for any tokenizer: ids say no more than what they decode to.
//
// A tokenizer may change a text before it cuts it (normal forms, white space), decode the first token of a text otherwise than
// the same token inside (a space is dropped there), and cut a character into several tokens. So lengths of single tokens do not add
// up to places. What holds is this: the first n tokens decode to the beginning of what all of them decode to, up to a character that
// is cut. Places are looked up in that decoded text; where it is not the text itself, a place in the text is where the decoded ids of
// the text before it end.
#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/status.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt {

// One thread's. What it is given must outlive it.
class TokenBorders {
 public:
  // `ids` are what `encoder` makes of `text`; `inside`: with EncodeInside.
  static absl::StatusOr<TokenBorders> Of(const Tokenizer& tokenizer, TokenEncoder* encoder,
                                         bool inside, absl::string_view text,
                                         std::span<const int32_t> ids);

  // The tokens, from the first to before the last, that spell any of the bytes [begin, end) of the text; begin < end. Tokens that
  // stand for no byte are among them inside and at the text's own ends. Decodes no more than there are ids, or little more, and none at the text's own ends.
  absl::StatusOr<std::pair<size_t, size_t>> TokensOf(size_t begin, size_t end) const;

 private:
  TokenBorders(const Tokenizer& tokenizer, TokenEncoder* encoder, bool inside,
               absl::string_view text, std::span<const int32_t> ids, std::string decoded)
      : tokenizer_(tokenizer),
        encoder_(encoder),
        inside_(inside),
        text_(text),
        ids_(ids),
        decoded_(std::move(decoded)) {}

  // A number of tokens, and the bytes of decoded_ that they decode to.
  struct Cut {
    size_t tokens = 0;
    size_t bytes = 0;
    bool clean = true;  // they decode to nothing else: no character is cut
  };
  // `known` is clean and has no more tokens; only what stands between is decoded.
  absl::StatusOr<Cut> CutAt(size_t num_tokens, const Cut& known) const;
  // The least number of tokens that decode to more than `place` bytes; one more than there are: none do. `before`: of the clean
  // cuts in front of it that were looked at, the last.
  absl::StatusOr<size_t> TokensBeyond(size_t place, Cut* before) const;
  // Where in decoded_ a place of the text is.
  absl::StatusOr<size_t> PlaceOf(size_t byte) const;

  const Tokenizer& tokenizer_;
  TokenEncoder* const encoder_;
  const bool inside_;
  const absl::string_view text_;
  const std::span<const int32_t> ids_;
  std::string decoded_;
};

}  // namespace mt
