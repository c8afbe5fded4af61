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

constexpr int64_t kTileRows = 256, kTileColumns = 512;

}  // namespace

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
  const int64_t row_tiles = CeilDivide(args.m, kTileRows),
                column_tiles = CeilDivide(args.n, kTileColumns);
  std::atomic<int> failed{dnnl_success};
  ParallelBlocks(row_tiles * column_tiles, [&](int64_t tile) {
    const int64_t i = tile % row_tiles * kTileRows, j = tile / row_tiles * kTileColumns;
    const dnnl_status_t status =
        dnnl_sgemm(args.transpose_a ? 'T' : 'N', args.transpose_b ? 'T' : 'N',
                   std::min(kTileRows, args.m - i), std::min(kTileColumns, args.n - j), args.k,
                   static_cast<float>(args.alpha), args.transpose_a ? a + i : a + i * args.lda,
                   args.lda, args.transpose_b ? b + j * args.ldb : b + j, args.ldb,
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
