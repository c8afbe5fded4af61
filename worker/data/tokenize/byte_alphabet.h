// The letters that byte-level vocabularies write bytes with (GPT-2's bytes_to_unicode): 0x21-0x7E, 0xA1-0xAC and 0xAE-0xFF stand
// for themselves, the other 68 bytes, in increasing order, are U+0100, U+0101, ... (so a space is U+0120).
#pragma once

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace mt {

char32_t LetterOfByte(unsigned char byte);
// The bytes that `token` spells; nothing if a character of it is no letter of the alphabet.
std::optional<std::string> BytesOfLetters(absl::string_view token);

}  // namespace mt
