// The checks of the mixture-of-experts operations.
#include <algorithm>
#include <cmath>

#include "kernels/host/argument_checker.h"

namespace mt::host {
namespace {

constexpr int64_t kMostExperts = 1 << 16;

void Statistic(Checker& c, int32_t dtype) {
  c.Rule(dtype == MT_F32 || dtype == MT_F64, "dtype", dtype, "is neither F32 nor F64");
}

// Choices are numbered n * k + j in 32 bits.
void Choices(Checker& c, int64_t rows, int64_t top_k) {
  c.Range("rows", rows, 0, INT32_MAX);
  c.Range("top_k", top_k, 1, kMostExperts);
  c.Rule(c.code() != MT_OK || rows <= INT32_MAX / top_k, "rows", rows,
         "times top_k does not fit into 32 bits");
}

}  // namespace

void Check(Checker& c, const mt_moe_route_args& a, bool backward) {
  Statistic(c, a.dtype);
  Choices(c, a.rows, a.top_k);
  c.Range("batch", a.batch, 1, INT32_MAX);
  c.Range("experts", a.experts, 1, kMostExperts);
  c.Range("top_k", a.top_k, 1, a.experts);
  c.Range("score", a.score, MT_MOE_SOFTMAX, MT_MOE_SIGMOID);
  c.Range("groups", a.groups, 0, a.experts);
  if (c.code() != MT_OK) return;
  if (a.groups > 1) {
    const int64_t size = a.experts / a.groups;
    c.Rule(a.experts % a.groups == 0, "groups", a.groups, "does not divide experts");
    c.Range("top_groups", a.top_groups, 1, a.groups);
    c.Rule(a.top_k <= a.top_groups * size, "top_k", a.top_k,
           "is more than the experts of top_groups groups");
    c.Rule(a.group_top_2 == 0 || size >= 2, "group_top_2", a.group_top_2,
           "needs groups of two experts at least");
  }
  const auto stride = [&](const char* field, int64_t value) {
    c.Rule(value == 0 || value >= a.experts, field, value, "is smaller than experts");
    c.Product(field, value, a.batch);
  };
  stride("statistics_stride", a.statistics_stride);
  stride("balance_stride", a.balance_stride);
  c.Real(std::isfinite(a.scale), "scale", a.scale, "is not finite");
  c.Pointer("logits", a.logits, a.rows);
  c.Pointer("ids", a.ids, a.rows);
  c.Pointer("weights", a.weights, backward ? 0 : a.rows);
  c.Pointer("expert_load", a.expert_load, !backward);
  c.Pointer("weight_gradient", a.weight_gradient, backward ? a.rows : 0);
  c.Pointer("logits_gradient", a.logits_gradient, backward ? a.rows : 0);
}

void Check(Checker& c, const mt_moe_sort_args& a) {
  Statistic(c, a.dtype);
  Choices(c, a.rows, a.top_k);
  c.Range("experts", a.experts, 1, kMostExperts);
  c.Range("top_k", a.top_k, 1, a.experts);
  c.Range("capacity", a.capacity, 0);
  c.Pointer("ids", a.ids, a.rows);
  c.Pointer("weights", a.weights, a.capacity > 0 && a.drop_lightest != 0 ? a.rows : 0);
  c.Pointer("position", a.position, a.rows);
  c.Pointer("source", a.source, a.rows);
  c.Pointer("offsets", a.offsets);
}

void Check(Checker& c, const mt_moe_rows_args& a, Rows operation) {
  Choices(c, a.rows, a.top_k);
  c.Range("columns", a.columns, 1);
  if (c.code() != MT_OK) return;
  c.Product("rows", a.rows * a.top_k, a.columns);
  c.Pointer("tokens", a.tokens, a.rows);
  c.Pointer("sorted", a.sorted, a.rows);
  c.Pointer("source", a.source, operation == Rows::kCombine ? 0 : a.rows);
  c.Pointer("position", a.position, operation == Rows::kGather ? 0 : a.rows);
  const int64_t backward_rows = operation == Rows::kCombineBackward ? a.rows : 0;
  c.Pointer("weights", a.weights, backward_rows);
  c.Pointer("sorted_gradient", a.sorted_gradient, backward_rows);
  c.Pointer("weight_gradient", a.weight_gradient, backward_rows);
}

void Check(Checker& c, const mt_grouped_matmul_args& a) {
  c.Range("mode", a.mode, MT_GROUPED_FORWARD, MT_GROUPED_WEIGHT_GRADIENT);
  c.Range("groups", a.groups, 1, kMostExperts);
  c.Range("rows", a.rows, 0, INT32_MAX);
  c.Range("in", a.in, 1, INT32_MAX);
  c.Range("out", a.out, 1, INT32_MAX);
  if (c.code() != MT_OK) return;
  c.Product("rows", a.rows, std::max(a.in, a.out));
  c.Product("in", a.in, a.out);
  c.Rule(a.weight_group_stride >= a.in * a.out, "weight_group_stride", a.weight_group_stride,
         "is smaller than in * out");
  c.Product("weight_group_stride", a.weight_group_stride, a.groups);
  c.Rule(a.mode != MT_GROUPED_FORWARD || a.bias == nullptr || a.bias_group_stride >= a.out,
         "bias_group_stride", a.bias_group_stride, "is smaller than out");
  c.Real(a.beta == 0 || a.beta == 1, "beta", a.beta, "is neither 0 nor 1");
  c.Pointer("offsets", a.offsets);
  c.Pointer("x", a.x, a.rows);
  c.Pointer("y", a.y, a.rows);
  c.Pointer("weight", a.weight);
}

void Check(Checker& c, const mt_grouped_column_sum_args& a) {
  c.Range("groups", a.groups, 1, kMostExperts);
  c.Range("rows", a.rows, 0, INT32_MAX);
  c.Range("columns", a.columns, 1);
  c.Product("rows", a.rows, a.columns);
  c.Rule(a.result_group_stride >= a.columns, "result_group_stride", a.result_group_stride,
         "is smaller than columns");
  c.Product("result_group_stride", a.result_group_stride, a.groups);
  c.Pointer("offsets", a.offsets);
  c.Pointer("data", a.data, a.rows);
  c.Pointer("result", a.result);
}

void Check(Checker& c, const mt_balance_update_args& a) {
  c.Range("count", a.count, 0);
  c.Real(std::isfinite(a.rate), "rate", a.rate, "is not finite");
  c.Pointer("parameter", a.parameter, a.count);
  c.Pointer("bias", a.bias, a.count);
  c.Pointer("load", a.load, a.count);
}

}  // namespace mt::host
