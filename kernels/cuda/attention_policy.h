// For which attention cuDNN is used, as a table. Host code without CUDA.
#pragma once

#include <cstdint>

#include "kernels/abi/mt_backend.h"

namespace mt::cuda {

enum class CudnnUse {
  kNever,    // our graphs do not describe it
  kIfAsked,  // "attention" = cudnn: it has plans, whose results were not yet compared with the reference on a GPU
  kByItself  // "attention" = auto
};

// What the arguments have that plain attention lacks decides, the least use of all that apply:
//   sinks, key_sequence, document_start   never; our kernels skip what lies before a document
//   window, v_head_dim      if asked: cuDNN 9.19 has plans for Hopper (attention_cudnn_test); our kernels skip what a window hides, too
//   sequences below 256     if asked: a plan is compiled for a second or two, which they are not worth
//   other types than BF16   never
CudnnUse UseOfCudnn(const mt_attention_args& args);

}  // namespace mt::cuda
