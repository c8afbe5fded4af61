#include "worker/model/moe.h"

#include <algorithm>
#include <cmath>

namespace mt {
namespace {

int64_t ExpertsOf(const ModelContext& context) { return context.model.moe().experts(); }
int64_t ChoicesOf(const ModelContext& context) {
  return context.shape.rows * context.model.moe().top_k();
}

// The most rows that an expert takes; 0 = all.
int64_t CapacityOf(const ModelContext& context, const MoeTraining& training) {
  const double choices = static_cast<double>(ChoicesOf(context));
  const double share = choices / static_cast<double>(ExpertsOf(context));
  return static_cast<int64_t>(std::min(std::ceil(training.capacity_factor * share), choices));
}

absl::Status Sort(ModelContext& context, const MoeWeights& w, const MoeActivations& a) {
  const v1::MoeSpec& moe = context.model.moe();
  return context.Run<MT_OP_MOE_SORT>({.dtype = context.types.statistic,
                                      .rows = context.shape.rows,
                                      .experts = moe.experts(),
                                      .top_k = moe.top_k(),
                                      .ids = a.router.ids,
                                      .weights = a.router.weights,
                                      .capacity = CapacityOf(context, w.router.training),
                                      .drop_lightest = moe.drop() != v1::MoeSpec::DROP_POSITION,
                                      .position = a.position,
                                      .source = a.source,
                                      .offsets = a.offsets,
                                      .dropped = w.router.training.dropped});
}

mt_grouped_matmul_args Grouped(const ModelContext& context, const ExpertMatrices& m,
                               const MoeActivations& a) {
  return {.dtype = context.dtype,
          .gradient_dtype = context.types.gradient,
          .mode = MT_GROUPED_FORWARD,
          .groups = ExpertsOf(context),
          .rows = ChoicesOf(context),
          .in = m.in,
          .out = m.out,
          .offsets = a.offsets,
          .weight = m.weight,
          .weight_group_stride = m.stride};
}

absl::Status GroupedForward(ModelContext& context, const ExpertMatrices& m, const MoeActivations& a,
                            void* x, void* y, bool with_bias) {
  mt_grouped_matmul_args product = Grouped(context, m, a);
  product.x = x;
  product.y = y;
  product.bias = with_bias ? m.bias : nullptr;
  product.bias_group_stride = m.out;
  return context.Run<MT_OP_GROUPED_MATMUL>(product);
}

absl::Status GroupedInputGradient(ModelContext& context, const ExpertMatrices& m,
                                  const MoeActivations& a, void* dy, void* dx) {
  mt_grouped_matmul_args product = Grouped(context, m, a);
  product.mode = MT_GROUPED_INPUT_GRADIENT;
  product.y = dy;
  product.x = dx;
  return context.Run<MT_OP_GROUPED_MATMUL>(product);
}

// Biases of the gradient `dy` are added to where `with_bias`.
absl::Status GroupedWeightGradient(ModelContext& context, const ExpertMatrices& m,
                                   const MoeActivations& a, void* dy, void* x, bool with_bias) {
  mt_grouped_matmul_args product = Grouped(context, m, a);
  product.mode = MT_GROUPED_WEIGHT_GRADIENT;
  product.y = dy;
  product.x = x;
  product.weight = m.weight_gradient;
  product.beta = context.first_micro_batch ? 0 : 1;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_GROUPED_MATMUL>(product));
  if (m.bias == nullptr || !with_bias) return absl::OkStatus();
  return context.Run<MT_OP_GROUPED_COLUMN_SUM>({.dtype = context.dtype,
                                                .gradient_dtype = context.types.gradient,
                                                .groups = ExpertsOf(context),
                                                .rows = ChoicesOf(context),
                                                .columns = m.out,
                                                .offsets = a.offsets,
                                                .data = dy,
                                                .result = m.bias_gradient,
                                                .result_group_stride = m.out});
}

mt_moe_rows_args Rows(const ModelContext& context, const MoeActivations& a) {
  return {.dtype = context.dtype,
          .rows = context.shape.rows,
          .columns = context.shape.hidden,
          .top_k = context.model.moe().top_k(),
          .position = a.position,
          .source = a.source};
}

absl::Status GatherSorted(ModelContext& context, const MoeActivations& a, const void* x,
                          void* sorted) {
  mt_moe_rows_args rows = Rows(context, a);
  rows.tokens = const_cast<void*>(x);
  rows.sorted = sorted;
  return context.Run<MT_OP_MOE_GATHER>(rows);
}

mt_swiglu_args Swiglu(const ModelContext& context, const ExpertMatrices& down,
                      const MoeActivations& a) {
  return {.dtype = context.dtype,
          .rows = ChoicesOf(context),
          .columns = down.in,
          .gate_up = a.gate_up,
          .limit = context.model.swiglu_limit(),
          .alpha = context.model.swiglu_alpha(),
          .offset = context.model.swiglu_offset()};
}

// a.gate_up and a.output from all rows x (N, C).
absl::Status Experts(ModelContext& context, const MoeWeights& w, const void* x,
                     const MoeActivations& a, const MoeScratch& scratch) {
  MT_RETURN_IF_ERROR(GatherSorted(context, a, x, scratch.sorted));
  MT_RETURN_IF_ERROR(
      GroupedForward(context, w.gate_up, a, scratch.sorted, a.gate_up, /*with_bias=*/true));
  mt_swiglu_args swiglu = Swiglu(context, w.down, a);
  swiglu.output = scratch.activated;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_SWIGLU_FORWARD>(swiglu));
  // The sum over the tensor group has the bias once.
  return GroupedForward(context, w.down, a, scratch.activated, a.output,
                        context.tensor_rank() == 0);
}

