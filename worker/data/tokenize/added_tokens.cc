#include "worker/data/tokenize/added_tokens.h"

#include <algorithm>

#include "worker/data/tokenize/utf8.h"

namespace mt {
namespace {

// The character that ends before `end`; 0 if there is none. Bytes that are not UTF-8 are of no class.
size_t CharacterBefore(absl::string_view text, size_t end, char32_t* character) {
  for (size_t bytes = 1; bytes <= std::min<size_t>(4, end); ++bytes) {
    if (DecodeUtf8(text.substr(0, end), end - bytes, character) == bytes) return bytes;
  }
  return 0;
}

size_t SpaceBefore(absl::string_view text, size_t end, size_t from) {
  char32_t character;
  while (end > from) {
    const size_t bytes = CharacterBefore(text, end, &character);
    if (bytes == 0 || !IsWhiteSpace(character)) break;
    end -= bytes;
  }
  return std::max(end, from);
}

size_t SpaceBehind(absl::string_view text, size_t at) {
  char32_t character;
  while (at < text.size()) {
    const size_t bytes = DecodeUtf8(text, at, &character);
    if (bytes == 0 || !IsWhiteSpace(character)) break;
    at += bytes;
  }
  return at;
}

bool WordAround(absl::string_view text, size_t begin, size_t end) {
  char32_t character;
  if (begin > 0 && CharacterBefore(text, begin, &character) > 0 && IsWord(character)) return true;
  return end < text.size() && DecodeUtf8(text, end, &character) > 0 && IsWord(character);
}

}  // namespace

void AddedTokens::Add(const AddedToken& token) {
  uint32_t node = 0;
  for (const char c : token.content) {
    const uint64_t key = uint64_t{node} << 8 | static_cast<unsigned char>(c);
    const auto [child, is_new] =
        children_.try_emplace(key, static_cast<uint32_t>(token_at_.size()));
    if (is_new) token_at_.push_back(-1);
    node = child->second;
  }
  begins_[static_cast<unsigned char>(token.content[0])] = true;
  if (token_at_[node] >= 0) return;  // as Hugging Face: the first of two counts
  token_at_[node] = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
  ordinary_ = ordinary_ || !token.special;
}

const AddedToken* AddedTokens::LongestAt(absl::string_view text, size_t at) const {
  const AddedToken* longest = nullptr;
  uint32_t node = 0;
  for (; at < text.size(); ++at) {
    const auto child = children_.find(uint64_t{node} << 8 | static_cast<unsigned char>(text[at]));
    if (child == children_.end()) break;
    node = child->second;
    if (token_at_[node] >= 0) longest = &tokens_[token_at_[node]];
  }
  return longest;
}

std::optional<AddedTokens::Match> AddedTokens::Find(absl::string_view text, size_t from,
                                                    SpecialText special) const {
  // Tokens that are not asked for are looked for all the same: they may hide others.
  if (tokens_.empty() || (special == SpecialText::kOrdinary && !ordinary_)) return std::nullopt;
  for (size_t at = from; at < text.size(); ++at) {
    if (!begins_[static_cast<unsigned char>(text[at])]) continue;
    const AddedToken* token = LongestAt(text, at);
    if (token == nullptr) continue;
    const size_t end = at + token->content.size();
    if ((token->special && special == SpecialText::kOrdinary) ||
        (token->single_word && WordAround(text, at, end))) {
      at = end - 1;
      continue;
    }
    return Match{token->strip_left ? SpaceBefore(text, at, from) : at,
                 token->strip_right ? SpaceBehind(text, end) : end, token->id};
  }
  return std::nullopt;
}

}  // namespace mt
