// Causal grouped-query attention on tensor cores (Dao 2023, FlashAttention-2, arXiv 2307.08691): bf16 data, float32 sums, for GPUs
// of sm_80 and later. What is added in which order is what attention_flash.cu does, in tiles of other sizes: no two blocks add to
// one number, so every run gives the same bits.
//
// In all three kernels a warp owns 16 or 32 rows of the result, and the probabilities go from one product to the next in
// registers. Rounding: P and dS to bf16 before their products, results once at the end.
//
// FLOPs that cannot be avoided, per (query, visible key, head): forward 4 d, backward 10 d; here backward takes 14 d, because both
// of its kernels recompute S and dP. Memory traffic is small beside that: Q, K, V, O once per block of rows.
#include "kernels/cuda/attention_flash.h"
#include "kernels/cuda/attention_mma_tiles.h"
#include "kernels/cuda/reduce.h"

namespace mt::cuda {
namespace {

using namespace mma;

constexpr float kInfinity = __builtin_huge_valf();
constexpr float kLog2E = 1.4426950408889634f;
constexpr int kWarps = 4, kBlockThreads = 32 * kWarps;

template <typename T>
__device__ __forceinline__ HeadRows<T> RowsOf(const mt_attention_args& args, const void* data,
                                              int64_t stride, int b, int h) {
  T* const first = static_cast<T*>(const_cast<void*>(data)) + b * stride + h * args.head_dim;
  return {first, args.batch * stride, static_cast<int>(args.sequence),
          static_cast<int>(args.head_dim)};
}

__device__ __forceinline__ float QuadReduce(float value, bool sum) {
#pragma unroll
  for (int lanes = 2; lanes > 0; lanes /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, lanes, kWarpThreads);
    value = sum ? value + other : max(value, other);
  }
  return value;
}

// How many blocks a multiprocessor should hold: what shared memory and the registers of the sums allow without spills.
template <int kHead>
struct ForwardShape {
  static constexpr int kTiles = kHead <= 128 ? 2 : 1, kKeys = kHead <= 128 ? 64 : 32, kResident = 2;
  static constexpr int kQueries = 16 * kTiles * kWarps;
  static constexpr int kBytes = (kQueries + 2 * kKeys) * kRowBytes<kHead>;
};

// The running maximum of the raw scores and this thread's part of the sum of exponentials, of the two rows of each tile.
template <int kTiles>
struct Softmax {
  float maximum[kTiles][2], sum[kTiles][2];
};

// Scores become exponentials relative to the running maximum; the maximum, sum and output are brought to it.
template <int kTiles, int kKeys, int kHead>
__device__ __forceinline__ void Exponentials(float (&s)[kTiles][kKeys / 8][4],
                                             float (&o)[kTiles][kHead / 8][4],
                                             Softmax<kTiles>& softmax, float scale_log2) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = softmax.maximum[i][half];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        highest = max(highest, max(s[i][n][2 * half], s[i][n][2 * half + 1]));
      highest = QuadReduce(highest, false);
      // A row may have seen nothing yet: everything is -infinity, and exp2(-infinity - 0) is 0.
      const float reference = highest == -kInfinity ? 0.0f : highest * scale_log2;
      const float rescale = Exp2(softmax.maximum[i][half] * scale_log2 - reference);
      softmax.maximum[i][half] = highest;
      float sum = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e)
          sum += s[i][n][e] = Exp2(s[i][n][e] * scale_log2 - reference);
      }
      softmax.sum[i][half] = softmax.sum[i][half] * rescale + sum;
#pragma unroll
      for (int c = 0; c < kHead / 8; ++c) {
        o[i][c][2 * half] *= rescale;
        o[i][c][2 * half + 1] *= rescale;
      }
    }
  }
}

