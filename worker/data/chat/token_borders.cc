#include "worker/data/chat/token_borders.h"

#include <algorithm>

#include "absl/strings/match.h"

namespace mt {
namespace {

// So many tokens before a cut are decoded with those behind it, so that these are not the first of a text.
constexpr size_t kContext = 16;

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

absl::StatusOr<TokenBorders::Cut> TokenBorders::CutAt(size_t num_tokens, const Cut& known) const {
  std::string part;
  if (known.tokens > kContext) {
    const size_t from = known.tokens - kContext;
    MT_ASSIGN_OR_RETURN(const std::string context,
                        tokenizer_.Decode(ids_.subspan(from, kContext), SpecialText::kSpecial));
    MT_ASSIGN_OR_RETURN(
        part, tokenizer_.Decode(ids_.subspan(from, num_tokens - from), SpecialText::kSpecial));
    // Else these tokens decode to something else where a text begins with them, beyond the space that is dropped.
    if (!context.empty() && absl::StartsWith(part, context) &&
        absl::EndsWith(absl::string_view(decoded_).substr(0, known.bytes), context)) {
      const absl::string_view behind = absl::string_view(part).substr(context.size());
      const size_t bytes = CommonPrefix(behind, absl::string_view(decoded_).substr(known.bytes));
      return Cut{num_tokens, known.bytes + bytes, bytes == behind.size()};
    }
  }
  MT_ASSIGN_OR_RETURN(part, tokenizer_.Decode(ids_.first(num_tokens), SpecialText::kSpecial));
  const size_t bytes = CommonPrefix(part, decoded_);
  return Cut{num_tokens, bytes, bytes == part.size()};
}

// From a little before where the place would be if all tokens were equally long, in steps that double, and then by halves: what is
// known grows from the left, so that hardly anything is decoded twice.
absl::StatusOr<size_t> TokenBorders::TokensBeyond(size_t place, Cut* before) const {
  size_t low = 0, high = ids_.size() + 1, step = kContext;
  bool found_low = false, found_high = false;
  const double share = static_cast<double>(place) / static_cast<double>(decoded_.size() + 1);
  size_t next = static_cast<size_t>(static_cast<double>(ids_.size()) * share * 0.875);
  while (low < high) {
    MT_ASSIGN_OR_RETURN(const Cut cut, CutAt(next, next < before->tokens ? Cut() : *before));
    if (cut.bytes > place) {
      high = next;
      found_high = true;
    } else {
      low = next + 1;
      found_low = true;
      if (cut.clean) *before = cut;
    }
    if (!found_low) {
      next = high > step ? high - step : 0;
    } else if (!found_high) {
      next = std::min(low + step, high - 1);
    } else {
      next = low + (high - low) / 2;
    }
    step *= 2;
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
  Cut before;
  if (begin > 0) {
    MT_ASSIGN_OR_RETURN(const size_t place, PlaceOf(begin));
    MT_ASSIGN_OR_RETURN(first, TokensBeyond(place, &before));
    // The last place at which no character is cut.
    for (--first; first > before.tokens; --first) {
      MT_ASSIGN_OR_RETURN(const Cut cut, CutAt(first, before));
      if (cut.clean) break;
    }
  }
  if (end < text_.size()) {
    MT_ASSIGN_OR_RETURN(const size_t place, PlaceOf(end));
    if (place > 0) {
      Cut ignored;
      MT_ASSIGN_OR_RETURN(last, TokensBeyond(place - 1, &ignored));
      last = std::min(last, ids_.size());
    } else {
      last = 0;
    }
  }
  return std::pair(first, std::max(first, last));
}

}  // namespace mt
