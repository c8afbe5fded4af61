// Errors that every kind of tokenizer gives in the same words.
#pragma once

#include <cstdint>
#include <string>

#include "common/status.h"

namespace mt {

inline absl::Status NoSuchId(const std::string& spec, int32_t id, int32_t vocab_size) {
  return absl::InvalidArgumentError(
      absl::StrCat("tokenizer ", spec, ": id ", id, " is not in its vocabulary of ", vocab_size,
                   "; use the tokenizer that the data was built with"));
}

}  // namespace mt