// From all rows dy (N, C): what the experts' weights need, and the gradient of the choices' weights, whole. Leaves the gradient of
// a.gate_up in its place.
absl::Status ExpertsBackward(ModelContext& context, const MoeWeights& w, const void* dy,
                             const MoeActivations& a, const MoeScratch& scratch) {
  mt_moe_rows_args rows = Rows(context, a);
  rows.weights = a.router.weights;
  rows.tokens = const_cast<void*>(dy);
  rows.sorted = rows.sorted_gradient = a.output;
  rows.weight_gradient = scratch.router.weights_gradient;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_MOE_COMBINE_BACKWARD>(rows));
  MT_RETURN_IF_ERROR(context.SumStatistics(rows.weight_gradient, ChoicesOf(context)));
  MT_RETURN_IF_ERROR(
      GroupedInputGradient(context, w.down, a, a.output, scratch.activated_gradient));
  mt_swiglu_args swiglu = Swiglu(context, w.down, a);
  swiglu.output = scratch.activated_again;
  swiglu.output_gradient = scratch.activated_gradient;
  swiglu.gate_up_gradient = a.gate_up;
  return context.Run<MT_OP_SWIGLU_BACKWARD>(swiglu);
}

// partial (N, C) = the experts' input gradient, or += if `add`.
absl::Status ExpertsInputGradient(ModelContext& context, const MoeWeights& w,
                                  const MoeActivations& a, const MoeScratch& scratch, void* partial,
                                  bool add) {
  MT_RETURN_IF_ERROR(GroupedInputGradient(context, w.gate_up, a, a.gate_up, scratch.sorted_again));
  mt_moe_rows_args back = Rows(context, a);
  back.tokens = partial;
  back.sorted = scratch.sorted_again;
  back.accumulate = add;
  return context.Run<MT_OP_MOE_COMBINE>(back);
}

// Of what every tensor rank has whole and makes of all rows: under sequence parallelism the trainer sums over the group, so one
// rank adds it.
bool AddsWholeGradients(const ModelContext& context) {
  return !context.sequence_parallel() || context.tensor_rank() == 0;
}

}  // namespace

absl::StatusOr<void*> MoeForward(ModelContext& context, const MoeWeights& w, const void* x,
                                 const MoeActivations& a, const MoeScratch& scratch) {
  void* const partial = scratch.part.delta;
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
  MT_RETURN_IF_ERROR(RouterForward(context, w.router, rows, a.router, scratch.router));
  MT_RETURN_IF_ERROR(Sort(context, w, a));
  MT_RETURN_IF_ERROR(Experts(context, w, rows, a, scratch));
  if (w.has_shared()) {
    MT_RETURN_IF_ERROR(
        FeedForwardPartial(context, w.shared, rows, a.shared, scratch.shared, partial));
  }
  mt_moe_rows_args combine = Rows(context, a);
  combine.weights = a.router.weights;
  combine.tokens = partial;
  combine.sorted = a.output;
  combine.accumulate = w.has_shared();
  MT_RETURN_IF_ERROR(context.Run<MT_OP_MOE_COMBINE>(combine));
  return context.SumToStream(partial);
}

absl::Status MoeRecompute(ModelContext& context, const MoeWeights& w, const void* x,
                          const MoeActivations& a, const MoeScratch& scratch) {
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
  MT_RETURN_IF_ERROR(Experts(context, w, rows, a, scratch));
  return w.has_shared() ? FeedForwardPartialRecompute(context, w.shared, rows, a.shared)
                        : absl::OkStatus();
}

absl::StatusOr<void*> MoeBackwardInput(ModelContext& context, const MoeWeights& w, const void* dy,
                                       const MoeActivations& a, const MoeScratch& scratch) {
  void* const partial = scratch.part.norm_gradient;
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(dy, scratch.part.gathered_gradient));
  // In the order of the moments in which their scratch lives (common/spec/plan_moe.cc).
  MT_RETURN_IF_ERROR(ExpertsBackward(context, w, rows, a, scratch));
  if (w.has_shared()) {
    MT_RETURN_IF_ERROR(FeedForwardPartialBackwardInput(context, w.shared, rows, a.shared,
                                                       scratch.shared, partial));
  }
  MT_RETURN_IF_ERROR(ExpertsInputGradient(context, w, a, scratch, partial, w.has_shared()));
  MT_RETURN_IF_ERROR(RouterBackwardInput(context, w.router, a.router, scratch.router, partial));
  return context.SumToStream(partial);
}

absl::Status MoeBackwardWeight(ModelContext& context, const MoeWeights& w, const void* x,
                               const void* dy, const MoeActivations& a, const MoeScratch& scratch) {
  MT_ASSIGN_OR_RETURN(const void* rows, context.GatherRows(x, scratch.part.gathered_input));
  MT_RETURN_IF_ERROR(GatherSorted(context, a, rows, scratch.sorted_again));
  MT_RETURN_IF_ERROR(GroupedWeightGradient(context, w.gate_up, a, a.gate_up, scratch.sorted_again,
                                           /*with_bias=*/true));
  MT_RETURN_IF_ERROR(GroupedWeightGradient(context, w.down, a, a.output, scratch.activated_again,
                                           AddsWholeGradients(context)));
  if (AddsWholeGradients(context))
    MT_RETURN_IF_ERROR(RouterBackwardWeight(context, w.router, rows, scratch.router));
  if (!w.has_shared()) return absl::OkStatus();
  return FeedForwardPartialBackwardWeight(context, w.shared, rows,
                                          context.GatheredRows(dy, scratch.part.gathered_gradient),
                                          a.shared, scratch.shared);
}

}  // namespace mt
