// Attention by cuDNN's graph API: the composite graph of scaled dot-product attention (matrix product, scale, causal mask, softmax,
// matrix product, and its backward), which cuDNN's engines recognise and run as one fused kernel. Packed (T, B, (H + 2K) d) views
// are described by strides, nothing is copied.
//
// A plan belongs to sizes, strides, scale and direction, and takes from a tenth of a second to seconds to make: it is made when a
// shape is declared (supports, workspace_bytes), never in a step. To run it, pointers are filled in; that may be recorded in a
// CUDA graph.
//
// The graphs are described with cudnn-frontend (MIT licence), headers only, needed to build. Where it was missing, every function
// here declines and says so.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/abi/mt_backend.h"
#include "kernels/cuda/operations.h"

namespace mt::cuda {

// What plans are made for: a cuDNN handle of this process's GPU (cudnnHandle_t), or, to make plans for a GPU that is not here and
// not to run them, its properties as cuDNN writes them (CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, cuDNN 9.8).
struct CudnnTarget {
  void* handle = nullptr;
  std::string device_properties;
  int architecture = 0;  // 90 for compute capability 9.0
};

// Sums in backward are added in a fixed order by default. On Hopper cuDNN 9.19 then stores dP for every query and key, 2 bytes
// each, in the workspace, and makes dQ from it in a second kernel; without, dQ is added to by atomics in an order that changes.
// So that this workspace stays below a limit, the batch is run in equal parts: some sequences at once, or, where one is too long for
// that, some of its key heads with their queries. It costs the writing and reading of dP (4 GiB, 1.5 ms of an H100's memory for B 4,
// H 16, T 4096; half of it under a causal mask), and between parts a pause of one kernel's tail.
inline constexpr int64_t kCudnnWorkspaceLimit = int64_t{2} << 30;
struct CudnnOptions {
  bool deterministic = true;
  int64_t workspace_limit = kCudnnWorkspaceLimit;
  bool may_exceed = false;  // by the smallest part, which is declined otherwise
};
// What one execution of a plan computes.
struct CudnnPart {
  int64_t sequences = 0, kv_heads = 0;
  bool operator==(const CudnnPart&) const = default;
};

class CudnnAttention {
 public:
  // Null if cuDNN declines, with its words in `reason`. Arguments have been checked.
  static std::unique_ptr<CudnnAttention> Make(const mt_attention_args& args, bool backward,
                                              const CudnnTarget& target,
                                              const CudnnOptions& options, std::string* reason);
  virtual ~CudnnAttention() = default;

  virtual int64_t workspace_bytes() const = 0;
  virtual CudnnPart part() const = 0;
  // What cuDNN calls the engine that it chose.
  virtual const std::string& engine() const = 0;
  // Enqueues on the target's handle, whose stream the caller has set; one thread at a time. Pointers are aligned to 16 bytes.
  virtual int32_t Run(const mt_attention_args& args) const = 0;
};

// The ways to cut a batch into equal parts, the largest first: sequences, then key heads of one sequence.
std::vector<CudnnPart> CudnnParts(int64_t batch, int64_t kv_heads);

}  // namespace mt::cuda
