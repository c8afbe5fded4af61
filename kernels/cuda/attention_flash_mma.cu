// Causal grouped-query attention on tensor cores (Dao 2023, FlashAttention-2, arXiv 2307.08691): bf16 data, float32 sums, for GPUs
// of sm_80 and later. What is added in which order is what attention_flash.cu does, in tiles of other sizes: no two blocks add to
// one number, so every run gives the same bits.
//
// In all three kernels a warp owns 16 or 32 rows of the result, and the probabilities go from one product to the next in
// registers. Rounding: P and dS to bf16 before their products, results once at the end.
//
// FLOPs that cannot be avoided, per (query, visible key, head): forward 4 d, backward 10 d; here backward takes 14 d, because both
// of its kernels recompute S and dP. Tiles that no query of a block sees, past the mask or before the window, are not visited. Memory traffic is small beside that: Q, K, V, O once per block of rows.
#include "kernels/cuda/attention_flash.h"
#include "kernels/cuda/attention_mma.h"
#include "kernels/cuda/attention_sink.h"
#include "kernels/cuda/reduce.h"

namespace mt::cuda {
namespace {

using namespace mma;

__device__ __forceinline__ float QuadReduce(float value, bool sum) {
#pragma unroll
  for (int lanes = 2; lanes > 0; lanes /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, lanes, kWarpThreads);
    value = sum ? value + other : max(value, other);
  }
  return value;
}

// How many blocks a multiprocessor should hold: what shared memory and the registers of the sums allow without spills. kValue is
// the head of the values.
template <int kHead, int kValue>
struct ForwardShape {
  static constexpr int kTiles = kValue <= 128 ? 2 : 1,
                       kKeys = kValue <= 96    ? 64
                               : kValue <= 128 ? 48
                                               : 32,
                       kResident = 2,
                       kPairs = kHead == 96                           ? 3
                                : kHead == 128 && kArchitecture < 900 ? 2
                                                                      : 4;
  static constexpr int kQueries = 16 * kTiles * kWarps;
  static constexpr int kTileBytes =
      (kQueries + kKeys) * kRowBytes<kHead> + kKeys * kRowBytes<kValue>;
  static constexpr int kBytes = kTileBytes + kQueries * static_cast<int>(sizeof(int));
  // O leaves by way of the tile of Q.
  static_assert(kRowBytes<kValue> <= kRowBytes<kHead>);
};

// Of the two rows of each tile: the running maximum of the scores times scale_log2, a rounded number, and this thread's part of the
// sum of 2^(score scale_log2 - maximum).
//
// Sum and output are relative to exactly this maximum, and are brought from one to the next by a power of their exact difference:
// by 1 where it stays. Were the rounded product subtracted from one that the compiler fused into the difference, every tile would
// multiply both by 2^(what rounding left), always the same way: with large scores lse was wrong in the fourth digit at 8192 keys.
template <int kTiles>
struct Softmax {
  float maximum[kTiles][2], sum[kTiles][2];
};

// Scores become exponentials relative to the running maximum; the maximum, sum and output are brought to it.
template <int kTiles, int kKeys, int kValue>
__device__ __forceinline__ void Exponentials(float (&s)[kTiles][kKeys / 8][4],
                                             float (&o)[kTiles][kValue / 8][4],
                                             Softmax<kTiles>& softmax, float scale_log2) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float highest = -kInfinity;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
        highest = max(highest, max(s[i][n][2 * half], s[i][n][2 * half + 1]));
      // __fmul_rn is never fused with a sum.
      highest = max(softmax.maximum[i][half], __fmul_rn(QuadReduce(highest, false), scale_log2));
      // A row may have seen nothing yet: everything is -infinity, and exp2(-infinity - 0) is 0.
      const float reference = highest == -kInfinity ? 0.0f : highest;
      const float rescale = Exp2(softmax.maximum[i][half] - reference);
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
      for (int c = 0; c < kValue / 8; ++c) {
        o[i][c][2 * half] *= rescale;
        o[i][c][2 * half + 1] *= rescale;
      }
    }
  }
}