// -infinity where the query of a score may not see the key, or where there is no key.
template <int kTiles, int kKeys>
__device__ __forceinline__ void Mask(float (&s)[kTiles][kKeys / 8][4], int first_query,
                                     int first_key, int keys, bool causal) {
  const int group = Lane() / 4, thread = Lane() % 4;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int query = first_query + 16 * i + group + e / 2 * 8,
                  key = first_key + 8 * n + 2 * thread + e % 2;
        if (key >= keys || (causal && key > query)) s[i][n][e] = -kInfinity;
      }
    }
  }
}

// Block (query tile, head, sequence). Keys go by from the last to the first, so that masked tiles come first; while S of a tile is
// made its V arrives, and while O is made the next K. Under a causal mask the longest blocks of a head come first.
template <int kHead>
__global__ void __launch_bounds__(kBlockThreads, ForwardShape<kHead>::kResident)
    MmaForward(const mt_attention_args args) {
  using Shape = ForwardShape<kHead>;
  constexpr int kTiles = Shape::kTiles, kKeys = Shape::kKeys;
  MT_DYNAMIC_SHARED(char, shared);
  const SharedAddress q_tile = AddressOf(shared),
                      k_tile = q_tile + Shape::kQueries * kRowBytes<kHead>,
                      v_tile = k_tile + kKeys * kRowBytes<kHead>;
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int kv = h / static_cast<int>(args.heads / args.kv_heads);
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Shape::kQueries;
  const int warp_row = WarpIndex() * 16 * kTiles;
  const auto k = RowsOf<const bf16>(args, args.k, args.k_stride, b, kv),
             v = RowsOf<const bf16>(args, args.v, args.v_stride, b, kv);
  const float scale_log2 = static_cast<float>(args.scale) * kLog2E;

  float o[kTiles][kHead / 8][4] = {}, s[kTiles][kKeys / 8][4];
  Softmax<kTiles> softmax;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    softmax.maximum[i][0] = softmax.maximum[i][1] = -kInfinity;
    softmax.sum[i][0] = softmax.sum[i][1] = 0;
  }

  const int keys = args.causal ? min(first_query + Shape::kQueries, k.rows) : k.rows;
  int first_key = (keys - 1) / kKeys * kKeys;
  CopyTile<kHead, Shape::kQueries, kBlockThreads>(
      q_tile, RowsOf<const bf16>(args, args.q, args.q_stride, b, h), first_query);
  CopyTile<kHead, kKeys, kBlockThreads>(k_tile, k, first_key);
  CommitCopies();
  for (; first_key >= 0; first_key -= kKeys) {
    WaitForCopies<0>();
    __syncthreads();  // K is here, and nobody reads V of the tile before
    CopyTile<kHead, kKeys, kBlockThreads>(v_tile, v, first_key);
    CommitCopies();
    mma::Products<kTiles, kKeys, kHead>(s, q_tile, warp_row, k_tile);
    if (first_key + kKeys > k.rows ||
        (args.causal && first_key + kKeys - 1 > first_query + warp_row))
      Mask<kTiles, kKeys>(s, first_query + warp_row, first_key, k.rows, args.causal != 0);
    Exponentials<kTiles, kKeys, kHead>(s, o, softmax, scale_log2);
    WaitForCopies<0>();
    __syncthreads();  // V is here, and nobody reads K
    if (first_key > 0) CopyTile<kHead, kKeys, kBlockThreads>(k_tile, k, first_key - kKeys);
    CommitCopies();
    mma::AddProduct<kTiles, kKeys, kHead>(o, s, v_tile);
  }

  float* const lse = static_cast<float*>(args.lse) + (b * args.heads + h) * args.sequence;
  float factor[kTiles][2];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = QuadReduce(softmax.sum[i][half], true);
      const int query = first_query + warp_row + 16 * i + 8 * half + Lane() / 4;
      factor[i][half] = 1.0f / sum;
      if (Lane() % 4 == 0 && query < args.sequence)
        lse[query] = softmax.maximum[i][half] * static_cast<float>(args.scale) + logf(sum);
    }
  }
  mma::StoreRows<kTiles, kHead>(RowsOf<bf16>(args, args.o, args.o_stride, b, h), first_query,
                                shared, warp_row, o, factor);
}

