// Datasets back to text: `mtctl data decode`, and what `mtctl data inspect` shows.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/status.h"
#include "worker/data/indexed_dataset.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt {

enum class DecodeForm {
  kJsonl,  // {"text": "..."} per document, which `mtctl data build` reads
  kText,   // the text as it is, and a line feed after each document that does not end in one
  kIds,    // the ids of a document in a line
};

struct DecodeOptions {
  int64_t begin = 0;  // documents [begin, end)
  int64_t end = 0;
  DecodeForm form = DecodeForm::kJsonl;
  std::string text_key = "text";
  std::string separator;  // with kText: a line between two documents; empty: none
  SpecialText special =
      SpecialText::kOrdinary;  // kSpecial: special tokens are written as their text
};

struct DecodeCounts {
  int64_t documents = 0;
  int64_t tokens = 0;
  // kJsonl: documents with bytes that are not UTF-8, which JSON cannot hold: they became U+FFFD.
  int64_t not_utf8 = 0;
};

// At most `max_tokens` ids of a document, the sequences it is made of one after the other.
absl::Status ReadDocument(const IndexedDataset& data, int64_t document, int64_t max_tokens,
                          std::vector<int32_t>* ids);

// `tokenizer` may be null with kIds. Pieces of output go to `write`, whose error ends it. Memory holds one document. OUT_OF_RANGE: no
// such documents. INVALID_ARGUMENT: an id that is not in the vocabulary. Errors of IndexedDataset::Read.
absl::StatusOr<DecodeCounts> DecodeDocuments(
    const IndexedDataset& data, const Tokenizer* tokenizer, const DecodeOptions& options,
    const std::function<absl::Status(absl::string_view)>& write);

}  // namespace mt
