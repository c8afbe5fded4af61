// Rotary embeddings in place, Su et al. 2021 (arXiv 2104.09864), with the formulas of mt_backend.h; units in rotation.h.
//
// Bytes that cannot be avoided, e = bytes of an element: 2 N H r e; the table is small and shared by all heads, so it comes from
// the caches. No element depends on anything but its partner, so the bits depend on nothing else.
#include "kernels/cuda/operations.h"
#include "kernels/cuda/rotation.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {
namespace {

template <typename T>
struct RopeArguments {
  Heads heads;
  T* data;
  int64_t row_stride;
  bool inverse;
};

template <int N>
inline constexpr int kInFlight = N == 1 ? 4 : 2;  // units of a thread

template <typename T, int N, bool kInterleaved>
__global__ void __launch_bounds__(kStreamThreads, 3) RopeKernel(RopeArguments<T> a) {
  constexpr int kItems = kInFlight<N>;
  const uint32_t units = static_cast<uint32_t>(a.heads.rotary / (2 * N));  // of a head
  ForEachPiece<kItems>(a.heads.rows, a.heads.heads * units, [&](const RowItem(&items)[kItems]) {
    UnitPacks<T, N> packs[kItems] = {};
    T* head[kItems] = {};
    uint32_t unit[kItems] = {};
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (items[i].row >= a.heads.rows) continue;
      const uint32_t h = items[i].item / units;
      unit[i] = items[i].item - h * units;
      head[i] = a.data + items[i].row * a.row_stride + h * a.heads.head_dim;
      packs[i] = LoadUnit<N>(head[i], PlaceOfUnit(unit[i], N, a.heads.rotary, kInterleaved));
    }
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (items[i].row >= a.heads.rows) continue;
      // The angles come last: they are in the caches, and two units' worth would take the registers of other threads.
      const Angles<N> angles = LoadAngles<N>(a.heads, TableRow(a.heads, items[i].row), unit[i]);
      float z[2][N];
      Unpack(packs[i], z);
      Turn<kInterleaved>(z, angles, a.inverse);
      StoreUnit(head[i], PlaceOfUnit(unit[i], N, a.heads.rotary, kInterleaved), z);
    }
  });
}

template <typename T, int N>
cudaError_t LaunchRope(const RopeArguments<T>& a, bool interleaved, cudaStream_t stream) {
  auto* kernel = interleaved ? RopeKernel<T, N, true> : RopeKernel<T, N, false>;
  const int64_t items = a.heads.rows * a.heads.heads * (a.heads.rotary / (2 * N));
  return MT_LAUNCH(kernel, GridOf(DivideUp(items, int64_t{kStreamThreads} * kInFlight<N>)),
                   kStreamThreads, 0, stream, a);
}

}  // namespace

int32_t Rope(const mt_rope_args& args, const Launch& launch) {
  if (args.sequence == 0 || args.batch == 0 || args.heads == 0) return MT_OK;
  if (args.sequence * args.batch > kMostItems || args.heads * args.head_dim > kMostItems) {
    return host::Fail(MT_ERROR_UNSUPPORTED, MT_OP_ROPE,
                      "more than 2^31 - 1 rows or elements of a row");
  }
  MT_CUDA(WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    constexpr int N = kPackElements<T>;
    RopeArguments<T> a = {};
    a.heads = HeadsOf(args);
    a.data = static_cast<T*>(args.data);
    a.row_stride = args.row_stride;
    a.inverse = args.inverse != 0;
    const bool whole = HasWholeUnits(a.heads, N) && a.row_stride % N == 0 && IsAligned(args.data);
    return whole ? LaunchRope<T, N>(a, args.interleaved != 0, launch.stream)
                 : LaunchRope<T, 1>(a, args.interleaved != 0, launch.stream);
  }));
  return MT_OK;
}

}  // namespace mt::cuda
