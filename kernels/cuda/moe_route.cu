// The router of a mixture of experts, with the formulas of mt_backend.h. A warp takes a row: expert e is in register e / 32 of lane
// e % 32, choice j with lane j.
//
// Bytes that cannot be avoided: forward 4 N (E + 2 k), backward 4 N (2 E + 2 k). The partial statistics of forward are at most a
// seventh of that at E = 256; what bounds both kernels is the chain of exchanges that finds one choice after the other.
//
// Determinism: choices are an order of numbers with the id to decide among equals; loads and sums are made in float64 per block, in
// the order of its warps and their rows, and added over blocks in a fixed order. How rows are dealt to blocks depends on sizes alone.
#include "kernels/cuda/number_order.h"
#include "kernels/cuda/operations.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/reduce.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarpThreads;
constexpr int kMostExperts = 512, kMostGroups = kWarpThreads, kMostChoices = kWarpThreads;
constexpr int64_t kLeastRowsOfWarp = 4, kMostPartials = 2048;
constexpr float kTiny = 1e-20f;  // beside the sum of the chosen scores

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

// The place of the largest `order` of all lanes, the lowest place among equals.
__device__ __forceinline__ int FirstLargest(unsigned order, int place) {
  uint64_t key = uint64_t{order} << 32 | (0xffffffffu - static_cast<unsigned>(place));
  for (int lanes = kWarpThreads / 2; lanes > 0; lanes /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, key, lanes, kWarpThreads);
    key = other > key ? other : key;
  }
  return static_cast<int>(0xffffffffu - static_cast<unsigned>(key));
}

// What a group is worth: its largest order, or that of the sum of its two largest numbers. Every lane gets it.
template <int kRegisters>
__device__ __forceinline__ unsigned WorthOfGroup(const unsigned (&order)[kRegisters], int first,
                                                 int last, bool two) {
  unsigned most = kNoNumber, second = kNoNumber;
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const int expert = r * kWarpThreads + static_cast<int>(threadIdx.x) % kWarpThreads;
    const unsigned here = expert >= first && expert < last ? order[r] : kNoNumber;
    second = max(second, min(most, here));
    most = max(most, here);
  }
  for (int lanes = kWarpThreads / 2; lanes > 0; lanes /= 2) {
    const unsigned other = __shfl_xor_sync(kAllLanes, most, lanes, kWarpThreads);
    if (two) {
      second = max(max(second, __shfl_xor_sync(kAllLanes, second, lanes, kWarpThreads)),
                   min(most, other));
    }
    most = max(most, other);
  }
  return two && second != kNoNumber ? OrderOf(NumberOf(most) + NumberOf(second)) : most;
}

// Takes the experts of all groups but the best out of the choice.
template <int kRegisters>
__device__ __forceinline__ void LeaveBestGroups(const Route& a, unsigned (&order)[kRegisters]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  unsigned worth = kNoNumber;  // of the group with this lane's number
  for (int g = 0; g < a.groups; ++g) {
    const unsigned here =
        WorthOfGroup(order, g * a.group_experts, (g + 1) * a.group_experts, a.group_top_2 != 0);
    if (lane == g) worth = here;
  }
  unsigned best = 0;  // a bit per group
  for (int i = 0; i < a.top_groups; ++i) {
    const int group = FirstLargest(worth, lane);
    best |= 1u << group;
    if (lane == group) worth = kNoNumber;
  }
  for (int g = 0; g < a.groups; ++g) {
    if ((best >> g & 1u) != 0) continue;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      const int expert = r * kWarpThreads + lane - g * a.group_experts;
      if (expert >= 0 && expert < a.group_experts) order[r] = kNoNumber;
    }
  }
}

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

// The statistics of a warp's rows, for this lane's experts.
template <int kRegisters>
struct Statistics {
  double score[kRegisters] = {}, z = 0;
  int load[kRegisters] = {};
};

