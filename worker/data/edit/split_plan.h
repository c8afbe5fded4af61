// Where `mtctl data split` cuts: at documents, in their order.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "common/status.h"
#include "worker/data/indexed_dataset.h"

namespace mt {

// Exactly one is set.
struct SplitOptions {
  std::string
      shares;  // Megatron's --split, such as "98,1,1": train, validation, test, cut where training would cut
  int64_t max_documents = 0;  // of a piece
  uint64_t max_bytes = 0;     // of a piece's .bin, unless one document is larger
};

struct SplitPiece {
  std::string
      name;  // "train", "validation", "test"; or "0", "1", ... with as many digits as the last one has
  int64_t begin = 0;  // documents
  int64_t end = 0;
};

// At most this many: more are one order's mistake of magnitude, and each holds a lock.
constexpr int64_t kMaxSplitPieces = 500;

// Together the pieces are all documents. A share of 0 is left out. INVALID_ARGUMENT: no or several ways to cut, or bad shares; a piece
// without a document; more than kMaxSplitPieces.
absl::StatusOr<std::vector<SplitPiece>> PlanSplit(const IndexedDataset& data,
                                                  const SplitOptions& options);

}  // namespace mt
