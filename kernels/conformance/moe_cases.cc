// Routing and sorting. What they choose is compared exactly, so logits are made to leave no doubt: either two choices are equal
// bit for bit, or they are far apart for float32.
#include <cmath>
#include <numeric>

#include "kernels/conformance/case_makers.h"

namespace mt::conformance {

int64_t Permuted(int64_t row, int64_t index, int64_t size) {
  // Affine, with a factor that has no divisor in common with the size; other ones for other rows.
  int64_t factor = 1 + (row * 7 + 3) % size;
  while (std::gcd(factor, size) != 1) ++factor;
  return (factor * index + row * 5 + row / 3) % size;
}

Tensor Numbers(const char* name, std::vector<double> numbers, Element element) {
  const auto kept = std::make_shared<const std::vector<double>>(std::move(numbers));
  return {.name = name,
          .count = static_cast<int64_t>(kept->size()),
          .element = element,
          .value = [kept](double, int64_t index) { return (*kept)[static_cast<size_t>(index)]; }};
}

namespace {

// All experts of a row on a grid over [-4, 4], off its points by less than a third of a step. A group's best and second best are
// higher than another's together, so that sums of two differ as clearly.
Tensor ClearLogits(const Routing& size) {
  Tensor logits = In("logits", size.rows * size.experts);
  const int64_t E = size.experts, groups = std::max<int64_t>(1, size.groups), members = E / groups;
  logits.value = [=](double normal, int64_t index) {
    const int64_t row = index / E, e = index % E;
    const int64_t place =
        groups * Permuted(row, e % members, members) + Permuted(row + 1, e / members, groups);
    return (static_cast<double>(place) + 0.3 * std::tanh(normal)) * 8 / static_cast<double>(E) - 4;
  };
  return logits;
}

Tensor LogitsOf(const Routing& size) {
  Tensor logits = ClearLogits(size);
  if (size.logits == RouterLogits::kClear) return logits;
  // Small integers: the same scores for the same numbers, in any type.
  const bool with_nan = size.logits == RouterLogits::kNotANumber;
  logits.value = [with_nan](double normal, int64_t index) {
    return with_nan && index % 7 < 2 ? NAN : std::round(1.5 * normal);
  };
  return logits;
}

// Tiers that lie further apart than scores do, by group or expert; no bias moves a choice next to another.
Tensor SelectionBias(const Routing& size) {
  Tensor bias = In("selection_bias", size.bias ? size.experts : 0);
  const int64_t members = size.groups > 1 ? size.experts / size.groups : 1;
  const double step = size.score == MT_MOE_SOFTMAX_TOP_K ? 16 : 2;
  bias.value = [=](double, int64_t e) { return step * static_cast<double>(e / members % 3 - 1); };
  return bias;
}

// Sums in float64 to which something was added before.
Tensor Statistics(const char* name, int64_t count) {
  Tensor tensor = As(Element::kDouble, Update(name, count));
  tensor.value = [](double normal, int64_t) { return std::floor(std::fabs(normal) * 10); };
  return tensor;
}

std::string OptionOf(const Routing& size) {
  const char* scores[] = {"", "softmax", "softmax_top_k", "sigmoid"};
  const char* logits[] = {"", "_ties", "_nan"};
  std::string option = scores[size.score];
  if (size.groups > 1)
    option += "_groups" + std::to_string(size.top_groups) + "of" + std::to_string(size.groups) +
              (size.group_top_2 ? "by2" : "");
  return option + (size.normalize ? "_normalize" : "") + (size.bias ? "_bias" : "") +
         (size.stride > 0 ? "_by_sequence" : "") + logits[static_cast<int>(size.logits)];
}

mt_moe_route_args ArgsOf(const Routing& size, int32_t type) {
  return {.dtype = type,
          .rows = size.rows,
          .batch = size.batch,
          .experts = size.experts,
          .top_k = size.top_k,
          .score = size.score,
          .normalize = size.normalize,
          .scale = size.scale,
          .groups = size.groups,
          .top_groups = size.top_groups,
          .group_top_2 = size.group_top_2,
          .statistics_stride = size.stride,
          .balance_stride = size.stride};
}

std::string NameOf(int32_t operation, const Routing& size) {
  return Name(
      operation,
      {{"rows", size.rows}, {"b", size.batch}, {"experts", size.experts}, {"k", size.top_k}},
      OptionOf(size));
}

int64_t StatisticsCount(const Routing& size) {
  return size.stride > 0 ? size.stride * size.batch : size.experts;
}

}  // namespace

Case MoeRouteForward(const Routing& size) {
  const int64_t chosen = size.rows * size.top_k, statistics = StatisticsCount(size);
  const bool metrics = size.metrics;
  Case item = {
      NameOf(MT_OP_MOE_ROUTE_FORWARD, size),
      MT_OP_MOE_ROUTE_FORWARD,
      {LogitsOf(size), SelectionBias(size), Exact(As(Element::kInt32, Out("ids", chosen))),
       Out("weights", chosen), Exact(Statistics("expert_load", statistics)),
       Statistics("score_sum", metrics ? statistics : 0), Statistics("z_sum", metrics ? 1 : 0)},
      [=](int32_t type, void* const* p) {
        mt_moe_route_args a = ArgsOf(size, type);
        a.logits = p[0];
        a.selection_bias = size.bias ? p[1] : nullptr;
        a.ids = static_cast<int32_t*>(p[2]);
        a.weights = p[3];
        a.expert_load = static_cast<double*>(p[4]);
        a.score_sum = metrics ? static_cast<double*>(p[5]) : nullptr;
        a.z_sum = metrics ? static_cast<double*>(p[6]) : nullptr;
        return Bytes(a);
      }};
  item.types = {MT_F32, MT_F64};
  return item;
}

Case MoeRouteBackward(const Routing& size) {
  const int64_t chosen = size.rows * size.top_k;
  Tensor ids = As(Element::kInt32, In("ids", chosen));
  ids.value = [=](double, int64_t index) {
    return static_cast<double>(Permuted(index / size.top_k, index % size.top_k, size.experts));
  };
  // Scores that are not tiny: a normalised weight is divided by their sum.
  Case item = {
      NameOf(MT_OP_MOE_ROUTE_BACKWARD, size),
      MT_OP_MOE_ROUTE_BACKWARD,
      {Around(In("logits", size.rows * size.experts), 0, 1.5), ids, In("weight_gradient", chosen),
       As(Element::kDouble, In("balance_gradient", StatisticsCount(size))),
       Long(Out("logits_gradient", size.rows * size.experts))},
      [=](int32_t type, void* const* p) {
        mt_moe_route_args a = ArgsOf(size, type);
        a.logits = p[0];
        a.ids = static_cast<int32_t*>(p[1]);
        a.weight_gradient = p[2];
        a.balance_gradient = size.metrics ? static_cast<const double*>(p[3]) : nullptr;
        a.logits_gradient = p[4];
        a.z_scale = size.metrics ? 1e-2 : 0;
        return Bytes(a);
      }};
  item.types = {MT_F32, MT_F64};
  return item;
}

Case MoeSort(const Sorting& size) {
  const int64_t count = size.rows * size.top_k;
  Tensor ids = As(Element::kInt32, In("ids", count));
  // Most rows go to the same experts, and a quarter of the experts gets none.
  const int64_t used = std::max(size.top_k, size.experts - size.experts / 4);
  ids.value = [=](double, int64_t index) {
    const int64_t row = index / size.top_k, j = index % size.top_k;
    return static_cast<double>(row % 3 != 0 ? j : Permuted(row, j, used));
  };
  Tensor weights = In("weights", size.lightest ? count : 0);
  weights.value = [nan = size.nan](double normal, int64_t index) {  // many equal ones
    return nan && index % 5 == 1 ? NAN : std::round(4 * normal) / 4;
  };
  const auto output = [](const char* name, int64_t n) {
    return Exact(As(Element::kInt32, Out(name, n)));
  };
  const std::string option =
      std::string(size.lightest ? "lightest" : "") + (size.nan ? "_nan" : "");
  Case item = {Name(MT_OP_MOE_SORT,
                    {{"rows", size.rows},
                     {"experts", size.experts},
                     {"k", size.top_k},
                     {"capacity", size.capacity}},
                    option),
               MT_OP_MOE_SORT,
               {weights, ids, output("position", count), output("source", count),
                output("offsets", size.experts + 1), Exact(Statistics("dropped", 1))},
               [=](int32_t type, void* const* p) {
                 return Bytes(mt_moe_sort_args{
                     .dtype = type,
                     .rows = size.rows,
                     .experts = size.experts,
                     .top_k = size.top_k,
                     .ids = static_cast<const int32_t*>(p[1]),
                     .weights = size.lightest ? p[0] : nullptr,
                     .capacity = size.capacity,
                     .drop_lightest = size.lightest,
                     .position = static_cast<int32_t*>(p[2]),
                     .source = static_cast<int32_t*>(p[3]),
                     .offsets = static_cast<int32_t*>(p[4]),
                     .dropped = size.capacity > 0 ? static_cast<double*>(p[5]) : nullptr});
               }};
  item.types = {MT_F32, MT_F64};
  return item;
}

Case BalanceUpdate(int64_t n, bool own_parameter, ClipPointer clip) {
  const bool stays = clip == ClipPointer::kInfinite || clip == ClipPointer::kNotANumber;
  Tensor load = Wide(In("load", n));
  load.value = [](double normal, int64_t) { return std::round(5 + 2 * normal); };
  Tensor factor = As(Element::kDouble, In("gradient_scale", 1));
  factor.value = [clip](double, int64_t) {
    return clip == ClipPointer::kInfinite ? HUGE_VAL : clip == ClipPointer::kNotANumber ? NAN : 0.5;
  };
  Tensor bias = Wide(Update("bias", n));
  Tensor parameter = own_parameter ? (stays ? Update("parameter", n) : Out("parameter", n))
                                   : Alias(Update("parameter", n), 0);
  bias.exact = parameter.exact = stays;
  const char* options[] = {"", "by_pointer", "infinite_scale", "nan_scale"};
  Case item = {Name(MT_OP_BALANCE_UPDATE, {{"count", n}, {"copy", own_parameter}},
                    options[static_cast<int>(clip)]),
               MT_OP_BALANCE_UPDATE,
               {bias, parameter, load, factor},
               [=](int32_t type, void* const* p) {
                 return Bytes(mt_balance_update_args{
                     .dtype = type,
                     .state_dtype = WideType(type),
                     .gradient_dtype = WideType(type),
                     .count = n,
                     .parameter = p[1],
                     .bias = p[0],
                     .load = p[2],
                     .rate = 1e-3,
                     .target = 5,
                     .gradient_scale_pointer =
                         clip == ClipPointer::kNone ? nullptr : static_cast<const double*>(p[3])});
               }};
  if (!own_parameter) {
    item.types = {MT_F32, MT_F64};
  } else if (!stays) {
    item.original = 0;
    item.rounded_copy = 1;
  }
  return item;
}

}  // namespace mt::conformance
