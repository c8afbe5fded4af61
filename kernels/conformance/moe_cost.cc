// The costs of mixtures of experts and latent attention. How many rows are used is known on the device alone: all of them count.
#include "kernels/conformance/cost.h"

namespace mt::conformance {
namespace {

double D(int64_t number) { return static_cast<double>(number); }
double StatisticBytes(int32_t dtype) { return dtype == MT_F64 ? 8 : 4; }

std::string Shape(const char* first, int64_t a, const char* second, int64_t b) {
  return std::string(first) + std::to_string(a) + " " + second + std::to_string(b);
}

Cost RouteCost(const mt_moe_route_args& a, bool backward) {
  const double size = D(BytesOf(a.dtype));
  // Forward reads the logits; backward reads them and writes their gradient. Choices: number and weight.
  return {D(a.rows) * (D(a.experts) * size * (backward ? 2 : 1) + D(a.top_k) * (4 + size)), 0,
          a.dtype, Shape("r", a.rows, "e", a.experts) + " k" + std::to_string(a.top_k)};
}

Cost SortCost(const mt_moe_sort_args& a) {
  const bool weights = a.capacity > 0 && a.drop_lightest != 0;
  return {
      D(a.rows) * D(a.top_k) * (12 + (weights ? D(BytesOf(a.dtype)) : 0)) + 4 * D(a.experts + 1), 0,
      a.dtype, Shape("r", a.rows, "e", a.experts) + " k" + std::to_string(a.top_k)};
}

Cost RowsCost(int32_t operation, const mt_moe_rows_args& a) {
  const double choices = D(a.rows) * D(a.top_k), size = D(BytesOf(a.dtype)),
               statistic = StatisticBytes(a.dtype), token_bytes = D(a.rows) * D(a.columns) * size,
               sorted_bytes = choices * D(a.columns) * size;
  double bytes = token_bytes + sorted_bytes + 4 * choices;
  if (operation == MT_OP_MOE_COMBINE)
    bytes +=
        (a.accumulate != 0 ? token_bytes : 0) + (a.weights != nullptr ? choices * statistic : 0);
  if (operation == MT_OP_MOE_COMBINE_BACKWARD)
    bytes += sorted_bytes + choices * (4 + 2 * statistic);
  return {bytes, 0, a.dtype, Shape("r", a.rows, "c", a.columns) + " k" + std::to_string(a.top_k)};
}

Cost GroupedCost(const mt_grouped_matmul_args& a) {
  const bool weights = a.mode == MT_GROUPED_WEIGHT_GRADIENT;
  const double size = D(BytesOf(a.dtype)), matrices = D(a.groups) * D(a.in) * D(a.out);
  const char* const modes[] = {"", " forward", " input", " weight"};
  return {D(a.rows) * D(a.in + a.out) * size +
              matrices * (weights ? D(BytesOf(a.gradient_dtype)) * (a.beta != 0 ? 2 : 1) : size) +
              (a.bias != nullptr ? D(a.groups) * D(a.out) * size : 0),
          2 * D(a.rows) * D(a.in) * D(a.out), a.dtype,
          Shape("r", a.rows, "e", a.groups) + " in" + std::to_string(a.in) + " out" +
              std::to_string(a.out) + modes[a.mode]};
}

}  // namespace

Cost ExpertCostOf(int32_t operation, const void* arguments) {
  switch (operation) {
    case MT_OP_MOE_ROUTE_FORWARD:
    case MT_OP_MOE_ROUTE_BACKWARD:
      return RouteCost(*static_cast<const mt_moe_route_args*>(arguments),
                       operation == MT_OP_MOE_ROUTE_BACKWARD);
    case MT_OP_MOE_SORT:
      return SortCost(*static_cast<const mt_moe_sort_args*>(arguments));
    case MT_OP_MOE_GATHER:
    case MT_OP_MOE_COMBINE:
    case MT_OP_MOE_COMBINE_BACKWARD:
      return RowsCost(operation, *static_cast<const mt_moe_rows_args*>(arguments));
    case MT_OP_GROUPED_MATMUL:
      return GroupedCost(*static_cast<const mt_grouped_matmul_args*>(arguments));
    case MT_OP_GROUPED_COLUMN_SUM: {
      const auto& a = *static_cast<const mt_grouped_column_sum_args*>(arguments);
      return {D(a.rows) * D(a.columns) * D(BytesOf(a.dtype)) +
                  2 * D(a.groups) * D(a.columns) * D(BytesOf(a.gradient_dtype)),
              0, a.dtype, Shape("r", a.rows, "c", a.columns) + " e" + std::to_string(a.groups)};
    }
    case MT_OP_MLA_EXPAND_FORWARD:
    case MT_OP_MLA_EXPAND_BACKWARD: {
      const auto& a = *static_cast<const mt_mla_expand_args*>(arguments);
      const int64_t head = 2 * a.nope_dim + a.rope_dim + 2 * a.v_dim;
      return {D(a.rows) * D(a.heads * head + a.rope_dim) * D(BytesOf(a.dtype)), 0, a.dtype,
              Shape("r", a.rows, "h", a.heads) + " d" + std::to_string(a.nope_dim) + "+" +
                  std::to_string(a.rope_dim) + "/" + std::to_string(a.v_dim)};
    }
    case MT_OP_BALANCE_UPDATE: {
      const auto& a = *static_cast<const mt_balance_update_args*>(arguments);
      const double parameter = a.parameter != a.bias ? D(BytesOf(a.dtype)) : 0;
      return {
          D(a.count) * (2 * D(BytesOf(a.state_dtype)) + D(BytesOf(a.gradient_dtype)) + parameter),
          0, a.dtype, "n" + std::to_string(a.count)};
    }
    default:
      return {};
  }
}

}  // namespace mt::conformance
