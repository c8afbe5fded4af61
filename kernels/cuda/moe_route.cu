// The router of a mixture of experts, with the formulas of mt_backend.h. A warp takes a row: expert e is in register e / 32 of lane
// e % 32, choice j with lane j.
//
// Bytes that cannot be avoided: forward 4 N (E + 2 k), backward 4 N (2 E + 2 k). Forward's partial statistics are 8 (2 E + 1) bytes
// per block of 16 rows or more, written and read once, mostly in the second-level cache: half as much again at E = 256. What
// bounds both kernels is the chain of exchanges that finds one choice after the other.
//
// Determinism: choices are an order of numbers with the id to decide among equals; loads and sums are made in float64 per block, in
// the order of its warps and their rows, and added over blocks in a fixed order. How rows are dealt to blocks depends on sizes alone.
#include "kernels/cuda/moe_route.h"

#include "kernels/cuda/number_order.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

constexpr int kMostExperts = 512, kMostGroups = kWarpThreads, kMostChoices = kWarpThreads;

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

// Block (b, sequence) takes rows_of_block rows of the sequence, warp w those at w, w + kRouteWarps, ...
template <int kRegisters>
__global__ void __launch_bounds__(kRouteThreads, 3) RouteForwardKernel(Route a) {
  __shared__ double scores[kRouteWarps][kRegisters * kWarpThreads], z[kRouteWarps];
  __shared__ int loads[kRouteWarps][kRegisters * kWarpThreads];
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads,
            warp = static_cast<int>(threadIdx.x) / kWarpThreads;
  const int64_t sequence = blockIdx.y, first = blockIdx.x * a.rows_of_block;
  Statistics<kRegisters> statistics;
  for (int64_t i = first + warp; i < first + a.rows_of_block; i += kRouteWarps) {
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
  for (int e = static_cast<int>(threadIdx.x); e < a.experts; e += kRouteThreads) {
    double load = 0, score = 0;
    for (int w = 0; w < kRouteWarps; ++w) {
      load += loads[w][e];
      score += scores[w][e];
    }
    partial[e] = load;
    partial[a.experts + e] = score;
  }
  if (threadIdx.x == 0) {
    double sum = 0;
    for (int w = 0; w < kRouteWarps; ++w) sum += z[w];
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
    return MT_LAUNCH(kernel, grid, kRouteThreads, 0, launch.stream, a);
  }));
  const dim3 sums(static_cast<unsigned>(DivideUp(a.width, kSumColumns)), grid.y);
  MT_CUDA(MT_LAUNCH(AddStatisticsKernel, sums, kSumColumns * kSumLanes, 0, launch.stream, a,
                    args.expert_load, args.score_sum, args.z_sum, args.statistics_stride));
  return MT_OK;
}

}  // namespace mt::cuda
