// Backward of attention_flash_mma.cu: delta, then dK and dV per tile of keys, then dQ per tile of queries.
//
// P = 2^(score scale_log2 - lse log2(e)) is made anew for every key, so that nothing drifts along a row: roundings of lse, of its
// product and of the constants change all P of a row by one factor, 1 + 3 |lse| 2^-24 at most. P's own rounding to bf16 is
// larger while |lse| is below 10,000.
#include "kernels/cuda/attention_flash.h"
#include "kernels/cuda/attention_mma.h"
#include "kernels/cuda/reduce.h"

namespace mt::cuda {
namespace {

using namespace mma;

// delta[b, h, t] = sum over j of dO O: kRowChunks threads per row, 16 bytes each.
template <int kValue>
__global__ void __launch_bounds__(kBlockThreads)
    MmaDelta(const Problem problem, float* delta /* (B, H, T) */) {
  constexpr int kRowChunks = kRowThreads<kValue>, kRows = kBlockThreads / kRowChunks;
  const int chunk = static_cast<int>(threadIdx.x) % kRowChunks;
  const int t = static_cast<int>(blockIdx.x) * kRows + static_cast<int>(threadIdx.x) / kRowChunks;
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const auto o = RowsOf<const bf16>(problem.o, b, h);
  const auto d_o = RowsOf<const bf16>(problem.o_gradient, b, h);
  float sum = 0;
  if (t < o.rows && chunk * kChunkElements < o.columns) {
    using Chunk = Pack<bf16, kChunkElements>;
    const Chunk x = *reinterpret_cast<const Chunk*>(o.At(t, chunk * kChunkElements));
    const Chunk y = *reinterpret_cast<const Chunk*>(d_o.At(t, chunk * kChunkElements));
#pragma unroll
    for (int e = 0; e < kChunkElements; ++e) sum += ToFloat(x.at[e]) * ToFloat(y.at[e]);
  }
#pragma unroll
  for (int lanes = kRowChunks / 2; lanes > 0; lanes /= 2)
    sum += __shfl_xor_sync(kAllLanes, sum, lanes, kWarpThreads);
  if (chunk == 0 && t < o.rows) delta[StatisticsAt(problem, b, h) + t] = sum;
}

// Three small blocks at once cost no spills from sm_90 on.
inline constexpr int kSmallKeyBlocks = kArchitecture < 900 ? 2 : 3;
template <int kHead, int kValue>
struct KeyShape {
  static constexpr int kTiles = 1, kQueries = kHead <= 128 ? 64 : 32,
                       kResident = kHead <= 64 ? kSmallKeyBlocks : 2;
  // Of dP^T and of S^T.
  static constexpr int kValuePairs = kHead <= 64 && kArchitecture >= 1000 ? 2 : 4,
                       kPairs = kHead == 96 || kHead == 128 ? 0 : kValuePairs;
  static constexpr int kKeys = 16 * kTiles * kWarps;
  static constexpr int kTileBytes = (kKeys + kQueries) * (kRowBytes<kHead> + kRowBytes<kValue>);
  static constexpr int kBytes = kTileBytes +
                                kQueries * static_cast<int>(2 * sizeof(float) + sizeof(int)) +
                                static_cast<int>(sizeof(int));
};

// Block (key tile, key head, sequence): dV = sum of P^T dO, dK = scale * sum of dS^T Q, over the queries of every query head of
// the group. Products are made transposed, S^T = K Q^T, so that P^T and dS^T are in registers where their products want them.
// While dP^T is made Q arrives, and while dK is made the next dO.
template <int kHead, int kValue>
__global__ void __launch_bounds__(kBlockThreads, KeyShape<kHead, kValue>::kResident)
    MmaKeyBackward(const Problem problem, const float* delta) {
  using Shape = KeyShape<kHead, kValue>;
  constexpr int kTiles = Shape::kTiles, kQueries = Shape::kQueries;
  static_assert(2 * kQueries <= kBlockThreads);
  MT_DYNAMIC_SHARED(char, shared);
  const SharedAddress k_tile = AddressOf(shared), v_tile = k_tile + Shape::kKeys * kRowBytes<kHead>,
                      q_tile = v_tile + Shape::kKeys * kRowBytes<kValue>,
                      do_tile = q_tile + kQueries * kRowBytes<kHead>;
  // lse log2(e) of the queries, then their delta
  float* const statistics = reinterpret_cast<float*>(shared + Shape::kTileBytes);
  int* const starts = reinterpret_cast<int*>(statistics + 2 * kQueries);  // of their documents
  int* const tiles_of_head = starts + kQueries;  // of queries; no register is free for it
  const int first_key = static_cast<int>(blockIdx.x) * Shape::kKeys;
  const int kv = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int group = problem.group;
  const int warp_row = UniformWarpIndex() * 16 * kTiles, thread = Lane() % 4;
  const float scale_log2 = problem.scale_log2;

  float dk[kTiles][kHead / 8][4] = {}, dv[kTiles][kValue / 8][4] = {};
  float p[kTiles][kQueries / 8][4], ds[kTiles][kQueries / 8][4];
  CopyTile<kHead, Shape::kKeys, kBlockThreads>(k_tile, RowsOf<const bf16>(problem.k, b, kv),
                                               first_key);
  CopyTile<kValue, Shape::kKeys, kBlockThreads>(v_tile, RowsOf<const bf16>(problem.v, b, kv),
                                                first_key);
  // Tiles of queries of one head, then of the next.
  const auto [first_tile, count] = QueriesOf<kQueries, Shape::kKeys>(problem.mask, b, first_key);
  if (threadIdx.x == 0) *tiles_of_head = count;
  CopyTile<kValue, kQueries, kBlockThreads>(
      do_tile, RowsOf<const bf16>(problem.o_gradient, b, kv * group), first_tile * kQueries);
  CommitCopies();
  int h = kv * group, first_query = first_tile * kQueries;
  bool more = true;
  for (int step = 1; more; ++step) {
    WaitForCopies<0>();
    __syncthreads();  // dO is here, and nobody reads Q and the statistics of the tile before
    CopyTile<kHead, kQueries, kBlockThreads>(q_tile, RowsOf<const bf16>(problem.q, b, h),
                                             first_query);
    CopyStarts<kQueries>(starts, problem.mask, b, first_query);
    CommitCopies();
    // One number per thread, on its way while dP^T is made. Past the end lse is infinite: P = 0.
    const int entry = static_cast<int>(threadIdx.x), query = first_query + entry % kQueries;
    const int64_t row = StatisticsAt(problem, b, h) + query;
    float statistic = entry < kQueries ? kInfinity : 0.0f;
    if (query < problem.mask.queries)
      statistic = entry < kQueries ? problem.lse[row] * kLog2E : delta[row];
    mma::Products<kTiles, kQueries, kValue, Shape::kValuePairs>(
        ds, v_tile + warp_row * kRowBytes<kValue>, do_tile);
    if (entry < 2 * kQueries) statistics[entry] = statistic;
    WaitForCopies<0>();
    __syncthreads();  // Q and the statistics are here
    mma::Products<kTiles, kQueries, kHead, Shape::kPairs>(p, k_tile + warp_row * kRowBytes<kHead>,
                                                          q_tile);
    const int warp_key = first_key + warp_row;
    // The last query has the latest document.
    if (problem.mask.causal && (warp_key + 16 * kTiles - 1 > first_query ||
                                warp_key + problem.mask.window <= first_query + kQueries - 1 ||
                                warp_key < starts[kQueries - 1])) {
#pragma unroll
      for (int n = 0; n < kQueries / 8; ++n) {
        const int2 start = *reinterpret_cast<const int2*>(starts + 8 * n + 2 * thread);
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int key = warp_key + 16 * i + Lane() / 4 + e / 2 * 8,
                      query = first_query + 8 * n + 2 * thread + e % 2;
            // Queries before the key, too, are far past its window when counted without a sign.
            if (static_cast<unsigned>(query - key) >= static_cast<unsigned>(problem.mask.window) ||
                key < (e % 2 ? start.y : start.x))
              p[i][n][e] = -kInfinity;
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
    mma::AddProduct<kTiles, kQueries, kValue>(dv, p, do_tile);
    __syncthreads();  // nobody reads dO
    const int tiles = *tiles_of_head;
    const int group_head = step / tiles;  // one division: two cost registers that are not there
    h = kv * group + group_head;
    first_query = (first_tile + step - group_head * tiles) * kQueries;
    more = step < group * tiles;
    if (more) {
      CopyTile<kValue, kQueries, kBlockThreads>(
          do_tile, RowsOf<const bf16>(problem.o_gradient, b, h), first_query);
    }
    CommitCopies();
    mma::AddProduct<kTiles, kQueries, kHead>(dk, ds, q_tile);
  }

  float scale[kTiles][2], ones[kTiles][2];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    scale[i][0] = scale[i][1] = problem.scale;
    ones[i][0] = ones[i][1] = 1.0f;
  }
  mma::StoreRows<kTiles, kHead>(RowsOf<bf16>(problem.dk, b, kv), first_key, shared, warp_row, dk,
                                scale);
  mma::StoreRows<kTiles, kValue>(RowsOf<bf16>(problem.dv, b, kv), first_key,
                                 shared + Shape::kKeys * kRowBytes<kHead>, warp_row, dv, ones);
}

template <int kHead, int kValue>
struct QueryShape {
  static constexpr int kTiles = kHead <= 128 ? 2 : 1, kKeys = kHead <= 64 ? 64 : 32, kResident = 2,
                       kPairs = kHead == 128 ? 3 : 4;
  static constexpr int kQueries = 16 * kTiles * kWarps;
  static constexpr int kTileBytes = (kKeys + kQueries) * (kRowBytes<kHead> + kRowBytes<kValue>);
  static constexpr int kBytes = kTileBytes + kQueries * static_cast<int>(sizeof(int));
};

// Block (query tile, head, sequence): dQ = scale * sum of dS K. While dP is made K arrives, and after it the next V.
template <int kHead, int kValue>
__global__ void __launch_bounds__(kBlockThreads, QueryShape<kHead, kValue>::kResident)
    MmaQueryBackward(const Problem problem, const float* delta) {
  using Shape = QueryShape<kHead, kValue>;
  constexpr int kTiles = Shape::kTiles, kKeys = Shape::kKeys;
  MT_DYNAMIC_SHARED(char, shared);
  const SharedAddress q_tile = AddressOf(shared),
                      do_tile = q_tile + Shape::kQueries * kRowBytes<kHead>,
                      k_tile = do_tile + Shape::kQueries * kRowBytes<kValue>,
                      v_tile = k_tile + kKeys * kRowBytes<kHead>;
  int* const starts = reinterpret_cast<int*>(shared + Shape::kTileBytes);  // of the documents
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int kv = h / problem.group;
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Shape::kQueries;
  const int warp_row = UniformWarpIndex() * 16 * kTiles;
  const auto k = RowsOf<const bf16>(problem.k, b, kv), v = RowsOf<const bf16>(problem.v, b, kv);
  const float scale_log2 = problem.scale_log2;

  float lse[kTiles][2], mean[kTiles][2];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int query = first_query + warp_row + 16 * i + 8 * half + Lane() / 4;
      const int64_t row = StatisticsAt(problem, b, h) + query;
      lse[i][half] = query < problem.mask.queries ? problem.lse[row] * kLog2E : kInfinity;
      mean[i][half] = query < problem.mask.queries ? delta[row] : 0.0f;
    }
  }