// delta[b, h, t] = sum over j of dO O: kRowChunks threads per row, 16 bytes each.
template <int kHead>
__global__ void __launch_bounds__(kBlockThreads)
    MmaDelta(const mt_attention_args args, float* delta /* (B, H, T) */) {
  constexpr int kRowChunks = kRowBytes<kHead> / 16, kRows = kBlockThreads / kRowChunks;
  const int chunk = static_cast<int>(threadIdx.x) % kRowChunks;
  const int t = static_cast<int>(blockIdx.x) * kRows + static_cast<int>(threadIdx.x) / kRowChunks;
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const auto o = RowsOf<const bf16>(args, args.o, args.o_stride, b, h);
  const auto d_o = RowsOf<const bf16>(args, args.o_gradient, args.o_gradient_stride, b, h);
  float sum = 0;
  if (t < o.rows && chunk * kChunkElements < o.columns) {
    using Chunk = Pack<bf16, kChunkElements>;
    const Chunk x = *reinterpret_cast<const Chunk*>(o.data + t * o.step + chunk * kChunkElements);
    const Chunk y =
        *reinterpret_cast<const Chunk*>(d_o.data + t * d_o.step + chunk * kChunkElements);
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) sum += ToFloat(x.at[e]) * ToFloat(y.at[e]);
  }
#pragma unroll
  for (int lanes = kRowChunks / 2; lanes > 0; lanes /= 2)
    sum += __shfl_xor_sync(kAllLanes, sum, lanes, kWarpThreads);
  if (chunk == 0 && t < o.rows) delta[(b * args.heads + h) * args.sequence + t] = sum;
}

template <int kHead>
struct KeyShape {
  static constexpr int kTiles = 1, kQueries = 64, kResident = kHead <= 64 ? 3 : 2;
  static constexpr int kKeys = 16 * kTiles * kWarps;
  static constexpr int kBytes =
      2 * (kKeys + kQueries) * kRowBytes<kHead> + 2 * kQueries * static_cast<int>(sizeof(float));
};

