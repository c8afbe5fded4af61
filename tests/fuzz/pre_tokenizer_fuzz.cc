// A pattern, and a text: whatever they are, pieces lie in the text, in order; the known patterns' cover it, and come the same some at
// a time.
#include "worker/data/tokenize/pre_tokenizer.h"

#include <string>

#include "common/log.h"
#include "tests/fuzz/fuzz.h"

namespace mt {
namespace {

void CheckOrdered(const std::vector<Piece>& pieces, size_t bytes) {
  uint32_t end = 0;
  for (const Piece& piece : pieces) {
    MT_CHECK(piece.begin >= end && piece.end > piece.begin && piece.end <= bytes) << piece.begin;
    end = piece.end;
  }
}

void CheckKnown(const PreTokenizer& split, const std::string& text) {
  std::vector<Piece> pieces, parts;
  MT_CHECK(split.Split(text, &pieces).ok()) << split.name();
  CheckOrdered(pieces, text.size());
  size_t bytes = 0;
  for (const Piece& piece : pieces) bytes += piece.end - piece.begin;
  MT_CHECK(bytes == text.size()) << split.name();
  for (uint32_t at = 0; at < text.size();) MT_CHECK(split.SplitSome(text, 3, &at, &parts).ok());
  MT_CHECK(pieces == parts) << split.name();
}

}  // namespace
}  // namespace mt

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string input(reinterpret_cast<const char*>(data), size);
  const size_t cut = std::min(input.find('\n'), input.size());
  const std::string pattern = input.substr(0, cut), text = input.substr(std::min(cut + 1, size));
  static const auto* const known = [] {
    mt::SetLogLevel(mt::LogLevel::kError);
    auto* splits = new std::vector<std::unique_ptr<mt::PreTokenizer>>;
    for (const char* name : {"gpt2", "cl100k", "llama3", "o200k"})
      splits->push_back(mt::NewNamedSplit(name).value());
    return splits;
  }();
  for (const auto& split : *known) mt::CheckKnown(*split, text);
  const auto split = mt::NewSplit({.pattern = pattern,
                                   .behaviour = static_cast<mt::SplitBehaviour>(size % 5),
                                   .invert = size % 2 == 0});
  if (!split.ok()) return 0;
  // A short text, so that no pattern backtracks for seconds.
  const std::string little = text.substr(0, 12);
  std::vector<mt::Piece> pieces;
  if ((*split)->Split(little, &pieces).ok()) mt::CheckOrdered(pieces, little.size());
  return 0;
}
