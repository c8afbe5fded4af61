// Which experts a row goes to, and with which weights.
#include <algorithm>
#include <cmath>

#include "kernels/reference/operations.h"

namespace mt::reference {
namespace {

// NaN is less than every number; the lower index among equals.
bool Better(const double* values, int64_t a, int64_t b) {
  const double x = values[a], y = values[b];
  if (std::isnan(x) != std::isnan(y)) return std::isnan(y);
  if (x != y && !std::isnan(x)) return x > y;
  return a < b;
}

// The index of [first, last) that is best, of those whose mark is `open`; `marks` may be null.
int64_t Best(const double* values, int64_t first, int64_t last, const char* marks, char open) {
  int64_t best = -1;
  for (int64_t i = first; i < last; ++i) {
    if (marks != nullptr && marks[i] != open) continue;
    if (best < 0 || Better(values, i, best)) best = i;
  }
  return best;
}

double LogSumExp(const double* logits, int64_t count) {
  double maximum = -HUGE_VAL, sum = 0;
  for (int64_t e = 0; e < count; ++e) {
    if (logits[e] > maximum || std::isnan(logits[e])) maximum = logits[e];
    if (std::isnan(maximum)) return maximum;
  }
  if (std::isinf(maximum)) maximum = 0;
  for (int64_t e = 0; e < count; ++e) sum += std::exp(logits[e] - maximum);
  return maximum + std::log(sum);
}

double Sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// One row's numbers in the workspace; WorkspaceBytes gives as many.
struct Row {
  double* logits;           // (E)
  double* score;            // (E)
  double* normalised;       // (E) score with sum 1
  double* choice;           // (E); backward: the logits' gradient
  double* worth;            // (groups), at most E; backward: (E) the score's gradient
  double* weights;          // (k), at most E: before `normalize` and `scale`
  double* weight_gradient;  // (k)
  char* open;               // (E), of experts
  char* group_open;         // (groups)
  double lse, sigmoids;

  explicit Row(const mt_moe_route_args& args) {
    double* next = static_cast<double*>(args.workspace);
    for (double** each :
         {&logits, &score, &normalised, &choice, &worth, &weights, &weight_gradient}) {
      *each = next;
      next += args.experts;
    }
    open = reinterpret_cast<char*>(next);
    group_open = open + args.experts;
  }

  template <typename S>
  void Read(const mt_moe_route_args& args, int64_t n) {
    const int64_t E = args.experts;
    std::copy_n(static_cast<const S*>(args.logits) + n * E, E, logits);
    lse = LogSumExp(logits, E);
    sigmoids = 0;
    for (int64_t e = 0; e < E; ++e) {
      normalised[e] = std::exp(logits[e] - lse);
      score[e] = args.score == MT_MOE_SOFTMAX   ? normalised[e]
                 : args.score == MT_MOE_SIGMOID ? Sigmoid(logits[e])
                                                : logits[e];
      sigmoids += score[e];
    }
    if (args.score != MT_MOE_SIGMOID) return;
    for (int64_t e = 0; e < E; ++e) normalised[e] = score[e] / sigmoids;
  }

