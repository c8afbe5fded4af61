// tiktoken files, and texts through them: what is accepted gives back every text, whatever its bytes are.
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "tests/fuzz/fuzz.h"
#include "worker/data/tokenize/tiktoken_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mt::FuzzInput input(data, size);
  const bool complete = input.Take<uint8_t>() % 2 == 0;
  const std::string rest = input.Rest();
  const size_t zero = std::min(rest.find('\0'), rest.size());
  std::string file;
  // Without the 256 bytes nothing is accepted: they are not left to chance.
  for (int byte = 0; complete && byte < 256; ++byte)
    absl::StrAppend(&file, absl::Base64Escape(std::string(1, static_cast<char>(byte))), " ", byte,
                    "\n");
  (void)mt::IsTiktokenFile(rest);
  file += rest.substr(0, zero);
  auto parts = mt::ParseTiktokenFile("o200k.tiktoken", file);
  if (!parts.ok()) return 0;
  const auto tokenizer = mt::NewBpeTokenizer(*std::move(parts));
  std::vector<int32_t> ids;
  MT_CHECK_OK(tokenizer->Encode(rest, &ids));
  MT_CHECK(tokenizer->Decode(ids).value() == rest);
  return 0;
}
