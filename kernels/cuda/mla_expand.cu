// Keys and values of multi-head latent attention from its latent products, with the formulas of mt_backend.h: copies of pieces of
// rows, and in the backward pass the sum over heads of what all heads shared.
//
// Bytes that cannot be avoided, e = bytes of an element, W = H (2 nope + rope + 2 v) + rope: N W e in either pass.
#include <numeric>

#include "kernels/cuda/operations.h"
#include "kernels/cuda/packs.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

// Sizes in packs of N elements.
template <typename T>
struct Expand {
  T *kv, *key_rope, *key, *value;  // (N, H (nope + v)), (N, rope), (N, H (nope + rope)), (N, H v)
  int64_t rows;
  uint32_t heads, nope, rope, v;
};

constexpr int kItems = 4;  // packs of a thread
constexpr int kHeadsTogether = 8;

// Where the packs of a row's keys and values come from and go to: pack `item` of (head, nope | rope | v).
template <typename T, int N>
__global__ void __launch_bounds__(kStreamThreads) ExpandForwardKernel(Expand<T> a) {
  const uint32_t of_head = a.nope + a.rope + a.v;
  ForEachPiece<kItems>(a.rows, a.heads * of_head, [&](const RowItem(&items)[kItems]) {
    Pack<T, N> packs[kItems] = {};
    T* to[kItems] = {};
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (items[i].row >= a.rows) continue;
      const int64_t row = items[i].row;
      const uint32_t head = items[i].item / of_head, item = items[i].item - head * of_head;
      const T* kv = a.kv + (row * a.heads + head) * (a.nope + a.v) * N;
      T* const key = a.key + ((row * a.heads + head) * (a.nope + a.rope) + item) * N;
      if (item < a.nope) {
        to[i] = key;
        kv += int64_t{item} * N;
      } else if (item < a.nope + a.rope) {
        to[i] = key;
        kv = a.key_rope + (row * a.rope + item - a.nope) * N;
      } else {
        to[i] = a.value + ((row * a.heads + head) * a.v + item - a.nope - a.rope) * N;
        kv += int64_t{item - a.rope} * N;
      }
      packs[i] = LoadPack<N>(kv);
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (items[i].row < a.rows) StorePack(to[i], packs[i]);
    }
  });
}

template <typename T, int N>
__global__ void __launch_bounds__(kStreamThreads) ExpandBackwardKernel(Expand<T> a) {
  const uint32_t of_head = a.nope + a.v;
  ForEachPiece<kItems>(a.rows, a.heads * of_head, [&](const RowItem(&items)[kItems]) {
    Pack<T, N> packs[kItems] = {};
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (items[i].row >= a.rows) continue;
      const uint32_t head = items[i].item / of_head, item = items[i].item - head * of_head;
      const int64_t at = items[i].row * a.heads + head;
      packs[i] = item < a.nope ? LoadPack<N>(a.key + (at * (a.nope + a.rope) + item) * N)
                               : LoadPack<N>(a.value + (at * a.v + item - a.nope) * N);
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (items[i].row < a.rows)
        StorePack(a.kv + (items[i].row * a.heads * of_head + items[i].item) * N, packs[i]);
    }
  });
}

// A thread has a pack of a row's key_rope and adds the heads in order.
template <typename T, int N>
__global__ void __launch_bounds__(kStreamThreads) SumHeadsKernel(Expand<T> a) {
  ForEachPiece<1>(a.rows, a.rope, [&](const RowItem(&items)[1]) {
    if (items[0].row >= a.rows) return;
    const int64_t stride = int64_t{a.nope + a.rope} * N;
    const T* key = a.key + items[0].row * a.heads * stride + int64_t{a.nope + items[0].item} * N;
    float sums[N] = {};
    for (uint32_t first = 0; first < a.heads; first += kHeadsTogether) {
      Pack<T, N> packs[kHeadsTogether] = {};
#pragma unroll
      for (uint32_t h = 0; h < kHeadsTogether; ++h) {
        if (first + h < a.heads) packs[h] = LoadPack<N>(key + h * stride);
      }
#pragma unroll
      for (uint32_t h = 0; h < kHeadsTogether; ++h) {
#pragma unroll
        for (int n = 0; n < N; ++n) sums[n] += ToFloat(packs[h].at[n]);  // zeros past the last head
      }
      key += kHeadsTogether * stride;
    }
    Pack<T, N> result;
#pragma unroll
    for (int n = 0; n < N; ++n) result.at[n] = FromFloat<T>(sums[n]);
    StorePack(a.key_rope + (items[0].row * a.rope + items[0].item) * N, result);
  });
}

