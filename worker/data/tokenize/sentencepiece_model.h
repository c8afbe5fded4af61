// What a SentencePiece model says about its pieces: the part of sentencepiece_model.proto that libsentencepiece's interface hides.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "common/status.h"

namespace mt {

struct SentencePieceSymbol {
  std::string text;
  int32_t id = 0;
  bool control =
      false;  // no text gives it, and it gives none: <s>, </s>, <unk>; else user-defined, such as [INST]
};

// The symbols among the pieces, in order of their ids. INVALID_ARGUMENT: not a serialized model, or one without pieces.
absl::StatusOr<std::vector<SentencePieceSymbol>> SentencePieceSymbols(absl::string_view serialized);

}  // namespace mt
