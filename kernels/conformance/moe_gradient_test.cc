// The operations of mixtures of experts and latent attention: backward against central differences of forward, and choices, order
// and counts against what the contract says in words.
#include <numeric>

#include "kernels/conformance/gradient_check.h"

namespace mt::conformance {
namespace {

using Integers = std::vector<int32_t>;

struct Route {
  int64_t rows = 1, batch = 1, experts, top_k;
  int32_t score = MT_MOE_SOFTMAX, normalize = 0;
  double scale = 1;
  int64_t groups = 0, top_groups = 0;
  int32_t group_top_2 = 0;
  int64_t stride = 0;  // of statistics and of the balance gradient
  Vector logits, bias;
  // What comes out.
  Integers ids;
  Vector weights, load, score_sum;
  double z_sum = 0;

  mt_moe_route_args Args() const {
    return {.rows = rows,
            .batch = batch,
            .experts = experts,
            .top_k = top_k,
            .score = score,
            .normalize = normalize,
            .scale = scale,
            .groups = groups,
            .top_groups = top_groups,
            .group_top_2 = group_top_2,
            .logits = logits.data(),
            .selection_bias = bias.empty() ? nullptr : bias.data(),
            .statistics_stride = stride,
            .balance_stride = stride};
  }
  void Forward() {
    ids.assign(static_cast<size_t>(rows * top_k), -7);
    weights.assign(static_cast<size_t>(rows * top_k), NAN);
    load.assign(static_cast<size_t>(stride > 0 ? stride * batch : experts), 0);
    score_sum = load;
    z_sum = 0;
    mt_moe_route_args args = Args();
    args.ids = ids.data();
    args.weights = weights.data();
    args.expert_load = load.data();
    args.score_sum = score_sum.data();
    args.z_sum = &z_sum;
    Call(MT_OP_MOE_ROUTE_FORWARD, args);
  }
};

void CheckRoute(Route route) {
  constexpr double kZScale = 0.03;
  const Vector dy = Normals(route.rows * route.top_k, 3);
  route.logits = Normals(route.rows * route.experts, 1);
  route.bias = Normals(route.experts, 2);
  route.Forward();
  const Vector balance = Normals(static_cast<int64_t>(route.score_sum.size()), 4);
  Vector gradient(route.logits.size(), NAN);
  mt_moe_route_args args = route.Args();
  args.ids = route.ids.data();
  args.weight_gradient = dy.data();
  args.logits_gradient = gradient.data();
  args.balance_gradient = balance.data();
  args.z_scale = kZScale;
  Call(MT_OP_MOE_ROUTE_BACKWARD, args);
  const auto loss = [&] {
    route.Forward();
    return Dot(route.weights, dy) + Dot(route.score_sum, balance) + kZScale * route.z_sum;
  };
  ExpectGradient(route.logits, gradient, loss, "logits");
}

TEST(MoeGradientTest, RouteWithItsBalanceAndItsZTerm) {
  for (const int32_t score : {MT_MOE_SOFTMAX, MT_MOE_SOFTMAX_TOP_K, MT_MOE_SIGMOID}) {
    for (const int32_t normalize : {0, 1}) {
      SCOPED_TRACE("score " + std::to_string(score) + " normalize " + std::to_string(normalize));
      Route route = {.rows = 6, .batch = 2, .experts = 8, .top_k = 3};
      route.score = score;
      route.normalize = normalize;
      route.scale = 2.5;
      CheckRoute(route);
      route.stride = 9;  // sequences apart
      CheckRoute(route);
      route.groups = 4;
      route.top_groups = 2;
      route.group_top_2 = 1;
      CheckRoute(route);
      route.top_k = 8;
      route.groups = 0;
      CheckRoute(route);
    }
  }
}

TEST(MoeRouteTest, TheLargestChoicesAndTheLowerNumberAmongEquals) {
  Route route = {.experts = 6, .top_k = 3};
  route.score = MT_MOE_SOFTMAX_TOP_K;
  route.logits = {1, 3, 3, 0, 3, 2};
  route.Forward();
  EXPECT_EQ(route.ids, (Integers{1, 2, 4}));
  for (const double weight : route.weights) EXPECT_NEAR(weight, 1.0 / 3, 1e-15);
  EXPECT_EQ(route.load, (Vector{0, 1, 1, 0, 1, 0}));
  route.bias = {9, 0, -9, 0, 0, 2};  // chooses, and weighs nothing
  route.top_k = 2;
  route.Forward();
  EXPECT_EQ(route.ids, (Integers{0, 5}));
  EXPECT_NEAR(route.weights[0], 1 / (1 + std::exp(1)), 1e-15);
}

TEST(MoeRouteTest, NotANumberIsChosenLastAndNotHidden) {
  Route route = {.rows = 2, .experts = 4, .top_k = 3};
  route.score = MT_MOE_SIGMOID;
  route.logits = {NAN, -5, NAN, 1, NAN, NAN, NAN, NAN};
  route.Forward();
  EXPECT_EQ(route.ids, (Integers{3, 1, 0, 0, 1, 2}));
  EXPECT_EQ(route.weights[0], 1 / (1 + std::exp(-1)));
  EXPECT_TRUE(std::isnan(route.weights[2]));
  EXPECT_TRUE(std::isnan(route.score_sum[1]));
  EXPECT_TRUE(std::isnan(route.z_sum));
}

TEST(MoeRouteTest, OnlyTheBestGroupsAreChosenFrom) {
  Route route = {.experts = 6, .top_k = 2};
  route.score = MT_MOE_SOFTMAX_TOP_K;
  route.groups = 3;
  route.top_groups = 1;
  route.logits = {5, -9, 4, 3, 1, 1};
  route.Forward();
  EXPECT_EQ(route.ids, (Integers{0, 1}));  // by its best
  route.group_top_2 = 1;
  route.Forward();
  EXPECT_EQ(route.ids, (Integers{2, 3}));  // by its two best
  route.logits = {2, 1, 0, 3, 1, 2};       // all worth 3
  route.top_groups = 2;
  route.Forward();
  EXPECT_EQ(route.ids, (Integers{3, 0}));
  route.logits = {NAN, 9, 1, 2, 2, 0};  // two best: NaN, 3, 2
  route.top_groups = 1;
  route.Forward();
  EXPECT_EQ(route.ids, (Integers{3, 2}));
}

TEST(MoeRouteTest, ScoresWeightsAndStatistics) {
  const double e = std::exp(1);
  Route route = {.experts = 2, .top_k = 1};
  route.logits = {0, 1};
  route.scale = 4;
  route.Forward();
  EXPECT_NEAR(route.weights[0], 4 * e / (1 + e), 1e-15);
  EXPECT_NEAR(route.score_sum[0], 1 / (1 + e), 1e-15);
  EXPECT_NEAR(route.z_sum, std::pow(std::log(1 + e), 2), 1e-15);
  route.normalize = 1;
  route.Forward();
  EXPECT_NEAR(route.weights[0], 4, 1e-15);
  route.score = MT_MOE_SIGMOID;
  route.normalize = 0;
  route.Forward();
  const double low = 0.5, high = e / (1 + e);
  EXPECT_NEAR(route.weights[0], 4 * high, 1e-15);
  EXPECT_NEAR(route.score_sum[0], low / (low + high), 1e-15);
}

struct Sorted {
  Integers position, source, offsets;
  double dropped = 1;
};
Sorted Sort(const Integers& ids, int64_t top_k, int64_t experts, int64_t capacity = 0,
            const Vector& weights = {}) {
  Sorted out;
  out.position.assign(ids.size(), -7);
  out.source.assign(ids.size(), -7);
  out.offsets.assign(static_cast<size_t>(experts + 1), -7);
  Call(MT_OP_MOE_SORT, mt_moe_sort_args{.rows = static_cast<int64_t>(ids.size()) / top_k,
                                        .experts = experts,
                                        .top_k = top_k,
                                        .ids = ids.data(),
                                        .weights = weights.empty() ? nullptr : weights.data(),
                                        .capacity = capacity,
                                        .drop_lightest = !weights.empty(),
                                        .position = out.position.data(),
                                        .source = out.source.data(),
                                        .offsets = out.offsets.data(),
                                        .dropped = &out.dropped});
  return out;
}

TEST(MoeSortTest, StableByExpert) {
  const Sorted all = Sort({2, 0, 0, 2, 2, 1}, 2, 4);
  EXPECT_EQ(all.position, (Integers{3, 0, 1, 4, 5, 2}));
  EXPECT_EQ(all.source, (Integers{1, 2, 5, 0, 3, 4}));
  EXPECT_EQ(all.offsets, (Integers{0, 2, 3, 6, 6}));
  EXPECT_EQ(all.dropped, 1);
}

TEST(MoeSortTest, WhatDoesNotFitIsTheLastOrTheLightest) {
  const Sorted last = Sort({2, 0, 0, 2, 2, 1}, 2, 4, 2);
  EXPECT_EQ(last.position, (Integers{3, 0, 1, 4, -1, 2}));
  EXPECT_EQ(last.source, (Integers{1, 2, 5, 0, 3, -1}));
  EXPECT_EQ(last.offsets, (Integers{0, 2, 3, 5, 5}));
  EXPECT_EQ(last.dropped, 2);
  const Sorted lightest = Sort({2, 0, 0, 2, 2, 1}, 2, 4, 2, {0.25, 0, 0, 0.5, 0.25, 0});
  EXPECT_EQ(lightest.position, (Integers{3, 0, 1, 4, -1, 2}));  // the earlier of two equals stays
  const Sorted first = Sort({2, 0, 0, 2, 2, 1}, 2, 4, 2, {0.1, 0, 0, 0.5, 0.2, 0});
  EXPECT_EQ(first.position, (Integers{-1, 0, 1, 3, 4, 2}));
  const Sorted nan = Sort({1, 1, 1}, 1, 2, 2, {NAN, -1, NAN});
  EXPECT_EQ(nan.position, (Integers{0, 1, -1}));
}

// A whole layer of experts, from tokens to tokens, with dropped choices: every gradient.
TEST(MoeGradientTest, GatherGroupedProductAndCombine) {
  const int64_t N = 5, k = 2, E = 4, C = 3, D = 2, R = N * k, stride = C * D + 1;
  const Integers ids = {0, 2, 2, 0, 3, 2, 2, 3, 0, 2};
  const Sorted sorted = Sort(ids, k, E, 3);  // expert 1 has none, expert 2 loses two
  ASSERT_EQ(sorted.offsets[E], 8);
  Vector x = Normals(N * C, 1), weight = Normals(E * stride, 2), bias = Normals(E * D, 3),
         route = Normals(R, 4), dy = Normals(N * D, 5);
  Vector rows(R * C, NAN), products(R * D, NAN), y(N * D, NAN);
  mt_moe_rows_args gather = {.rows = N,
                             .columns = C,
                             .top_k = k,
                             .position = sorted.position.data(),
                             .source = sorted.source.data(),
                             .tokens = x.data(),
                             .sorted = rows.data()};
  mt_grouped_matmul_args product = {.gradient_dtype = MT_F64,
                                    .mode = MT_GROUPED_FORWARD,
                                    .groups = E,
                                    .rows = R,
                                    .in = C,
                                    .out = D,
                                    .offsets = sorted.offsets.data(),
                                    .x = rows.data(),
                                    .y = products.data(),
                                    .weight = weight.data(),
                                    .weight_group_stride = stride,
                                    .bias = bias.data(),
                                    .bias_group_stride = D};
  mt_moe_rows_args combine = gather;
  combine.columns = D;
  combine.weights = route.data();
  combine.tokens = y.data();
  combine.sorted = products.data();
  const auto loss = [&] {
    Call(MT_OP_MOE_GATHER, gather);
    Call(MT_OP_GROUPED_MATMUL, product);
    Call(MT_OP_MOE_COMBINE, combine);
    return Dot(y, dy);
  };
  loss();
  for (int64_t i = 0; i < 2 * C; ++i) EXPECT_EQ(rows[rows.size() - 1 - i], 0);
  for (int64_t i = 0; i < 2 * D; ++i) EXPECT_EQ(products[products.size() - 1 - i], 0);

  Vector d_route(R, NAN), d_products(R * D, NAN), d_rows(R * C, NAN), dx(N * C, NAN),
      d_weight(E * stride, 0.5), d_bias(E * D, 0.0);
  mt_moe_rows_args back = combine;
  back.tokens = dy.data();
  back.sorted_gradient = d_products.data();
  back.weight_gradient = d_route.data();
  Call(MT_OP_MOE_COMBINE_BACKWARD, back);
  product.bias = nullptr;
  product.y = d_products.data();
  mt_grouped_matmul_args input = product;
  input.mode = MT_GROUPED_INPUT_GRADIENT;
  input.x = d_rows.data();
  Call(MT_OP_GROUPED_MATMUL, input);
  mt_grouped_matmul_args weights = product;
  weights.mode = MT_GROUPED_WEIGHT_GRADIENT;
  weights.weight = d_weight.data();
  Call(MT_OP_GROUPED_MATMUL, weights);
  for (int64_t i = 0; i < C * D; ++i) EXPECT_EQ(d_weight[stride + i], 0);  // the empty expert's
  for (int64_t e = 0; e < E; ++e) {
    EXPECT_EQ(d_weight[e * stride + C * D], 0.5);  // between two experts
    d_weight[e * stride + C * D] = 0;
  }
  Call(MT_OP_GROUPED_COLUMN_SUM, mt_grouped_column_sum_args{.gradient_dtype = MT_F64,
                                                            .groups = E,
                                                            .rows = R,
                                                            .columns = D,
                                                            .offsets = sorted.offsets.data(),
                                                            .data = d_products.data(),
                                                            .result = d_bias.data(),
                                                            .result_group_stride = D});
  mt_moe_rows_args scatter = gather;  // its backward
  scatter.tokens = dx.data();
  scatter.sorted = d_rows.data();
  Call(MT_OP_MOE_COMBINE, scatter);
  product.bias = bias.data();
  product.y = products.data();
  ExpectGradient(x, dx, loss, "x");
  ExpectGradient(route, d_route, loss, "route's weights");
  ExpectGradient(weight, d_weight, loss, "experts' weights");
  ExpectGradient(bias, d_bias, loss, "experts' biases");
}

TEST(MoeGradientTest, WeightGradientsAreAddedToOnlyIfAsked) {
  Vector x = {2}, y = {3}, weight = {10, 20};
  const Integers offsets = {0, 1, 1};
  for (const double beta : {1.0, 0.0}) {
    Call(MT_OP_GROUPED_MATMUL, mt_grouped_matmul_args{.gradient_dtype = MT_F64,
                                                      .mode = MT_GROUPED_WEIGHT_GRADIENT,
                                                      .groups = 2,
                                                      .rows = 1,
                                                      .in = 1,
                                                      .out = 1,
                                                      .offsets = offsets.data(),
                                                      .x = x.data(),
                                                      .y = y.data(),
                                                      .weight = weight.data(),
                                                      .weight_group_stride = 1,
                                                      .beta = beta});
    EXPECT_EQ(weight, beta != 0 ? (Vector{16, 20}) : (Vector{6, 0}));
  }
}

TEST(MoeGradientTest, LatentAttentionsHeads) {
  const int64_t N = 3, H = 2, nope = 3, rope = 2, v = 4;
  Vector kv = Normals(N * H * (nope + v), 1), key_rope = Normals(N * rope, 2),
         dk = Normals(N * H * (nope + rope), 3), dv = Normals(N * H * v, 4);
  Vector key(dk.size()), value(dv.size()), d_kv(kv.size()), d_rope(key_rope.size());
  mt_mla_expand_args args = {.rows = N,
                             .heads = H,
                             .nope_dim = nope,
                             .rope_dim = rope,
                             .v_dim = v,
                             .kv = d_kv.data(),
                             .key_rope = d_rope.data(),
                             .key = dk.data(),
                             .value = dv.data()};
  Call(MT_OP_MLA_EXPAND_BACKWARD, args);
  args.kv = kv.data();
  args.key_rope = key_rope.data();
  args.key = key.data();
  args.value = value.data();
  const auto loss = [&] {
    Call(MT_OP_MLA_EXPAND_FORWARD, args);
    return Dot(key, dk) + Dot(value, dv);
  };
  ExpectGradient(kv, d_kv, loss, "kv");
  ExpectGradient(key_rope, d_rope, loss, "key_rope");
  EXPECT_EQ(key[nope], key_rope[0]);
  EXPECT_EQ(key[nope + rope + nope + 1], key_rope[1]);
  EXPECT_EQ(value[0], kv[nope]);
}

TEST(MoeGradientTest, ClampedSwiglu) {
  const int64_t rows = 6, D = 4;
  const double limit = 0.8;
  Vector gate_up = Normals(rows * 2 * D, 1), dy = Normals(rows * D, 2), y(rows * D),
         gradient(rows * 2 * D);
  for (double& x : gate_up) {
    if (std::fabs(std::fabs(x) - limit) < 1e-3) x = 0;  // no derivative there
  }
  mt_swiglu_args args = {.rows = rows,
                         .columns = D,
                         .gate_up = gate_up.data(),
                         .output = y.data(),
                         .output_gradient = dy.data(),
                         .limit = limit,
                         .alpha = 1.7,
                         .offset = 1};
  const auto forward = [&] {
    Call(MT_OP_SWIGLU_FORWARD, args);
    return Dot(y, dy);
  };
  mt_swiglu_args backward = args;
  backward.output = nullptr;
  backward.gate_up_gradient = gradient.data();
  Call(MT_OP_SWIGLU_BACKWARD, backward);
  ExpectGradient(gate_up, gradient, forward, "gate_up");
}

TEST(SwigluTest, LimitsCutTheGateAboveAndTheUpOnBothSides) {
  const auto swiglu = [](double gate, double up) {
    Vector gate_up = {gate, up};
    double y = NAN;
    Call(MT_OP_SWIGLU_FORWARD, mt_swiglu_args{.rows = 1,
                                              .columns = 1,
                                              .gate_up = gate_up.data(),
                                              .output = &y,
                                              .limit = 7,
                                              .alpha = 1.702,
                                              .offset = 1});
    return y;
  };
  const auto gated = [](double gate) { return gate / (1 + std::exp(-1.702 * gate)); };
  EXPECT_NEAR(swiglu(2, 3), gated(2) * 4, 1e-14);
  EXPECT_NEAR(swiglu(9, 3), gated(7) * 4, 1e-14);
  EXPECT_NEAR(swiglu(-9, 3), gated(-9) * 4, 1e-14);
  EXPECT_NEAR(swiglu(2, 30), gated(2) * 8, 1e-14);
  EXPECT_NEAR(swiglu(2, -30), gated(2) * -6, 1e-14);
  EXPECT_TRUE(std::isnan(swiglu(NAN, 1)));
  EXPECT_TRUE(std::isnan(swiglu(1, NAN)));
}

TEST(BalanceTest, BiasesMoveTowardsExpertsWithTooLittle) {
  Vector bias = {0.5, 0.5, 0.5}, parameter(3, NAN), load = {3, 4, 5};
  double scale = 1;
  mt_balance_update_args args = {.state_dtype = MT_F64,
                                 .gradient_dtype = MT_F64,
                                 .count = 3,
                                 .parameter = parameter.data(),
                                 .bias = bias.data(),
                                 .load = load.data(),
                                 .rate = 0.25,
                                 .target = 4,
                                 .gradient_scale_pointer = &scale};
  Call(MT_OP_BALANCE_UPDATE, args);
  EXPECT_EQ(bias, (Vector{0.75, 0.5, 0.25}));
  EXPECT_EQ(parameter, bias);
  scale = NAN;
  Call(MT_OP_BALANCE_UPDATE, args);
  EXPECT_EQ(bias, (Vector{0.75, 0.5, 0.25}));
}

}  // namespace
}  // namespace mt::conformance
