// The router of a mixture of experts: which top_k of E experts each row goes to, and with what weight.
//
//   logits = W x (+ b)       of all N rows, on every tensor rank, in the statistic type
//   ids, weights = the k best of each row (mt_backend.h: MT_OP_MOE_ROUTE_FORWARD; score, groups, selection bias)
//
// The router is whole on every tensor rank, and all of them do the same.
//
// Losses. N rows of a micro-batch, T tokens per sequence, f_e = choices of expert e, P_e = sum over rows of the normalised scores
// (softmax over all experts, or sigmoid / its sum). A step's loss has, per layer,
//   batch     mean over the job's micro-batches of  coefficient E / k  sum_e (f_e / N) (P_e / N)
//   sequence  mean over sequences of the same with N = T, f and P of the sequence (DeepSeek-V3, arXiv 2412.19437, eq. 17 to 20)
//   global    as batch, with f_e / N of the whole global batch of the step before (in the first step of a run: none)
//   z         z_loss * mean over tokens of logsumexp(logits)^2 (ST-MoE, arXiv 2202.08906, eq. 5)
// Balance is worth `coefficient` when all experts are used alike, whatever k. It is Switch's loss (arXiv 2101.03961, eq. 4 to 6;
// there k = 1), DeepSeek-V2's (arXiv 2405.04434, section 2.2.3) and Megatron's switch_load_balancing_loss_func with
// moe_aux_loss_coeff = coefficient. transformers' load_balancing_loss_func does not divide by k, and takes f and P over all layers
// together where this adds up layers: with one layer it is k times this for router_aux_loss_coef = coefficient.
// f_e is a constant, so the gradient by a row's scores is one number per expert (and sequence), the same for all rows.
#pragma once

#include "common/spec/round_up.h"
#include "common/status.h"
#include "worker/model/context.h"

namespace mt {

// What training asks of a layer's router, and what it counts in a step, on the device: every forward pass adds to it
// (worker/train/expert_balance.h). As it is: nothing is dropped, counted or added to the gradient.
struct MoeTraining {
  double capacity_factor = 0;
  v1::MoeSpec::Balance balance = v1::MoeSpec::BALANCE_NONE;
  double balance_scale =
      0;  // of the choices of an expert, to make the loss's gradient by a row's score
  double z_scale = 0;

  void* load = nullptr;          // (E) of the statistic type: choices
  void* balance_loss = nullptr;  // one of the statistic type
  double* z_sum = nullptr;       // sum of squared logsumexp
  double* dropped = nullptr;     // choices that met a full expert
  // (CountStride(E)): the loss's gradient by a row's scores, with balance global.
  const void* global_gradient = nullptr;  // of the statistic type
  const double* global_gradient64 = nullptr;
};

// Elements from one sequence's numbers by expert to the next's; padded with zeros.
inline int64_t CountStride(int64_t experts) { return RoundUp(experts, 16); }
// Choices and scores are counted by themselves for each of so many.
inline int64_t Counted(const v1::MoeSpec& moe, int64_t batch) {
  return moe.balance() == v1::MoeSpec::BALANCE_SEQUENCE ? batch : int64_t{1};
}

// In the data type, but for the selection bias.
struct RouterWeights {
  const void* weight = nullptr;  // (E, C)
  void* weight_gradient = nullptr;
  const void* bias = nullptr;  // (E); null = none
  void* bias_gradient = nullptr;
  const void* selection_bias = nullptr;  // (E) of the statistic type; null = none
  MoeTraining training;
};

struct RouterActivations {
  void* logits = nullptr;              // (N, E) of the statistic type
  int32_t* ids = nullptr;              // (N, k)
  void* weights = nullptr;             // (N, k) of the statistic type
  double* balance_gradient = nullptr;  // (Counted, CountStride), with balance batch and sequence
};

struct RouterScratch {
  // Copies in the statistic type, and the input's gradient in the data type; null where the two are one.
  void* input = nullptr;           // (N, C), of the forward pass
  void* input_again = nullptr;     // (N, C), of the backward pass; its gradient first
  void* weight = nullptr;          // (E, C) and (E)
  void* input_gradient = nullptr;  // (N, C)

  double* counts64 = nullptr;        // (2, Counted, CountStride): choices, then scores
  void* counts = nullptr;            // the same of the statistic type
  void* weights_gradient = nullptr;  // (N, k) of the statistic type
  void* logits_gradient = nullptr;   // (N, E) of the statistic type
};

// x (N, C): all rows. Adds to weights.training.
absl::Status RouterForward(ModelContext& context, const RouterWeights& weights, const void* x,
                           const RouterActivations& a, const RouterScratch& scratch);

// From scratch.weights_gradient, summed over the tensor group: scratch.logits_gradient, and on tensor rank 0 partial (N, C), the
// gradient of the input, has its share added.
absl::Status RouterBackwardInput(ModelContext& context, const RouterWeights& weights,
                                 const RouterActivations& a, const RouterScratch& scratch,
                                 void* partial);
// After RouterBackwardInput. Adds to the gradients.
absl::Status RouterBackwardWeight(ModelContext& context, const RouterWeights& weights,
                                  const void* x, const RouterScratch& scratch);

}  // namespace mt
