// What the tensor-core kernels of attention, forward and backward, have in common: their arguments, the mask, the grid.
#pragma once

#include <cstdint>

#include "kernels/cuda/attention_mma_tiles.h"

namespace mt::cuda::mma {

inline constexpr float kInfinity = __builtin_huge_valf();
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr int kWarps = 4, kBlockThreads = 32 * kWarps;

// A tensor of heads: element (t, b, h, j) at data + t * step + b * stride + h * head_dim + j.
struct Heads {
  void* data;
  int stride, step;
};
// The arguments as the kernels want them: what the host can compute costs no register.
struct Problem {
  Heads q, k, v, o, o_gradient, dq, dk, dv;
  float* lse;  // (B, H, T)
  int sequence, heads, group, head_dim, causal;
  float scale, scale_log2;  // of scores; times log2(e)
};

template <typename T>
__device__ __forceinline__ HeadRows<T> RowsOf(const Problem& problem, const Heads& heads, int b,
                                              int h) {
  T* const first =
      static_cast<T*>(heads.data) + static_cast<int64_t>(b) * heads.stride + h * problem.head_dim;
  return {first, heads.step, problem.sequence, problem.head_dim};
}
// Where the statistics of a head begin in (B, H, T).
__device__ __forceinline__ int64_t StatisticsAt(const Problem& problem, int b, int h) {
  return (static_cast<int64_t>(b) * problem.heads + h) * problem.sequence;
}

// -infinity where the query of a score may not see the key, or where there is no key.
template <int kTiles, int kKeys>
__device__ __forceinline__ void Mask(float (&s)[kTiles][kKeys / 8][4], int first_query,
                                     int first_key, int keys, bool causal) {
  const int group = Lane() / 4, thread = Lane() % 4;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    int end[2];  // of the keys that a row sees, counted from this thread's first
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_query + 16 * i + 8 * half + group;
      end[half] = (causal ? min(keys, query + 1) : keys) - first_key - 2 * thread;
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (8 * n + e % 2 >= end[e / 2]) s[i][n][e] = -kInfinity;
      }
    }
  }
}

inline Problem Describe(const mt_attention_args& a) {
  const auto heads = [&a](const void* data, int64_t stride) -> Heads {
    return {const_cast<void*>(data), static_cast<int>(stride), static_cast<int>(a.batch * stride)};
  };
  return {.q = heads(a.q, a.q_stride),
          .k = heads(a.k, a.k_stride),
          .v = heads(a.v, a.v_stride),
          .o = heads(a.o, a.o_stride),
          .o_gradient = heads(a.o_gradient, a.o_gradient_stride),
          .dq = heads(a.dq, a.dq_stride),
          .dk = heads(a.dk, a.dk_stride),
          .dv = heads(a.dv, a.dv_stride),
          .lse = static_cast<float*>(a.lse),
          .sequence = static_cast<int>(a.sequence),
          .heads = static_cast<int>(a.heads),
          .group = static_cast<int>(a.heads / a.kv_heads),
          .head_dim = static_cast<int>(a.head_dim),
          .causal = a.causal,
          .scale = static_cast<float>(a.scale),
          .scale_log2 = static_cast<float>(a.scale) * kLog2E};
}

inline dim3 Grid(const mt_attention_args& args, int64_t rows_of_block, int64_t heads) {
  return {static_cast<unsigned>((args.sequence + rows_of_block - 1) / rows_of_block),
          static_cast<unsigned>(heads), static_cast<unsigned>(args.batch)};
}

}  // namespace mt::cuda::mma
