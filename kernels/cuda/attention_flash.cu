// Causal grouped-query attention without the matrix of probabilities (Dao 2023, FlashAttention-2, arXiv 2307.08691), in float32
// arithmetic, for any head sizes up to 256, any length and any strides. It is the oracle on a device, the fallback where the
// tensor-core kernels (attention_flash_mma.cu) do not fit, and what F32 data use.
//
// Forward: one block per 64 queries of a head; keys go by in tiles of 64 with a running maximum and sum per query.
// Backward: delta = rowsum(dO O) first; then one kernel per 64 keys of a key head, which goes over the query heads of its group
// and over the queries, and one per 64 queries, which goes over the keys. Both recompute P = exp(scale S - lse). Seven products
// in place of the five that are needed, but nothing is added by two blocks, so every sum has one order.
#include <algorithm>

#include "kernels/abi/attention_shape.h"
#include "kernels/cuda/attention_flash.h"
#include "kernels/cuda/attention_mask.h"
#include "kernels/cuda/attention_sink.h"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/reduce.h"

namespace mt::cuda {
namespace {

using namespace tiles;

constexpr float kInfinity = __builtin_huge_valf();

// What a kernel needs of the arguments: sizes without the zeros that stand for others.
struct Problem {
  mt_attention_args args;
  AttentionMask mask;
  int key_dim, value_dim;
};
Problem Describe(const mt_attention_args& args) {
  return {.args = args,
          .mask = MaskOf(args),
          .key_dim = static_cast<int>(args.head_dim),
          .value_dim = static_cast<int>(mt_attention_v_head_dim(&args))};
}

template <typename T>
__device__ __forceinline__ Rows<T> HeadRows(const Problem& problem, const void* data,
                                            int64_t stride, int rows, int columns, int b, int h) {
  T* const first =
      static_cast<T*>(const_cast<void*>(data)) + b * stride + static_cast<int64_t>(h) * columns;
  return {first, problem.args.batch * stride, rows, columns};
}
// By name; h is a key head for K and V.
template <typename T>
__device__ __forceinline__ Rows<const T> RowsOfQ(const Problem& p, int b, int h) {
  return HeadRows<const T>(p, p.args.q, p.args.q_stride, p.mask.queries, p.key_dim, b, h);
}
template <typename T>
__device__ __forceinline__ Rows<const T> RowsOfK(const Problem& p, int b, int h) {
  return HeadRows<const T>(p, p.args.k, p.args.k_stride, p.mask.keys, p.key_dim, b, h);
}
template <typename T>
__device__ __forceinline__ Rows<const T> RowsOfV(const Problem& p, int b, int h) {
  return HeadRows<const T>(p, p.args.v, p.args.v_stride, p.mask.keys, p.value_dim, b, h);
}
template <typename T>
__device__ __forceinline__ Rows<const T> RowsOfOGradient(const Problem& p, int b, int h) {
  return HeadRows<const T>(p, p.args.o_gradient, p.args.o_gradient_stride, p.mask.queries,
                           p.value_dim, b, h);
}

// Block (query tile, head, sequence); under a causal mask the longest come first.
template <typename T, int kSlices>
__global__ void __launch_bounds__(kThreads, 1) FlashForward(const Problem problem) {
  MT_DYNAMIC_SHARED(float, weights);  // (64, 64) probabilities, then the pool
  float* const pool = weights + kTile * kPitch;
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const mt_attention_args& args = problem.args;
  const int kv = h / static_cast<int>(args.heads / args.kv_heads);
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTile;
  const auto q = RowsOfQ<T>(problem, b, h);
  const auto k = RowsOfK<T>(problem, b, kv);
  const auto v = RowsOfV<T>(problem, b, kv);
  const float scale = static_cast<float>(args.scale);

  Accumulator sum[kSlices] = {}, score;
  float maximum[kPer], total[kPer];
  int start[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    maximum[i] = -kInfinity, total[i] = 0;
    start[i] = problem.mask.DocumentStart(b, first_query + ThreadRow() + kStep * i);
  }

  const KeyRange keys = KeysOf<kTile, kTile>(problem.mask, b, first_query);
  for (int key = keys.begin; key < keys.end; key += kTile) {
    Products(score, pool, q, first_query, k, key);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int query = first_query + ThreadRow() + kStep * i;
      float highest = maximum[i];
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const bool sees = problem.mask.Sees(query, key + ThreadColumn() + kStep * j, start[i]);
        score[i][j] = sees ? score[i][j] * scale : -kInfinity;
        highest = max(highest, score[i][j]);
      }
      highest = RowReduce(highest, Maximum());
      const float reference =
          highest == -kInfinity ? 0.0f : highest;  // a row past the end sees nothing
      const float rescale = expf(maximum[i] - reference);
      maximum[i] = highest;
      float row_sum = 0;
#pragma unroll
      for (int j = 0; j < kPer; ++j) row_sum += score[i][j] = expf(score[i][j] - reference);
      total[i] = total[i] * rescale + RowReduce(row_sum, Plus());
#pragma unroll
      for (int s = 0; s < kSlices; ++s) {
#pragma unroll
        for (int j = 0; j < kPer; ++j) sum[s][i][j] *= rescale;
      }
    }
    Store(weights, score);  // its last readers have passed the barriers of Products
    AddProduct<false>(sum, weights, pool, v, key);
  }

