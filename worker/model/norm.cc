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

mt_layernorm_args LayerArguments(const ModelContext& context, const NormWeights& weights,
                                 const NormActivations& a, float* amax) {
  return {.dtype = context.dtype,
          .gradient_dtype = context.types.gradient,
          .rows = context.shape.stream_rows,
          .columns = weights.columns,
          .eps = context.model.norm_eps(),
          .weight = weights.weight,
          .bias = weights.bias,
          .mean = a.mean,
          .rstd = a.rstd,
          .amax = amax};
}

// The two argument structs call these alike.
template <typename Arguments>
Arguments Forward(Arguments norm, const NormInput& input, const NormActivations& a) {
  norm.x = input.x;
  norm.residual = input.residual;
  norm.sum = input.sum;
  norm.output = a.output;
  return norm;
}
template <typename Arguments>
Arguments Backward(Arguments norm, const NormWeights& weights, const void* sum,
                   const NormGradients& gradients) {
  norm.sum = const_cast<void*>(sum);
  norm.output_gradient = gradients.output;
  norm.residual_gradient = gradients.residual;
  norm.input_gradient = gradients.input;
  norm.weight_gradient = weights.weight_gradient;
  return norm;
}

}  // namespace

absl::Status NormForward(ModelContext& context, const NormWeights& weights, const NormInput& input,
                         const NormActivations& a, float* amax) {
  if (weights.bias == nullptr) {
    return context.Run<MT_OP_RMSNORM_FORWARD>(
        Forward(RmsArguments(context, weights, a, amax), input, a));
  }
  return context.Run<MT_OP_LAYERNORM_FORWARD>(
      Forward(LayerArguments(context, weights, a, amax), input, a));
}

absl::Status NormBackward(ModelContext& context, const NormWeights& weights, const void* sum,
                          const NormActivations& a, const NormGradients& gradients, float* amax) {
  if (weights.bias == nullptr) {
    return context.Run<MT_OP_RMSNORM_BACKWARD>(
        Backward(RmsArguments(context, weights, a, amax), weights, sum, gradients));
  }
  mt_layernorm_args norm =
      Backward(LayerArguments(context, weights, a, amax), weights, sum, gradients);
  norm.bias_gradient = weights.bias_gradient;
  return context.Run<MT_OP_LAYERNORM_BACKWARD>(norm);
}

}  // namespace mt
