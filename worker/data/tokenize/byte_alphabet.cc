#include "worker/data/tokenize/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "worker/data/tokenize/utf8.h"

namespace mt {
namespace {

constexpr int kLetters = 0x100 + 68;

struct Alphabet {
  std::array<char32_t, 256> letter{};
  std::array<int16_t, kLetters> byte{};

  constexpr Alphabet() {
    for (int16_t& value : byte) value = -1;
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool itself =
          (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b <= 0xac) || (b >= 0xae && b <= 0xff);
      letter[b] = itself ? static_cast<char32_t>(b) : next++;
      byte[letter[b]] = static_cast<int16_t>(b);
    }
  }
};

constexpr Alphabet kAlphabet;

}  // namespace

char32_t LetterOfByte(unsigned char byte) { return kAlphabet.letter[byte]; }

std::optional<std::string> BytesOfLetters(absl::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t at = 0; at < token.size();) {
    char32_t letter;
    const size_t length = DecodeUtf8(token, at, &letter);
    if (length == 0 || letter >= kLetters || kAlphabet.byte[letter] < 0) return std::nullopt;
    bytes.push_back(static_cast<char>(kAlphabet.byte[letter]));
    at += length;
  }
  return bytes;
}

}  // namespace mt
