#include "worker/data/chat/token_borders.h"

#include <algorithm>

namespace mt {
namespace {

size_t CommonPrefix(absl::string_view a, absl::string_view b) {
  const size_t most = std::min(a.size(), b.size());
  return static_cast<size_t>(std::mismatch(a.begin(), a.begin() + most, b.begin()).first -
                             a.begin());
}

}  // namespace

absl::StatusOr<TokenBorders> TokenBorders::Of(const Tokenizer& tokenizer, TokenEncoder* encoder,
                                              bool inside, absl::string_view text,
                                              std::span<const int32_t> ids) {
  // With kSpecial the unknown token has bytes, too.
  MT_ASSIGN_OR_RETURN(std::string decoded, tokenizer.Decode(ids, SpecialText::kSpecial));
  return TokenBorders(tokenizer, encoder, inside, text, ids, std::move(decoded));
}

absl::StatusOr<TokenBorders::Spelled> TokenBorders::SpelledBy(size_t num_tokens) const {
  MT_ASSIGN_OR_RETURN(const std::string part,
                      tokenizer_.Decode(ids_.first(num_tokens), SpecialText::kSpecial));
  const size_t bytes = CommonPrefix(part, decoded_);
  return Spelled{bytes, bytes == part.size()};
}

absl::StatusOr<size_t> TokenBorders::TokensBeyond(size_t place) const {
  size_t low = 0, high = ids_.size() + 1;
  while (low < high) {
    const size_t middle = low + (high - low) / 2;
    if (middle > ids_.size()) break;
    MT_ASSIGN_OR_RETURN(const Spelled spelled, SpelledBy(middle));
    if (spelled.bytes > place) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

absl::StatusOr<size_t> TokenBorders::PlaceOf(size_t byte) const {
  if (decoded_ == text_) return byte;
  std::vector<int32_t> ids;
  const absl::string_view before = text_.substr(0, byte);
  MT_RETURN_IF_ERROR(inside_ ? encoder_->EncodeInside(before, &ids)
                             : encoder_->Encode(before, &ids));
  MT_ASSIGN_OR_RETURN(const std::string decoded, tokenizer_.Decode(ids, SpecialText::kSpecial));
  return CommonPrefix(decoded, decoded_);
}

absl::StatusOr<std::pair<size_t, size_t>> TokenBorders::TokensOf(size_t begin, size_t end) const {
  size_t first = 0, last = ids_.size();
  if (begin > 0) {
    MT_ASSIGN_OR_RETURN(const size_t place, PlaceOf(begin));
    MT_ASSIGN_OR_RETURN(first, TokensBeyond(place));
    // The last place at which no character is cut; no token at all cut none.
    for (--first; first > 0; --first) {
      MT_ASSIGN_OR_RETURN(const Spelled spelled, SpelledBy(first));
      if (spelled.clean) break;
    }
  }
  if (end < text_.size()) {
    MT_ASSIGN_OR_RETURN(const size_t place, PlaceOf(end));
    if (place > 0) {
      MT_ASSIGN_OR_RETURN(last, TokensBeyond(place - 1));
      last = std::min(last, ids_.size());
    } else {
      last = 0;
    }
  }
  return std::pair(first, std::max(first, last));
}

}  // namespace mt
