#include "worker/data/tokenize/split_behaviour.h"

#include <algorithm>

namespace mt {

void BehaviourWriter::Match(uint32_t begin, uint32_t end) {
  if (begin > last_end_) Add({last_end_, begin}, invert_);
  Add({begin, end}, !invert_);
  last_end_ = end;
}

// A match merges only with a neighbour that is none; of two matches in a row one stays alone, as in Hugging Face's.
void BehaviourWriter::Add(Piece piece, bool is_match) {
  const bool first = pieces_->size() == first_;
  const bool previous_is_match = std::exchange(previous_is_match_, is_match);
  bool merge = false;
  switch (behaviour_) {
    case SplitBehaviour::kIsolated:
      break;
    case SplitBehaviour::kRemoved:
      if (is_match) return;
      break;
    case SplitBehaviour::kMergedWithPrevious:
      merge = is_match && !previous_is_match;
      break;
    case SplitBehaviour::kMergedWithNext:
      merge = !is_match && previous_is_match;
      break;
    case SplitBehaviour::kContiguous:
      merge = is_match == previous_is_match;
      break;
  }
  if (merge && !first) {
    pieces_->back().end = piece.end;
  } else {
    pieces_->push_back(piece);
  }
}

void BehaviourWriter::Finish(uint32_t bytes) {
  if (bytes > last_end_) Add({last_end_, bytes}, invert_);
  const auto empty = [](const Piece& piece) { return piece.begin == piece.end; };
  pieces_->erase(
      std::remove_if(pieces_->begin() + static_cast<ptrdiff_t>(first_), pieces_->end(), empty),
      pieces_->end());
}

}  // namespace mt
