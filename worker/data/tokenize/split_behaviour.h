// What becomes of the matches of a split and of the text between them: tokenizer.json's `behavior` and `invert`.
#pragma once

#include <cstdint>
#include <vector>

#include "worker/data/tokenize/pre_tokenizer.h"

namespace mt {

// Takes the matches in one text, in their order and without overlap (empty ones too), and appends the pieces.
class BehaviourWriter {
 public:
  BehaviourWriter(SplitBehaviour behaviour, bool invert, std::vector<Piece>* pieces)
      : behaviour_(behaviour), invert_(invert), first_(pieces->size()), pieces_(pieces) {}

  void Match(uint32_t begin, uint32_t end);
  // After the last match; the text has `bytes`.
  void Finish(uint32_t bytes);

 private:
  void Add(Piece piece, bool is_match);

  const SplitBehaviour behaviour_;
  const bool invert_;
  const size_t first_;  // pieces before these belong to others
  std::vector<Piece>* const pieces_;
  uint32_t last_end_ = 0;
  bool previous_is_match_ = false;
};

}  // namespace mt
