// D = alpha op(A) op(B) + beta D + bias by dnnl_sgemm, which reaches the processor's peak. It is called
// for fixed tiles of D, each by one thread: how the work is split does not depend on the number of
// threads, so neither do the bits.
#include <dnnl.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>

#include "kernels/cpu/matmul_tiles.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"
#include "kernels/host/host.h"

namespace mt::cpu {
namespace {

constexpr int64_t kTileRows = 256, kTileColumns = 1408;
constexpr int64_t kPackPadding = 16;

}  // namespace

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

namespace {

// A transposed A whose rows lie a multiple of 1 KiB apart falls into few cache sets when it is read down its columns (a fifth
// slower at 8192 columns): its tile is copied to rows that are 64 bytes longer first.
bool PacksA(const mt_matmul_args& args) {
  return args.dtype == MT_F32 && args.transpose_a && args.lda % 256 == 0 && args.k >= 64;
}
int64_t PackedFloats(const mt_matmul_args& args) {
  return PacksA(args) ? args.k * (kTileRows + kPackPadding) : 0;
}

// bfloat16 operands are widened as a whole first, with rows that do not fall into one cache set.
struct Matrix {
  int64_t rows, columns;
  int64_t stride() const { return columns + (columns % 256 == 0 ? kPackPadding : 0); }
  int64_t floats() const { return CeilDivide(rows * stride(), 16) * 16; }
};
Matrix StoredA(const mt_matmul_args& args) {
  return args.transpose_a ? Matrix{args.k, args.m} : Matrix{args.m, args.k};
}
Matrix StoredB(const mt_matmul_args& args) {
  return args.transpose_b ? Matrix{args.n, args.k} : Matrix{args.k, args.n};
}
int64_t WidenedFloats(const mt_matmul_args& args) {
  return args.dtype == MT_BF16 ? StoredA(args).floats() + StoredB(args).floats() : 0;
}
// A tile of a bfloat16 D is made in float32.
int64_t OutputFloats(const mt_matmul_args& args) {
  if (args.output_dtype != MT_BF16) return 0;
  const Tiling tiling = TilingOf(args);
  return tiling.rows * tiling.columns;
}

void WidenMatrix(const void* from, int64_t from_stride, const Matrix& matrix, float* to) {
  ParallelRanges(matrix.rows, 6 * matrix.columns, [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r)
      Widen(static_cast<const Bf16*>(from) + r * from_stride, matrix.columns,
            to + r * matrix.stride());
  });
}

dnnl_status_t Multiply(const mt_matmul_args& args, const Operands& from, const Tile& tile,
                       float beta, float* d, int64_t ldd) {
  const float* left = args.transpose_a ? from.a + tile.i : from.a + tile.i * from.lda;
  int64_t left_stride = from.lda;
  if (from.packed != nullptr && PacksA(args)) {
    left_stride = tile.rows + kPackPadding;
    for (int64_t k = 0; k < args.k; ++k)
      std::copy_n(left + k * from.lda, tile.rows, from.packed + k * left_stride);
    left = from.packed;
  }
  return dnnl_sgemm(args.transpose_a ? 'T' : 'N', args.transpose_b ? 'T' : 'N', tile.rows,
                    tile.columns, args.k, static_cast<float>(args.alpha), left, left_stride,
                    args.transpose_b ? from.b + tile.j * from.ldb : from.b + tile.j, from.ldb, beta,
                    d, ldd);
}

}  // namespace

dnnl_status_t RunTile(const mt_matmul_args& args, const Operands& from, const Tile& tile) {
  const int64_t at = tile.i * args.ldd + tile.j;
  const bool narrow = args.output_dtype == MT_BF16;
  float* d = narrow ? from.output : static_cast<float*>(args.d) + at;
  Bf16* narrow_d = narrow ? static_cast<Bf16*>(args.d) + at : nullptr;
  const int64_t ldd = narrow ? tile.columns : args.ldd;
  for (int64_t r = 0; narrow && args.beta != 0 && r < tile.rows; ++r)
    Widen(narrow_d + r * args.ldd, tile.columns, d + r * ldd);
  if (args.k > 0) {
    const dnnl_status_t status = Multiply(args, from, tile, static_cast<float>(args.beta), d, ldd);
    if (status != dnnl_success) return status;
  } else if (args.beta == 0) {
    for (int64_t r = 0; r < tile.rows; ++r) std::fill_n(d + r * ldd, tile.columns, 0.0f);
  }
  for (int64_t r = 0; args.bias != nullptr && r < tile.rows; ++r)
    Accumulate(args.output_dtype, args.bias, tile.j, tile.columns, d + r * ldd);
  for (int64_t r = 0; narrow && r < tile.rows; ++r)
    Narrow(d + r * ldd, tile.columns, narrow_d + r * args.ldd);
  return dnnl_success;
}

int32_t ProductFailed(int32_t operation, dnnl_status_t status, const mt_matmul_args& args) {
  return host::Fail(status == dnnl_out_of_memory ? MT_ERROR_MEMORY : MT_ERROR_DEVICE, operation,
                    "dnnl_sgemm of m %lld, n %lld, k %lld returned %d",
                    static_cast<long long>(args.m), static_cast<long long>(args.n),
                    static_cast<long long>(args.k), status);
}

// The widened operands, then scratch per thread.
int64_t MatmulWorkspace(const mt_matmul_args& args) {
  if (args.m == 0 || args.n == 0) return 0;
  return 4 * (WidenedFloats(args) + Threads() * (PackedFloats(args) + OutputFloats(args)));
}

int32_t Matmul(const mt_matmul_args& args) {
  if (args.m == 0 || args.n == 0) return MT_OK;
  float* scratch = static_cast<float*>(args.workspace);
  Operands from = {static_cast<const float*>(args.a),
                   static_cast<const float*>(args.b),
                   args.lda,
                   args.ldb,
                   nullptr,
                   nullptr};
  if (args.dtype == MT_BF16) {
    const Matrix a = StoredA(args), b = StoredB(args);
    WidenMatrix(args.a, args.lda, a, scratch);
    WidenMatrix(args.b, args.ldb, b, scratch + a.floats());
    from.a = scratch;
    from.b = scratch + a.floats();
    from.lda = std::max<int64_t>(1, a.stride());
    from.ldb = std::max<int64_t>(1, b.stride());
    scratch += a.floats() + b.floats();
  }
  const Tiling tiling = TilingOf(args);
  const int64_t per_thread = PackedFloats(args) + OutputFloats(args);
  std::atomic<int> failed{dnnl_success};
  ParallelBlocks(tiling.row_tiles * tiling.column_tiles, [&](int64_t block) {
    const Tile tile(args, tiling, block);
    Operands mine = from;
    mine.packed = scratch + ThreadNumber() * per_thread;
    mine.output = mine.packed + PackedFloats(args);
    if (const dnnl_status_t status = RunTile(args, mine, tile); status != dnnl_success)
      failed = status;
  });
  if (failed != dnnl_success)
    return ProductFailed(MT_OP_MATMUL, static_cast<dnnl_status_t>(failed.load()), args);
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
