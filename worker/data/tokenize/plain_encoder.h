// The encoder of tokenizers that remember nothing from text to text.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/data/tokenize/tokenizer.h"

namespace mt {

// T has EncodeText, which any thread may call.
template <typename T>
class PlainEncoder : public TokenEncoder {
 public:
  explicit PlainEncoder(const T* tokenizer) : tokenizer_(tokenizer) {}
  absl::Status Encode(absl::string_view text, std::vector<int32_t>* ids) override {
    return tokenizer_->EncodeText(text, ids);
  }

 private:
  const T* const tokenizer_;
};

}  // namespace mt
