// Every default that spec.proto documents, in one place. A resolved spec has no zero that means
// "default"; filling twice changes nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

// What only files tell. The client passes functions that read them; the coordinator, which may not see the files, passes none.
struct SpecFiles {
  // Number of token ids of `data.tokenizer` (its path), asked for only when model.vocab is unset and the tokenizer is not `byte`.
  std::function<absl::StatusOr<int64_t>(const std::string& tokenizer)> vocabulary_of;
  // The id that ends a document in `data.tokenizer` (its path), -1 if none does; asked for only when data.eod is unset, something
  // needs it (common/spec/data_traits.h) and the tokenizer is not `byte`.
  std::function<absl::StatusOr<int32_t>(const std::string& tokenizer)> eod_of;
  // What a folder of weights holds: that of `model: hf:DIR`, or without a preset that of initial_checkpoint. What the spec says
  // goes over it.
  std::function<absl::StatusOr<v1::ModelSpec>(const std::string& folder)> model_of;
};

// Default model.vocab is the tokenizer's size rounded up to a multiple of this, so that it can be
// cut over the usual tensor groups, and does not depend on the layout.
inline constexpr int64_t kVocabularyMultiple = 64;
inline constexpr int64_t kByteVocabulary = 257;  // 256 bytes and end-of-document
inline constexpr int32_t kByteEod = 256;

// INVALID_ARGUMENT when a default cannot be known (vocabulary, model), naming the key to set.
absl::Status FillDefaults(v1::JobSpec* spec, const SpecFiles& files = {});

}  // namespace mt
