// Which experts a row goes to. Statistics are summed per block of rows of one sequence, and the blocks in order.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/moe_route.cc"
#include "hwy/foreach_target.h"
// After foreach_target:
#include <algorithm>
#include <cmath>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/moe_route.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace mt::cpu::HWY_NAMESPACE {

struct ExpBody {
  const float* logits;
  float subtracted;
  float* to;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t e) const {
    Write(Exp(d, hn::Sub(Read(d, logits + e), hn::Set(d, subtracted))), d, to + e);
  }
};

struct SigmoidBody {
  const float* logits;
  float *to, *complement;  // 1 - to, without cancellation
  template <class D>
  HWY_INLINE void operator()(D d, int64_t e) const {
    const auto x = Read(d, logits + e);
    Write(Sigmoid(d, x), d, to + e);
    if (complement != nullptr) Write(Sigmoid(d, hn::Neg(x)), d, complement + e);
  }
};

struct ScaleBody {
  float factor;
  float* data;
  template <class D>
  HWY_INLINE void operator()(D d, int64_t e) const {
    Write(hn::Mul(Read(d, data + e), hn::Set(d, factor)), d, data + e);
  }
};

HWY_INLINE float LargestOf(const float* data, int64_t count) {
  const Full d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector largest = hn::Set(d, -std::numeric_limits<float>::infinity());
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) largest = hn::Max(largest, Read(d, data + i));
  float result = Maximum(largest);
  for (; i < count; ++i) result = std::max(result, data[i]);
  return result;
}

HWY_INLINE double SumOf(const float* data, int64_t count) {
  const Full d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  Vector sum = hn::Zero(d);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) sum = hn::Add(sum, Read(d, data + i));
  double result = static_cast<double>(Sum(sum));
  for (; i < count; ++i) result += static_cast<double>(data[i]);
  return result;
}

// The softmax of a row; returns logsumexp. A NaN among the logits makes all of it NaN.
HWY_INLINE double Softmax(const float* logits, int64_t experts, float* softmax) {
  float largest = LargestOf(logits, experts);
  if (std::isinf(largest)) largest = 0;
  ForEach(0, experts, ExpBody{logits, largest, softmax});
  const double sum = SumOf(softmax, experts);
  ForEach(0, experts, ScaleBody{static_cast<float>(1 / sum), softmax});
  return static_cast<double>(largest) + std::log(sum);
}

void RouteForwardRows(const mt_moe_route_args& args, const RouteBlock& block, void* memory) {
  const int64_t E = args.experts, k = args.top_k;
  const RouteScratch scratch(args, memory);
  const bool by_sigmoid = args.score == MT_MOE_SIGMOID;
  for (int64_t row = block.first; row < block.last; row += block.step) {
    const float* logits = static_cast<const float*>(args.logits) + row * E;
    const double lse = Softmax(logits, E, scratch.softmax);
    if (by_sigmoid) ForEach(0, E, SigmoidBody{logits, scratch.sigmoid, nullptr});
    const float* score = args.score == MT_MOE_SOFTMAX ? scratch.softmax
                         : by_sigmoid                 ? scratch.sigmoid
                                                      : logits;
    int32_t* ids = args.ids + row * k;
    ChooseExperts(args, score, scratch.keys, ids);
    WeighExperts(args, score, ids, static_cast<float*>(args.weights) + row * k);
    for (int64_t j = 0; j < k; ++j) block.load[ids[j]] += 1;
    *block.z += lse * lse;
    if (args.score_sum == nullptr) continue;
    float* normalised = by_sigmoid ? scratch.sigmoid : scratch.softmax;
    if (by_sigmoid)
      ForEach(0, E, ScaleBody{static_cast<float>(1 / SumOf(normalised, E)), normalised});
    for (int64_t e = 0; e < E; ++e) block.score[e] += static_cast<double>(normalised[e]);
  }
}

// out[e] += the gradient of logit e: of the weights, and of the normalised score, which is `gradient` so far.
HWY_INLINE void BackThroughSoftmax(const mt_moe_route_args& args, const RouteScratch& scratch,
                                   const int32_t* ids, float* out) {
  const int64_t E = args.experts;
  const float* p = scratch.softmax;
  double* gradient = scratch.score_gradient;
  // That of SOFTMAX_TOP_K is the logits' already.
  for (int64_t j = 0; j < args.top_k; ++j) {
    if (args.score == MT_MOE_SOFTMAX) {
      gradient[ids[j]] += scratch.weight_gradient[j];
    } else {
      out[ids[j]] += static_cast<float>(scratch.weight_gradient[j]);
    }
  }
  double dot = 0;
  for (int64_t e = 0; e < E; ++e) dot += static_cast<double>(p[e]) * gradient[e];
  for (int64_t e = 0; e < E; ++e)
    out[e] += static_cast<float>(static_cast<double>(p[e]) * (gradient[e] - dot));
}

