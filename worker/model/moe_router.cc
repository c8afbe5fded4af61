#include "worker/model/moe_router.h"

namespace mt {
namespace {

int32_t ScoreOf(v1::MoeSpec::Score score) {
  switch (score) {
    case v1::MoeSpec::SCORE_SIGMOID:
      return MT_MOE_SIGMOID;
    case v1::MoeSpec::SCORE_SOFTMAX_TOP_K:
      return MT_MOE_SOFTMAX_TOP_K;
    default:
      return MT_MOE_SOFTMAX;
  }
}

int64_t ExpertsOf(const ModelContext& context) { return context.model.moe().experts(); }
int64_t CountedOf(const ModelContext& context) {
  return Counted(context.model.moe(), context.shape.batch);
}

absl::Status ToStatistic(ModelContext& context, const void* source, void* copy, int64_t count) {
  return context.Run<MT_OP_COPY>({.source_dtype = context.dtype,
                                  .destination_dtype = context.types.statistic,
                                  .source = source,
                                  .destination = copy,
                                  .count = count});
}

absl::StatusOr<const void*> RouterInput(ModelContext& context, const void* x, void* copy) {
  if (context.dtype == context.types.statistic) return x;
  MT_RETURN_IF_ERROR(ToStatistic(context, x, copy, context.shape.rows * context.shape.hidden));
  return copy;
}

absl::StatusOr<RouterWeights> RouterInStatistic(ModelContext& context, const RouterWeights& w,
                                                const RouterScratch& t) {
  if (context.dtype == context.types.statistic) return w;
  const int64_t count = ExpertsOf(context) * context.shape.hidden;
  RouterWeights copy = w;
  MT_RETURN_IF_ERROR(ToStatistic(context, w.weight, t.weight, count));
  copy.weight = t.weight;
  if (w.bias != nullptr) {
    void* const bias = context.StatisticAt(t.weight, count);
    MT_RETURN_IF_ERROR(ToStatistic(context, w.bias, bias, ExpertsOf(context)));
    copy.bias = bias;
  }
  return copy;
}

mt_moe_route_args RouteArguments(const ModelContext& context, const RouterWeights& w,
                                 const RouterActivations& a) {
  const v1::MoeSpec& moe = context.model.moe();
  return {.dtype = context.types.statistic,
          .rows = context.shape.rows,
          .batch = context.shape.batch,
          .experts = moe.experts(),
          .top_k = moe.top_k(),
          .score = ScoreOf(moe.score()),
          .normalize = moe.normalize(),
          .scale = moe.scale(),
          .groups = moe.groups(),
          .top_groups = moe.top_groups(),
          .group_top_2 = moe.group_score() == v1::MoeSpec::GROUP_SCORE_TOP_2,
          .logits = a.logits,
          .selection_bias = w.selection_bias,
          .ids = a.ids,
          .weights = a.weights};
}

// The choices of this micro-batch, which MoeRoute left in scratch.counts64, into the step's counts; with the scores, the loss
// that they make and its gradient.
absl::Status Count(ModelContext& context, const MoeTraining& training, double* balance_gradient,
                   const RouterScratch& t) {
  const mt_dtype statistic = context.types.statistic;
  const int64_t stride = CountStride(ExpertsOf(context)), numbers = CountedOf(context) * stride;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_COPY>({.source_dtype = MT_F64,
                                              .destination_dtype = statistic,
                                              .source = t.counts64,
                                              .destination = t.counts,
                                              .count = 2 * numbers}));
  MT_RETURN_IF_ERROR(context.Run<MT_OP_COLUMN_SUM>({.dtype = statistic,
                                                    .gradient_dtype = statistic,
                                                    .rows = CountedOf(context),
                                                    .columns = ExpertsOf(context),
                                                    .row_stride = stride,
                                                    .data = t.counts,
                                                    .result = training.load}));
  if (training.balance == v1::MoeSpec::BALANCE_NONE) return absl::OkStatus();
  const void* gradient = training.global_gradient;
  if (training.balance != v1::MoeSpec::BALANCE_GLOBAL) {
    MT_RETURN_IF_ERROR(context.Run<MT_OP_SCALE>({.dtype = statistic,
                                                 .data = t.counts,
                                                 .count = numbers,
                                                 .factor = training.balance_scale}));
    MT_RETURN_IF_ERROR(context.Run<MT_OP_COPY>({.source_dtype = statistic,
                                                .destination_dtype = MT_F64,
                                                .source = t.counts,
                                                .destination = balance_gradient,
                                                .count = numbers}));
    gradient = t.counts;
  }
  // The loss is linear in the scores: their product with its gradient.
  return context.Run<MT_OP_MATMUL>({.dtype = statistic,
                                    .output_dtype = statistic,
                                    .transpose_b = 1,
                                    .m = 1,
                                    .n = 1,
                                    .k = numbers,
                                    .a = gradient,
                                    .lda = numbers,
                                    .b = context.StatisticAt(t.counts, numbers),
                                    .ldb = numbers,
                                    .d = training.balance_loss,
                                    .ldd = 1,
                                    .alpha = 1,
                                    .beta = 1});
}

// partial (N, C) += dlogits W, of tensor rank 0.
absl::Status RouterInputGradient(ModelContext& context, const RouterWeights& w,
                                 const RouterScratch& t, void* partial) {
  const int64_t N = context.shape.rows, C = context.shape.hidden;
  const mt_dtype statistic = context.types.statistic;
  const bool direct = context.dtype == statistic;
  MT_ASSIGN_OR_RETURN(const RouterWeights router, RouterInStatistic(context, w, t));
  MT_RETURN_IF_ERROR(context.Run<MT_OP_MATMUL>({.dtype = statistic,
                                                .output_dtype = statistic,
                                                .m = N,
                                                .n = C,
                                                .k = ExpertsOf(context),
                                                .a = t.logits_gradient,
                                                .lda = ExpertsOf(context),
                                                .b = router.weight,
                                                .ldb = C,
                                                .d = direct ? partial : t.input_again,
                                                .ldd = C,
                                                .alpha = 1,
                                                .beta = direct ? 1.0 : 0.0}));
  if (direct) return absl::OkStatus();
  MT_RETURN_IF_ERROR(context.Run<MT_OP_COPY>({.source_dtype = statistic,
                                              .destination_dtype = context.dtype,
                                              .source = t.input_again,
                                              .destination = t.input_gradient,
                                              .count = N * C}));
  return context.Run<MT_OP_ADD>({.dtype = context.dtype,
                                 .a = partial,
                                 .b = t.input_gradient,
                                 .destination = partial,
                                 .count = N * C});
}

}  // namespace

