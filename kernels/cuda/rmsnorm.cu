// RMSNorm, Zhang & Sennrich 2019 (arXiv 1910.07467), fused with the residual addition before it: kernels, bytes and
// determinism in norm.h and norm_backward.h.
#include "kernels/cuda/norm_backward.h"
#include "kernels/cuda/operations.h"

namespace mt::cuda {

int32_t RmsNormForward(const mt_rmsnorm_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    NormForward<T> a = {};
    a.x = static_cast<const T*>(args.x);
    a.residual = static_cast<const T*>(args.residual);
    a.sum = static_cast<T*>(args.sum);
    a.weight = static_cast<const T*>(args.weight);
    a.output = static_cast<T*>(args.output);
    a.rstd = static_cast<float*>(args.rstd);
    a.amax = args.amax;
    a.eps = static_cast<float>(args.eps);
    a.rows = args.rows;
    a.columns = args.columns;
    return RunNormForward<false>(a, launch);
  });
}

int64_t RmsNormBackwardWorkspace(const mt_rmsnorm_args& args) {
  return PartialRows(args.rows, args.columns) * args.columns * static_cast<int64_t>(sizeof(float));
}

int32_t RmsNormBackward(const mt_rmsnorm_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    NormBackward<T> a = {};
    a.sum = static_cast<const T*>(args.sum);
    a.weight = static_cast<const T*>(args.weight);
    a.rstd = static_cast<const float*>(args.rstd);
    a.output_gradient = static_cast<const T*>(args.output_gradient);
    a.residual_gradient = static_cast<const T*>(args.residual_gradient);
    a.input_gradient = static_cast<T*>(args.input_gradient);
    a.amax = args.amax;
    a.rows = args.rows;
    a.columns = args.columns;
    return RunNormBackward<false>(a, args.workspace, static_cast<float*>(args.weight_gradient),
                                  nullptr, launch);
  });
}

}  // namespace mt::cuda
