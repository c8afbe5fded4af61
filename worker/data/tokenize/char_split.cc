// Splits at single characters: tokenizer.json's Digits and Punctuation. Their sets come from Rust's own tables rather than from a
// regex engine's, and are of other Unicode versions: numbers of 17, punctuation of 8. The differences are measured with
// tokenizers 0.22 (tests/golden/tokenizers/classes.py).
#include <bitset>
#include <memory>

#include "worker/data/tokenize/pre_tokenizer.h"
#include "worker/data/tokenize/split_behaviour.h"
#include "worker/data/tokenize/text_scanner.h"

namespace mt {
namespace {

struct Range {
  uint32_t first, last;
};
constexpr Range kNumbersSince16[] = {{0x11de0, 0x11de9}, {0x16ff4, 0x16ff6}};
constexpr Range kPunctuationSince8[] = {
    {0x61d, 0x61d},     {0x9fd, 0x9fd},     {0xa76, 0xa76},     {0xc77, 0xc77},
    {0xc84, 0xc84},     {0x1b4e, 0x1b4f},   {0x1b7d, 0x1b7f},   {0x2e43, 0x2e4f},
    {0x2e52, 0x2e5d},   {0x10d6e, 0x10d6e}, {0x10ead, 0x10ead}, {0x10f55, 0x10f59},
    {0x10f86, 0x10f89}, {0x113d4, 0x113d5}, {0x113d7, 0x113d8}, {0x1144b, 0x1144f},
    {0x1145a, 0x1145b}, {0x1145d, 0x1145d}, {0x11660, 0x1166c}, {0x116b9, 0x116b9},
    {0x1183b, 0x1183b}, {0x11944, 0x11946}, {0x119e2, 0x119e2}, {0x11a3f, 0x11a46},
    {0x11a9a, 0x11a9c}, {0x11a9e, 0x11aa2}, {0x11b00, 0x11b09}, {0x11be1, 0x11be1},
    {0x11c41, 0x11c45}, {0x11c70, 0x11c71}, {0x11ef7, 0x11ef8}, {0x11f43, 0x11f4f},
    {0x11fff, 0x11fff}, {0x12ff1, 0x12ff2}, {0x16d6d, 0x16d6f}, {0x16e97, 0x16e9a},
    {0x16fe2, 0x16fe2}, {0x1e5ff, 0x1e5ff}, {0x1e95e, 0x1e95f}};
constexpr Range kPunctuationUntil8[] = {{0x166d, 0x166d}, {0x111c9, 0x111c9}};

using CharSet = std::bitset<kCodePoints>;

std::unique_ptr<CharSet> CharsOf(ClassSet set) {
  auto chars = std::make_unique<CharSet>();
  for (uint32_t c = 0; c < kCodePoints; ++c) (*chars)[c] = (set >> UnicodeClasses()[c] & 1) != 0;
  return chars;
}

template <size_t n>
void Put(const Range (&ranges)[n], bool member, CharSet* chars) {
  for (const Range& range : ranges) {
    for (uint32_t c = range.first; c <= range.last; ++c) (*chars)[c] = member;
  }
}

// Every character of the set is a match of its own.
class CharSplit : public PreTokenizer {
 public:
  CharSplit(absl::string_view name, std::unique_ptr<CharSet> chars, SplitBehaviour behaviour)
      : name_(name), chars_(std::move(chars)), behaviour_(behaviour) {}
  absl::Status Split(absl::string_view text, std::vector<Piece>* pieces) const override {
    const auto* begin = reinterpret_cast<const uint8_t*>(text.data());
    const uint8_t* end = begin + text.size();
    BehaviourWriter writer(behaviour_, /*invert=*/false, pieces);
    for (const uint8_t* p = begin; p < end;) {
      const Utf8Char c = DecodeUtf8(p, end);
      const auto at = static_cast<uint32_t>(p - begin);
      if (c.code_point != kNotUtf8 && (*chars_)[c.code_point]) writer.Match(at, at + c.bytes);
      p += c.bytes;
    }
    writer.Finish(static_cast<uint32_t>(text.size()));
    return absl::OkStatus();
  }
  absl::string_view name() const override { return name_; }

 private:
  const absl::string_view name_;
  const std::unique_ptr<const CharSet> chars_;
  const SplitBehaviour behaviour_;
};

}  // namespace

std::unique_ptr<PreTokenizer> NewDigits(bool individual) {
  auto chars = CharsOf(kNumberSet);
  Put(kNumbersSince16, true, chars.get());
  return std::make_unique<CharSplit>(
      "Digits", std::move(chars),
      individual ? SplitBehaviour::kIsolated : SplitBehaviour::kContiguous);
}

std::unique_ptr<PreTokenizer> NewPunctuation(SplitBehaviour behaviour) {
  auto chars = CharsOf(kPunctuationSet);
  for (uint32_t c = '!'; c <= '~'; ++c) {
    if (UnicodeClasses()[c] == static_cast<uint8_t>(UnicodeClass::kSymbol)) (*chars)[c] = true;
  }
  Put(kPunctuationSince8, false, chars.get());
  Put(kPunctuationUntil8, true, chars.get());
  return std::make_unique<CharSplit>("Punctuation", std::move(chars), behaviour);
}

}  // namespace mt
