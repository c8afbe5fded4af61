#include "worker/data/tokenize/token_decoder.h"

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "worker/data/tokenize/byte_alphabet.h"

namespace mt {

int ByteOfToken(absl::string_view token) {
  constexpr absl::string_view kHex = "0123456789ABCDEF";
  if (token.size() != 6 || !absl::StartsWith(token, "<0x") || token[5] != '>') return -1;
  const size_t high = kHex.find(token[3]), low = kHex.find(token[4]);
  if (high == absl::string_view::npos || low == absl::string_view::npos) return -1;
  return static_cast<int>(high << 4 | low);
}

std::string TokenText(absl::string_view token, const std::vector<DecoderStep>& steps, bool first) {
  std::string text(token);
  for (const DecoderStep& step : steps) {
    switch (step.kind) {
      case DecoderStep::Kind::kByteLevel:
        if (auto bytes = BytesOfLetters(text); bytes.has_value()) text = *std::move(bytes);
        break;
      case DecoderStep::Kind::kByteFallback:
        if (const int byte = ByteOfToken(text); byte >= 0) text.assign(1, static_cast<char>(byte));
        break;
      case DecoderStep::Kind::kReplace:
        absl::StrReplaceAll({{step.from, step.to}}, &text);
        break;
      case DecoderStep::Kind::kMetaspace:
        absl::StrReplaceAll({{step.from, first ? step.to : " "}}, &text);
        break;
    }
  }
  return text;
}

std::string TokenDecoder::Decode(std::span<const int32_t> ids, SpecialText special) const {
  std::string text;
  bool first = !first_texts.empty();
  for (const int32_t id : ids) {
    if (special == SpecialText::kSpecial || first) {
      const auto found = specials.find(id);
      if (found != specials.end() && special == SpecialText::kSpecial) text += found->second;
      if (found != specials.end()) continue;
    }
    text += first ? first_texts[static_cast<size_t>(id)] : texts[static_cast<size_t>(id)];
    first = false;
  }
  absl::string_view rest = text;
  for (int i = 0; i < strip_start && absl::ConsumePrefix(&rest, strip); ++i) {
  }
  for (int i = 0; i < strip_stop && absl::ConsumeSuffix(&rest, strip); ++i) {
  }
  return std::string(rest);
}

}  // namespace mt