template <int kRegisters>
__device__ __forceinline__ void RouteRow(const Route& a, int64_t row,
                                         Statistics<kRegisters>& statistics) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const bool sigmoid = a.score == MT_MOE_SIGMOID;
  Scores<kRegisters> s = {};
  ScoresOf(a, row, a.score == MT_MOE_SOFTMAX || a.sums_z || (a.sums_scores && !sigmoid), s);
  unsigned order[kRegisters];
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    const int expert = r * kWarpThreads + lane;
    if (expert < a.experts) {
      order[r] =
          OrderOf(a.selection_bias != nullptr ? s.score[r] + a.selection_bias[expert] : s.score[r]);
      if (a.sums_scores) statistics.score[r] += sigmoid ? s.score[r] / s.sum : s.softmax[r];
    } else {
      order[r] = kNoNumber;
    }
  }
  if (a.sums_z) statistics.z += static_cast<double>(s.lse) * s.lse;
  if (a.groups > 1) LeaveBestGroups(a, order);

  int32_t my_id = 0;
  float my_score = 0;
  for (int j = 0; j < a.top_k; ++j) {
    unsigned best = kNoNumber;
    int place = lane;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      if (order[r] > best) {
        best = order[r];
        place = r * kWarpThreads + lane;
      }
    }
    const int id = FirstLargest(best, place);
    float score = 0;
#pragma unroll
    for (int r = 0; r < kRegisters; ++r) {
      if (r * kWarpThreads + lane == id) {
        score = s.score[r];
        order[r] = kNoNumber;
        ++statistics.load[r];
      }
    }
    score = __shfl_sync(kAllLanes, score, id % kWarpThreads, kWarpThreads);
    if (lane == j) {
      my_id = id;
      my_score = score;
    }
  }
  const Weight weight = WeightOf(a, my_score);
  if (lane < a.top_k) {
    a.ids[row * a.top_k + lane] = my_id;
    a.weights[row * a.top_k + lane] = weight.score / weight.sum * a.scale;
  }
}

// Block (b, sequence) takes rows_of_block rows of the sequence, warp w those at w, w + kWarps, ...
template <int kRegisters>
__global__ void __launch_bounds__(kThreads, 3) RouteForwardKernel(Route a) {
  __shared__ double scores[kWarps][kRegisters * kWarpThreads], z[kWarps];
  __shared__ int loads[kWarps][kRegisters * kWarpThreads];
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads,
            warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int64_t sequence = blockIdx.y, first = blockIdx.x * a.rows_of_block;
  Statistics<kRegisters> statistics;
  for (int64_t i = first + warp; i < first + a.rows_of_block; i += kWarps) {
    const int64_t row = i * a.sequences + sequence;
    if (row >= a.rows) break;
    RouteRow(a, row, statistics);
  }
#pragma unroll
  for (int r = 0; r < kRegisters; ++r) {
    scores[warp][r * kWarpThreads + lane] = statistics.score[r];
    loads[warp][r * kWarpThreads + lane] = statistics.load[r];
  }
  if (lane == 0) z[warp] = statistics.z;
  __syncthreads();
  double* const partial = a.partials + (sequence * a.blocks + blockIdx.x) * a.width;
  for (int e = static_cast<int>(threadIdx.x); e < a.experts; e += kThreads) {
    double load = 0, score = 0;
    for (int w = 0; w < kWarps; ++w) {
      load += loads[w][e];
      score += scores[w][e];
    }
    partial[e] = load;
    partial[a.experts + e] = score;
  }
  if (threadIdx.x == 0) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += z[w];
    partial[2 * a.experts] = sum;
  }
}

constexpr int kSumColumns = 32, kSumLanes = 16;

