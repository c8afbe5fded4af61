// From the ABI's operation numbers to the launchers of operations.h: what a backend made of these kernels has in common,
// whatever its vendor. The backend brings matrix products, because each vendor has a library for them, and may bring a faster
// attention.
#pragma once

#include <cstdint>

#include "kernels/abi/mt_backend.h"
#include "kernels/cuda/operations.h"

namespace mt::cuda {

// The operations that a backend provides itself. Functions named `supports` say why not through host::Fail; names are static
// storage; `workspace` is in bytes. They are called with arguments that host::CheckArguments has accepted.
struct Provided {
  bool (*matmul_supports)(const mt_matmul_args& args) = nullptr;
  const char* (*matmul_name)(const mt_matmul_args& args) = nullptr;
  int64_t (*matmul_workspace)(const mt_matmul_args& args) = nullptr;
  int32_t (*matmul)(const mt_matmul_args& args, const Launch& launch) = nullptr;

  bool (*attention_supports)(const mt_attention_args& args, bool backward) = FlashAttentionSupports;
  const char* (*attention_name)(const mt_attention_args& args, bool backward) = FlashAttentionName;
  int64_t (*attention_workspace)(const mt_attention_args& args,
                                 bool backward) = FlashAttentionWorkspace;
  int32_t (*attention_forward)(const mt_attention_args& args,
                               const Launch& launch) = FlashAttentionForward;
  int32_t (*attention_backward)(const mt_attention_args& args,
                                const Launch& launch) = FlashAttentionBackward;
};

// The ABI's functions of the same names: they check the arguments against the contract and their types against what the kernels
// have, and leave a message (host::Fail) where they refuse. Thread-safe.
int32_t Supports(int32_t operation, const void* args, const Provided& provided);
const char* KernelName(int32_t operation, const void* args, const Provided& provided);
int64_t WorkspaceBytes(int32_t operation, const void* args, const Provided& provided);
int32_t Run(int32_t operation, const void* args, const Provided& provided, const Launch& launch);

}  // namespace mt::cuda
