// What the tensor-core kernels of attention, forward and backward, have in common: their arguments, the mask, the grid.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/attention_mask.h"
#include "kernels/cuda/attention_mma_tiles.h"

namespace mt::cuda::mma {

inline constexpr float kInfinity = __builtin_huge_valf();
inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
// What a kernel is compiled for; what follows from it changes speed alone.
#if defined(__CUDA_ARCH__)
inline constexpr int kArchitecture = __CUDA_ARCH__;
#else
inline constexpr int kArchitecture = 900;
#endif
inline constexpr int kWarps = 4, kBlockThreads = 32 * kWarps;

// A tensor of heads: element (t, b, h, j) at data + t * step + b * stride + h * columns + j; there are `rows` t.
struct Heads {
  void* data;
  int stride, step, rows, columns;
};
// The arguments as the kernels want them: what the host can compute costs no register.
struct Problem {
  Heads q, k, v, o, o_gradient, dq, dk, dv;
  float* lse;         // (B, H, T)
  const bf16* sinks;  // (H) or null
  AttentionMask mask;
  int heads, group;
  float scale, scale_log2;  // of scores; times log2(e)
};

template <typename T>
__device__ __forceinline__ HeadRows<T> RowsOf(const Heads& heads, int b, int h) {
  T* const first =
      static_cast<T*>(heads.data) + static_cast<int64_t>(b) * heads.stride + h * heads.columns;
  return {first, heads.step, heads.rows, heads.columns};
}
// Where the statistics of a head begin in (B, H, T).
__device__ __forceinline__ int64_t StatisticsAt(const Problem& problem, int b, int h) {
  return (static_cast<int64_t>(b) * problem.heads + h) * problem.mask.queries;
}

// Starts to copy where the documents of kQueries queries from first_query on begin, or zeros without documents. A query past the end is
// as the last.
template <int kQueries>
__device__ __forceinline__ void CopyStarts(int* starts, const AttentionMask& mask, int b,
                                           int first_query) {
  static_assert(kQueries <= kBlockThreads);
  const int entry = static_cast<int>(threadIdx.x);
  if (entry >= kQueries) return;
  const bool documents = mask.document_start != nullptr;
  const int64_t row = static_cast<int64_t>(min(first_query + entry, mask.queries - 1)) * mask.batch;
  CopyWordAsync(AddressOf(starts + entry), documents ? mask.document_start + row + b : nullptr,
                documents);
}

// -infinity where the query of a score may not see the key, or where there is no key. `starts` are those of the queries' documents.
template <int kTiles, int kKeys>
__device__ __forceinline__ void Mask(const AttentionMask& mask, float (&s)[kTiles][kKeys / 8][4],
                                     const int* starts, int first_query, int first_key) {
  const int group = Lane() / 4, thread = Lane() % 4;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    int begin[2], end[2];  // of the keys that a row sees, counted from this thread's first
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = 16 * i + 8 * half + group;
      const int after = mask.first_position + first_query + row + 1, first = first_key + 2 * thread;
      begin[half] = (mask.causal ? max(after - mask.window, starts[row]) : 0) - first;
      end[half] = (mask.causal ? min(mask.keys, after) : mask.keys) - first;
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int key = 8 * n + e % 2;
        if (key < begin[e / 2] || key >= end[e / 2]) s[i][n][e] = -kInfinity;
      }
    }
  }
}

inline Problem Describe(const mt_attention_args& a) {
  const int64_t keys = mt_attention_keys(&a), v_head_dim = mt_attention_v_head_dim(&a);
  const auto heads = [&a](const void* data, int64_t stride, int64_t rows,
                          int64_t columns) -> Heads {
    return {const_cast<void*>(data), static_cast<int>(stride), static_cast<int>(a.batch * stride),
            static_cast<int>(rows), static_cast<int>(columns)};
  };
  return {.q = heads(a.q, a.q_stride, a.sequence, a.head_dim),
          .k = heads(a.k, a.k_stride, keys, a.head_dim),
          .v = heads(a.v, a.v_stride, keys, v_head_dim),
          .o = heads(a.o, a.o_stride, a.sequence, v_head_dim),
          .o_gradient = heads(a.o_gradient, a.o_gradient_stride, a.sequence, v_head_dim),
          .dq = heads(a.dq, a.dq_stride, a.sequence, a.head_dim),
          .dk = heads(a.dk, a.dk_stride, keys, a.head_dim),
          .dv = heads(a.dv, a.dv_stride, keys, v_head_dim),
          .lse = static_cast<float*>(a.lse),
          .sinks = static_cast<const bf16*>(a.sinks),
          .mask = MaskOf(a),
          .heads = static_cast<int>(a.heads),
          .group = static_cast<int>(a.heads / a.kv_heads),
          .scale = static_cast<float>(a.scale),
          .scale_log2 = static_cast<float>(a.scale * 1.4426950408889634)};
}

// Calls `function` with the kernels' head sizes, of keys and of values, in which those of the arguments fit.
template <int kHeadColumns, int kValueColumns>
struct HeadSize {
  static constexpr int kHead = kHeadColumns, kValue = kValueColumns;
};
template <typename Function>
int32_t WithHeadSize(const mt_attention_args& args, Function&& function) {
  const int64_t v_head_dim = mt_attention_v_head_dim(&args),
                larger = std::max(args.head_dim, v_head_dim);
  if (larger <= 64) return function(HeadSize<64, 64>());
  if (larger <= 96) return function(HeadSize<96, 96>());
  if (larger <= 128) return function(HeadSize<128, 128>());
  return function(HeadSize<192, 128>());  // latent attention: arXiv 2405.04434
}
inline bool FitsLatentHead(const mt_attention_args& args) {
  return args.head_dim <= 192 && mt_attention_v_head_dim(&args) <= 128;
}

inline dim3 Grid(const mt_attention_args& args, int64_t rows_of_block, int64_t heads) {
  return {static_cast<unsigned>((args.sequence + rows_of_block - 1) / rows_of_block),
          static_cast<unsigned>(heads), static_cast<unsigned>(args.batch)};
}

}  // namespace mt::cuda::mma
