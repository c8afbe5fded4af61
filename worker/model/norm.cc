#include "worker/model/norm.h"

namespace mt {
namespace {

mt_rmsnorm_args RmsArguments(const ModelContext& context, const NormWeights& weights,
                             const NormActivations& a, float* amax) {
  return {.dtype = context.dtype,
          .gradient_dtype = context.types.gradient,
          .rows = context.shape.stream_rows,
          .columns = weights.columns,
          .eps = context.model.norm_eps(),
          .weight = weights.weight,
          .rstd = a.rstd,
          .amax = amax};
}

}  // namespace

absl::Status NormForward(ModelContext& context, const NormWeights& weights, const NormInput& input,
                         const NormActivations& a, float* amax) {
  mt_rmsnorm_args norm = RmsArguments(context, weights, a, amax);
  norm.x = input.x;
  norm.residual = input.residual;
  norm.sum = input.sum;
  norm.output = a.output;
  return context.Run<MT_OP_RMSNORM_FORWARD>(norm);
}

absl::Status NormBackward(ModelContext& context, const NormWeights& weights, const void* sum,
                          const NormActivations& a, const NormGradients& gradients, float* amax) {
  mt_rmsnorm_args norm = RmsArguments(context, weights, a, amax);
  norm.sum = const_cast<void*>(sum);
  norm.output_gradient = gradients.output;
  norm.residual_gradient = gradients.residual;
  norm.input_gradient = gradients.input;
  norm.weight_gradient = weights.weight_gradient;
  return context.Run<MT_OP_RMSNORM_BACKWARD>(norm);
}

}  // namespace mt