  // The chosen scores, or their softmax; their sum.
  double Weigh(const mt_moe_route_args& args, const int32_t* ids) {
    double sum = 0;
    for (int64_t j = 0; j < args.top_k; ++j) weights[j] = score[ids[j]];
    if (args.score == MT_MOE_SOFTMAX_TOP_K) {
      const double chosen = LogSumExp(weights, args.top_k);
      for (int64_t j = 0; j < args.top_k; ++j) weights[j] = std::exp(weights[j] - chosen);
    }
    for (int64_t j = 0; j < args.top_k; ++j) sum += weights[j];
    return sum;
  }
};

// Opens the experts that may be chosen.
void OpenGroups(const mt_moe_route_args& args, Row& row) {
  const int64_t E = args.experts;
  if (args.groups <= 1) {
    std::fill(row.open, row.open + E, 1);
    return;
  }
  const int64_t size = E / args.groups;
  std::fill(row.open, row.open + E, 0);
  for (int64_t g = 0; g < args.groups; ++g) {
    const int64_t first = g * size, best = Best(row.choice, first, first + size, nullptr, 0);
    row.worth[g] = row.choice[best];
    row.group_open[g] = 1;
    if (args.group_top_2 == 0) continue;
    row.open[best] = 1;
    row.worth[g] += row.choice[Best(row.choice, first, first + size, row.open, 0)];
    row.open[best] = 0;
  }
  for (int64_t i = 0; i < args.top_groups; ++i) {
    const int64_t g = Best(row.worth, 0, args.groups, row.group_open, 1);
    row.group_open[g] = 0;
    std::fill_n(row.open + g * size, size, 1);
  }
}

template <typename S>
void Choose(const mt_moe_route_args& args, Row& row, int32_t* ids) {
  for (int64_t e = 0; e < args.experts; ++e) {
    row.choice[e] = row.score[e];
    if (args.selection_bias != nullptr)
      row.choice[e] += static_cast<const S*>(args.selection_bias)[e];
  }
  OpenGroups(args, row);
  for (int64_t j = 0; j < args.top_k; ++j) {
    const int64_t e = Best(row.choice, 0, args.experts, row.open, 1);
    row.open[e] = 0;
    ids[j] = static_cast<int32_t>(e);
  }
}

}  // namespace

void MoeRouteForward(const mt_moe_route_args& args) {
  WithType(args.dtype, [&](auto type) {
    using S = decltype(type);
    const int64_t E = args.experts, k = args.top_k;
    Row row(args);
    for (int64_t n = 0; n < args.rows; ++n) {
      row.Read<S>(args, n);
      int32_t* ids = args.ids + n * k;
      Choose<S>(args, row, ids);
      const double sum = row.Weigh(args, ids) + 1e-20;
      for (int64_t j = 0; j < k; ++j) {
        const double weight = args.normalize != 0 ? row.weights[j] / sum : row.weights[j];
        static_cast<S*>(args.weights)[n * k + j] = static_cast<S>(args.scale * weight);
      }
      const int64_t statistics = n % args.batch * args.statistics_stride;
      for (int64_t j = 0; j < k; ++j) args.expert_load[statistics + ids[j]] += 1;
      for (int64_t e = 0; args.score_sum != nullptr && e < E; ++e)
        args.score_sum[statistics + e] += row.normalised[e];
      if (args.z_sum != nullptr) *args.z_sum += row.lse * row.lse;
    }
  });
}

namespace {

// `gradient` (k) of the weights -> of the row's weights before `normalize` and `scale`, in place.
void BackThroughWeights(const mt_moe_route_args& args, const Row& row, double sum,
                        double* gradient) {
  const int64_t k = args.top_k;
  double dot = 0;
  for (int64_t j = 0; j < k; ++j) {
    gradient[j] *= args.scale;
    dot += gradient[j] * row.weights[j];
  }
  if (args.normalize == 0) return;
  const double divisor = sum + 1e-20;
  for (int64_t j = 0; j < k; ++j)
    gradient[j] = gradient[j] / divisor - dot / (divisor * divisor);  // d (w_i / sum) / d w_j
}

// d(softmax)_i . gradient, added to out[at(i)].
template <typename At>
void AddSoftmaxGradient(const double* softmax, const double* gradient, int64_t count, const At& at,
                        double* out) {
  double dot = 0;
  for (int64_t i = 0; i < count; ++i) dot += softmax[i] * gradient[i];
  for (int64_t i = 0; i < count; ++i) out[at(i)] += softmax[i] * (gradient[i] - dot);
}

// The gradient of the chosen weights (k) and of the normalised score (E, may be null) -> of the logits, added to `out` (E).
void BackThroughScore(const mt_moe_route_args& args, const Row& row, const int32_t* ids,
                      const double* weight_gradient, const double* balance, double* out) {
  const int64_t E = args.experts, k = args.top_k;
  const auto chosen = [&](int64_t j) { return ids[j]; };
  const auto same = [](int64_t e) { return e; };
  if (args.score == MT_MOE_SOFTMAX_TOP_K) {
    AddSoftmaxGradient(row.weights, weight_gradient, k, chosen, out);
    if (balance != nullptr) AddSoftmaxGradient(row.normalised, balance, E, same, out);
    return;
  }
  double* score_gradient = row.worth;
  std::fill(score_gradient, score_gradient + E, 0.0);
  for (int64_t j = 0; j < k; ++j) score_gradient[ids[j]] = weight_gradient[j];
  double dot = 0;
  for (int64_t e = 0; balance != nullptr && e < E; ++e) dot += balance[e] * row.normalised[e];
  if (args.score == MT_MOE_SOFTMAX) {
    for (int64_t e = 0; balance != nullptr && e < E; ++e) score_gradient[e] += balance[e];
    AddSoftmaxGradient(row.normalised, score_gradient, E, same, out);
    return;
  }
  for (int64_t e = 0; e < E; ++e) {
    // d (score / sum) / d score
    if (balance != nullptr) score_gradient[e] += (balance[e] - dot) / row.sigmoids;
    out[e] += score_gradient[e] * row.score[e] * Sigmoid(-row.logits[e]);
  }
}

}  // namespace

void MoeRouteBackward(const mt_moe_route_args& args) {
  WithType(args.dtype, [&](auto type) {
    using S = decltype(type);
    const int64_t E = args.experts, k = args.top_k;
    Row row(args);
    double* gradient = row.choice;
    for (int64_t n = 0; n < args.rows; ++n) {
      row.Read<S>(args, n);
      const int32_t* ids = args.ids + n * k;
      const double sum = row.Weigh(args, ids);
      std::copy_n(static_cast<const S*>(args.weight_gradient) + n * k, k, row.weight_gradient);
      BackThroughWeights(args, row, sum, row.weight_gradient);
      for (int64_t e = 0; e < E; ++e) {
        const double softmax = std::exp(row.logits[e] - row.lse);
        gradient[e] = args.z_scale != 0 ? args.z_scale * 2 * row.lse * softmax : 0.0;
      }
      const double* balance = args.balance_gradient;
      if (balance != nullptr) balance += n % args.batch * args.balance_stride;
      BackThroughScore(args, row, ids, row.weight_gradient, balance, gradient);
      S* out = static_cast<S*>(args.logits_gradient) + n * E;
      for (int64_t e = 0; e < E; ++e) out[e] = static_cast<S>(gradient[e]);
    }
  });
}

}  // namespace mt::reference
