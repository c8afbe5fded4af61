// Cases with random sizes: odd ones, powers of two and their neighbours, rows with padding.
#include <random>

#include "kernels/conformance/case_makers.h"

namespace mt::conformance {
namespace {

class Draw {
 public:
  explicit Draw(uint64_t seed) : engine_(seed) {}
  int64_t Between(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  bool Coin() { return Between(0, 1) == 1; }
  template <typename T>
  T Of(std::initializer_list<T> list) {
    return list.begin()[Between(0, static_cast<int64_t>(list.size()) - 1)];
  }
  // Up to `most`: small, near a power of two, a multiple of eight, or anything.
  int64_t Size(int64_t most) {
    switch (Between(0, 3)) {
      case 0:
        return std::min(most, Between(0, 9));
      case 1: {
        const int64_t power = int64_t{1}
                              << Between(0, 63 - __builtin_clzll(static_cast<uint64_t>(most)));
        return std::clamp<int64_t>(power + Between(-1, 1), 0, most);
      }
      case 2:
        return std::min(most, 8 * Between(1, std::max<int64_t>(1, most / 8)));
      default:
        return Between(0, most);
    }
  }
  int64_t Positive(int64_t most) { return std::max<int64_t>(1, Size(most)); }
  // Rows and columns with a limited product.
  std::pair<int64_t, int64_t> Matrix(int64_t most_columns, int64_t elements) {
    const int64_t columns = Positive(most_columns);
    return {Size(std::clamp<int64_t>(elements / columns, 1, 200)), columns};
  }

 private:
  std::mt19937_64 engine_;
};

Rotary DrawRotary(Draw& draw) {
  Rotary size = {draw.Size(20), draw.Positive(4), draw.Positive(6), 2 * draw.Positive(96)};
  size.first = draw.Between(0, 5);
  if (draw.Coin()) size.rotary_dim = static_cast<int32_t>(2 * draw.Between(1, size.head_dim / 2));
  size.interleaved = draw.Coin();
  if (draw.Coin()) size.padding = draw.Between(0, 40);
  size.positions = draw.Coin();
  return size;
}

Product DrawProduct(Draw& draw) {
  Product size = {draw.Size(140), draw.Size(140), draw.Size(140)};
  size.transpose_a = draw.Coin();
  size.transpose_b = draw.Coin();
  size.beta = draw.Coin() ? 1 : 0;
  size.padding = draw.Coin() ? draw.Between(0, 9) : 0;
  size.alpha = draw.Coin() ? 1 : 0.75;
  size.bias = draw.Coin();
  size.wide_output = draw.Between(0, 2) == 0;
  return size;
}

Case DrawQuantize(Draw& draw) {
  const auto [rows, columns] = draw.Matrix(300, 30000);
  const bool plain = draw.Coin();
  return Quantize(rows, columns, draw.Of({MT_F8_E4M3, MT_F8_E5M2}),
                  draw.Of({0.01, 1.0, 3.3, 448.0, 1e5, 1e-37}), plain, !plain || draw.Coin());
}

Case DrawMatmul(Draw& draw) {
  if (draw.Between(0, 3) != 0) return Matmul(DrawProduct(draw));
  Product size = {draw.Positive(80), 16 * draw.Between(1, 8), 16 * draw.Between(1, 8)};
  size.transpose_b = true;
  size.beta = draw.Coin() ? 1 : 0;
  size.bias = draw.Coin();
  const Element a = draw.Of({Element::kE4M3, Element::kE5M2});
  return MatmulFp8(
      size, a, a == Element::kE5M2 ? Element::kE4M3 : draw.Of({Element::kE4M3, Element::kE5M2}));
}

Case DrawNorm(Draw& draw, int32_t operation) {
  const auto [rows, columns] = draw.Matrix(3000, 6000);
  const auto residual = draw.Of({Residual::kNone, Residual::kKept, Residual::kInPlace});
  const auto alias =
      draw.Of({GradientAlias::kNone, GradientAlias::kOverResidual, GradientAlias::kOverOutput});
  const bool given = alias == GradientAlias::kOverResidual || draw.Coin(), amax = draw.Coin();
  switch (operation) {
    case MT_OP_RMSNORM_FORWARD:
      return RmsNormForward(rows, columns, residual, amax);
    case MT_OP_RMSNORM_BACKWARD:
      return RmsNormBackward(rows, columns, given, alias, amax);
    case MT_OP_LAYERNORM_FORWARD:
      return LayerNormForward(rows, columns, residual, amax);
    default:
      return LayerNormBackward(rows, columns, given, alias, amax);
  }
}

Case DrawAttention(Draw& draw, bool backward) {
  const auto head = [&draw] {
    return draw.Between(0, 2) == 0 ? draw.Between(1, 100)
                                   : draw.Of<int64_t>({32, 64, 80, 96, 128, 192});
  };
  Attend size = {draw.Size(150), draw.Between(1, 2), 0, draw.Between(1, 3), head(), draw.Coin()};
  size.heads = size.kv_heads * draw.Between(1, 3);
  if (draw.Between(0, 2) == 0) size.traits.v_head_dim = head();
  if (size.causal && draw.Coin()) size.traits.window = draw.Positive(200);
  if (draw.Coin()) size.traits.sinks = draw.Of({0.0, 5.0, -5.0, 30.0});
  if (!backward && draw.Coin()) size.traits.key_sequence = size.sequence + draw.Positive(300);
  if (size.causal && size.traits.key_sequence == 0 && draw.Coin())
    size.traits.document = draw.Positive(200);
  size.traits.apart = draw.Coin();
  return Attention(backward, size);
}

Case DrawCrossEntropy(Draw& draw, int32_t operation) {
  Logits size = {draw.Size(40), draw.Size(1200), 0, draw.Between(0, 900), draw.Between(0, 9)};
  size.valid = size.columns - std::min(size.columns, draw.Of<int64_t>({0, 0, 1, 7, 2000}));
  return operation == MT_OP_CROSS_ENTROPY_STATISTICS
             ? CrossEntropyStatistics(size)
             : CrossEntropyGradient(size, draw.Coin() ? 1e-3 : 0, draw.Coin());
}

Routing DrawRouting(Draw& draw) {
  Routing size = {draw.Size(100), draw.Positive(256), 1};
  size.score = draw.Of({MT_MOE_SOFTMAX, MT_MOE_SOFTMAX_TOP_K, MT_MOE_SIGMOID});
  size.normalize = draw.Coin();
  size.scale = draw.Of({1.0, 2.5});
  size.batch = draw.Between(1, 5);
  int64_t members = size.experts;
  if (draw.Coin()) {
    size.groups = draw.Between(2, 8);
    members = draw.Between(1, 32);
    size.experts = size.groups * members;
    size.top_groups = draw.Between(1, size.groups);
    size.group_top_2 = members >= 2 && draw.Coin();
  }
  const int64_t most = size.groups > 0 ? size.top_groups * members : size.experts;
  size.top_k = draw.Between(1, std::min<int64_t>(8, most));
  size.bias = draw.Coin();
  size.stride = draw.Coin() ? size.experts + draw.Between(0, 3) : 0;
  size.metrics = draw.Coin();
  if (draw.Between(0, 3) == 0)
    size.logits = draw.Of({RouterLogits::kTies, RouterLogits::kNotANumber});
  return size;
}

Sorting DrawSorting(Draw& draw) {
  Sorting size = {draw.Size(400), draw.Positive(256), 1};
  size.top_k = draw.Between(1, std::min<int64_t>(8, size.experts));
  if (draw.Coin()) size.capacity = draw.Between(1, 2 + size.rows * size.top_k / size.experts);
  size.lightest = draw.Coin();
  size.nan = draw.Coin();
  return size;
}

ExpertRows DrawExpertRows(Draw& draw) {
  ExpertRows size = {draw.Size(60), draw.Positive(600), draw.Between(1, 8)};
  if (draw.Coin()) size.dropped = draw.Between(0, size.rows * size.top_k);
  return size;
}

Grouped DrawGrouped(Draw& draw) {
  Grouped size = {draw.Positive(20), draw.Size(150), draw.Positive(90), draw.Positive(90)};
  if (draw.Coin()) {  // what a backend may ask for
    size.in = (size.in + 7) / 8 * 8;
    size.out = (size.out + 7) / 8 * 8;
  }
  if (draw.Coin()) size.unused = draw.Between(0, size.rows);
  if (draw.Coin()) size.padding = 8 * draw.Between(0, 3);
  return size;
}

Case DrawExpertCase(Draw& draw, int32_t operation) {
  switch (operation) {
    case MT_OP_MOE_ROUTE_FORWARD:
      return MoeRouteForward(DrawRouting(draw));
    case MT_OP_MOE_ROUTE_BACKWARD:
      return MoeRouteBackward(DrawRouting(draw));
    case MT_OP_MOE_SORT:
      return MoeSort(DrawSorting(draw));
    case MT_OP_MOE_GATHER:
      return MoeGather(DrawExpertRows(draw));
    case MT_OP_MOE_COMBINE:
      return MoeCombine(DrawExpertRows(draw), draw.Coin(), draw.Coin());
    case MT_OP_MOE_COMBINE_BACKWARD:
      return MoeCombineBackward(DrawExpertRows(draw), draw.Coin());
    case MT_OP_GROUPED_MATMUL: {
      Grouped size = DrawGrouped(draw);
      const int32_t mode = draw.Of<int32_t>(
          {MT_GROUPED_FORWARD, MT_GROUPED_INPUT_GRADIENT, MT_GROUPED_WEIGHT_GRADIENT});
      size.bias = mode == MT_GROUPED_FORWARD && draw.Coin();
      return GroupedMatmul(mode, size, mode == MT_GROUPED_WEIGHT_GRADIENT && draw.Coin() ? 1 : 0);
    }
    case MT_OP_GROUPED_COLUMN_SUM:
      return GroupedColumnSum(DrawGrouped(draw));
    case MT_OP_MLA_EXPAND_FORWARD:
    case MT_OP_MLA_EXPAND_BACKWARD:
      return MlaExpand(operation == MT_OP_MLA_EXPAND_BACKWARD,
                       {draw.Size(40), draw.Positive(9), draw.Positive(130), draw.Positive(70),
                        draw.Positive(130)});
    case MT_OP_BALANCE_UPDATE:
      return BalanceUpdate(draw.Size(3000), draw.Coin(),
                           draw.Of({ClipPointer::kNone, ClipPointer::kFinite}));
    default:
      return {};
  }
}

Gate DrawGate(Draw& draw) {
  return {draw.Of({0.0, 2.0, 7.0}), draw.Of({0.0, 1.702}), draw.Of({0.0, 1.0})};
}

Case DrawCase(Draw& draw, int32_t operation) {
  constexpr int64_t kMost = 20000;
  const auto [rows, columns] = draw.Matrix(2500, 6000);
  switch (operation) {
    case MT_OP_FILL:
      return Fill(draw.Size(kMost));
    case MT_OP_FILL_NORMAL:
      return FillNormal(rows, columns, static_cast<uint64_t>(draw.Between(0, 1 << 20)),
                        static_cast<uint64_t>(columns + draw.Between(0, 99)));
    case MT_OP_COPY: {
      const Element from = draw.Of({Element::kData, Element::kFloat, Element::kDouble});
      return Copy(
          draw.Size(kMost), from,
          from == Element::kData ? draw.Of({Element::kData, Element::kFloat}) : Element::kData);
    }
    case MT_OP_ADD:
      return Add(draw.Size(kMost), draw.Coin());
    case MT_OP_SCALE:
      return Scale(draw.Size(kMost), draw.Coin());
    case MT_OP_SQUARED_SUM:
    case MT_OP_SUM:
      return Sum(operation, draw.Size(300000), draw.Coin());
    case MT_OP_MATMUL:
      return DrawMatmul(draw);
    case MT_OP_EMBEDDING_FORWARD:
    case MT_OP_EMBEDDING_BACKWARD:
      return Embedding(operation == MT_OP_EMBEDDING_BACKWARD, rows, columns, draw.Between(0, 50),
                       draw.Positive(70), draw.Coin());
    case MT_OP_RMSNORM_FORWARD:
    case MT_OP_RMSNORM_BACKWARD:
    case MT_OP_LAYERNORM_FORWARD:
    case MT_OP_LAYERNORM_BACKWARD:
      return DrawNorm(draw, operation);
    case MT_OP_ROPE:
      return Rope(DrawRotary(draw), draw.Coin());
    case MT_OP_QK_NORM_ROPE_FORWARD:
      return QkNormRope(false, DrawRotary(draw));
    case MT_OP_QK_NORM_ROPE_BACKWARD:
      return QkNormRope(true, DrawRotary(draw), draw.Coin());
    case MT_OP_ATTENTION_FORWARD:
    case MT_OP_ATTENTION_BACKWARD:
      return DrawAttention(draw, operation == MT_OP_ATTENTION_BACKWARD);
    case MT_OP_SWIGLU_FORWARD:
      return SwigluForward(rows, columns, draw.Coin(), DrawGate(draw));
    case MT_OP_SWIGLU_BACKWARD:
      return SwigluBackward(rows, columns, draw.Coin(), draw.Coin(), draw.Coin(), DrawGate(draw));
    case MT_OP_GELU_FORWARD:
    case MT_OP_GELU_BACKWARD: {
      const bool backward = operation == MT_OP_GELU_BACKWARD;
      return Gelu(backward, rows, columns, draw.Coin(), draw.Coin(),
                  static_cast<int>(draw.Between(0, backward ? 2 : 1)), draw.Coin());
    }
    case MT_OP_CROSS_ENTROPY_STATISTICS:
    case MT_OP_CROSS_ENTROPY_GRADIENT:
      return DrawCrossEntropy(draw, operation);
    case MT_OP_CROSS_ENTROPY_COMBINE:
      return CrossEntropyCombine(draw.Size(2000), draw.Between(1, 5), draw.Coin() ? 1e-3 : 0);
    case MT_OP_ADAMW:
      return AdamW(draw.Size(kMost), draw.Positive(5000), draw.Between(0, 2) != 0,
                   draw.Of({ClipPointer::kNone, ClipPointer::kFinite, ClipPointer::kNotANumber}));
    case MT_OP_CLIP_FACTOR:
      return ClipFactor(draw.Of({0.0, 0.01, 1e4}), draw.Of({0.0, 0.5}),
                        draw.Of({Loss::kNone, Loss::kFinite, Loss::kNotANumber}));
    case MT_OP_COLUMN_SUM:
      return ColumnSum(rows, columns, draw.Between(0, 9));
    case MT_OP_AMAX:
      return Amax(draw.Size(300000), draw.Of({0.0, 2.0}));
    case MT_OP_QUANTIZE:
      return DrawQuantize(draw);
    default:
      return DrawExpertCase(draw, operation);
  }
}

}  // namespace

std::vector<Case> RandomCases(uint64_t seed, int per_operation) {
  Draw draw(seed);
  std::vector<Case> cases;
  for (int32_t operation = 1; operation < MT_OP_END; ++operation) {
    for (int i = 0; i < per_operation; ++i) {
      Case item = DrawCase(draw, operation);
      if (draw.Between(0, 3) == 0) item = Unaligned(item);
      item.name += "_" + std::to_string(i);  // two may have the same sizes
      cases.push_back(std::move(item));
    }
  }
  return cases;
}

}  // namespace mt::conformance
