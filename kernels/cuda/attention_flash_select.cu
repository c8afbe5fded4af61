// Which of our own attention kernels runs: tensor cores where type, sizes and strides allow, else the portable ones. The choice
// is known from the sizes, but for pointers that are not aligned to 16 bytes, which take the portable kernels too.
#include "kernels/cuda/attention_flash.h"

#include <algorithm>

#include "kernels/abi/attention_shape.h"
#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

constexpr int64_t kLargestHead = 256;
constexpr int64_t kLargestGrid = 65535;        // blocks in y and z: heads and sequences
constexpr int64_t kLongest = (1 << 30) - 256;  // a position plus a window is an int

bool UsesMma([[maybe_unused]] const mt_attention_args& args, [[maybe_unused]] bool backward) {
#if MT_HAS_MMA_ATTENTION
  return MmaAttentionSupports(args, backward);
#else
  return false;
#endif
}

float* Delta(const mt_attention_args& args) { return static_cast<float*>(args.workspace); }

}  // namespace

bool FlashAttentionSupports(const mt_attention_args& args, bool backward) {
  const int32_t operation = backward ? MT_OP_ATTENTION_BACKWARD : MT_OP_ATTENTION_FORWARD;
  if (args.dtype != MT_F32 && args.dtype != MT_BF16) {
    host::Fail(MT_ERROR_UNSUPPORTED, operation, "dtype %d: only F32 and BF16",
               static_cast<int>(args.dtype));
    return false;
  }
  if (args.sinks_gradient_dtype != 0 && args.sinks_gradient_dtype != MT_F32) {
    host::Fail(MT_ERROR_UNSUPPORTED, operation, "sinks_gradient_dtype %d: only F32",
               static_cast<int>(args.sinks_gradient_dtype));
    return false;
  }
  const int64_t v_head_dim = mt_attention_v_head_dim(&args);
  if (std::max(args.head_dim, v_head_dim) > kLargestHead || args.heads > kLargestGrid ||
      args.batch > kLargestGrid || mt_attention_keys(&args) > kLongest) {
    host::Fail(MT_ERROR_UNSUPPORTED, operation,
               "head_dim %lld, v_head_dim %lld (at most %lld), heads %lld, batch %lld (at most "
               "%lld), %lld "
               "keys",
               static_cast<long long>(args.head_dim), static_cast<long long>(v_head_dim),
               static_cast<long long>(kLargestHead), static_cast<long long>(args.heads),
               static_cast<long long>(args.batch), static_cast<long long>(kLargestGrid),
               static_cast<long long>(mt_attention_keys(&args)));
    return false;
  }
  return true;
}

const char* FlashAttentionName(const mt_attention_args& args, bool backward) {
  return UsesMma(args, backward) ? "mt:flash:mma" : "mt:flash:portable";
}

int64_t FlashAttentionWorkspace(const mt_attention_args& args, bool backward) {
  return backward ? args.batch * args.heads * args.sequence * static_cast<int64_t>(sizeof(float))
                  : 0;
}

int32_t FlashAttentionForward(const mt_attention_args& args, const Launch& launch) {
  if (args.sequence == 0 || args.batch == 0 || args.heads == 0) return MT_OK;
#if MT_HAS_MMA_ATTENTION
  if (UsesMma(args, false) && MmaAttentionFits(args, false))
    return MmaAttentionForward(args, launch);
#endif
  return PortableAttentionForward(args, launch);
}

int32_t FlashAttentionBackward(const mt_attention_args& args, const Launch& launch) {
  if (args.sequence == 0 || args.batch == 0 || args.heads == 0) return MT_OK;
  float* const delta = Delta(args);
  const auto finish = [&](int32_t status) {
    if (status != MT_OK || args.sinks_gradient == nullptr) return status;
    return AttentionSinksGradient(args, delta, launch);
  };
#if MT_HAS_MMA_ATTENTION
  if (UsesMma(args, true) && MmaAttentionFits(args, true))
    return finish(MmaAttentionBackward(args, delta, launch));
#endif
  if (const int32_t status = AttentionDelta(args, delta, launch); status != MT_OK) return status;
  return finish(PortableAttentionBackward(args, delta, launch));
}

}  // namespace mt::cuda