// Block (key tile, key head, sequence): dV = sum of P^T dO, dK = scale * sum of dS^T Q, over the queries of every query head of
// the group. Products are made transposed, S^T = K Q^T, so that P^T and dS^T are in registers where their products want them.
// While dP^T is made Q arrives, and while dK is made the next dO.
template <int kHead>
__global__ void __launch_bounds__(kBlockThreads, KeyShape<kHead>::kResident)
    MmaKeyBackward(const mt_attention_args args, const float* delta) {
  using Shape = KeyShape<kHead>;
  constexpr int kTiles = Shape::kTiles, kQueries = Shape::kQueries;
  static_assert(2 * kQueries == kBlockThreads);
  MT_DYNAMIC_SHARED(char, shared);
  const SharedAddress k_tile = AddressOf(shared), v_tile = k_tile + Shape::kKeys * kRowBytes<kHead>,
                      q_tile = v_tile + Shape::kKeys * kRowBytes<kHead>,
                      do_tile = q_tile + kQueries * kRowBytes<kHead>;
  // lse log2(e) of the queries, then their delta
  float* const statistics =
      reinterpret_cast<float*>(shared + 2 * (Shape::kKeys + kQueries) * kRowBytes<kHead>);
  const int first_key = static_cast<int>(blockIdx.x) * Shape::kKeys;
  const int kv = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int group = static_cast<int>(args.heads / args.kv_heads),
            T = static_cast<int>(args.sequence);
  const int warp_row = WarpIndex() * 16 * kTiles, thread = Lane() % 4;
  const float scale_log2 = static_cast<float>(args.scale) * kLog2E;

  float dk[kTiles][kHead / 8][4] = {}, dv[kTiles][kHead / 8][4] = {};
  float p[kTiles][kQueries / 8][4], ds[kTiles][kQueries / 8][4];
  // Tiles of queries of one head, then of the next.
  const int first_tile = args.causal ? first_key / kQueries : 0,
            tiles = (T + kQueries - 1) / kQueries - first_tile;
  CopyTile<kHead, Shape::kKeys, kBlockThreads>(
      k_tile, RowsOf<const bf16>(args, args.k, args.k_stride, b, kv), first_key);
  CopyTile<kHead, Shape::kKeys, kBlockThreads>(
      v_tile, RowsOf<const bf16>(args, args.v, args.v_stride, b, kv), first_key);
  CopyTile<kHead, kQueries, kBlockThreads>(
      do_tile, RowsOf<const bf16>(args, args.o_gradient, args.o_gradient_stride, b, kv * group),
      first_tile * kQueries);
  CommitCopies();
  for (int step = 0; step < group * tiles; ++step) {
    const int h = kv * group + step / tiles, first_query = (first_tile + step % tiles) * kQueries;
    WaitForCopies<0>();
    __syncthreads();  // dO is here, and nobody reads Q and the statistics of the tile before
    CopyTile<kHead, kQueries, kBlockThreads>(
        q_tile, RowsOf<const bf16>(args, args.q, args.q_stride, b, h), first_query);
    CommitCopies();
    // One number per thread, on its way while dP^T is made. Past the end lse is infinite: P = 0.
    const int entry = static_cast<int>(threadIdx.x), query = first_query + entry % kQueries;
    const int64_t row = (b * args.heads + h) * args.sequence + query;
    float statistic = entry < kQueries ? kInfinity : 0.0f;
    if (query < T)
      statistic = entry < kQueries ? static_cast<const float*>(args.lse)[row] * kLog2E : delta[row];
    mma::Products<kTiles, kQueries, kHead>(ds, v_tile, warp_row, do_tile);
    statistics[entry] = statistic;
    WaitForCopies<0>();
    __syncthreads();  // Q and the statistics are here
    mma::Products<kTiles, kQueries, kHead>(p, k_tile, warp_row, q_tile);
    if (args.causal && first_key + warp_row + 16 * kTiles - 1 > first_query) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int n = 0; n < kQueries / 8; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int key = first_key + warp_row + 16 * i + Lane() / 4 + e / 2 * 8;
            if (key > first_query + 8 * n + 2 * thread + e % 2) p[i][n][e] = -kInfinity;
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const float2 lse = *reinterpret_cast<const float2*>(statistics + 8 * n + 2 * thread);
      const float2 mean =
          *reinterpret_cast<const float2*>(statistics + kQueries + 8 * n + 2 * thread);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          p[i][n][e] = Exp2(p[i][n][e] * scale_log2 - (e % 2 ? lse.y : lse.x));
          ds[i][n][e] = p[i][n][e] * (ds[i][n][e] - (e % 2 ? mean.y : mean.x));
        }
      }
    }
    mma::AddProduct<kTiles, kQueries, kHead>(dv, p, do_tile);
    __syncthreads();  // nobody reads dO
    if (step + 1 < group * tiles) {
      const int next_h = kv * group + (step + 1) / tiles,
                next_query = (first_tile + (step + 1) % tiles) * kQueries;
      CopyTile<kHead, kQueries, kBlockThreads>(
          do_tile, RowsOf<const bf16>(args, args.o_gradient, args.o_gradient_stride, b, next_h),
          next_query);
    }
    CommitCopies();
    mma::AddProduct<kTiles, kQueries, kHead>(dk, ds, q_tile);
  }

  float scale[kTiles][2], ones[kTiles][2];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    scale[i][0] = scale[i][1] = static_cast<float>(args.scale);
    ones[i][0] = ones[i][1] = 1.0f;
  }
  mma::StoreRows<kTiles, kHead>(RowsOf<bf16>(args, args.dk, args.dk_stride, b, kv), first_key,
                                shared, warp_row, dk, scale);
  mma::StoreRows<kTiles, kHead>(RowsOf<bf16>(args, args.dv, args.dv_stride, b, kv), first_key,
                                shared + Shape::kKeys * kRowBytes<kHead>, warp_row, dv, ones);
}

