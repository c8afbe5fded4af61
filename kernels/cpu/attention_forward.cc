// softmax(scale q k^T) v in tiles, with a running maximum and sum per row (Dao 2023, arXiv 2307.08691). A sink is where maximum and
// sum begin: a logit that was seen before all keys, without a value.
//
// Many queries: keys and values of all heads are packed once, and every tile of queries is a task. Few (one tile per key head: new
// tokens against a cache): every block of keys is a task, with a maximum, a sum and an output of its own, which are added in order
// of the keys afterwards.
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_rows.h"
#include "kernels/cpu/operations.h"

namespace mt::cpu {
namespace {

// Sizes, and what follows from them.
struct Shape {
  explicit Shape(const mt_attention_args& args)
      : T(args.sequence),
        d(args.head_dim),
        d_v(mt_attention_v_head_dim(&args)),
        keys(mt_attention_keys(&args)),
        group(args.heads / args.kv_heads),
        pairs(args.batch * args.kv_heads),
        positions(TilePositions(args)),
        tiles(CeilDivide(args.sequence, positions)),
        rows(std::min(args.sequence, positions) * group) {
    first_key = args.sequence > 0 ? mt_attention_begin(&args, 0) : 0;
    blocks = tiles == 1 ? CeilDivide(mt_attention_end(&args, T - 1) - first_key, kKeyBlock) : 0;
  }
  bool few() const { return tiles == 1; }
  int64_t T, d, d_v, keys, group, pairs, positions, tiles, rows;
  int64_t first_key, blocks;  // of the keys that few queries see, by the sizes

  int64_t ScratchFloats() const {
    const int64_t tile =
        Padded(rows * d) + Padded(rows * d_v) + Padded(rows * kScoreStride) + 2 * Padded(rows);
    return few() ? tile + Padded(kKeyBlock * d) + Padded(kKeyBlock * d_v) : tile;
  }
  // What a task of few queries leaves.
  int64_t PartFloats() const { return Padded(rows * d_v) + 2 * Padded(rows); }
};

// One tile on its way through the keys.
struct Tile {
  const mt_attention_args& args;
  const Shape& shape;
  Multiplier multiply;
  int64_t b, kv, first, count;
  float *q, *scores;         // (rows, d), (rows, kScoreStride)
  float *o, *maximum, *sum;  // (rows, d_v), (rows), (rows)

  int64_t rows() const { return count * shape.group; }

  void Begin(bool with_sinks) const {
    const HeadRows at_q{args.dtype, args.batch, args.q_stride, shape.d};
    for (int64_t g = 0; g < shape.group; ++g) {
      const int64_t head = kv * shape.group + g;
      at_q.Pack(args.q, b, head, first, count, q + g * count * shape.d);
      const bool sink = with_sinks && args.sinks != nullptr;
      std::fill_n(
          maximum + g * count, count,
          sink ? Element(args.dtype, args.sinks, head) : -std::numeric_limits<float>::infinity());
      std::fill_n(sum + g * count, count, sink ? 1.0f : 0.0f);
    }
  }

  // Keys [key, key + width); `fresh`: o has nothing yet.
  void Attend(int64_t key, int64_t width, const Matrix& k, const Matrix& v, bool fresh) const {
    const float scale = static_cast<float>(args.scale);
    const int64_t d_v = shape.d_v;
    multiply('N', 'T', rows(), width, shape.d, {q, shape.d}, k, 0.0f, scores, kScoreStride);
    for (int64_t r = 0; r < rows(); ++r) {
      const float rescale =
          SoftmaxRow(scores + r * kScoreStride, KeysOfBlock(args, b, first + r % count, key, width),
                     width, scale, maximum + r, sum + r);
      for (int64_t j = 0; !fresh && rescale != 1.0f && j < d_v; ++j) o[r * d_v + j] *= rescale;
    }
    multiply('N', 'N', rows(), d_v, width, {scores, kScoreStride}, v, fresh ? 0.0f : 1.0f, o, d_v);
  }

