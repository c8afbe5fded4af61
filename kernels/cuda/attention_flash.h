// The two sets of our own attention kernels, between which attention_flash_select.cu chooses. All take arguments that were checked, with
// F32 or BF16 data, float32 lse and head_dim <= 256, launch on launch.stream and add in an order that only the sizes decide.
#pragma once

#include <cstdint>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {

// attention_flash.cu. delta is (B, H, T) float32.
int32_t AttentionDelta(const mt_attention_args& args, float* delta, const Launch& launch);
// sinks_gradient, from lse and delta.
int32_t AttentionSinksGradient(const mt_attention_args& args, const float* delta,
                               const Launch& launch);
int32_t PortableAttentionForward(const mt_attention_args& args, const Launch& launch);
int32_t PortableAttentionBackward(const mt_attention_args& args, const float* delta,
                                  const Launch& launch);

// attention_flash_mma.cu; absent where a vendor has other matrix instructions (MT_HAS_MMA_ATTENTION). `Supports` looks at types and
// sizes, `Fits` at how the pointers are aligned: rows have to be readable in 16 bytes.
#if !defined(MT_VENDOR_HIP) && !defined(MT_VENDOR_MUSA)
#define MT_HAS_MMA_ATTENTION 1
bool MmaAttentionSupports(const mt_attention_args& args, bool backward);
bool MmaAttentionFits(const mt_attention_args& args, bool backward);
int32_t MmaAttentionForward(const mt_attention_args& args, const Launch& launch);
int32_t MmaAttentionBackward(const mt_attention_args& args, float* delta, const Launch& launch);
#endif

}  // namespace mt::cuda
