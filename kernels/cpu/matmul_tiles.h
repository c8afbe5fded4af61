// A float32 product as tiles of D, each by one thread. How it is cut depends on the shape alone, and so do the bits.
#pragma once

#include <dnnl.h>

#include <cstdint>

#include "kernels/abi/mt_backend.h"

namespace mt::cpu {

struct Tiling {
  int64_t rows, columns;            // of one tile
  int64_t row_tiles, column_tiles;  // of D
};
Tiling TilingOf(const mt_matmul_args& args);

struct Tile {
  int64_t i, j, rows, columns;
  // Number `index` of row_tiles * column_tiles.
  Tile(const mt_matmul_args& args, const Tiling& tiling, int64_t index)
      : i(index % tiling.row_tiles * tiling.rows),
        j(index / tiling.row_tiles * tiling.columns),
        rows(args.m - i < tiling.rows ? args.m - i : tiling.rows),
        columns(args.n - j < tiling.columns ? args.n - j : tiling.columns) {}
};

// The operands in float32, and per thread the scratch of a tile.
struct Operands {
  const float *a, *b;
  int64_t lda, ldb;
  float* packed;  // null = operands are read where they lie
  float* output;  // of a bfloat16 D
};

dnnl_status_t RunTile(const mt_matmul_args& args, const Operands& from, const Tile& tile);

// Sets the error of `operation`; returns its code.
int32_t ProductFailed(int32_t operation, dnnl_status_t status, const mt_matmul_args& args);

}  // namespace mt::cpu