HWY_INLINE void BackThroughSigmoid(const mt_moe_route_args& args, const RouteScratch& scratch,
                                   const int32_t* ids, float* out) {
  const int64_t E = args.experts;
  const float* s = scratch.sigmoid;
  double* gradient = scratch.score_gradient;
  if (args.balance_gradient != nullptr) {  // d (s / sum) / d s
    const double sum = SumOf(s, E);
    double dot = 0;
    for (int64_t e = 0; e < E; ++e) dot += gradient[e] * static_cast<double>(s[e]);
    for (int64_t e = 0; e < E; ++e) gradient[e] = (gradient[e] - dot / sum) / sum;
  }
  for (int64_t j = 0; j < args.top_k; ++j) gradient[ids[j]] += scratch.weight_gradient[j];
  for (int64_t e = 0; e < E; ++e)
    out[e] += static_cast<float>(gradient[e] * static_cast<double>(s[e] * scratch.complement[e]));
}

void RouteBackwardRows(const mt_moe_route_args& args, int64_t first, int64_t last, void* memory) {
  const int64_t E = args.experts, k = args.top_k;
  const RouteScratch scratch(args, memory);
  const bool by_sigmoid = args.score == MT_MOE_SIGMOID;
  for (int64_t row = first; row < last; ++row) {
    const float* logits = static_cast<const float*>(args.logits) + row * E;
    const int32_t* ids = args.ids + row * k;
    float* out = static_cast<float*>(args.logits_gradient) + row * E;
    const double lse = Softmax(logits, E, scratch.softmax);
    if (by_sigmoid) ForEach(0, E, SigmoidBody{logits, scratch.sigmoid, scratch.complement});
    const float z = static_cast<float>(args.z_scale * 2 * lse);
    for (int64_t e = 0; e < E; ++e) out[e] = args.z_scale != 0 ? z * scratch.softmax[e] : 0.0f;
    const double* balance = args.balance_gradient;
    if (balance != nullptr) {
      std::copy_n(balance + row % args.batch * args.balance_stride, E, scratch.score_gradient);
    } else {
      std::fill_n(scratch.score_gradient, E, 0.0);
    }
    const float* score = args.score == MT_MOE_SOFTMAX ? scratch.softmax
                         : by_sigmoid                 ? scratch.sigmoid
                                                      : logits;
    BackThroughWeights(args, score, ids, static_cast<const float*>(args.weight_gradient) + row * k,
                       scratch.weight_gradient);
    if (by_sigmoid) {
      BackThroughSigmoid(args, scratch, ids, out);
    } else {
      BackThroughSoftmax(args, scratch, ids, out);
    }
  }
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mt::cpu {
HWY_EXPORT(RouteForwardRows);
HWY_EXPORT(RouteBackwardRows);

namespace {

constexpr int64_t kBlockRows = 64;

// Blocks of rows whose statistics belong together: of one sequence, or of all.
struct RouteBlocks {
  int64_t sequences, per_sequence;
  explicit RouteBlocks(const mt_moe_route_args& args)
      : sequences(args.statistics_stride > 0 ? args.batch : 1),
        per_sequence(CeilDivide(CeilDivide(args.rows, sequences), kBlockRows)) {}
  int64_t count() const { return sequences * per_sequence; }
};

int64_t PartialDoubles(const mt_moe_route_args& args) { return 2 * args.experts + 1; }

}  // namespace

int64_t MoeRouteForwardWorkspace(const mt_moe_route_args& args) {
  return 8 * RouteBlocks(args).count() * PartialDoubles(args) +
         Threads() * RouteScratch::Bytes(args);
}

void MoeRouteForward(const mt_moe_route_args& args) {
  const int64_t E = args.experts, each = PartialDoubles(args);
  const RouteBlocks blocks(args);
  double* partial = static_cast<double*>(args.workspace);
  char* scratch = reinterpret_cast<char*>(partial + blocks.count() * each);
  ParallelBlocks(blocks.count(), [&](int64_t index) {
    const int64_t sequence = index / blocks.per_sequence, step = blocks.sequences * kBlockRows,
                  first = sequence + index % blocks.per_sequence * step;
    double* mine = partial + index * each;
    std::fill_n(mine, each, 0.0);
    HWY_DYNAMIC_DISPATCH(RouteForwardRows)
    (args,
     RouteBlock{first, std::min(args.rows, first + step), blocks.sequences, mine, mine + E,
                mine + 2 * E},
     scratch + ThreadNumber() * RouteScratch::Bytes(args));
  });
  for (int64_t index = 0; index < blocks.count(); ++index) {
    const double* mine = partial + index * each;
    const int64_t at = index / blocks.per_sequence * args.statistics_stride;
    for (int64_t e = 0; e < E; ++e) args.expert_load[at + e] += mine[E + e];
    for (int64_t e = 0; args.score_sum != nullptr && e < E; ++e) args.score_sum[at + e] += mine[e];
    if (args.z_sum != nullptr) *args.z_sum += mine[2 * E];
  }
}

int64_t MoeRouteBackwardWorkspace(const mt_moe_route_args& args) {
  return Threads() * RouteScratch::Bytes(args);
}

void MoeRouteBackward(const mt_moe_route_args& args) {
  char* scratch = static_cast<char*>(args.workspace);
  ParallelBlocks(CeilDivide(args.rows, kBlockRows), [&](int64_t block) {
    HWY_DYNAMIC_DISPATCH(RouteBackwardRows)
    (args, block * kBlockRows, std::min(args.rows, (block + 1) * kBlockRows),
     scratch + ThreadNumber() * RouteScratch::Bytes(args));
  });
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
