// The parts of routing that are the same for every instruction set: choosing and weighing a row's experts.
#pragma once

#include <cstdint>

#include "kernels/abi/mt_backend.h"

namespace mt::cpu {

// A thread's scratch for one row, in the workspace.
struct RouteScratch {
  float *softmax, *sigmoid, *complement;  // (E)
  double* score_gradient;                 // (E)
  double* weight_gradient;                // (k)
  int32_t* keys;                          // (5 E)

  RouteScratch(const mt_moe_route_args& args, void* memory);
  static int64_t Bytes(const mt_moe_route_args& args);
};

// ids (k): the largest choices, score (E) + selection bias, of the groups that are open.
void ChooseExperts(const mt_moe_route_args& args, const float* score, int32_t* keys, int32_t* ids);

// weights (k) of the experts that were chosen.
void WeighExperts(const mt_moe_route_args& args, const float* score, const int32_t* ids,
                  float* weights);

// gradient (k): that of the chosen experts' scores, from that of their weights.
void BackThroughWeights(const mt_moe_route_args& args, const float* score, const int32_t* ids,
                        const float* weight_gradient, double* gradient);

// Rows first, first + step, ... of one sequence, and where their statistics are added.
struct RouteBlock {
  int64_t first, last, step;
  double *score, *load, *z;  // (E), (E), (1)
};

}  // namespace mt::cpu
