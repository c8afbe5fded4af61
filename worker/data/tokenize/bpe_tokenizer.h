// The tokenizer that tokenizer.json and tiktoken files describe: added tokens, normalizer, pre-tokenizer, byte-pair encoding, decoder,
// in this order (Hugging Face's pipeline).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "worker/data/tokenize/added_tokens.h"
#include "worker/data/tokenize/bpe_model.h"
#include "worker/data/tokenize/normalizer.h"
#include "worker/data/tokenize/pre_tokenizer.h"
#include "worker/data/tokenize/token_decoder.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt {

// When a piece of text between added tokens gets a space (or what stands for one) put before it, if it does not begin with one.
enum class PrefixSpace { kNever, kFirst, kAlways };

struct BpeParts {
  std::string spec;
  std::string digest;
  BpeVocabulary vocabulary;
  AddedTokens raw_added;         // found before normalizing
  AddedTokens normalized_added;  // and after
  Normalizer normalizer;
  std::string space;  // what a space becomes (Metaspace); empty: it stays
  PrefixSpace prefix_space = PrefixSpace::kNever;
  std::unique_ptr<PreTokenizer> pre_tokenizer;  // null: the text is one piece
  // Of `decoder`, texts has vocab_size() elements.
  TokenDecoder decoder;
  absl::flat_hash_map<std::string, int32_t> special_ids;  // of added and special tokens
  int32_t eod = -1;
  std::vector<int32_t> stop_ids;  // besides eod
};

std::unique_ptr<Tokenizer> NewBpeTokenizer(BpeParts parts);

}  // namespace mt
