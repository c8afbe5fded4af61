// Causal grouped-query attention without the matrix of probabilities (Dao 2023, FlashAttention-2, arXiv 2307.08691), in float32
// arithmetic, for any head size up to 256, any length and any strides. It is the oracle on a device, the fallback where the
// tensor-core kernels (attention_flash_mma.cu) do not fit, and what F32 data use.
//
// Forward: one block per 64 queries of a head; keys go by in tiles of 64 with a running maximum and sum per query.
// Backward: delta = rowsum(dO O) first; then one kernel per 64 keys of a key head, which goes over the query heads of its group
// and over the queries, and one per 64 queries, which goes over the keys. Both recompute P = exp(scale S - lse). Seven products
// in place of the five that are needed, but nothing is added by two blocks, so every sum has one order.
#include "kernels/cuda/attention_flash.h"
#include "kernels/cuda/attention_tiles.h"
#include "kernels/cuda/reduce.h"

namespace mt::cuda {
namespace {

using namespace tiles;

constexpr float kInfinity = __builtin_huge_valf();

template <typename T>
__device__ __forceinline__ Rows<T> HeadRows(const mt_attention_args& args, const void* data,
                                            int64_t stride, int b, int h) {
  T* const first = static_cast<T*>(const_cast<void*>(data)) + b * stride + h * args.head_dim;
  return {first, args.batch * stride, static_cast<int>(args.sequence),
          static_cast<int>(args.head_dim)};
}

__device__ __forceinline__ bool Sees(const mt_attention_args& args, int query, int key) {
  return query < args.sequence && key < args.sequence && (!args.causal || key <= query);
}

// Block (query tile, head, sequence); under a causal mask the longest come first.
template <typename T, int kSlices>
__global__ void __launch_bounds__(kThreads, 1) FlashForward(const mt_attention_args args) {
  MT_DYNAMIC_SHARED(float, weights);  // (64, 64) probabilities, then the pool
  float* const pool = weights + kTile * kPitch;
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int kv = h / static_cast<int>(args.heads / args.kv_heads);
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTile;
  const auto q = HeadRows<const T>(args, args.q, args.q_stride, b, h);
  const auto k = HeadRows<const T>(args, args.k, args.k_stride, b, kv);
  const auto v = HeadRows<const T>(args, args.v, args.v_stride, b, kv);
  const float scale = static_cast<float>(args.scale);

  Accumulator sum[kSlices] = {}, score;
  float maximum[kPer], total[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) maximum[i] = -kInfinity, total[i] = 0;

  const int keys = args.causal ? min(first_query + kTile, k.rows) : k.rows;
  for (int key = 0; key < keys; key += kTile) {
    Products(score, pool, q, first_query, k, key);
#pragma unroll
    for (int i = 0; i < kPer; ++i) {
      const int query = first_query + ThreadRow() + kStep * i;
      float highest = maximum[i];
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        score[i][j] =
            Sees(args, query, key + ThreadColumn() + kStep * j) ? score[i][j] * scale : -kInfinity;
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
  float factor[kPer];
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int query = first_query + ThreadRow() + kStep * i;
    factor[i] = total[i] > 0 ? 1.0f / total[i] : 0.0f;
    if (ThreadColumn() == 0 && query < args.sequence) lse[query] = maximum[i] + logf(total[i]);
  }
  StoreRows(HeadRows<T>(args, args.o, args.o_stride, b, h), first_query, sum, factor);
}

// One tile's P and scale * dS = scale * P (dP - delta), rows queries, columns keys.
template <typename T>
__device__ __forceinline__ void Gradients(const mt_attention_args& args, const float* delta, int b,
                                          int h, int first_query, int first_key, float* pool,
                                          Accumulator& p, Accumulator& ds) {
  const int kv = h / static_cast<int>(args.heads / args.kv_heads);
  const auto q = HeadRows<const T>(args, args.q, args.q_stride, b, h);
  const auto k = HeadRows<const T>(args, args.k, args.k_stride, b, kv);
  const auto v = HeadRows<const T>(args, args.v, args.v_stride, b, kv);
  const auto d_o = HeadRows<const T>(args, args.o_gradient, args.o_gradient_stride, b, h);
  const float* const lse =
      static_cast<const float*>(args.lse) + (b * args.heads + h) * args.sequence;
  const float scale = static_cast<float>(args.scale);
  Products(p, pool, q, first_query, k, first_key);
  Products(ds, pool, d_o, first_query, v, first_key);
#pragma unroll
  for (int i = 0; i < kPer; ++i) {
    const int query = first_query + ThreadRow() + kStep * i;
    const float row_lse = query < args.sequence ? lse[query] : 0.0f;
    const float row_delta =
        query < args.sequence ? delta[(b * args.heads + h) * args.sequence + query] : 0.0f;
#pragma unroll
    for (int j = 0; j < kPer; ++j) {
      const bool sees = Sees(args, query, first_key + ThreadColumn() + kStep * j);
      p[i][j] = sees ? expf(p[i][j] * scale - row_lse) : 0.0f;
      ds[i][j] = scale * p[i][j] * (ds[i][j] - row_delta);
    }
  }
}

// delta[b, h, t] = sum over j of dO O; one warp per row of one head.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    FlashDelta(const mt_attention_args args, float* delta /* (B, H, T) */) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpThreads;
  const int t =
      static_cast<int>(blockIdx.x * (kThreads / kWarpThreads) + threadIdx.x / kWarpThreads);
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  if (t >= args.sequence) return;
  const auto o = HeadRows<const T>(args, args.o, args.o_stride, b, h);
  const auto d_o = HeadRows<const T>(args, args.o_gradient, args.o_gradient_stride, b, h);
  float sum = 0;
  for (int j = lane; j < o.columns; j += kWarpThreads)
    sum += ToFloat(o.data[t * o.step + j]) * ToFloat(d_o.data[t * d_o.step + j]);
  sum = WarpReduce(sum);
  if (lane == 0) delta[(b * args.heads + h) * args.sequence + t] = sum;
}

// Block (key tile, key head, sequence): dV = sum of P^T dO, dK = sum of dS^T Q.
template <typename T, int kSlices>
__global__ void __launch_bounds__(kThreads)
    FlashKeyBackward(const mt_attention_args args, const float* delta) {
  MT_DYNAMIC_SHARED(float, weights);
  float* const pool = weights + kTile * kPitch;
  const int first_key = static_cast<int>(blockIdx.x) * kTile;
  const int kv = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int group = static_cast<int>(args.heads / args.kv_heads);
  Accumulator dk[kSlices] = {}, dv[kSlices] = {}, p, ds;
  for (int h = kv * group; h < (kv + 1) * group; ++h) {
    const auto q = HeadRows<const T>(args, args.q, args.q_stride, b, h);
    const auto d_o = HeadRows<const T>(args, args.o_gradient, args.o_gradient_stride, b, h);
    for (int query = args.causal ? first_key : 0; query < q.rows; query += kTile) {
      Gradients<T>(args, delta, b, h, query, first_key, pool, p, ds);
      Store(weights, p);
      AddProduct<true>(dv, weights, pool, d_o, query);
      __syncthreads();
      Store(weights, ds);
      AddProduct<true>(dk, weights, pool, q, query);
    }
  }
  const float ones[kPer] = {1, 1, 1, 1};
  StoreRows(HeadRows<T>(args, args.dk, args.dk_stride, b, kv), first_key, dk, ones);
  StoreRows(HeadRows<T>(args, args.dv, args.dv_stride, b, kv), first_key, dv, ones);
}

// Block (query tile, head, sequence): dQ = sum of dS K.
template <typename T, int kSlices>
__global__ void __launch_bounds__(kThreads)
    FlashQueryBackward(const mt_attention_args args, const float* delta) {
  MT_DYNAMIC_SHARED(float, weights);
  float* const pool = weights + kTile * kPitch;
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kTile;
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const auto k = HeadRows<const T>(args, args.k, args.k_stride, b,
                                   h / static_cast<int>(args.heads / args.kv_heads));
  Accumulator dq[kSlices] = {}, p, ds;
  const int keys = args.causal ? min(first_query + kTile, k.rows) : k.rows;
  for (int key = 0; key < keys; key += kTile) {
    Gradients<T>(args, delta, b, h, first_query, key, pool, p, ds);
    Store(weights, ds);
    AddProduct<false>(dq, weights, pool, k, key);
  }
  const float ones[kPer] = {1, 1, 1, 1};
  StoreRows(HeadRows<T>(args, args.dq, args.dq_stride, b, h), first_query, dq, ones);
}

dim3 Grid(const mt_attention_args& args, int64_t rows_of_block, int64_t heads) {
  return {static_cast<unsigned>((args.sequence + rows_of_block - 1) / rows_of_block),
          static_cast<unsigned>(heads), static_cast<unsigned>(args.batch)};
}

template <int kValue>
struct Slices {
  static constexpr int value = kValue;
};
// Calls `function` with the type of the data and how many 64 columns a head has.
template <typename Function>
int32_t WithSlices(const mt_attention_args& args, Function&& function) {
  return WithType(args.dtype, [&](auto type) {
    if (args.head_dim <= kTile) return function(type, Slices<1>());
    if (args.head_dim <= 2 * kTile) return function(type, Slices<2>());
    return function(type, Slices<4>());
  });
}

}  // namespace

int32_t PortableAttentionForward(const mt_attention_args& args, const Launch& launch) {
  return WithSlices(args, [&](auto type, auto slices) -> int32_t {
    auto* kernel = FlashForward<decltype(type), decltype(slices)::value>;
    MT_CUDA(MT_LAUNCH(kernel, Grid(args, kTile, args.heads), kThreads, kSharedBytes, launch.stream,
                      args));
    return MT_OK;
  });
}

int32_t AttentionDelta(const mt_attention_args& args, float* delta, const Launch& launch) {
  return WithType(args.dtype, [&](auto type) -> int32_t {
    auto* kernel = FlashDelta<decltype(type)>;
    MT_CUDA(MT_LAUNCH(kernel, Grid(args, kThreads / kWarpThreads, args.heads), kThreads, 0,
                      launch.stream, args, delta));
    return MT_OK;
  });
}

int32_t PortableAttentionBackward(const mt_attention_args& args, const float* delta,
                                  const Launch& launch) {
  return WithSlices(args, [&](auto type, auto slices) -> int32_t {
    auto* keys = FlashKeyBackward<decltype(type), decltype(slices)::value>;
    MT_CUDA(MT_LAUNCH(keys, Grid(args, kTile, args.kv_heads), kThreads, kSharedBytes, launch.stream,
                      args, delta));
    auto* queries = FlashQueryBackward<decltype(type), decltype(slices)::value>;
    MT_CUDA(MT_LAUNCH(queries, Grid(args, kTile, args.heads), kThreads, kSharedBytes, launch.stream,
                      args, delta));
    return MT_OK;
  });
}

}  // namespace mt::cuda