// Calls function(Expand, constant pack size) with the widest packs that all pieces of a row are made of.
template <typename Function>
int32_t WithExpand(int32_t operation, const mt_mla_expand_args& args, Function&& function) {
  if (args.rows == 0) return MT_OK;
  if (args.heads * (args.nope_dim + args.rope_dim + args.v_dim) > kMostItems)
    return host::Fail(MT_ERROR_UNSUPPORTED, operation, "more than 2^31 - 1 elements of a row");
  return WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int N = kPackElements<T>;
    const bool whole = std::gcd(std::gcd(args.nope_dim, args.rope_dim), args.v_dim) % N == 0 &&
                       IsAligned(args.kv) && IsAligned(args.key_rope) && IsAligned(args.key) &&
                       IsAligned(args.value);
    const auto call = [&](auto pack) {
      constexpr int64_t kPack = decltype(pack)::value;
      const Expand<T> a = {static_cast<T*>(args.kv),
                           static_cast<T*>(args.key_rope),
                           static_cast<T*>(args.key),
                           static_cast<T*>(args.value),
                           args.rows,
                           static_cast<uint32_t>(args.heads),
                           static_cast<uint32_t>(args.nope_dim / kPack),
                           static_cast<uint32_t>(args.rope_dim / kPack),
                           static_cast<uint32_t>(args.v_dim / kPack)};
      return function(a, pack);
    };
    return whole ? call(std::integral_constant<int, N>{}) : call(std::integral_constant<int, 1>{});
  });
}

unsigned BlocksOf(int64_t rows, int64_t items_per_row, int items) {
  return GridOf(DivideUp(rows * items_per_row, int64_t{kStreamThreads} * items));
}

}  // namespace

int32_t MlaExpandForward(const mt_mla_expand_args& args, const Launch& launch) {
  return WithExpand(MT_OP_MLA_EXPAND_FORWARD, args, [&](const auto& a, auto pack) -> int32_t {
    auto* kernel =
        ExpandForwardKernel<std::remove_pointer_t<decltype(a.kv)>, decltype(pack)::value>;
    MT_CUDA(MT_LAUNCH(kernel, BlocksOf(a.rows, int64_t{a.heads} * (a.nope + a.rope + a.v), kItems),
                      kStreamThreads, 0, launch.stream, a));
    return MT_OK;
  });
}

int32_t MlaExpandBackward(const mt_mla_expand_args& args, const Launch& launch) {
  return WithExpand(MT_OP_MLA_EXPAND_BACKWARD, args, [&](const auto& a, auto pack) -> int32_t {
    using T = std::remove_pointer_t<decltype(a.kv)>;
    auto* copy = ExpandBackwardKernel<T, decltype(pack)::value>;
    MT_CUDA(MT_LAUNCH(copy, BlocksOf(a.rows, int64_t{a.heads} * (a.nope + a.v), kItems),
                      kStreamThreads, 0, launch.stream, a));
    auto* sum = SumHeadsKernel<T, decltype(pack)::value>;
    MT_CUDA(MT_LAUNCH(sum, BlocksOf(a.rows, a.rope, 1), kStreamThreads, 0, launch.stream, a));
    return MT_OK;
  });
}

}  // namespace mt::cuda