  void End() const {
    const int64_t d_v = shape.d_v;
    for (int64_t r = 0; r < rows(); ++r) {
      const float inverse = 1.0f / sum[r];
      for (int64_t j = 0; j < d_v; ++j) o[r * d_v + j] *= inverse;
      const int64_t head = kv * shape.group + r / count;
      static_cast<float*>(args.lse)[(b * args.heads + head) * shape.T + first + r % count] =
          maximum[r] + std::log(sum[r]);
    }
    const HeadRows at_o{args.dtype, args.batch, args.o_stride, d_v};
    for (int64_t g = 0; g < shape.group; ++g)
      at_o.Unpack(o + g * count * d_v, b, kv * shape.group + g, first, count, args.o);
  }
};

void ManyQueries(const mt_attention_args& args, const Shape& shape, const Multiplier& multiply) {
  const int64_t d = shape.d, d_v = shape.d_v, pairs = shape.pairs;
  float* const keys = static_cast<float*>(args.workspace);
  float* const values = keys + pairs * Padded(shape.keys * d);
  float* const scratch = values + pairs * Padded(shape.keys * d_v);
  ParallelBlocks(pairs, [&](int64_t pair) {
    const int64_t b = pair / args.kv_heads, kv = pair % args.kv_heads;
    HeadRows{args.dtype, args.batch, args.k_stride, d}.Pack(args.k, b, kv, 0, shape.keys,
                                                            keys + pair * Padded(shape.keys * d));
    HeadRows{args.dtype, args.batch, args.v_stride, d_v}.Pack(
        args.v, b, kv, 0, shape.keys, values + pair * Padded(shape.keys * d_v));
  });
  // The longest tiles first, so that threads end together.
  ParallelBlocks(pairs * shape.tiles, [&](int64_t task) {
    const int64_t pair = task % pairs, first = (shape.tiles - 1 - task / pairs) * shape.positions;
    const float* const k = keys + pair * Padded(shape.keys * d);
    const float* const v = values + pair * Padded(shape.keys * d_v);
    Carver carver{scratch + ThreadNumber() * shape.ScratchFloats()};
    const Tile tile{.args = args,
                    .shape = shape,
                    .multiply = multiply,
                    .b = pair / args.kv_heads,
                    .kv = pair % args.kv_heads,
                    .first = first,
                    .count = std::min(shape.positions, shape.T - first),
                    .q = carver.Take(shape.rows * d),
                    .scores = carver.Take(shape.rows * kScoreStride),
                    .o = carver.Take(shape.rows * d_v),
                    .maximum = carver.Take(shape.rows),
                    .sum = carver.Take(shape.rows)};
    tile.Begin(true);
    // The keys that some row of the tile sees.
    const int64_t begin = mt_attention_first_key(&args, tile.b, first),
                  end = mt_attention_end(&args, first + tile.count - 1);
    for (int64_t key = begin; key < end; key += kKeyBlock)
      tile.Attend(key, std::min(kKeyBlock, end - key), {k + key * d, d}, {v + key * d_v, d_v},
                  key == begin);
    tile.End();
  });
}

void FewQueries(const mt_attention_args& args, const Shape& shape, const Multiplier& multiply) {
  const int64_t d_v = shape.d_v, rows = shape.rows;
  float* const parts = static_cast<float*>(args.workspace);
  float* const scratch = parts + shape.pairs * shape.blocks * shape.PartFloats();
  const int64_t end = mt_attention_end(&args, shape.T - 1);
  const HeadRows at_k{args.dtype, args.batch, args.k_stride, shape.d},
      at_v{args.dtype, args.batch, args.v_stride, d_v};
  // What block `block` of the keys of a pair leaves.
  const auto part = [&](int64_t pair, int64_t block, Carver scratch_of_thread) {
    Carver carver{parts + (pair * shape.blocks + block) * shape.PartFloats()};
    return Tile{.args = args,
                .shape = shape,
                .multiply = multiply,
                .b = pair / args.kv_heads,
                .kv = pair % args.kv_heads,
                .first = 0,
                .count = shape.T,
                .q = scratch_of_thread.Take(rows * shape.d),
                .scores = scratch_of_thread.Take(rows * kScoreStride),
                .o = carver.Take(rows * d_v),
                .maximum = carver.Take(rows),
                .sum = carver.Take(rows)};
  };
  ParallelBlocks(shape.pairs * shape.blocks, [&](int64_t task) {
    const int64_t pair = task / shape.blocks, block = task % shape.blocks;
    Carver carver{scratch + ThreadNumber() * shape.ScratchFloats()};
    float *k = carver.Take(kKeyBlock * shape.d), *v = carver.Take(kKeyBlock * d_v);
    const Tile tile = part(pair, block, carver);
    const int64_t key = shape.first_key + block * kKeyBlock, width = std::min(kKeyBlock, end - key);
    tile.Begin(block == 0);
    tile.Attend(key, width, at_k.View(args.k, tile.b, tile.kv, key, width, k),
                at_v.View(args.v, tile.b, tile.kv, key, width, v), true);
  });
  ParallelBlocks(shape.pairs, [&](int64_t pair) {
    const Tile all = part(pair, 0, Carver{nullptr});
    for (int64_t block = 1; block < shape.blocks; ++block) {
      const Tile next = part(pair, block, Carver{nullptr});
      for (int64_t r = 0; r < rows; ++r) {
        const float maximum = std::max(all.maximum[r], next.maximum[r]);
        // A part that has seen nothing is as if it were not there.
        const float left = all.sum[r] == 0 ? 0 : std::exp(all.maximum[r] - maximum),
                    right = next.sum[r] == 0 ? 0 : std::exp(next.maximum[r] - maximum);
        for (int64_t j = 0; j < d_v; ++j)
          all.o[r * d_v + j] = all.o[r * d_v + j] * left + next.o[r * d_v + j] * right;
        all.sum[r] = all.sum[r] * left + next.sum[r] * right;
        all.maximum[r] = maximum;
      }
    }
    all.End();
  });
}

}  // namespace

int64_t AttentionForwardWorkspace(const mt_attention_args& args) {
  const Shape shape(args);
  const int64_t shared =
      shape.few() ? shape.pairs * shape.blocks * shape.PartFloats()
                  : shape.pairs * (Padded(shape.keys * shape.d) + Padded(shape.keys * shape.d_v));
  return 4 * (shared + Threads() * shape.ScratchFloats());
}

int32_t AttentionForward(const mt_attention_args& args) {
  if (args.sequence == 0 || args.batch == 0) return MT_OK;
  const Shape shape(args);
  std::atomic<int> failed{0};
  if (shape.few()) {
    FewQueries(args, shape, Multiplier{&failed});
  } else {
    ManyQueries(args, shape, Multiplier{&failed});
  }
  return Outcome(failed, MT_OP_ATTENTION_FORWARD);
}

}  // namespace mt::cpu
