// The table's cases of mixtures of experts and latent attention.
#include <array>

#include "kernels/conformance/case_makers.h"

namespace mt::conformance {
namespace {

using Cases = std::vector<Case>;

void AddRouting(Cases& cases) {
  const auto add = [&](const Routing& size) {
    cases.push_back(MoeRouteForward(size));
    cases.push_back(MoeRouteBackward(size));
  };
  for (const int32_t score : {MT_MOE_SOFTMAX, MT_MOE_SOFTMAX_TOP_K, MT_MOE_SIGMOID}) {
    add({.rows = 0, .experts = 4, .top_k = 2, .score = score});
    add({.rows = 1, .experts = 1, .top_k = 1, .score = score, .normalize = true});
    add({.rows = 17, .experts = 8, .top_k = 2, .score = score, .normalize = true, .scale = 2.5});
    add({.rows = 130, .experts = 64, .top_k = 8, .score = score, .batch = 2});
    add({.rows = 30, .experts = 60, .top_k = 4, .score = score, .batch = 3, .stride = 60});
    add({.rows = 12, .experts = 5, .top_k = 5, .score = score, .batch = 4, .stride = 7});
    add({.rows = 9, .experts = 32, .top_k = 4, .score = score, .bias = true, .metrics = false});
    add({.rows = 40,
         .experts = 256,
         .top_k = 8,
         .score = score,
         .normalize = true,
         .scale = 2.5,
         .groups = 8,
         .top_groups = 4,
         .group_top_2 = true,
         .bias = true});
    add({.rows = 21, .experts = 48, .top_k = 6, .score = score, .groups = 6, .top_groups = 2});
    add({.rows = 11, .experts = 12, .top_k = 3, .score = score, .groups = 12, .top_groups = 3});
    add({.rows = 9,
         .experts = 40,
         .top_k = 4,
         .score = score,
         .groups = 5,
         .top_groups = 2,
         .bias = true});
    for (const RouterLogits logits : {RouterLogits::kTies, RouterLogits::kNotANumber}) {
      cases.push_back(MoeRouteForward(
          {.rows = 50, .experts = 24, .top_k = 4, .score = score, .batch = 5, .logits = logits}));
      cases.push_back(MoeRouteForward({.rows = 50,
                                       .experts = 24,
                                       .top_k = 4,
                                       .score = score,
                                       .groups = 4,
                                       .top_groups = 2,
                                       .group_top_2 = true,
                                       .logits = logits}));
      cases.push_back(MoeRouteForward({.rows = 20,
                                       .experts = 130,
                                       .top_k = 8,
                                       .score = score,
                                       .normalize = true,
                                       .bias = true,
                                       .logits = logits}));
    }
    cases.push_back(
        Unaligned(MoeRouteForward({.rows = 7, .experts = 16, .top_k = 3, .score = score})));
    cases.push_back(
        Unaligned(MoeRouteBackward({.rows = 7, .experts = 16, .top_k = 3, .score = score})));
  }
  cases.push_back(MoeRouteForward({.rows = 3, .experts = 1000, .top_k = 20}));
  cases.push_back(MoeRouteBackward({.rows = 3, .experts = 1000, .top_k = 20}));
  cases.push_back(Slow(MoeRouteForward({.rows = 70001, .experts = 16, .top_k = 2, .batch = 2})));
  cases.push_back(Slow(MoeRouteBackward({.rows = 70001, .experts = 16, .top_k = 2, .batch = 2})));
}

void AddSorting(Cases& cases) {
  for (const auto& [rows, experts, k] : std::vector<std::array<int64_t, 3>>{{0, 4, 2},
                                                                            {1, 1, 1},
                                                                            {1, 8, 8},
                                                                            {13, 4, 1},
                                                                            {37, 8, 2},
                                                                            {300, 60, 4},
                                                                            {129, 256, 8},
                                                                            {2100, 128, 8}}) {
    cases.push_back(MoeSort({rows, experts, k}));
    for (const int64_t capacity : {int64_t{1}, 1 + rows * k / experts}) {
      if (capacity == 1 && rows == 0) continue;
      cases.push_back(MoeSort({rows, experts, k, capacity}));
      cases.push_back(MoeSort({rows, experts, k, capacity, true}));
    }
  }
  cases.push_back(MoeSort({40, 6, 2, 9, true, true}));
  cases.push_back(MoeSort({40, 6, 2, 4000, true}));
  cases.push_back(Unaligned(MoeSort({40, 6, 2, 9, true})));
  cases.push_back(Slow(MoeSort({70001, 16, 2})));
  cases.push_back(Slow(MoeSort({70001, 16, 2, 5000})));
  cases.push_back(Slow(MoeSort({70001, 16, 2, 5000, true})));
}

void AddExperts(Cases& cases) {
  for (const ExpertRows& size : {ExpertRows{0, 8, 2}, ExpertRows{1, 1, 1}, ExpertRows{5, 33, 3, 4},
                                 ExpertRows{64, 64, 8, 70}, ExpertRows{30, 520, 2},
                                 ExpertRows{3, 9000, 1, 1}, ExpertRows{6, 8, 2, 12}}) {
    cases.push_back(MoeGather(size));
    cases.push_back(MoeCombine(size, true, false));
    cases.push_back(MoeCombine(size, true, true));
    cases.push_back(MoeCombine(size, false, false));
    cases.push_back(MoeCombineBackward(size, false));
    cases.push_back(MoeCombineBackward(size, true));
  }
  cases.push_back(Unaligned(MoeGather({7, 64, 2, 3})));
  cases.push_back(Unaligned(MoeCombine({7, 64, 2, 3}, true, true)));
  cases.push_back(Unaligned(MoeCombineBackward({7, 64, 2, 3}, false)));
  cases.push_back(Slow(MoeGather({40003, 3, 2, 11})));
  cases.push_back(Slow(MoeCombine({40003, 3, 2, 11}, true, false)));
  cases.push_back(Slow(MoeCombineBackward({40003, 3, 2, 11}, true)));
}

void AddGroups(Cases& cases) {
  const std::vector<Grouped> groups = {{1, 1, 1, 1},
                                       {4, 0, 8, 8},
                                       {3, 7, 5, 9, 2, 3, true},
                                       {8, 64, 32, 48, 10},
                                       {8, 64, 32, 48, 10, 8, true},
                                       {5, 130, 64, 40, 0, 0, true},
                                       {2, 300, 72, 136, 1},
                                       {256, 200, 16, 24, 30, 0, true},
                                       {1, 70, 128, 64},
                                       {16, 40, 8, 8, 40},
                                       {4, 600, 24, 8, 33}};
  for (const Grouped& size : groups) {
    cases.push_back(GroupedMatmul(MT_GROUPED_FORWARD, size));
    Grouped plain = size;
    plain.bias = false;
    cases.push_back(GroupedMatmul(MT_GROUPED_INPUT_GRADIENT, plain));
    cases.push_back(GroupedMatmul(MT_GROUPED_WEIGHT_GRADIENT, plain, 1));
    cases.push_back(GroupedMatmul(MT_GROUPED_WEIGHT_GRADIENT, plain, 0));
    cases.push_back(GroupedColumnSum(plain));
  }
  for (const int32_t mode : {1, 2, 3})
    cases.push_back(Unaligned(GroupedMatmul(mode, {3, 40, 32, 48, 5})));
  cases.push_back(Unaligned(GroupedColumnSum({3, 40, 0, 48, 5})));
  for (const int32_t mode : {1, 2, 3})
    cases.push_back(Slow(GroupedMatmul(mode, {8, 40003, 8, 16, 1000})));
  cases.push_back(Slow(GroupedColumnSum({8, 70001, 0, 5, 1000})));
}

void AddLatent(Cases& cases) {
  for (const Latent& size :
       {Latent{0, 2, 4, 2, 4}, Latent{1, 1, 1, 1, 1}, Latent{5, 3, 7, 3, 5},
        Latent{33, 4, 16, 8, 24}, Latent{9, 16, 128, 64, 128}, Latent{4, 2, 24, 16, 8}}) {
    cases.push_back(MlaExpand(false, size));
    cases.push_back(MlaExpand(true, size));
  }
  cases.push_back(Unaligned(MlaExpand(false, {6, 2, 16, 8, 16})));
  cases.push_back(Unaligned(MlaExpand(true, {6, 2, 16, 8, 16})));
  cases.push_back(Slow(MlaExpand(false, {70001, 2, 3, 2, 1})));
  cases.push_back(Slow(MlaExpand(true, {70001, 2, 3, 2, 1})));
}

void AddBalance(Cases& cases) {
  for (const int64_t n : {0, 1, 256, 1001}) {
    cases.push_back(BalanceUpdate(n, true, ClipPointer::kNone));
    cases.push_back(BalanceUpdate(n, false, ClipPointer::kFinite));
  }
  cases.push_back(BalanceUpdate(64, true, ClipPointer::kInfinite));
  cases.push_back(BalanceUpdate(64, true, ClipPointer::kNotANumber));
}

}  // namespace

Cases ExpertCases() {
  Cases cases;
  AddRouting(cases);
  AddSorting(cases);
  AddExperts(cases);
  AddGroups(cases);
  AddLatent(cases);
  AddBalance(cases);
  return cases;
}

}  // namespace mt::conformance
