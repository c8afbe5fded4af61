// D = alpha op(A) op(B) + beta D by dnnl_sgemm, which reaches the processor's peak. It is called
// for fixed tiles of D, each by one thread: how the work is split does not depend on the number of
// threads, so neither do the bits.
#include <dnnl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>

#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"
#include "kernels/host/host.h"

namespace mt::cpu {
namespace {

constexpr int64_t kTileRows = 256, kTileColumns = 1408;
constexpr int64_t kPackPadding = 16;

struct Tiling {
  int64_t rows, columns;            // of one tile
  int64_t row_tiles, column_tiles;  // of D
};

// Wide tiles, since oneDNN packs op(B) once per tile; lower ones where there would be fewer than eight.
Tiling TilingOf(const mt_matmul_args& args) {
  Tiling t;
  t.column_tiles = CeilDivide(args.n, kTileColumns);
  t.columns = CeilDivide(CeilDivide(args.n, t.column_tiles), 64) * 64;
  t.column_tiles = CeilDivide(args.n, t.columns);
  t.rows = kTileRows;
  while (t.rows > 64 && CeilDivide(args.m, t.rows) * t.column_tiles < 8) t.rows /= 2;
  t.row_tiles = CeilDivide(args.m, t.rows);
  return t;
}

// A transposed A whose rows lie a multiple of 1 KiB apart falls into few cache sets when it is read down its columns (a fifth
// slower at 8192 columns): its tile is copied to rows that are 64 bytes longer first.
bool PacksA(const mt_matmul_args& args) {
  return args.transpose_a && args.lda % 256 == 0 && args.k >= 64;
}
int64_t PackedFloats(const mt_matmul_args& args) { return args.k * (kTileRows + kPackPadding); }

}  // namespace

int64_t MatmulWorkspace(const mt_matmul_args& args) {
  return PacksA(args) ? 4 * Threads() * PackedFloats(args) : 0;
}

int32_t Matmul(const mt_matmul_args& args) {
  if (args.m == 0 || args.n == 0) return MT_OK;
  const auto* a = static_cast<const float*>(args.a);
  const auto* b = static_cast<const float*>(args.b);
  auto* d = static_cast<float*>(args.d);
  if (args.k == 0) {
    for (int64_t i = 0; args.beta == 0 && i < args.m; ++i)
      std::fill_n(d + i * args.ldd, args.n, 0.0f);
    return MT_OK;
  }
  const Tiling tiling = TilingOf(args);
  std::atomic<int> failed{dnnl_success};
  ParallelBlocks(tiling.row_tiles * tiling.column_tiles, [&](int64_t tile) {
    const int64_t i = tile % tiling.row_tiles * tiling.rows,
                  j = tile / tiling.row_tiles * tiling.columns;
    const int64_t rows = std::min(tiling.rows, args.m - i),
                  columns = std::min(tiling.columns, args.n - j);
    const float* left = args.transpose_a ? a + i : a + i * args.lda;
    int64_t left_stride = args.lda;
    if (PacksA(args)) {
      float* packed = static_cast<float*>(args.workspace) + ThreadNumber() * PackedFloats(args);
      left_stride = rows + kPackPadding;
      for (int64_t k = 0; k < args.k; ++k)
        std::copy_n(left + k * args.lda, rows, packed + k * left_stride);
      left = packed;
    }
    const dnnl_status_t status =
        dnnl_sgemm(args.transpose_a ? 'T' : 'N', args.transpose_b ? 'T' : 'N', rows, columns,
                   args.k, static_cast<float>(args.alpha), left, left_stride,
                   args.transpose_b ? b + j * args.ldb : b + j, args.ldb,
                   static_cast<float>(args.beta), d + i * args.ldd + j, args.ldd);
    if (status != dnnl_success) failed = status;
  });
  if (failed != dnnl_success) {
    return host::Fail(failed == dnnl_out_of_memory ? MT_ERROR_MEMORY : MT_ERROR_DEVICE,
                      MT_OP_MATMUL, "dnnl_sgemm of m %lld, n %lld, k %lld returned %d",
                      static_cast<long long>(args.m), static_cast<long long>(args.n),
                      static_cast<long long>(args.k), failed.load());
  }
  return MT_OK;
}

double MeasurePeakFlops() {
  static std::once_flag once;
  static double peak = 0;
  std::call_once(once, [] {
    constexpr int64_t kSize = 1024;
    const auto matrices = std::make_unique<float[]>(3 * kSize * kSize);
    mt_matmul_args args = {
        .struct_size = sizeof(mt_matmul_args), .dtype = MT_F32, .output_dtype = MT_F32};
    args.m = args.n = args.k = args.lda = args.ldb = args.ldd = kSize;
    args.a = matrices.get();
    args.b = matrices.get() + kSize * kSize;
    args.d = matrices.get() + 2 * kSize * kSize;
    args.alpha = 1;
    for (int i = 0; i < 4; ++i) {
      const auto start = std::chrono::steady_clock::now();
      if (Matmul(args) != MT_OK) return;
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      peak = std::max(peak, 2.0 * kSize * kSize * kSize / seconds.count());
    }
  });
  return peak;
}

}  // namespace mt::cpu
