// What attention's two directions have in common. Both work in tiles that stay in the second-level cache (Dao 2023, arXiv
// 2307.08691): products by dnnl_sgemm, soft-max by Highway.
//
// A tile is a block of query positions times all query heads of one key head, stacked, about 128 rows: row g * count + i is head g
// of the group at position first + i. It meets the keys that any of its rows sees in blocks of 512, and no others: what lies
// beyond the mask, before the window or before the document of the tile's first query is never computed. The rows of one head lie far apart, often by a power of two, so they are
// packed before they are multiplied, unless they are read only once.
//
// Determinism: how work is cut depends on the sizes, and on where documents begin, alone, and a piece is computed by one thread in a fixed order.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "kernels/abi/attention_shape.h"
#include "kernels/cpu/parallel.h"

namespace mt::cpu {

inline constexpr int64_t kKeyBlock = 512;
inline constexpr int64_t kScoreStride =
    kKeyBlock + 16;  // not a power of two: rows fall into different cache sets

// The keys [begin, end) of a block that query t of sequence b sees; empty ones are begin == end.
struct VisibleKeys {
  int64_t begin, end;
};
VisibleKeys KeysOfBlock(const mt_attention_args& args, int64_t b, int64_t t, int64_t key,
                        int64_t width);

// One row of scores against a block of `width` keys: scores become exp(scale score - maximum), zero
// for keys that are not seen. `maximum` and `sum` are carried from block to block; returns what
// earlier sums and outputs have to be multiplied with.
float SoftmaxRow(float* scores, const VisibleKeys& keys, int64_t width, float scale, float* maximum,
                 float* sum);
// scores -> P = exp(scale score - lse); d_p -> dS = scale P (dP - delta); zero where not seen.
void ScoreGradientRow(float* scores, float* d_p, const VisibleKeys& keys, int64_t width,
                      float scale, float lse, float delta);

// Query positions per tile: about 128 stacked rows.
int64_t TilePositions(const mt_attention_args& args);
inline int64_t TileRows(const mt_attention_args& args) {
  return TilePositions(args) * (args.heads / args.kv_heads);
}
inline int64_t Padded(int64_t floats) { return CeilDivide(floats, 16) * 16; }

struct Matrix {
  const float* data;
  int64_t stride;  // of a row
};

// Rows (t, b) of one head, t in [first, first + count), to or from a packed (count, head_dim) in float32.
struct HeadRows {
  int32_t dtype;
  int64_t batch, stride, head_dim;
  int64_t At(int64_t t, int64_t b, int64_t head) const {
    return (t * batch + b) * stride + head * head_dim;
  }
  void Pack(const void* tensor, int64_t b, int64_t head, int64_t first, int64_t count,
            float* packed) const;
  void Unpack(const float* packed, int64_t b, int64_t head, int64_t first, int64_t count,
              void* tensor) const;
  // The rows where they are if they are float32, else packed to `scratch`.
  Matrix View(const void* tensor, int64_t b, int64_t head, int64_t first, int64_t count,
              float* scratch) const;
};

float Element(int32_t dtype, const void* data, int64_t index);

// C[m,n] = op(A) op(B) + beta C, on the calling thread (inside a parallel region oneDNN stays on
// it). `failed` keeps a status that is not success.
struct Multiplier {
  std::atomic<int>* failed;
  void operator()(char transpose_a, char transpose_b, int64_t m, int64_t n, int64_t k,
                  const Matrix& a, const Matrix& b, float beta, float* c, int64_t ldc) const;
};
int32_t Outcome(int failed, int32_t operation);

// Hands out pieces of a workspace, 64 bytes aligned relative to its start.
struct Carver {
  float* next;
  float* Take(int64_t floats) {
    float* piece = next;
    next += Padded(floats);
    return piece;
  }
};

}  // namespace mt::cpu
