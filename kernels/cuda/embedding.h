// How the rows of one id are added in the embedding's backward pass: index arithmetic, tested in packs_test.cc.
//
// After sorting, the rows of one id are neighbours, in increasing order: a run. A run is cut into pieces of kPieceRows rows, from
// its own start, so that its sum depends on its own rows alone, whatever other ids there are and on which rank they live. A run
// of one piece is added to the table's gradient at once; of a longer one, each piece goes to a row of partial sums, and these are
// added in increasing order.
#pragma once

#include <cstdint>

#include "kernels/cuda/vendor/vendor.h"

namespace mt::cuda {

inline constexpr int kPieceRows = 32;

// Rows of partial sums for `count` rows.
__host__ __device__ __forceinline__ int64_t PartialPieces(int64_t count) {
  return 2 * ((count + kPieceRows - 1) / kPieceRows);
}
// Where the piece of a long run that begins at sorted position `position` has its partial sum. The first pieces of two long runs
// are more than kPieceRows positions apart, and so are the later pieces of one run and those of the next: of each kind there is
// at most one in a window of kPieceRows positions.
__host__ __device__ __forceinline__ int64_t PartialPiece(int64_t position, int64_t run_start) {
  return 2 * (position / kPieceRows) + (position == run_start ? 0 : 1);
}

}  // namespace mt::cuda