  float* const lse = static_cast<float*>(args.lse) + (b * args.heads + h) * args.sequence;
  const bool has_sink = args.sinks != nullptr;
  const float sink = has_sink ? ToFloat(static_cast<const T*>(args.sinks)[h]) : 0.0f;
  float factor[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int query = first_query + ThreadRow() + kStep * i;
    const RowEnd end = EndRow(maximum[i], total[i], has_sink, sink);
    factor[i] = end.factor;
    if (ThreadColumn() == 0 && query < problem.mask.queries) lse[query] = end.lse;
  }
  StoreRows(
      HeadRows<T>(problem, args.o, args.o_stride, problem.mask.queries, problem.value_dim, b, h),
      first_query, sum, factor);
}

// One tile's P and scale * dS = scale * P (dP - delta), rows queries, columns keys.
template <typename T>
__device__ __forceinline__ void Gradients(const Problem& problem, const float* delta, int b, int h,
                                          int first_query, int first_key, float* pool,
                                          Accumulator& p, Accumulator& ds) {
  const mt_attention_args& args = problem.args;
  const int kv = h / static_cast<int>(args.heads / args.kv_heads);
  const float* const lse =
      static_cast<const float*>(args.lse) + (b * args.heads + h) * args.sequence;
  const float scale = static_cast<float>(args.scale);
  Products(p, pool, RowsOfQ<T>(problem, b, h), first_query, RowsOfK<T>(problem, b, kv), first_key);
  Products(ds, pool, RowsOfOGradient<T>(problem, b, h), first_query, RowsOfV<T>(problem, b, kv),
           first_key);
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int query = first_query + ThreadRow() + kStep * i;
    const float row_lse = query < args.sequence ? lse[query] : 0.0f;
    const float row_delta =
        query < args.sequence ? delta[(b * args.heads + h) * args.sequence + query] : 0.0f;
    const int start = problem.mask.DocumentStart(b, query);
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const bool sees = problem.mask.Sees(query, first_key + ThreadColumn() + kStep * j, start);
      p[i][j] = sees ? expf(p[i][j] * scale - row_lse) : 0.0f;
      ds[i][j] = scale * p[i][j] * (ds[i][j] - row_delta);
    }
  }
}

