// Rows between tokens and experts, one product per expert, and the heads of latent attention. Rows that belong to nobody hold NaN:
// nobody may read them.
#include <algorithm>
#include <cmath>

#include "kernels/conformance/case_makers.h"

namespace mt::conformance {
namespace {

// Where choices lie among the sorted rows: all over, the last `dropped` places left out.
struct Places {
  std::vector<double> position, source;
  explicit Places(const ExpertRows& size) {
    const int64_t count = size.rows * size.top_k, used = count - std::min(size.dropped, count);
    position.assign(static_cast<size_t>(count), -1);
    source = position;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = Permuted(count, i, count);
      if (place >= used) continue;
      position[static_cast<size_t>(i)] = static_cast<double>(place);
      source[static_cast<size_t>(place)] = static_cast<double>(i);
    }
  }
};

// Data of whose rows only the first `used` are anyone's.
Tensor Used(Tensor tensor, int64_t used, int64_t columns) {
  tensor.value = [=](double normal, int64_t index) {
    return index < used * columns ? normal : NAN;
  };
  return tensor;
}

std::string NameOf(int32_t operation, const ExpertRows& size, const std::string& option) {
  return Name(operation,
              {{"rows", size.rows},
               {"columns", size.columns},
               {"k", size.top_k},
               {"dropped", size.dropped}},
              option);
}

mt_moe_rows_args ArgsOf(const ExpertRows& size, int32_t type, void* const* p) {
  return {.dtype = type,
          .rows = size.rows,
          .columns = size.columns,
          .top_k = size.top_k,
          .position = static_cast<const int32_t*>(p[0]),
          .source = static_cast<const int32_t*>(p[1])};
}

}  // namespace

Case MoeGather(const ExpertRows& size) {
  const Places places(size);
  const int64_t tokens = size.rows * size.columns;
  return {NameOf(MT_OP_MOE_GATHER, size, ""),
          MT_OP_MOE_GATHER,
          {In("unused", 0), Numbers("source", places.source, Element::kInt32), In("tokens", tokens),
           Exact(Out("sorted", tokens * size.top_k))},
          [=](int32_t type, void* const* p) {
            mt_moe_rows_args a = ArgsOf(size, type, p);
            a.position = nullptr;
            a.tokens = p[2];
            a.sorted = p[3];
            return Bytes(a);
          }};
}

Case MoeCombine(const ExpertRows& size, bool weights, bool accumulate) {
  const Places places(size);
  const int64_t tokens = size.rows * size.columns, choices = size.rows * size.top_k;
  const std::string option =
      std::string(weights ? "weights" : "plain") + (accumulate ? "_accumulate" : "");
  return {NameOf(MT_OP_MOE_COMBINE, size, option),
          MT_OP_MOE_COMBINE,
          {Numbers("position", places.position, Element::kInt32), In("unused", 0),
           Used(In("sorted", tokens * size.top_k), choices - size.dropped, size.columns),
           Wide(In("weights", weights ? choices : 0)),
           Long(accumulate ? Update("tokens", tokens) : Out("tokens", tokens), size.top_k)},
          [=](int32_t type, void* const* p) {
            mt_moe_rows_args a = ArgsOf(size, type, p);
            a.source = nullptr;
            a.sorted = p[2];
            a.weights = weights ? p[3] : nullptr;
            a.tokens = p[4];
            a.accumulate = accumulate;
            return Bytes(a);
          }};
}

Case MoeCombineBackward(const ExpertRows& size, bool in_place) {
  const Places places(size);
  const int64_t tokens = size.rows * size.columns, choices = size.rows * size.top_k,
                rows = tokens * size.top_k;
  return {NameOf(MT_OP_MOE_COMBINE_BACKWARD, size, in_place ? "in_place" : ""),
          MT_OP_MOE_COMBINE_BACKWARD,
          {Numbers("position", places.position, Element::kInt32),
           Numbers("source", places.source, Element::kInt32), In("tokens_gradient", tokens),
           Used(in_place ? Update("sorted", rows) : In("sorted", rows), choices - size.dropped,
                size.columns),
           Wide(In("weights", choices)),
           in_place ? Alias(Update("sorted_gradient", rows), 3) : Out("sorted_gradient", rows),
           Long(Wide(Out("weight_gradient", choices)), size.columns)},
          [=](int32_t type, void* const* p) {
            mt_moe_rows_args a = ArgsOf(size, type, p);
            a.tokens = p[2];
            a.sorted = p[3];
            a.weights = p[4];
            a.sorted_gradient = p[5];
            a.weight_gradient = p[6];
            return Bytes(a);
          }};
}

namespace {

// Offsets of groups over rows - unused rows: every third group empty (if there are more than two), the others uneven.
std::vector<double> OffsetsOf(int64_t groups, int64_t rows) {
  const auto share = [&](int64_t e) {
    return groups > 2 && e % 3 == 1 ? 0.0 : 1 + static_cast<double>(e * 7 % 5);
  };
  double total = 0, sum = 0;
  for (int64_t e = 0; e < groups; ++e) total += share(e);
  std::vector<double> offsets = {0};
  for (int64_t e = 0; e < groups; ++e) {
    sum += share(e);
    offsets.push_back(std::floor(sum / total * static_cast<double>(rows) + 1e-9));
  }
  return offsets;
}

}  // namespace

