// RMSNorm, Zhang & Sennrich 2019 (arXiv 1910.07467), fused with the residual addition before it: kernels, bytes and
// determinism in norm.h and norm_backward.h.
#include "kernels/cuda/norm_backward.h"
#include "kernels/cuda/operations.h"

namespace mt::cuda {

int32_t RmsNormForward(const mt_rmsnorm_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    return RunNormForward<false>(ForwardOf<T>(args), launch);
  });
}

int64_t RmsNormBackwardWorkspace(const mt_rmsnorm_args& args) {
  return PartialRows(args.rows, args.columns) * args.columns * static_cast<int64_t>(sizeof(float));
}

int32_t RmsNormBackward(const mt_rmsnorm_args& args, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    return RunNormBackward<false>(BackwardOf<T>(args), args.workspace,
                                  static_cast<float*>(args.weight_gradient), nullptr, launch);
  });
}

}  // namespace mt::cuda
