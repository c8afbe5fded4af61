// From one record of an input file to the tokens of one document: what `mtctl data build` does on all threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/status.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt {

struct EncodedDocument {
  std::vector<int32_t> tokens;  // empty: the document is left out
  // (tokens) 1 where the token, as a label, has a loss. Empty: everywhere. A dataset has losses for all of its documents or none.
  std::vector<uint8_t> loss;

  void Clear() {
    tokens.clear();
    loss.clear();
  }
};

// One thread's; deterministic: equal records give equal documents.
class RecordEncoder {
 public:
  virtual ~RecordEncoder() = default;
  // `record`: the text of a document, or, if wants_json(), the JSON value under the key as it stands in the file.
  // INVALID_ARGUMENT: a record that cannot be one; the message is the reason that is reported with file and line.
  virtual absl::Status Encode(absl::string_view record, EncodedDocument* document) = 0;
};

// Immutable and thread-safe; what BuildDataset is given.
class RecordEncoderFactory {
 public:
  virtual ~RecordEncoderFactory() = default;
  virtual std::unique_ptr<RecordEncoder> NewEncoder() const = 0;
  virtual bool wants_json() const = 0;
  // Every document ends with the end-of-document id.
  virtual bool appends_eod() const = 0;
  // The dataset gets a PREFIX.loss file.
  virtual bool makes_loss() const = 0;
  // For the manifest, a resumed build and the digest of the result: everything that the tokens depend on besides the tokenizer.
  virtual std::string description() const = 0;
  virtual const Tokenizer& tokenizer() const = 0;
};

// Texts, with the end-of-document id behind each if `append_eod`. INVALID_ARGUMENT: the tokenizer has none.
absl::StatusOr<std::unique_ptr<RecordEncoderFactory>> NewTextEncoderFactory(
    const Tokenizer* tokenizer, bool append_eod);

}  // namespace mt
