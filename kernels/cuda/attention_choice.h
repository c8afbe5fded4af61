// Which attention a job gets: cuDNN's or our own kernels, as `configure("attention", ...)` said.
//   auto    cuDNN on compute capability 9.0 and later for what it is used by itself (attention_policy.h) where it has a plan, else our own
//   cudnn   cuDNN for all that it may be asked for; a shape for which it has no plan is refused with its reason
//   flash   our own
// What cuDNN is never used for, F32 data among it, takes our own. The name of a kernel tells which it is, and why cuDNN declined.
//
// Plans are made when a shape is asked about, not in Run; a shape that was never asked about runs on our own kernels.
// Thread-safe; cuDNN's handle serves one call at a time.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/cuda/operations.h"

namespace mt::cuda {

struct AttentionDevice {
  int major = 0, minor = 0;
};
// Once, after the device was opened. Before, everything is our own kernels. MT_ERROR_UNSUPPORTED if `choice` is cudnn and there is
// none.
int32_t OpenAttention(const std::string& choice, const AttentionDevice& device);

bool AttentionSupports(const mt_attention_args& args, bool backward);
const char* AttentionName(const mt_attention_args& args, bool backward);
int64_t AttentionWorkspace(const mt_attention_args& args, bool backward);
int32_t AttentionForward(const mt_attention_args& args, const Launch& launch);
int32_t AttentionBackward(const mt_attention_args& args, const Launch& launch);

}  // namespace mt::cuda
