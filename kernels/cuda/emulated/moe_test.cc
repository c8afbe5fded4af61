// moe_test REFERENCE_LIBRARY EMULATED_LIBRARY: what the table of cases (kernels/conformance) does not say about experts: every
// number of them at which a kernel changes its way of working, groups without rows, experts that are full, and the same bits in
// any order of threads and blocks.
#include <algorithm>
#include <numeric>

#include "kernels/cuda/emulated/problem.h"

namespace mt::cuda {
namespace {

struct Routing {
  int64_t rows, experts, top_k;
  int32_t score = MT_MOE_SOFTMAX;
  bool normalize = false, bias = false;
  int64_t groups = 0, top_groups = 0;
  bool two = false;
  int64_t batch = 1, stride = 0;
};

std::string Describe(const Routing& r) {
  return std::to_string(r.rows) + " rows, " + std::to_string(r.top_k) + " of " +
         std::to_string(r.experts) + " experts, score " + std::to_string(r.score) + ", " +
         std::to_string(r.groups) + " groups";
}

std::string RunRoute(Problem& p, const Routing& r) {
  const int64_t statistics = r.stride != 0 ? r.batch * r.stride : r.experts;
  const int logits = p.Statistic("logits", r.rows * r.experts, 0, 1.5f);
  const int bias = p.Statistic("bias", r.experts, 0, 0.1f);
  const int ids = p.Integers("ids", std::vector<float>(static_cast<size_t>(r.rows * r.top_k), -1));
  const int weights = p.Statistic("weights", r.rows * r.top_k);
  const int load = p.Doubles("load", statistics, 3), sums = p.Doubles("score_sum", statistics, 1);
  const int z = p.Doubles("z_sum", 1, 2);
  const auto fill = [&](mt_moe_route_args& args, auto at) {
    args.rows = r.rows;
    args.batch = r.batch;
    args.experts = r.experts;
    args.top_k = r.top_k;
    args.score = r.score;
    args.normalize = r.normalize;
    args.scale = 2.5;
    args.groups = r.groups;
    args.top_groups = r.top_groups;
    args.group_top_2 = r.two;
    args.logits = at(logits);
    args.selection_bias = at(r.bias ? bias : -1);
    args.ids = at(ids);
    args.weights = at(weights);
    args.expert_load = at(load);
    args.score_sum = at(sums);
    args.z_sum = at(z);
    args.statistics_stride = r.stride;
  };
  if (std::string wrong = p.Run<mt_moe_route_args>(MT_OP_MOE_ROUTE_FORWARD, fill); !wrong.empty())
    return wrong;
  const int dy = p.Statistic("weight_gradient", r.rows * r.top_k, 0, 1);
  const int dx = p.Statistic("logits_gradient", r.rows * r.experts);
  const int balance = p.Doubles("balance_gradient", statistics, 0, 0.3f);
  return p.Run<mt_moe_route_args>(MT_OP_MOE_ROUTE_BACKWARD, [&](mt_moe_route_args& args, auto at) {
    fill(args, at);
    args.weight_gradient = at(dy);
    args.logits_gradient = at(dx);
    args.balance_gradient = at(balance);
    args.balance_stride = r.stride;
    args.z_scale = 0.01;
  });
}

TEST(Route, EveryNumberOfRegistersOfALane) {
  for (const int64_t experts : {1, 2, 31, 32, 33, 64, 65, 128, 129, 256, 257, 384, 512}) {
    for (const int32_t score : {MT_MOE_SOFTMAX, MT_MOE_SOFTMAX_TOP_K, MT_MOE_SIGMOID}) {
      const Routing r = {.rows = 9,
                         .experts = experts,
                         .top_k = std::min<int64_t>(experts, experts == 33 ? 32 : 8),
                         .score = score,
                         .normalize = experts % 2 == 0,
                         .bias = experts % 3 != 0};
      Check(Describe(r), [&](Problem& p) { return RunRoute(p, r); }, {0}, {MT_F32});
    }
  }
}

TEST(Route, GroupsOfAnySize) {
  for (const bool two : {false, true}) {
    for (const auto& [experts, groups, top_groups, top_k] :
         {std::tuple<int64_t, int64_t, int64_t, int64_t>{256, 8, 4, 8},
          {24, 4, 2, 6},
          {64, 32, 3, 5},
          {160, 5, 5, 7},
          {40, 4, 1, 10}}) {
      const Routing r = {.rows = 13,
                         .experts = experts,
                         .top_k = top_k,
                         .score = MT_MOE_SIGMOID,
                         .normalize = true,
                         .bias = true,
                         .groups = groups,
                         .top_groups = top_groups,
                         .two = two};
      Check(Describe(r), [&](Problem& p) { return RunRoute(p, r); }, {0}, {MT_F32});
    }
  }
}

// Rows of many blocks, whose partial sums are added in order; with and without a sum per sequence.
TEST(Route, StatisticsOfManyRowsHaveTheSameBitsInAnyOrder) {
  for (const int64_t stride : {0, 8, 11}) {
    const Routing r = {.rows = 333, .experts = 8, .top_k = 2, .batch = 3, .stride = stride};
    Check(Describe(r), [&](Problem& p) { return RunRoute(p, r); }, {0}, {MT_F32});
  }
}

// Both zeros are one number, and NaN is less than every number.
TEST(Route, LowerIdAmongEqualsAndNotANumberLast) {
  const std::vector<float> logits = {0.0f, -0.0f, NAN,  -HUGE_VALF, 0.0f,  NAN,   NAN,  NAN,
                                     1.0f, 1.0f,  1.0f, 1.0f,       -1.0f, -1.0f, 2.0f, 1.0f};
  for (const auto& [top_k, expected] :
       {std::pair<int64_t, std::vector<int32_t>>{3, {0, 1, 4, 6, 0, 1}},
        {8, {0, 1, 4, 3, 2, 5, 6, 7, 6, 0, 1, 2, 3, 7, 4, 5}}}) {
    std::vector<int32_t> ids(static_cast<size_t>(2 * top_k), -1);
    std::vector<float> weights(ids.size());
    std::vector<double> load(8), workspace(64);
    mt_moe_route_args args = {.struct_size = sizeof args,
                              .dtype = MT_F32,
                              .rows = 2,
                              .batch = 1,
                              .experts = 8,
                              .top_k = top_k,
                              .score = MT_MOE_SOFTMAX_TOP_K,
                              .scale = 1,
                              .logits = logits.data(),
                              .ids = ids.data(),
                              .weights = weights.data(),
                              .expert_load = load.data(),
                              .workspace = workspace.data(),
                              .workspace_bytes = workspace.size() * 8};
    ASSERT_EQ(emulated->run(MT_OP_MOE_ROUTE_FORWARD, &args, nullptr), MT_OK)
        << emulated->error_message();
    EXPECT_EQ(ids, expected);
  }
}

// k distinct experts per row; `crowded`: most rows choose the first ones.
std::vector<float> Choices(int64_t rows, int64_t experts, int64_t top_k, bool crowded) {
  std::mt19937 random(3);
  std::vector<float> ids, all(static_cast<size_t>(experts));
  std::iota(all.begin(), all.end(), 0.0f);
  for (int64_t n = 0; n < rows; ++n) {
    std::vector<float> row = all;
    if (!crowded || n % 4 == 0) std::shuffle(row.begin(), row.end(), random);
    ids.insert(ids.end(), row.begin(), row.begin() + top_k);
  }
  return ids;
}

struct Sorting {
  int64_t rows, experts, top_k, capacity = 0;
  bool lightest = false, crowded = false, equal_weights = false;
};

std::string RunSort(Problem& p, const Sorting& s) {
  const int64_t count = s.rows * s.top_k;
  const int ids = p.Integers("ids", Choices(s.rows, s.experts, s.top_k, s.crowded));
  const int weights = p.Statistic("weights", count, 0.5f, s.equal_weights ? 0 : 0.2f);
  const auto none = [](int64_t n) { return std::vector<float>(static_cast<size_t>(n), -7); };
  const int position = p.Integers("position", none(count)),
            source = p.Integers("source", none(count)),
            offsets = p.Integers("offsets", none(s.experts + 1));
  const int dropped = p.Doubles("dropped", 1, 5);
  return p.Run<mt_moe_sort_args>(MT_OP_MOE_SORT, [&](mt_moe_sort_args& args, auto at) {
    args.rows = s.rows;
    args.experts = s.experts;
    args.top_k = s.top_k;
    args.ids = at(ids);
    args.weights = at(weights);
    args.capacity = s.capacity;
    args.drop_lightest = s.lightest;
    args.position = at(position);
    args.source = at(source);
    args.offsets = at(offsets);
    args.dropped = at(dropped);
  });
}

TEST(Sort, TilesAndExpertsOfAnyNumber) {
  for (const Sorting& s : {Sorting{1, 1, 1},
                           {0, 8, 2},
                           {5, 8, 2},
                           {512, 4, 2},
                           {513, 3, 2},
                           {700, 33, 8, 0, false, true},
                           {300, 257, 8},
                           {130, 512, 16}}) {
    Check("sort of " + std::to_string(s.rows), [&](Problem& p) { return RunSort(p, s); }, {0},
          {MT_F32});
  }
}

TEST(Sort, AnExpertKeepsTheFirstOrTheHeaviest) {
  for (const bool lightest : {false, true}) {
    for (const Sorting& s : {Sorting{700, 8, 2, 1, lightest, true},
                             {700, 8, 2, 200, lightest, true},
                             {700, 8, 2, 200, lightest, true, true},
                             {300, 65, 4, 17, lightest},
                             {300, 16, 2, 5000, lightest},
                             {0, 16, 2, 3, lightest}}) {
      Check("capacity " + std::to_string(s.capacity), [&](Problem& p) { return RunSort(p, s); },
            {0}, {MT_F32});
    }
  }
}

// Positions, sources and offsets of choices of which some are dropped.
struct Places {
  std::vector<float> position, source, offsets;
};
Places PlacesOf(int64_t rows, int64_t experts, int64_t top_k, int64_t capacity) {
  const std::vector<float> ids = Choices(rows, experts, top_k, true);
  Places places = {std::vector<float>(ids.size(), -1), std::vector<float>(ids.size(), -1), {0}};
  int64_t next = 0;
  for (int64_t e = 0; e < experts; ++e) {
    int64_t kept = 0;
    for (size_t c = 0; c < ids.size(); ++c) {
      if (ids[c] != static_cast<float>(e) || kept == capacity) continue;
      places.source[static_cast<size_t>(next)] = static_cast<float>(c);
      places.position[c] = static_cast<float>(next++);
      ++kept;
    }
    places.offsets.push_back(static_cast<float>(next));
  }
  return places;
}

TEST(Sort, MoreChoicesThanAreCountedAreDeclined) {
  mt_moe_sort_args args = {
      .struct_size = sizeof args, .dtype = MT_F32, .rows = INT32_MAX, .experts = 8, .top_k = 1};
  EXPECT_EQ(emulated->supports(MT_OP_MOE_SORT, &args), 0);
  args.rows = INT32_MAX - 256;
  EXPECT_EQ(emulated->supports(MT_OP_MOE_SORT, &args), 1);
}

TEST(Rows, MoveBetweenTokensAndExperts) {
  constexpr int64_t kRows = 21;
  for (const int64_t columns : {1, 8, 24, 257, 1024}) {
    for (const int64_t top_k : {1, 2, 4, 5, 9}) {
      const Places places = PlacesOf(kRows, 10, top_k, 6);
      for (const int32_t operation : {MT_OP_MOE_GATHER, MT_OP_MOE_COMBINE}) {
        for (const bool other : {false, true}) {
          Check("rows of " + std::to_string(columns), [&](Problem& p) {
            const int position = p.Integers("position", places.position),
                      source = p.Integers("source", places.source);
            const int weights = p.Statistic("weights", kRows * top_k, 0.4f, 0.2f);
            const int tokens = p.Normal("tokens", kRows * columns),
                      sorted = p.Normal("sorted", kRows * top_k * columns);
            return p.Run<mt_moe_rows_args>(operation, [&](mt_moe_rows_args& args, auto at) {
              args.rows = kRows;
              args.columns = columns;
              args.top_k = top_k;
              args.position = at(position);
              args.source = at(source);
              args.weights = at(other ? -1 : weights);
              args.tokens = at(tokens);
              args.sorted = at(sorted);
              args.accumulate = other;
            });
          });
        }
      }
    }
  }
}

TEST(Rows, CombineBackwardInPlaceAndNot) {
  constexpr int64_t kRows = 11;
  for (const int64_t columns : {1, 8, 264, 1032}) {
    for (const bool in_place : {false, true}) {
      constexpr int64_t kChoices = 3;
      const Places places = PlacesOf(kRows, 5, kChoices, 4);
      Check("backward of " + std::to_string(columns), [&](Problem& p) {
        const int position = p.Integers("position", places.position),
                  source = p.Integers("source", places.source);
        const int weights = p.Statistic("weights", kRows * kChoices, 0.4f, 0.2f);
        const int tokens = p.Normal("tokens", kRows * columns),
                  sorted = p.Normal("sorted", kRows * kChoices * columns),
                  gradient = p.Normal("gradient", kRows * kChoices * columns),
                  of_weights = p.Statistic("weight_gradient", kRows * kChoices, 9);
        return p.Run<mt_moe_rows_args>(MT_OP_MOE_COMBINE_BACKWARD,
                                       [&](mt_moe_rows_args& args, auto at) {
                                         args.rows = kRows;
                                         args.columns = columns;
                                         args.top_k = kChoices;
                                         args.position = at(position);
                                         args.source = at(source);
                                         args.weights = at(weights);
                                         args.tokens = at(tokens);
                                         args.sorted = at(sorted);
                                         args.sorted_gradient = at(in_place ? sorted : gradient);
                                         args.weight_gradient = at(of_weights);
                                       });
      });
    }
  }
}

struct Product {
  std::vector<float> offsets;
  int64_t rows, in, out;
  bool bias = false;
  double beta = 0;
  int64_t padding = 0;  // between two groups' matrices
};

std::string RunGrouped(Problem& p, int32_t mode, const Product& s) {
  const auto groups = static_cast<int64_t>(s.offsets.size()) - 1;
  const int64_t stride = s.in * s.out + s.padding;
  const int offsets = p.Integers("offsets", s.offsets);
  const int x = p.Normal("x", s.rows * s.in), y = p.Normal("y", s.rows * s.out);
  const int weight = mode == MT_GROUPED_WEIGHT_GRADIENT
                         ? p.Statistic("weight", groups * stride, 0, 1)
                         : p.Normal("weight", groups * stride, 0, 0.3f);
  const int bias = p.Normal("bias", groups * s.out);
  return p.Run<mt_grouped_matmul_args>(
      MT_OP_GROUPED_MATMUL, [&](mt_grouped_matmul_args& args, auto at) {
        args.mode = mode;
        args.groups = groups;
        args.rows = s.rows;
        args.in = s.in;
        args.out = s.out;
        args.offsets = at(offsets);
        args.x = at(x);
        args.y = at(y);
        args.weight = at(weight);
        args.weight_group_stride = stride;
        args.bias = at(s.bias && mode == MT_GROUPED_FORWARD ? bias : -1);
        args.bias_group_stride = s.out;
        args.beta = s.beta;
      });
}

// Tiles have 128 rows and columns and slices are 64 deep: sizes on both sides of that, groups without rows, rows past the last.
TEST(GroupedProduct, TilesSlicesAndGroupsOfAnySize) {
  for (const Product& s : {Product{{0, 3}, 3, 8, 8},
                           {{0, 0, 5, 5, 9}, 12, 16, 24, true, 1},
                           {{0, 0, 0}, 7, 8, 16, true},
                           {{0, 0, 0}, 0, 8, 16, false, 1},
                           {{0, 127, 129, 260}, 300, 72, 136, true, 1, 8},
                           {{0, 66, 66, 130}, 130, 136, 40, false, 0, 4},
                           {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, 12, 200, 8, true, 1}}) {
    for (const int32_t mode :
         {MT_GROUPED_FORWARD, MT_GROUPED_INPUT_GRADIENT, MT_GROUPED_WEIGHT_GRADIENT}) {
      Check("grouped product " + std::to_string(s.in) + " to " + std::to_string(s.out) + " mode " +
                std::to_string(mode),
            [&](Problem& p) { return RunGrouped(p, mode, s); });
    }
  }
}

// More tiles of rows than a band has, so that tiles are taken row by row and column by column.
TEST(GroupedProduct, GroupsOfManyTiles) {
  const Product s = {{0, 10, 2300}, 2304, 8, 264, true, 0};
  for (const int32_t mode : {MT_GROUPED_FORWARD, MT_GROUPED_INPUT_GRADIENT}) {
    Check("many tiles", [&](Problem& p) { return RunGrouped(p, mode, s); });
  }
}

// The sums of an element are the same whatever other groups there are and wherever its group begins.
TEST(GroupedProduct, AGroupsResultDependsOnItsOwnRowsAlone) {
  constexpr int64_t kIn = 72, kOut = 16, kRows = 40;
  std::mt19937 random(11);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> rows(kRows * kIn), weight(kIn * kOut);
  for (auto* values : {&rows, &weight})
    for (uint16_t& value : *values) value = mt_bf16_from_float(normal(random));
  const auto product = [&](int64_t before) {
    std::vector<int32_t> offsets = {0, static_cast<int32_t>(before),
                                    static_cast<int32_t>(before + kRows)};
    std::vector<uint16_t> x(static_cast<size_t>((before + kRows) * kIn)),
        w = weight, y(static_cast<size_t>((before + kRows) * kOut));
    w.insert(w.end(), weight.begin(), weight.end());
    std::copy(rows.begin(), rows.end(), x.end() - kRows * kIn);
    mt_grouped_matmul_args args = {.struct_size = sizeof args,
                                   .dtype = MT_BF16,
                                   .mode = MT_GROUPED_FORWARD,
                                   .groups = 2,
                                   .rows = before + kRows,
                                   .in = kIn,
                                   .out = kOut,
                                   .offsets = offsets.data(),
                                   .x = x.data(),
                                   .y = y.data(),
                                   .weight = w.data(),
                                   .weight_group_stride = kIn * kOut};
    EXPECT_STREQ(emulated->kernel_name(MT_OP_GROUPED_MATMUL, &args), "mt:grouped:mma");
    EXPECT_EQ(emulated->run(MT_OP_GROUPED_MATMUL, &args, nullptr), MT_OK);
    return std::vector<uint16_t>(y.end() - kRows * kOut, y.end());
  };
  const std::vector<uint16_t> alone = product(0);
  EXPECT_EQ(product(1), alone);
  EXPECT_EQ(product(150), alone);
}

TEST(GroupedProduct, RunsWhereABlockHasLittleSharedMemory) {
  constexpr int64_t kRows = 5, kIn = 16, kOut = 8;
  std::vector<uint16_t> x(kRows * kIn, mt_bf16_from_float(1.0f)), weight(kIn * kOut, x[0]);
  std::vector<uint16_t> y(kRows * kOut);
  const std::vector<int32_t> offsets = {0, kRows};
  ASSERT_EQ(emulated->configure("shared_bytes", "101376"), MT_OK);  // compute capability 8.9
  for (const int32_t mode : {MT_GROUPED_FORWARD, MT_GROUPED_INPUT_GRADIENT}) {
    const mt_grouped_matmul_args args = {.struct_size = sizeof args,
                                         .dtype = MT_BF16,
                                         .mode = mode,
                                         .groups = 1,
                                         .rows = kRows,
                                         .in = kIn,
                                         .out = kOut,
                                         .offsets = offsets.data(),
                                         .x = x.data(),
                                         .y = y.data(),
                                         .weight = weight.data(),
                                         .weight_group_stride = kIn * kOut};
    EXPECT_EQ(emulated->run(MT_OP_GROUPED_MATMUL, &args, nullptr), MT_OK)
        << emulated->error_message();
  }
  ASSERT_EQ(emulated->configure("shared_bytes", "232448"), MT_OK);
  EXPECT_EQ(mt_float_from_bf16(y[0]), 16.0f);
  EXPECT_EQ(mt_float_from_bf16(x[0]), 128.0f);
}

TEST(GroupedProduct, SizesThatOverflowAtTheEndOfATileAreDeclined) {
  mt_grouped_matmul_args args = {.struct_size = sizeof args,
                                 .dtype = MT_F32,
                                 .mode = MT_GROUPED_FORWARD,
                                 .groups = 1,
                                 .rows = 1,
                                 .in = 1,
                                 .out = INT32_MAX,
                                 .weight_group_stride = INT32_MAX};
  EXPECT_EQ(emulated->supports(MT_OP_GROUPED_MATMUL, &args), 0);
  args.out = INT32_MAX - 256;
  EXPECT_EQ(emulated->supports(MT_OP_GROUPED_MATMUL, &args), 1);
}

TEST(GroupedProduct, WidthsThatAreNoMultipleOfEightAreDeclined) {
  mt_grouped_matmul_args args = {.struct_size = sizeof args,
                                 .dtype = MT_BF16,
                                 .mode = MT_GROUPED_FORWARD,
                                 .groups = 2,
                                 .rows = 4,
                                 .in = 12,
                                 .out = 8,
                                 .weight_group_stride = 96};
  EXPECT_EQ(emulated->supports(MT_OP_GROUPED_MATMUL, &args), 0);
  EXPECT_NE(std::string(emulated->error_message()).find("multiples of 8"), std::string::npos);
  args.dtype = MT_F32;
  EXPECT_EQ(emulated->supports(MT_OP_GROUPED_MATMUL, &args), 1);
}

TEST(GroupedColumnSum, GroupsOfAnySize) {
  const std::vector<float> offsets = {0, 0, 7, 140, 140, 141};
  for (const int64_t columns : {1, 8, 40, 257, 512}) {
    Check("grouped sums of " + std::to_string(columns), [&](Problem& p) {
      const int at_offsets = p.Integers("offsets", offsets);
      const int data = p.Normal("data", 150 * columns);
      const int result = p.Statistic("result", 5 * (columns + 3), 1, 1);
      return p.Run<mt_grouped_column_sum_args>(MT_OP_GROUPED_COLUMN_SUM,
                                               [&](mt_grouped_column_sum_args& args, auto at) {
                                                 args.groups = 5;
                                                 args.rows = 150;
                                                 args.columns = columns;
                                                 args.offsets = at(at_offsets);
                                                 args.data = at(data);
                                                 args.result = at(result);
                                                 args.result_group_stride = columns + 3;
                                               });
    });
  }
}

TEST(MlaExpand, HeadsOfAnySize) {
  for (const auto& [heads, nope, rope, v] :
       {std::tuple<int64_t, int64_t, int64_t, int64_t>{1, 8, 8, 8},
        {3, 128, 64, 128},
        {9, 16, 8, 24},
        {17, 5, 2, 3}}) {
    for (const int32_t operation : {MT_OP_MLA_EXPAND_FORWARD, MT_OP_MLA_EXPAND_BACKWARD}) {
      Check("heads of " + std::to_string(nope), [&](Problem& p) {
        constexpr int64_t kRows = 13;
        const int kv = p.Normal("kv", kRows * heads * (nope + v)),
                  key_rope = p.Normal("key_rope", kRows * rope),
                  key = p.Normal("key", kRows * heads * (nope + rope)),
                  value = p.Normal("value", kRows * heads * v);
        return p.Run<mt_mla_expand_args>(operation, [&](mt_mla_expand_args& args, auto at) {
          args.rows = kRows;
          args.heads = heads;
          args.nope_dim = nope;
          args.rope_dim = rope;
          args.v_dim = v;
          args.kv = at(kv);
          args.key_rope = at(key_rope);
          args.key = at(key);
          args.value = at(value);
        });
      });
    }
  }
}

TEST(Balance, MovesTowardsTheTargetUnlessTheGradientIsNotFinite) {
  for (const float scale : {1.0f, HUGE_VALF}) {
    for (const bool same : {false, true}) {
      Check("balance", [&](Problem& p) {
        const int load = p.Values("load", MT_F32, {4, 5, 6, 5});
        const int bias = p.Values("bias", MT_F32, {0.5f, 0.25f, -1, 0});
        const int parameter = p.Normal("parameter", 4), gradient = p.Doubles("scale", 1, scale);
        return p.Run<mt_balance_update_args>(
            MT_OP_BALANCE_UPDATE, [&](mt_balance_update_args& args, auto at) {
              args.count = 4;
              args.load = at(load);
              args.bias = at(bias);
              args.parameter = at(same && args.dtype == MT_F32 ? bias : parameter);
              args.rate = 1e-3;
              args.target = 5;
              args.gradient_scale_pointer = at(gradient);
            });
      });
    }
  }
}

}  // namespace
}  // namespace mt::cuda

int main(int argc, char** argv) { return mt::cuda::Main(argc, argv); }