  float dq[kTiles][kHead / 8][4] = {}, p[kTiles][kKeys / 8][4], ds[kTiles][kKeys / 8][4];
  const KeyRange keys = KeysOf<Shape::kQueries, kKeys>(problem.mask, b, first_query);
  CopyTile<kHead, Shape::kQueries, kBlockThreads>(q_tile, RowsOf<const bf16>(problem.q, b, h),
                                                  first_query);
  CopyTile<kValue, Shape::kQueries, kBlockThreads>(
      do_tile, RowsOf<const bf16>(problem.o_gradient, b, h), first_query);
  CopyStarts<Shape::kQueries>(starts, problem.mask, b, first_query);
  CopyTile<kValue, kKeys, kBlockThreads>(v_tile, v, keys.begin);
  CommitCopies();
  for (int first_key = keys.begin; first_key < keys.end; first_key += kKeys) {
    WaitForCopies<0>();
    __syncthreads();  // V is here, and nobody reads K of the tile before
    CopyTile<kHead, kKeys, kBlockThreads>(k_tile, k, first_key);
    CommitCopies();
    mma::Products<kTiles, kKeys, kValue, Shape::kPairs>(ds, do_tile + warp_row * kRowBytes<kValue>,
                                                        v_tile);
    WaitForCopies<0>();
    __syncthreads();  // K is here, and nobody reads V
    if (first_key + kKeys < keys.end)
      CopyTile<kValue, kKeys, kBlockThreads>(v_tile, v, first_key + kKeys);
    CommitCopies();
    mma::Products<kTiles, kKeys, kHead, Shape::kPairs>(p, q_tile + warp_row * kRowBytes<kHead>,
                                                       k_tile);
    if (NeedsMask<16 * kTiles, kKeys>(problem.mask, first_query + warp_row,
                                      starts[warp_row + 16 * kTiles - 1], first_key))
      Mask<kTiles, kKeys>(problem.mask, p, starts + warp_row, first_query + warp_row, first_key);
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
  for (int i = 0; i < kTiles; ++i) scale[i][0] = scale[i][1] = problem.scale;
  mma::StoreRows<kTiles, kHead>(RowsOf<bf16>(problem.dq, b, h), first_query, shared, warp_row, dq,
                                scale);
}

template <int kHead, int kValue>
int32_t Backward(const mt_attention_args& args, float* delta, const Launch& launch) {
  const Problem problem = Describe(args);
  constexpr int kDeltaRows = kBlockThreads / kRowThreads<kValue>;
  auto* row_sums = MmaDelta<kValue>;
  MT_CUDA(MT_LAUNCH(row_sums, Grid(args, kDeltaRows, args.heads), kBlockThreads, 0, launch.stream,
                    problem, delta));
  using Keys = KeyShape<kHead, kValue>;
  auto* keys = MmaKeyBackward<kHead, kValue>;
  MT_CUDA(cudaFuncSetAttribute(keys, cudaFuncAttributeMaxDynamicSharedMemorySize, Keys::kBytes));
  MT_CUDA(MT_LAUNCH(keys, Grid(args, Keys::kKeys, args.kv_heads), kBlockThreads, Keys::kBytes,
                    launch.stream, problem, delta));
  using Queries = QueryShape<kHead, kValue>;
  auto* queries = MmaQueryBackward<kHead, kValue>;
  MT_CUDA(
      cudaFuncSetAttribute(queries, cudaFuncAttributeMaxDynamicSharedMemorySize, Queries::kBytes));
  MT_CUDA(MT_LAUNCH(queries, Grid(args, Queries::kQueries, args.heads), kBlockThreads,
                    Queries::kBytes, launch.stream, problem, delta));
  return MT_OK;
}

}  // namespace

int32_t MmaAttentionBackward(const mt_attention_args& args, float* delta, const Launch& launch) {
  return WithHeadSize(args, [&](auto size) {
    return Backward<decltype(size)::kHead, decltype(size)::kValue>(args, delta, launch);
  });
}

}  // namespace mt::cuda