absl::Status RouterForward(ModelContext& context, const RouterWeights& w, const void* x,
                           const RouterActivations& a, const RouterScratch& t) {
  const int64_t C = context.shape.hidden;
  const mt_dtype statistic = context.types.statistic;
  MT_ASSIGN_OR_RETURN(const void* input, RouterInput(context, x, t.input));
  MT_ASSIGN_OR_RETURN(const RouterWeights router, RouterInStatistic(context, w, t));
  MT_RETURN_IF_ERROR(context.Run<MT_OP_MATMUL>({.dtype = statistic,
                                                .output_dtype = statistic,
                                                .transpose_b = 1,
                                                .m = context.shape.rows,
                                                .n = ExpertsOf(context),
                                                .k = C,
                                                .a = input,
                                                .lda = C,
                                                .b = router.weight,
                                                .ldb = C,
                                                .d = a.logits,
                                                .ldd = ExpertsOf(context),
                                                .alpha = 1,
                                                .bias = router.bias}));
  const int64_t stride = CountStride(ExpertsOf(context)), numbers = CountedOf(context) * stride;
  // Zeros have the same bits in every type; that of float32 is the one that every backend fills.
  MT_RETURN_IF_ERROR(context.Run<MT_OP_FILL>(
      {.dtype = MT_F32, .data = t.counts64, .count = 2 * 2 * numbers, .value = 0}));
  mt_moe_route_args route = RouteArguments(context, w, a);
  route.expert_load = t.counts64;
  if (w.training.balance != v1::MoeSpec::BALANCE_NONE) route.score_sum = t.counts64 + numbers;
  route.statistics_stride = CountedOf(context) > 1 ? stride : 0;
  if (w.training.z_scale > 0) route.z_sum = w.training.z_sum;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_MOE_ROUTE_FORWARD>(route));
  return w.training.load == nullptr ? absl::OkStatus()
                                    : Count(context, w.training, a.balance_gradient, t);
}

absl::Status RouterBackwardInput(ModelContext& context, const RouterWeights& w,
                                 const RouterActivations& a, const RouterScratch& t,
                                 void* partial) {
  mt_moe_route_args route = RouteArguments(context, w, a);
  route.weight_gradient = t.weights_gradient;
  route.logits_gradient = t.logits_gradient;
  if (w.training.balance != v1::MoeSpec::BALANCE_NONE) {
    const bool global = w.training.balance == v1::MoeSpec::BALANCE_GLOBAL;
    route.balance_gradient = global ? w.training.global_gradient64 : a.balance_gradient;
    if (CountedOf(context) > 1) route.balance_stride = CountStride(ExpertsOf(context));
  }
  route.z_scale = w.training.z_scale;
  MT_RETURN_IF_ERROR(context.Run<MT_OP_MOE_ROUTE_BACKWARD>(route));
  return context.tensor_rank() == 0 ? RouterInputGradient(context, w, t, partial)
                                    : absl::OkStatus();
}

absl::Status RouterBackwardWeight(ModelContext& context, const RouterWeights& w, const void* x,
                                  const RouterScratch& t) {
  const int64_t N = context.shape.rows, C = context.shape.hidden;
  const mt_dtype statistic = context.types.statistic;
  MT_ASSIGN_OR_RETURN(const void* input, RouterInput(context, x, t.input_again));
  MT_RETURN_IF_ERROR(context.Run<MT_OP_MATMUL>({.dtype = statistic,
                                                .output_dtype = context.types.gradient,
                                                .transpose_a = 1,
                                                .m = ExpertsOf(context),
                                                .n = C,
                                                .k = N,
                                                .a = t.logits_gradient,
                                                .lda = ExpertsOf(context),
                                                .b = input,
                                                .ldb = C,
                                                .d = w.weight_gradient,
                                                .ldd = C,
                                                .alpha = 1,
                                                .beta = 1}));
  if (w.bias == nullptr) return absl::OkStatus();
  return context.Run<MT_OP_COLUMN_SUM>({.dtype = statistic,
                                        .gradient_dtype = context.types.gradient,
                                        .rows = N,
                                        .columns = ExpertsOf(context),
                                        .row_stride = ExpertsOf(context),
                                        .data = t.logits_gradient,
                                        .result = w.bias_gradient});
}

}  // namespace mt
