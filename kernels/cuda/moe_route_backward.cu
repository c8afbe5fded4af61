// The router's backward pass: from the weights' gradient to that of the logits, a warp per row (moe_route.h). No row depends on
// another.
#include "kernels/cuda/moe_route.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

// What the loss has to do with a row's scores besides the weights: adds it to the gradient of this lane's logits.
template <int kRegisters>
__device__ __forceinline__ void AddBalance(const Route& a, int64_t row, const Scores<kRegisters>& s,
                                           float (&gradient)[kRegisters]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const bool sigmoid = a.score == MT_MOE_SIGMOID;
  const double* const balance = a.balance_gradient + row % a.batch * a.balance_stride;
  double of_score[kRegisters], mean = 0;  // of the normalised score's gradient, under that score
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const int expert = r * kWarpThreads + lane;
    of_score[r] = expert < a.experts ? balance[expert] : 0;
    mean += of_score[r] * (sigmoid ? s.score[r] / s.sum : s.softmax[r]);
  }
  mean = WarpReduce(mean);
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const float here = static_cast<float>(of_score[r] - mean);
    gradient[r] +=
        sigmoid ? here * (s.score[r] / s.sum) * (1.0f - s.score[r]) : here * s.softmax[r];
  }
}

// Warp w of the grid takes the rows w, w + (warps of the grid), ...
template <int kRegisters>
__global__ void __launch_bounds__(kRouteThreads) RouteBackwardKernel(Route a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads,
            warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const bool sigmoid = a.score == MT_MOE_SIGMOID;
  const bool with_softmax =
      a.score == MT_MOE_SOFTMAX || a.z_scale != 0 || (a.balance_gradient != nullptr && !sigmoid);
  for (int64_t row = int64_t{blockIdx.x} * kRouteWarps + warp; row < a.rows;
       row += int64_t{gridDim.x} * kRouteWarps) {
    Scores<kRegisters> s = {};
    ScoresOf(a, row, with_softmax, s);
    // Of this lane's choice: its score, and the gradient with respect to it.
    const bool chosen = lane < a.top_k;
    const int32_t my_id = chosen ? a.ids[row * a.top_k + lane] : 0;
    float my_score = 0;
    for (int j = 0; j < a.top_k; ++j) {
      const int id = __shfl_sync(kAllLanes, my_id, j, kWarpThreads);
      float score = 0;
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) {
        if (r * kWarpThreads + lane == id) score = s.score[r];
      }
      score = __shfl_sync(kAllLanes, score, id % kWarpThreads, kWarpThreads);
      if (lane == j) my_score = score;
    }
    const Weight weight = WeightOf(a, my_score);
    float of_score = chosen ? a.weight_gradient[row * a.top_k + lane] * a.scale : 0.0f;
    if (a.normalize != 0) {
      const float mean = WarpReduce(of_score * (weight.score / weight.sum));
      of_score = (of_score - mean) / weight.sum;
    }
    // Through the softmax (of all or of the chosen) or the sigmoid, to the chosen logits.
    const float mean = sigmoid ? 0.0f : WarpReduce(chosen ? of_score * weight.score : 0.0f);
    const float factor = sigmoid ? weight.score * (1.0f - weight.score) : weight.score;
    const float of_logit =
        a.score == MT_MOE_SOFTMAX ? of_score * factor : (of_score - mean) * factor;
    float gradient[kRegisters];
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      // Not simply 0: a logit that is no number shows in its gradient, chosen or not.
      gradient[r] = a.score == MT_MOE_SOFTMAX ? -mean * s.softmax[r]
                    : sigmoid                 ? 0.0f * s.score[r]
                                              : 0.0f;
      if (a.z_scale != 0) gradient[r] += static_cast<float>(2 * a.z_scale * s.lse) * s.softmax[r];
    }
    if (a.balance_gradient != nullptr) AddBalance(a, row, s, gradient);
    for (int j = 0; j < a.top_k; ++j) {
      const int id = __shfl_sync(kAllLanes, my_id, j, kWarpThreads);
      const float here = __shfl_sync(kAllLanes, of_logit, j, kWarpThreads);
#pragma unroll
      for (int r = 0; r < kRegisters; ++r) {
        if (r * kWarpThreads + lane == id) gradient[r] += here;
      }
    }
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      const int expert = r * kWarpThreads + lane;
      if (expert < a.experts) a.logits_gradient[row * a.experts + expert] = gradient[r];
    }
  }
}

}  // namespace

int32_t MoeRouteBackward(const mt_moe_route_args& args, const Launch& launch) {
  if (args.rows == 0) return MT_OK;
  const Route a = RouteOf(args);
  MT_CUDA(WithRegisters(a.experts, [&](auto registers) {
    auto* kernel = RouteBackwardKernel<decltype(registers)::value>;
    return MT_LAUNCH(kernel, GridOf(DivideUp(a.rows, kRouteWarps)), kRouteThreads, 0, launch.stream,
                     a);
  }));
  return MT_OK;
}

}  // namespace mt::cuda