template <int kHead>
struct QueryShape {
  static constexpr int kTiles = 2, kKeys = kHead <= 64 ? 64 : 32, kResident = 2;
  static constexpr int kQueries = 16 * kTiles * kWarps;
  static constexpr int kBytes = 2 * (kKeys + kQueries) * kRowBytes<kHead>;
};

// Block (query tile, head, sequence): dQ = scale * sum of dS K. While dP is made K arrives, and after it the next V.
template <int kHead>
__global__ void __launch_bounds__(kBlockThreads, QueryShape<kHead>::kResident)
    MmaQueryBackward(const mt_attention_args args, const float* delta) {
  using Shape = QueryShape<kHead>;
  constexpr int kTiles = Shape::kTiles, kKeys = Shape::kKeys;
  MT_DYNAMIC_SHARED(char, shared);
  const SharedAddress q_tile = AddressOf(shared),
                      do_tile = q_tile + Shape::kQueries * kRowBytes<kHead>,
                      k_tile = do_tile + Shape::kQueries * kRowBytes<kHead>,
                      v_tile = k_tile + kKeys * kRowBytes<kHead>;
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int kv = h / static_cast<int>(args.heads / args.kv_heads);
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Shape::kQueries;
  const int warp_row = WarpIndex() * 16 * kTiles;
  const auto k = RowsOf<const bf16>(args, args.k, args.k_stride, b, kv),
             v = RowsOf<const bf16>(args, args.v, args.v_stride, b, kv);
  const float scale_log2 = static_cast<float>(args.scale) * kLog2E;

  float lse[kTiles][2], mean[kTiles][2];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_query + warp_row + 16 * i + 8 * half + Lane() / 4;
      const int64_t row = (b * args.heads + h) * args.sequence + query;
      lse[i][half] =
          query < args.sequence ? static_cast<const float*>(args.lse)[row] * kLog2E : kInfinity;
      mean[i][half] = query < args.sequence ? delta[row] : 0.0f;
    }
  }

  float dq[kTiles][kHead / 8][4] = {}, p[kTiles][kKeys / 8][4], ds[kTiles][kKeys / 8][4];
  const int keys = args.causal ? min(first_query + Shape::kQueries, k.rows) : k.rows;
  CopyTile<kHead, Shape::kQueries, kBlockThreads>(
      q_tile, RowsOf<const bf16>(args, args.q, args.q_stride, b, h), first_query);
  CopyTile<kHead, Shape::kQueries, kBlockThreads>(
      do_tile, RowsOf<const bf16>(args, args.o_gradient, args.o_gradient_stride, b, h),
      first_query);
  CopyTile<kHead, kKeys, kBlockThreads>(v_tile, v, 0);
  CommitCopies();
  for (int first_key = 0; first_key < keys; first_key += kKeys) {
    WaitForCopies<0>();
    __syncthreads();  // V is here, and nobody reads K of the tile before
    CopyTile<kHead, kKeys, kBlockThreads>(k_tile, k, first_key);
    CommitCopies();
    mma::Products<kTiles, kKeys, kHead>(ds, do_tile, warp_row, v_tile);
    WaitForCopies<0>();
    __syncthreads();  // K is here, and nobody reads V
    if (first_key + kKeys < keys)
      CopyTile<kHead, kKeys, kBlockThreads>(v_tile, v, first_key + kKeys);
    CommitCopies();
    mma::Products<kTiles, kKeys, kHead>(p, q_tile, warp_row, k_tile);
    if (first_key + kKeys > k.rows ||
        (args.causal && first_key + kKeys - 1 > first_query + warp_row))
      Mask<kTiles, kKeys>(p, first_query + warp_row, first_key, k.rows, args.causal != 0);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          ds[i][n][e] =
              Exp2(p[i][n][e] * scale_log2 - lse[i][e / 2]) * (ds[i][n][e] - mean[i][e / 2]);
      }
    }
    mma::AddProduct<kTiles, kKeys, kHead>(dq, ds, k_tile);
  }

  float scale[kTiles][2];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) scale[i][0] = scale[i][1] = static_cast<float>(args.scale);
  mma::StoreRows<kTiles, kHead>(RowsOf<bf16>(args, args.dq, args.dq_stride, b, h), first_query,
                                shared, warp_row, dq, scale);
}

