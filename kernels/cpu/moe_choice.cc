#include <algorithm>
#include <cmath>

#include "kernels/abi/small_floats.h"
#include "kernels/cpu/moe_route.h"

namespace mt::cpu {
namespace {

// Integers in the order of the numbers: NaN below all of them, and below NaN what cannot be chosen at all.
constexpr int32_t kClosed = INT32_MIN, kNotANumber = INT32_MIN + 1;
int32_t KeyOf(float value) {
  if (std::isnan(value)) return kNotANumber;
  const int32_t bits = static_cast<int32_t>(mt_float_bits(value + 0.0f));  // -0 equals 0
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// The indices of the `most` largest keys, largest first, the lower among equals; `best` (most) is scratch.
void Largest(const int32_t* keys, int64_t count, int64_t most, int32_t* best, int32_t* indices) {
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t key = keys[i];
    if (key == kClosed || (found == most && key <= best[most - 1])) continue;
    int64_t at = found < most ? found++ : most - 1;
    for (; at > 0 && best[at - 1] < key; --at) {
      best[at] = best[at - 1];
      indices[at] = indices[at - 1];
    }
    best[at] = key;
    indices[at] = static_cast<int32_t>(i);
  }
}

float ChoiceOf(const mt_moe_route_args& args, const float* score, int64_t e) {
  const float* bias = static_cast<const float*>(args.selection_bias);
  return bias != nullptr ? score[e] + bias[e] : score[e];
}

// Closes the experts of all but the best groups. scratch: (3 groups)
void CloseGroups(const mt_moe_route_args& args, const float* score, int32_t* keys,
                 int32_t* scratch) {
  const int64_t groups = args.groups, size = args.experts / groups;
  int32_t *worth = scratch, *best = scratch + groups, *open = scratch + 2 * groups;
  for (int64_t g = 0; g < groups; ++g) {
    int32_t two_best[2], two[2];
    const int64_t many = args.group_top_2 != 0 ? 2 : 1;
    Largest(keys + g * size, size, many, two_best, two);
    float value = ChoiceOf(args, score, g * size + two[0]);
    if (many == 2) value += ChoiceOf(args, score, g * size + two[1]);
    worth[g] = KeyOf(value);
  }
  Largest(worth, groups, args.top_groups, best, open);
  for (int64_t i = 0; i < args.top_groups; ++i) worth[open[i]] = kClosed;  // has been taken
  for (int64_t g = 0; g < groups; ++g) {
    if (worth[g] != kClosed) std::fill_n(keys + g * size, size, kClosed);
  }
}

// The chosen experts' weights before `normalize` and `scale`; returns their sum.
template <typename Take>
double Raw(const mt_moe_route_args& args, const float* score, const int32_t* ids,
           const Take& take) {
  const int64_t k = args.top_k;
  double sum = 0;
  if (args.score != MT_MOE_SOFTMAX_TOP_K) {
    for (int64_t j = 0; j < k; ++j) {
      const double weight = static_cast<double>(score[ids[j]]);
      take(j, weight);
      sum += weight;
    }
    return sum;
  }
  const double largest = static_cast<double>(score[ids[0]]);  // or NaN
  for (int64_t j = 0; j < k; ++j) sum += std::exp(static_cast<double>(score[ids[j]]) - largest);
  for (int64_t j = 0; j < k; ++j)
    take(j, std::exp(static_cast<double>(score[ids[j]]) - largest) / sum);
  return 1;
}

}  // namespace

RouteScratch::RouteScratch(const mt_moe_route_args& args, void* memory) {
  const int64_t E = args.experts;
  score_gradient = static_cast<double*>(memory);
  weight_gradient = score_gradient + E;
  softmax = reinterpret_cast<float*>(weight_gradient + args.top_k);
  sigmoid = softmax + E;
  complement = sigmoid + E;
  keys = reinterpret_cast<int32_t*>(complement + E);
}

int64_t RouteScratch::Bytes(const mt_moe_route_args& args) {
  const int64_t bytes = 8 * (args.experts + args.top_k) + 4 * 8 * args.experts;
  return (bytes + 63) / 64 * 64;
}

void ChooseExperts(const mt_moe_route_args& args, const float* score, int32_t* keys, int32_t* ids) {
  const int64_t E = args.experts;
  for (int64_t e = 0; e < E; ++e) keys[e] = KeyOf(ChoiceOf(args, score, e));
  int32_t* rest = keys + E;
  if (args.groups > 1) CloseGroups(args, score, keys, rest);
  Largest(keys, E, args.top_k, rest, ids);
}

void WeighExperts(const mt_moe_route_args& args, const float* score, const int32_t* ids,
                  float* weights) {
  double factor = args.scale;
  const double sum = Raw(args, score, ids, [](int64_t, double) {});
  if (args.normalize != 0) factor /= sum + 1e-20;
  Raw(args, score, ids,
      [&](int64_t j, double weight) { weights[j] = static_cast<float>(factor * weight); });
}

void BackThroughWeights(const mt_moe_route_args& args, const float* score, const int32_t* ids,
                        const float* weight_gradient, double* gradient) {
  // d (w_i / sum) / d w_j, and where w is the softmax of the chosen logits, d w_i / d l_j: both take a weighted mean off.
  double dot = 0;
  const auto add = [&](int64_t j, double weight) { dot += gradient[j] * weight; };
  for (int64_t j = 0; j < args.top_k; ++j)
    gradient[j] = args.scale * static_cast<double>(weight_gradient[j]);
  const double divisor = Raw(args, score, ids, add) + 1e-20;
  for (int64_t j = 0; args.normalize != 0 && j < args.top_k; ++j)
    gradient[j] = gradient[j] / divisor - dot / (divisor * divisor);
  if (args.score != MT_MOE_SOFTMAX_TOP_K) return;
  dot = 0;
  Raw(args, score, ids, add);
  Raw(args, score, ids,
      [&](int64_t j, double weight) { gradient[j] = weight * (gradient[j] - dot); });
}

}  // namespace mt::cpu
