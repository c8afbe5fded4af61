// The shapes of one training step's mixtures of experts and latent attention, as published models have them.
#include "kernels/conformance/case_makers.h"

namespace mt::conformance {
namespace {

// Routing and sorting in float32, whatever the data of the layer are.
Case InFloat(Case item) {
  for (Tensor& tensor : item.tensors) {
    if (tensor.element == Element::kData || tensor.element == Element::kWide)
      tensor.element = Element::kFloat;
  }
  item.types = {MT_F32, MT_BF16};
  item.arguments = [arguments = item.arguments](int32_t, void* const* pointers) {
    return arguments(MT_F32, pointers);
  };
  return item;
}

}  // namespace

std::vector<BenchmarkCase> ExpertBenchmarkCases(const BenchmarkModel& model) {
  const auto [experts, k, score, groups, top_groups, nope, rope, v] = model.moe;
  const int64_t N = model.sequence * model.batch, C = model.hidden, D = model.ffn, L = model.layers;
  std::vector<BenchmarkCase> cases;
  const Routing routing = {.rows = N,
                           .experts = experts,
                           .top_k = k,
                           .score = score,
                           .normalize = true,
                           .batch = model.batch,
                           .groups = groups,
                           .top_groups = top_groups,
                           .group_top_2 = groups > 1,
                           .bias = groups > 1};
  cases.push_back({InFloat(MoeRouteForward(routing)), L});
  cases.push_back({InFloat(MoeRouteBackward(routing)), L});
  cases.push_back({InFloat(MoeSort({N, experts, k})), L});
  const ExpertRows rows = {N, C, k};
  cases.push_back({MoeGather(rows), L});
  cases.push_back({MoeCombine(rows, true, true), L});
  cases.push_back({MoeCombine(rows, false, true), L});  // gather's backward
  cases.push_back({MoeCombineBackward(rows, true), L});
  const auto product = [&](int64_t in, int64_t out) {
    const Grouped size = {experts, N * k, in, out};
    cases.push_back({GroupedMatmul(MT_GROUPED_FORWARD, size), L});
    cases.push_back({GroupedMatmul(MT_GROUPED_INPUT_GRADIENT, size), L});
    Case weights = GroupedMatmul(MT_GROUPED_WEIGHT_GRADIENT, size, 1);
    weights.types = {MT_F32, MT_BF16};
    cases.push_back({weights, L});
  };
  product(C, 2 * D);
  product(D, C);
  cases.push_back({SwigluForward(N * k, D), L});
  cases.push_back({SwigluBackward(N * k, D, true, true), L});
  if (nope > 0) {
    const Latent latent = {N, model.heads, nope, rope, v};
    cases.push_back({MlaExpand(false, latent), L});
    cases.push_back({MlaExpand(true, latent), L});
  }
  // What only some models have, or others measure.
  const Attend attention = {model.sequence, model.batch, model.heads,      model.kv_heads,
                            model.head_dim, true,        {.v_head_dim = v}};
  cases.push_back({Attention(false, attention), 0});
  cases.push_back({Attention(true, attention), 0});
  cases.push_back({GroupedColumnSum({experts, N * k, C, C}), 0});
  Sorting drop = {N, experts, k, N * k / experts};
  cases.push_back({InFloat(MoeSort(drop)), 0});
  drop.lightest = true;
  cases.push_back({InFloat(MoeSort(drop)), 0});
  return cases;
}

}  // namespace mt::conformance
