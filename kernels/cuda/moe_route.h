// What both passes of the router have in common: the problem, a row's scores and the weights of its choices. A warp takes a row:
// expert e is in register e / 32 of lane e % 32, choice j with lane j.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/reduce.h"

namespace mt::cuda {

inline constexpr int kRouteWarps = 4, kRouteThreads = kRouteWarps * kWarpThreads;
inline constexpr float kTiny = 1e-20f;  // beside the sum of the chosen scores

struct Route {
  const float *logits, *selection_bias;  // (N, E), (E) or null
  int32_t* ids;                          // (N, k)
  float* weights;                        // (N, k)
  const float* weight_gradient;          // (N, k)
  float* logits_gradient;                // (N, E)
  const double* balance_gradient;        // (E) or (B, E), or null
  int64_t rows, batch, balance_stride;
  int experts, top_k, score, normalize;
  int groups, group_experts, top_groups, group_top_2;
  float scale;
  double z_scale;
  // Partial statistics: rows of `width` numbers (load, then the scores' sums, then the z sum), `blocks` rows for each of
  // `sequences` sequences, which have the rows of their own index in batch.
  double* partials;
  bool sums_scores, sums_z;
  int64_t sequences, blocks, rows_of_block, width;
};

// A row's logits and what both passes make of them: score[r] of this lane's experts, 0 past the last; lse where it is wanted.
template <int kRegisters>
struct Scores {
  float score[kRegisters];    // as the contract's, but in MT_MOE_SOFTMAX_TOP_K the logits
  float softmax[kRegisters];  // over all experts, if `with_softmax`
  float lse;                  // if `with_softmax`
  float sum;                  // of the sigmoids over all experts
};
template <int kRegisters>
__device__ __forceinline__ void ScoresOf(const Route& a, int64_t row, bool with_softmax,
                                         Scores<kRegisters>& s) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  float logit[kRegisters], most = -__builtin_huge_valf();
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const int expert = r * kWarpThreads + lane;
    logit[r] = -__builtin_huge_valf();
    if (expert < a.experts) {
      logit[r] = a.logits[row * a.experts + expert];
      most = Maximum{}(most, logit[r]);
    }
  }
  if (with_softmax) {
    most = WarpReduce(most, Maximum{});
    float sum = 0;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      const bool exists = r * kWarpThreads + lane < a.experts;
      s.softmax[r] = exists ? expf(logit[r] - most) : 0.0f;
      sum += s.softmax[r];
    }
    sum = WarpReduce(sum);
    s.lse = most + logf(sum);
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) s.softmax[r] /= sum;
  }
  s.sum = 0;
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    if (a.score == MT_MOE_SIGMOID) {
      s.score[r] = 1.0f / (1.0f + expf(-logit[r]));  // 0 for -infinity
      s.sum += s.score[r];
    } else {
      s.score[r] = a.score == MT_MOE_SOFTMAX ? s.softmax[r] : logit[r];
    }
  }
  if (a.score == MT_MOE_SIGMOID) s.sum = WarpReduce(s.sum);
}

// The weight of this lane's choice, and what it was made of.
struct Weight {
  float score;  // with MT_MOE_SOFTMAX_TOP_K the softmax of the k chosen logits
  float sum;    // of the k scores, plus 1e-20, if they are normalised, else 1
};
__device__ __forceinline__ Weight WeightOf(const Route& a, float score) {
  const bool chosen = static_cast<int>(threadIdx.x) % kWarpThreads < a.top_k;
  if (a.score == MT_MOE_SOFTMAX_TOP_K) {
    const float most = WarpReduce(chosen ? score : -__builtin_huge_valf(), Maximum{});
    score = chosen ? expf(score - most) : 0.0f;
    score /= WarpReduce(score);
  }
  if (!chosen) score = 0;
  return {score, a.normalize != 0 ? WarpReduce(score) + kTiny : 1.0f};
}

// How the rows are dealt to blocks in the forward pass.
inline constexpr int64_t kLeastRowsOfWarp = 4, kMostPartials = 2048;

inline Route RouteOf(const mt_moe_route_args& args) {
  Route a = {};
  a.logits = static_cast<const float*>(args.logits);
  a.selection_bias = static_cast<const float*>(args.selection_bias);
  a.ids = args.ids;
  a.weights = static_cast<float*>(args.weights);
  a.weight_gradient = static_cast<const float*>(args.weight_gradient);
  a.logits_gradient = static_cast<float*>(args.logits_gradient);
  a.balance_gradient = args.balance_gradient;
  a.rows = args.rows;
  a.batch = std::max<int64_t>(args.batch, 1);
  a.balance_stride = args.balance_stride;
  a.experts = static_cast<int>(args.experts);
  a.top_k = static_cast<int>(args.top_k);
  a.score = args.score;
  a.normalize = args.normalize;
  a.groups = static_cast<int>(std::max<int64_t>(args.groups, 1));
  a.group_experts = a.experts / a.groups;
  a.top_groups = static_cast<int>(args.top_groups);
  a.group_top_2 = args.group_top_2;
  a.scale = static_cast<float>(args.scale);
  a.z_scale = args.z_scale;
  a.partials = static_cast<double*>(args.workspace);
  a.sums_scores = args.score_sum != nullptr;
  a.sums_z = args.z_sum != nullptr;
  a.sequences = args.statistics_stride != 0 ? a.batch : 1;
  const int64_t rows = DivideUp(std::max<int64_t>(a.rows, 1), a.sequences);
  const int64_t rows_of_warp =
      std::max(kLeastRowsOfWarp,
               DivideUp(rows, kRouteWarps * std::max<int64_t>(kMostPartials / a.sequences, 1)));
  a.rows_of_block = kRouteWarps * rows_of_warp;
  a.blocks = DivideUp(rows, a.rows_of_block);
  a.width = 2 * args.experts + 1;
  return a;
}

// Calls function(std::integral_constant) with the registers of a lane.
template <typename Function>
auto WithRegisters(int experts, Function&& function) {
  if (experts <= 32) return function(std::integral_constant<int, 1>{});
  if (experts <= 64) return function(std::integral_constant<int, 2>{});
  if (experts <= 128) return function(std::integral_constant<int, 4>{});
  if (experts <= 256) return function(std::integral_constant<int, 8>{});
  return function(std::integral_constant<int, 16>{});
}

}  // namespace mt::cuda