// Block (query tile, head, sequence). Keys go by from the last to the first, so that masked tiles come first; while S of a tile is
// made its V arrives, and while O is made the next K. Under a causal mask the longest blocks of a head come first.
template <int kHead, int kValue>
__global__ void __launch_bounds__(kBlockThreads, ForwardShape<kHead, kValue>::kResident)
    MmaForward(const Problem problem) {
  using Shape = ForwardShape<kHead, kValue>;
  constexpr int kTiles = Shape::kTiles, kKeys = Shape::kKeys;
  MT_DYNAMIC_SHARED(char, shared);
  const SharedAddress q_tile = AddressOf(shared),
                      k_tile = q_tile + Shape::kQueries * kRowBytes<kHead>,
                      v_tile = k_tile + kKeys * kRowBytes<kHead>;
  int* const starts = reinterpret_cast<int*>(shared + Shape::kTileBytes);  // of the documents
  const int h = static_cast<int>(blockIdx.y), b = static_cast<int>(blockIdx.z);
  const int kv = h / problem.group;
  const int first_query = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Shape::kQueries;
  const int warp_row = UniformWarpIndex() * 16 * kTiles;
  const float scale_log2 = problem.scale_log2;

  float o[kTiles][kValue / 8][4] = {}, s[kTiles][kKeys / 8][4];
  Softmax<kTiles> softmax;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    softmax.maximum[i][0] = softmax.maximum[i][1] = -kInfinity;
    softmax.sum[i][0] = softmax.sum[i][1] = 0;
  }

  const KeyRange keys = KeysOf<Shape::kQueries, kKeys>(problem.mask, b, first_query);
  int first_key = (keys.end - 1) / kKeys * kKeys;
  CopyTile<kHead, Shape::kQueries, kBlockThreads>(q_tile, RowsOf<const bf16>(problem.q, b, h),
                                                  first_query);
  CopyStarts<Shape::kQueries>(starts, problem.mask, b, first_query);
  CopyTile<kHead, kKeys, kBlockThreads>(k_tile, RowsOf<const bf16>(problem.k, b, kv), first_key);
  CommitCopies();
  for (; first_key >= keys.begin; first_key -= kKeys) {
    WaitForCopies<0>();
    __syncthreads();  // K is here, and nobody reads V of the tile before
    CopyTile<kValue, kKeys, kBlockThreads>(v_tile, RowsOf<const bf16>(problem.v, b, kv), first_key);
    CommitCopies();
    mma::Products<kTiles, kKeys, kHead, Shape::kPairs>(s, q_tile + warp_row * kRowBytes<kHead>,
                                                       k_tile);
    if (NeedsMask<16 * kTiles, kKeys>(problem.mask, first_query + warp_row,
                                      starts[warp_row + 16 * kTiles - 1], first_key))
      Mask<kTiles, kKeys>(problem.mask, s, starts + warp_row, first_query + warp_row, first_key);
    Exponentials<kTiles, kKeys, kValue>(s, o, softmax, scale_log2);
    WaitForCopies<0>();
    __syncthreads();  // V is here, and nobody reads K
    if (first_key > keys.begin) {
      CopyTile<kHead, kKeys, kBlockThreads>(k_tile, RowsOf<const bf16>(problem.k, b, kv),
                                            first_key - kKeys);
    }
    CommitCopies();
    mma::AddProduct<kTiles, kKeys, kValue>(o, s, v_tile);
  }

  float* const lse = problem.lse + StatisticsAt(problem, b, h);
  const bool has_sink = problem.sinks != nullptr;
  const float sink = has_sink ? ToFloat(problem.sinks[h]) : 0.0f;
  float factor[kTiles][2];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = QuadReduce(softmax.sum[i][half], true);
      const int query = first_query + warp_row + 16 * i + 8 * half + Lane() / 4;
      const RowEnd end = EndRow(softmax.maximum[i][half] * kLn2, sum, has_sink, sink);
      factor[i][half] = end.factor;
      if (Lane() % 4 == 0 && query < problem.mask.queries) lse[query] = end.lse;
    }
  }
  mma::StoreRows<kTiles, kValue>(RowsOf<bf16>(problem.o, b, h), first_query,
                                 shared + warp_row * (kRowBytes<kHead> - kRowBytes<kValue>),
                                 warp_row, o, factor);
}

template <int kHead, int kValue>
int32_t Forward(const mt_attention_args& args, const Launch& launch) {
  using Shape = ForwardShape<kHead, kValue>;
  auto* kernel = MmaForward<kHead, kValue>;
  MT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shape::kBytes));
  MT_CUDA(MT_LAUNCH(kernel, Grid(args, Shape::kQueries, args.heads), kBlockThreads, Shape::kBytes,
                    launch.stream, Describe(args)));
  return MT_OK;
}

}  // namespace

bool MmaAttentionSupports(const mt_attention_args& args, bool backward) {
  // Rows begin at multiples of 16 bytes; the distance of two rows of a head is an int.
  const auto packs = [&args](int64_t stride) {
    return stride % kChunkElements == 0 && args.batch * stride <= INT32_MAX;
  };
  const int64_t v_head_dim = mt_attention_v_head_dim(&args);
  if (args.dtype != MT_BF16 || args.scale <= 0 || args.head_dim % kChunkElements != 0 ||
      v_head_dim % kChunkElements != 0)
    return false;
  if (!FitsLatentHead(args) && (backward || std::max(args.head_dim, v_head_dim) > 256))
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
  if (!FitsLatentHead(args)) return Forward<256, 256>(args, launch);
  return WithHeadSize(args, [&](auto size) {
    return Forward<decltype(size)::kHead, decltype(size)::kValue>(args, launch);
  });
}

}  // namespace mt::cuda
