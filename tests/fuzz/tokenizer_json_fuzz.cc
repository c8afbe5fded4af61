// tokenizer.json, and texts through whatever it describes: a broken one is refused; with one that is taken, every text is encoded,
// to ids that exist, the same again from a cache, and they are decoded.
#include "tests/fuzz/fuzz.h"
#include "worker/data/tokenize/tokenizer_json.h"

namespace mt {
namespace {

void EncodeAndDecode(const Tokenizer& tokenizer, absl::string_view text) {
  for (const SpecialText special : {SpecialText::kOrdinary, SpecialText::kSpecial}) {
    const auto encoder = tokenizer.NewEncoder(special);
    std::vector<int32_t> ids, again;
    if (!encoder->Encode(text, &ids).ok()) return;  // PCRE2's steps are limited
    MT_CHECK_OK(encoder->Encode(text, &again));
    MT_CHECK(ids == again);
    MT_CHECK_OK(tokenizer.Decode(ids, special).status());
  }
}

}  // namespace
}  // namespace mt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // The JSON, a zero byte, and a text; without one, the JSON itself is the text.
  const std::string input = mt::FuzzInput(data, size).Rest();
  const size_t zero = input.find('\0');
  const absl::string_view json = absl::string_view(input).substr(0, zero);
  auto parts = mt::ParseTokenizerJson("tokenizer.json", json);
  if (!parts.ok()) return 0;
  const auto tokenizer = mt::NewBpeTokenizer(*std::move(parts));
  mt::EncodeAndDecode(*tokenizer,
                      zero == std::string::npos ? json : absl::string_view(input).substr(zero + 1));
  return 0;
}