// Block (32 columns, sequence): lane l of a column adds the blocks l, l + 16, ..., then the lanes are added in order. The z sum is
// one for all sequences.
__global__ void __launch_bounds__(kSumColumns* kSumLanes)
    AddStatisticsKernel(Route a, double* load, double* score_sum, double* z_sum, int64_t stride) {
  __shared__ double sums[kSumLanes][kSumColumns + 1];
  const int x = static_cast<int>(threadIdx.x) % kSumColumns,
            lane = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t column = int64_t{blockIdx.x} * kSumColumns + x, sequence = blockIdx.y;
  const bool is_z = column == 2 * a.experts;
  double* result = nullptr;
  if (column < a.experts) {
    result = load + sequence * stride + column;
  } else if (column < 2 * a.experts) {
    if (score_sum != nullptr) result = score_sum + sequence * stride + column - a.experts;
  } else if (is_z && sequence == 0) {
    result = z_sum;
  }
  double sum = 0;
  if (result != nullptr) {
    const double* const first = a.partials + (is_z ? 0 : sequence * a.blocks) * a.width + column;
    const int64_t blocks = is_z ? a.sequences * a.blocks : a.blocks;
#pragma unroll 4
    for (int64_t b = lane; b < blocks; b += kSumLanes) sum += first[b * a.width];
  }
  sums[lane][x] = sum;
  __syncthreads();
  if (lane != 0 || result == nullptr) return;
  double total = 0;
  for (int l = 0; l < kSumLanes; ++l) total += sums[l][x];
  *result += total;
}

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
__global__ void __launch_bounds__(kThreads) RouteBackwardKernel(Route a) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads,
            warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const bool sigmoid = a.score == MT_MOE_SIGMOID;
  const bool with_softmax =
      a.score == MT_MOE_SOFTMAX || a.z_scale != 0 || (a.balance_gradient != nullptr && !sigmoid);
  for (int64_t row = int64_t{blockIdx.x} * kWarps + warp; row < a.rows;
       row += int64_t{gridDim.x} * kWarps) {
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

Route RouteOf(const mt_moe_route_args& args) {
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
  const int64_t rows_of_warp = std::max(
      kLeastRowsOfWarp, DivideUp(rows, kWarps * std::max<int64_t>(kMostPartials / a.sequences, 1)));
  a.rows_of_block = kWarps * rows_of_warp;
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

}  // namespace

bool MoeRouteSupports(int32_t operation, const mt_moe_route_args& args) {
  constexpr int64_t kMostSequences = 65535;  // blocks in y
  if (args.experts <= kMostExperts && args.top_k <= kMostChoices && args.groups <= kMostGroups &&
      (args.statistics_stride == 0 || args.batch <= kMostSequences))
    return true;
  host::Fail(MT_ERROR_UNSUPPORTED, operation,
             "experts %lld (at most %d), top_k %lld (at most %d), groups %lld (at most %d), "
             "batch %lld (at most %lld)",
             static_cast<long long>(args.experts), kMostExperts, static_cast<long long>(args.top_k),
             kMostChoices, static_cast<long long>(args.groups), kMostGroups,
             static_cast<long long>(args.batch), static_cast<long long>(kMostSequences));
  return false;
}

int64_t MoeRouteForwardWorkspace(const mt_moe_route_args& args) {
  const Route a = RouteOf(args);
  return a.sequences * a.blocks * a.width * static_cast<int64_t>(sizeof(double));
}

int32_t MoeRouteForward(const mt_moe_route_args& args, const Launch& launch) {
  if (args.rows == 0) return MT_OK;
  const Route a = RouteOf(args);
  const dim3 grid(static_cast<unsigned>(a.blocks), static_cast<unsigned>(a.sequences));
  MT_CUDA(WithRegisters(a.experts, [&](auto registers) {
    auto* kernel = RouteForwardKernel<decltype(registers)::value>;
    return MT_LAUNCH(kernel, grid, kThreads, 0, launch.stream, a);
  }));
  const dim3 sums(static_cast<unsigned>(DivideUp(a.width, kSumColumns)), grid.y);
  MT_CUDA(MT_LAUNCH(AddStatisticsKernel, sums, kSumColumns * kSumLanes, 0, launch.stream, a,
                    args.expert_load, args.score_sum, args.z_sum, args.statistics_stride));
  return MT_OK;
}

int32_t MoeRouteBackward(const mt_moe_route_args& args, const Launch& launch) {
  if (args.rows == 0) return MT_OK;
  const Route a = RouteOf(args);
  MT_CUDA(WithRegisters(a.experts, [&](auto registers) {
    auto* kernel = RouteBackwardKernel<decltype(registers)::value>;
    return MT_LAUNCH(kernel, GridOf(DivideUp(a.rows, kWarps)), kThreads, 0, launch.stream, a);
  }));
  return MT_OK;
}

}  // namespace mt::cuda
