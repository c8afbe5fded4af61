// LayerNorm, Ba, Kiros & Hinton 2016 (arXiv 1607.06450), fused with the residual addition before it: kernels, bytes and
// determinism in norm.h and norm_backward.h.
#include "kernels/cuda/norm_backward.h"
#include "kernels/cuda/operations.h"

namespace mt::cuda {

int32_t LayerNormForward(const mt_layernorm_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    NormForward<T> a = ForwardOf<T>(args);
    a.bias = static_cast<const T*>(args.bias);
    a.mean = static_cast<float*>(args.mean);
    return RunNormForward<true>(a, launch);
  });
}

int64_t LayerNormBackwardWorkspace(const mt_layernorm_args& args) {
  return 2 * PartialRows(args.rows, args.columns) * args.columns *
         static_cast<int64_t>(sizeof(float));
}

int32_t LayerNormBackward(const mt_layernorm_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    NormBackward<T> a = BackwardOf<T>(args);
    a.mean = static_cast<const float*>(args.mean);
    return RunNormBackward<true>(a, args.workspace, static_cast<float*>(args.weight_gradient),
                                 static_cast<float*>(args.bias_gradient), launch);
  });
}

}  // namespace mt::cuda