// delta[b, h, t] = sum over j of dO O; one warp per row of one head.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    FlashDelta(const Problem problem, float* delta /* (B, H, T) */) {
  const mt_attention_args& args = problem.args;
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int t =
      static_cast<int>(blockIdx.x * (kThreads / kWarpThreads) + threadIdx.x / kWarpThreads);
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  if (t >= args.sequence) return;
  const auto o = HeadRows<const T>(problem, args.o, args.o_stride, problem.mask.queries,
                                   problem.value_dim, b, h);
  const auto d_o = RowsOfOGradient<T>(problem, b, h);
  float sum = 0;
  for (int j = lane; j < o.columns; j += kWarpThreads)
    sum += ToFloat(o.data[t * o.step + j]) * ToFloat(d_o.data[t * d_o.step + j]);
  sum = WarpReduce(sum);
  if (lane == 0) delta[(b * args.heads + h) * args.sequence + t] = sum;
}

// Block (head): sinks_gradient -= sum over b and t of exp(sink - lse) delta. A thread adds rows kSinkThreads apart of one sequence, then
// of the next, in order.
constexpr int kSinkThreads = 1024;
template <typename T>
__global__ void __launch_bounds__(kSinkThreads)
    FlashSinksGradient(const mt_attention_args args, const float* delta) {
  const int h = static_cast<int>(blockIdx.x);
  const float sink = ToFloat(static_cast<const T*>(args.sinks)[h]);
  float sum = 0;
  for (int64_t b = 0; b < args.batch; ++b) {
    const int64_t first = (b * args.heads + h) * args.sequence;
    const float* const lse = static_cast<const float*>(args.lse) + first;
#pragma unroll 4
    for (int64_t t = threadIdx.x; t < args.sequence; t += kSinkThreads)
      sum += expf(sink - lse[t]) * delta[first + t];
  }
  sum = BlockReduce<kSinkThreads>(sum);
  if (threadIdx.x == 0) static_cast<float*>(args.sinks_gradient)[h] -= sum;
}

// Block (key tile, key head, sequence): dV = sum of P^T dO, dK = sum of dS^T Q.
template <typename T, int kSlices>
__global__ void __launch_bounds__(kThreads)
    FlashKeyBackward(const Problem problem, const float* delta) {
  MT_DYNAMIC_SHARED(float, weights);
  float* const pool = weights + kTile * kPitch;
  const mt_attention_args& args = problem.args;
  const int first_key = static_cast<int>(blockIdx.x) * kTile;
  const int kv = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int group = static_cast<int>(args.heads / args.kv_heads);
  const QueryTiles queries = QueriesOf<kTile, kTile>(problem.mask, b, first_key);
  Accumulator dk[kSlices] = {}, dv[kSlices] = {}, p, ds;
  for (int h = kv * group; h < (kv + 1) * group; ++h) {
    for (int tile = queries.first; tile < queries.first + queries.count; ++tile) {
      const int query = tile * kTile;
      Gradients<T>(problem, delta, b, h, query, first_key, pool, p, ds);
      Store(weights, p);
      AddProduct<true>(dv, weights, pool, RowsOfOGradient<T>(problem, b, h), query);
      __syncthreads();
      Store(weights, ds);
      AddProduct<true>(dk, weights, pool, RowsOfQ<T>(problem, b, h), query);
    }
  }
  const float ones[kPer] = {1, 1, 1, 1};
  StoreRows(
      HeadRows<T>(problem, args.dk, args.dk_stride, problem.mask.keys, problem.key_dim, b, kv),
      first_key, dk, ones);
  StoreRows(
      HeadRows<T>(problem, args.dv, args.dv_stride, problem.mask.keys, problem.value_dim, b, kv),
      first_key, dv, ones);
}