Case GroupedMatmul(int32_t mode, const Grouped& size, double beta) {
  const auto [groups, rows, in, out, unused, padding, bias] = size;
  const int64_t used = rows - std::min(rows, unused), stride = in * out + padding,
                bias_stride = out + padding;
  const bool forward = mode == MT_GROUPED_FORWARD, weights = mode == MT_GROUPED_WEIGHT_GRADIENT;
  Tensor x = Used(In("x", rows * in), used, in), y = Used(In("y", rows * out), used, out);
  Tensor weight = In("weight", groups * stride);
  if (forward) y = Long(Out("y", rows * out), in);
  if (mode == MT_GROUPED_INPUT_GRADIENT) x = Long(Out("x", rows * in), out);
  if (weights) {
    weight =
        Long(Wide(beta != 0 ? Update("weight", groups * stride) : Out("weight", groups * stride)),
             used / groups);
    weight.slack = 4;  // of a float32 sum of bfloat16 products, as MATMUL's
  }
  const char* modes[] = {"", "forward", "input_gradient", "weight_gradient"};
  const std::string option = std::string(modes[mode]) + (beta != 0 ? "_accumulate" : "") +
                             (padding > 0 ? "_strided" : "") + (bias ? "_bias" : "");
  return {Name(MT_OP_GROUPED_MATMUL,
               {{"groups", groups}, {"rows", rows}, {"in", in}, {"out", out}, {"unused", unused}},
               option),
          MT_OP_GROUPED_MATMUL,
          {x, y, weight, In("bias", bias ? groups * bias_stride : 0),
           Numbers("offsets", OffsetsOf(groups, used), Element::kInt32)},
          [=, with_bias = bias, size = size](int32_t type, void* const* p) {
            return Bytes(mt_grouped_matmul_args{.dtype = type,
                                                .gradient_dtype = weights ? WideType(type) : 0,
                                                .mode = mode,
                                                .groups = size.groups,
                                                .rows = size.rows,
                                                .in = size.in,
                                                .out = size.out,
                                                .offsets = static_cast<const int32_t*>(p[4]),
                                                .x = p[0],
                                                .y = p[1],
                                                .weight = p[2],
                                                .weight_group_stride = stride,
                                                .bias = with_bias ? p[3] : nullptr,
                                                .bias_group_stride = with_bias ? bias_stride : 0,
                                                .beta = beta});
          },
          2.0 * used * in * out};
}

Case GroupedColumnSum(const Grouped& size) {
  const int64_t groups = size.groups, rows = size.rows, columns = size.out,
                used = rows - std::min(rows, size.unused), stride = columns + size.padding;
  return {Name(MT_OP_GROUPED_COLUMN_SUM,
               {{"groups", groups}, {"rows", rows}, {"columns", columns}, {"unused", size.unused}},
               size.padding > 0 ? "strided" : ""),
          MT_OP_GROUPED_COLUMN_SUM,
          {Used(In("data", rows * columns), used, columns),
           Long(Wide(Update("result", groups * stride)), used / groups),
           Numbers("offsets", OffsetsOf(groups, used), Element::kInt32)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_grouped_column_sum_args{.dtype = type,
                                                    .gradient_dtype = WideType(type),
                                                    .groups = groups,
                                                    .rows = rows,
                                                    .columns = columns,
                                                    .offsets = static_cast<const int32_t*>(p[2]),
                                                    .data = p[0],
                                                    .result = p[1],
                                                    .result_group_stride = stride});
          }};
}

Case MlaExpand(bool backward, const Latent& size) {
  const auto [rows, heads, nope, rope, v] = size;
  const int32_t operation = backward ? MT_OP_MLA_EXPAND_BACKWARD : MT_OP_MLA_EXPAND_FORWARD;
  const auto tensor = [&](const char* name, int64_t count, bool written) {
    return written ? Exact(Out(name, count)) : In(name, count);
  };
  Tensor key_rope = tensor("key_rope", rows * rope, backward);
  if (backward) {
    key_rope = Long(key_rope, heads);
    key_rope.exact = false;  // a sum
  }
  return {
      Name(operation, {{"rows", rows}, {"heads", heads}, {"nope", nope}, {"rope", rope}, {"v", v}}),
      operation,
      {tensor("kv", rows * heads * (nope + v), backward), key_rope,
       tensor("key", rows * heads * (nope + rope), !backward),
       tensor("value", rows * heads * v, !backward)},
      [size = size](int32_t type, void* const* p) {
        return Bytes(mt_mla_expand_args{.dtype = type,
                                        .rows = size.rows,
                                        .heads = size.heads,
                                        .nope_dim = size.nope,
                                        .rope_dim = size.rope,
                                        .v_dim = size.v,
                                        .kv = p[0],
                                        .key_rope = p[1],
                                        .key = p[2],
                                        .value = p[3]});
      }};
}

}  // namespace mt::conformance