dim3 Grid(const mt_attention_args& args, int64_t rows_of_block, int64_t heads) {
  return {static_cast<unsigned>((args.sequence + rows_of_block - 1) / rows_of_block),
          static_cast<unsigned>(heads), static_cast<unsigned>(args.batch)};
}

template <int kHead>
int32_t Forward(const mt_attention_args& args, const Launch& launch) {
  using Shape = ForwardShape<kHead>;
  auto* kernel = MmaForward<kHead>;
  MT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes));
  MT_CUDA(MT_LAUNCH(kernel, Grid(args, Shape::kQueries, args.heads), kBlockThreads, Shape::kBytes,
                    launch.stream, args));
  return MT_OK;
}

template <int kHead>
int32_t Backward(const mt_attention_args& args, float* delta, const Launch& launch) {
  constexpr int kDeltaRows = kBlockThreads / (kRowBytes<kHead> / 16);
  auto* row_sums = MmaDelta<kHead>;
  MT_CUDA(MT_LAUNCH(row_sums, Grid(args, kDeltaRows, args.heads), kBlockThreads, 0, launch.stream,
                    args, delta));
  using Keys = KeyShape<kHead>;
  auto* keys = MmaKeyBackward<kHead>;
  MT_CUDA(cudaFuncSetAttribute(keys, cudaFuncAttributeMaxDynamicSharedMemorySize, Keys::kBytes));
  MT_CUDA(MT_LAUNCH(keys, Grid(args, Keys::kKeys, args.kv_heads), kBlockThreads, Keys::kBytes,
                    launch.stream, args, delta));
  using Queries = QueryShape<kHead>;
  auto* queries = MmaQueryBackward<kHead>;
  MT_CUDA(
      cudaFuncSetAttribute(queries, cudaFuncAttributeMaxDynamicSharedMemorySize, Queries::kBytes));
  MT_CUDA(MT_LAUNCH(queries, Grid(args, Queries::kQueries, args.heads), kBlockThreads,
                    Queries::kBytes, launch.stream, args, delta));
  return MT_OK;
}

}  // namespace

bool MmaAttentionSupports(const mt_attention_args& args, bool backward) {
  const auto packs = [](int64_t stride) { return stride % kChunkElements == 0; };
  if (args.dtype != MT_BF16 || args.scale <= 0 || !packs(args.head_dim) ||
      args.head_dim > (backward ? 128 : 256))
    return false;
  if (!packs(args.q_stride) || !packs(args.k_stride) || !packs(args.v_stride) ||
      !packs(args.o_stride))
    return false;
  return !backward || (packs(args.o_gradient_stride) && packs(args.dq_stride) &&
                       packs(args.dk_stride) && packs(args.dv_stride));
}

bool MmaAttentionFits(const mt_attention_args& args, bool backward) {
  for (const void* pointer : {args.q, args.k, args.v, static_cast<const void*>(args.o)}) {
    if (!IsAligned(pointer)) return false;
  }
  if (!backward) return true;
  return IsAligned(args.o_gradient) && IsAligned(args.dq) && IsAligned(args.dk) &&
         IsAligned(args.dv);
}

int32_t MmaAttentionForward(const mt_attention_args& args, const Launch& launch) {
  if (args.head_dim <= 64) return Forward<64>(args, launch);
  if (args.head_dim <= 96) return Forward<96>(args, launch);
  if (args.head_dim <= 128) return Forward<128>(args, launch);
  return Forward<256>(args, launch);
}

int32_t MmaAttentionBackward(const mt_attention_args& args, float* delta, const Launch& launch) {
  if (args.head_dim <= 64) return Backward<64>(args, delta, launch);
  if (args.head_dim <= 96) return Backward<96>(args, delta, launch);
  return Backward<128>(args, delta, launch);
}

}  // namespace mt::cuda