// Block (query tile, head, sequence): dQ = sum of dS K.
template <typename T, int kSlices>
__global__ void __launch_bounds__(kThreads)
    FlashQueryBackward(const Problem problem, const float* delta) {
  MT_DYNAMIC_SHARED(float, weights);
  float* const pool = weights + kTile * kPitch;
  const mt_attention_args& args = problem.args;
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTile;
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const auto k = RowsOfK<T>(problem, b, h / static_cast<int>(args.heads / args.kv_heads));
  Accumulator dq[kSlices] = {}, p, ds;
  const KeyRange keys = KeysOf<kTile, kTile>(problem.mask, b, first_query);
  for (int key = keys.begin; key < keys.end; key += kTile) {
    Gradients<T>(problem, delta, b, h, first_query, key, pool, p, ds);
    Store(weights, ds);
    AddProduct<false>(dq, weights, pool, k, key);
  }
  const float ones[kPer] = {1, 1, 1, 1};
  StoreRows(
      HeadRows<T>(problem, args.dq, args.dq_stride, problem.mask.queries, problem.key_dim, b, h),
      first_query, dq, ones);
}

dim3 Grid(const mt_attention_args& args, int64_t rows_of_block, int64_t heads) {
  return {static_cast<unsigned>((args.sequence + rows_of_block - 1) / rows_of_block),
          static_cast<unsigned>(heads), static_cast<unsigned>(args.batch)};
}

template <int kValue>
struct Slices {
  static constexpr int value = kValue;
};
// Calls `function` with the type of the data and how many 64 columns a head of `columns` has.
template <typename Function>
int32_t WithSlices(const mt_attention_args& args, int64_t columns, Function&& function) {
  return WithType(args.dtype, [&](auto type) {
    if (columns <= kTile) return function(type, Slices<1>());
    if (columns <= 2 * kTile) return function(type, Slices<2>());
    return function(type, Slices<4>());
  });
}

}  // namespace

int32_t PortableAttentionForward(const mt_attention_args& args, const Launch& launch) {
  const Problem problem = Describe(args);
  return WithSlices(args, problem.value_dim, [&](auto type, auto slices) -> int32_t {
    auto* kernel = FlashForward<decltype(type), decltype(slices)::value>;
    MT_CUDA(MT_LAUNCH(kernel, Grid(args, kTile, args.heads), kThreads, kSharedBytes, launch.stream,
                      problem));
    return MT_OK;
  });
}

int32_t AttentionDelta(const mt_attention_args& args, float* delta, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) -> int32_t {
    auto* kernel = FlashDelta<decltype(type)>;
    MT_CUDA(MT_LAUNCH(kernel, Grid(args, kThreads / kWarpThreads, args.heads), kThreads, 0,
                      launch.stream, Describe(args), delta));
    return MT_OK;
  });
}

int32_t AttentionSinksGradient(const mt_attention_args& args, const float* delta,
                               const Launch& launch) {
  return WithType(args.dtype, [&](auto type) -> int32_t {
    auto* kernel = FlashSinksGradient<decltype(type)>;
    MT_CUDA(MT_LAUNCH(kernel, static_cast<unsigned>(args.heads), kSinkThreads, 0, launch.stream,
                      args, delta));
    return MT_OK;
  });
}

int32_t PortableAttentionBackward(const mt_attention_args& args, const float* delta,
                                  const Launch& launch) {
  const Problem problem = Describe(args);
  const int64_t columns = std::max(problem.key_dim, problem.value_dim);
  const int32_t status = WithSlices(args, columns, [&](auto type, auto slices) -> int32_t {
    auto* keys = FlashKeyBackward<decltype(type), decltype(slices)::value>;
    MT_CUDA(MT_LAUNCH(keys, Grid(args, kTile, args.kv_heads), kThreads, kSharedBytes, launch.stream,
                      problem, delta));
    return MT_OK;
  });
  if (status != MT_OK) return status;
  return WithSlices(args, problem.key_dim, [&](auto type, auto slices) -> int32_t {
    auto* queries = FlashQueryBackward<decltype(type), decltype(slices)::value>;
    MT_CUDA(MT_LAUNCH(queries, Grid(args, kTile, args.heads), kThreads, kSharedBytes, launch.stream,
                      problem, delta));
    return MT_OK;
  });
}

}  // namespace mt::cuda
