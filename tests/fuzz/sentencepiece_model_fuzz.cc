// SentencePiece models and texts through them. The library behind it is Debian's: what is asked of it here is what a model from
// outside can reach.
#include "tests/fuzz/fuzz.h"
#include "worker/data/tokenize/sentencepiece_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  mt::FuzzInput input(data, size);
  const auto tokenizer = mt::NewSentencePieceTokenizer("fuzz.model", input.Rest());
  if (!tokenizer.ok()) return 0;
  MT_CHECK((*tokenizer)->eod() < (*tokenizer)->vocab_size());
  std::vector<int32_t> ids;
  if (!(*tokenizer)->Encode("ab cab \xe2\x96\x81 \xff\x00z", &ids).ok()) return 0;
  (void)(*tokenizer)->Decode(ids);
  return 0;
}
