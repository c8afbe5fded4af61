// The stages of a tokenizer.json around its model: `normalizer`, `pre_tokenizer`, `decoder`. Each is null, one stage, or a Sequence.
#pragma once

#include <vector>

#include "common/status.h"
#include "worker/data/tokenize/bpe_tokenizer.h"
#include "worker/data/tokenize/json_fields.h"

namespace mt {

absl::Status ReadNormalizer(const JsonFields& file, Normalizer* normalizer);

// Sets pre_tokenizer, space, prefix_space and vocabulary.byte_level.
absl::Status ReadPreTokenizer(const JsonFields& file, BpeParts* parts);

struct Decoding {
  std::vector<DecoderStep> steps;
  bool first_differs = false;  // the first token of a text is written in its own way
  size_t growth = 1;           // by so much a step may lengthen a token, at most
};
// Sets what is stripped; the rest is for TokenText. Byte-level vocabularies without a decoder get theirs.
absl::StatusOr<Decoding> ReadDecoder(const JsonFields& file, bool byte_level,
                                     TokenDecoder* decoder);

}  // namespace mt
