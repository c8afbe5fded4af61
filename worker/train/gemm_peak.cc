#include "worker/train/gemm_peak.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "common/clock.h"

namespace mt {
namespace {

struct Buffer {
  const Operations* operations;
  void* data = nullptr;
  ~Buffer() {
    if (data != nullptr) operations->Free(data);
  }
};

absl::StatusOr<double> Measure(Operations& operations, mt_dtype dtype, int64_t size,
                               absl::Duration budget, absl::Duration* best) {
  mt_matmul_args product{};
  product.dtype = product.output_dtype = dtype;
  product.transpose_b = 1;
  product.m = product.n = product.k = product.lda = product.ldb = product.ldd = size;
  product.alpha = 1;
  MT_RETURN_IF_ERROR(operations.Need<MT_OP_MATMUL>(product));
  const size_t bytes = static_cast<size_t>(size) * size * (dtype == MT_F64 ? 8 : 4);
  Buffer a{&operations}, b{&operations}, d{&operations};
  for (Buffer* buffer : {&a, &b, &d}) {
    MT_ASSIGN_OR_RETURN(buffer->data, operations.Allocate(bytes));
    mt_fill_args fill{};
    fill.dtype = dtype;
    fill.data = buffer->data;
    fill.count = size * size;
    fill.value = 0.5;
    MT_RETURN_IF_ERROR(operations.Need<MT_OP_FILL>(fill));
    MT_RETURN_IF_ERROR(operations.Run<MT_OP_FILL>(fill));
  }
  product.a = a.data;
  product.b = b.data;
  product.d = d.data;
  // Untimed: the first product makes the library generate its code for these shapes, which takes
  // longer than the whole small measurement.
  MT_RETURN_IF_ERROR(operations.Run<MT_OP_MATMUL>(product));
  *best = absl::InfiniteDuration();
  const absl::Duration start = Clock::Real()->Monotonic();
  for (absl::Duration now = start; now - start < budget;) {
    MT_RETURN_IF_ERROR(operations.Run<MT_OP_MATMUL>(product));
    const absl::Duration after = Clock::Real()->Monotonic();
    *best = std::min(*best, after - now);
    now = after;
  }
  const double flops =
      2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size);
  return flops / std::max(1e-9, absl::ToDoubleSeconds(*best));
}

}  // namespace

absl::StatusOr<double> MeasureGemmPeak(const Operations::Options& options, mt_dtype dtype,
                                       absl::Duration budget) {
  MT_ASSIGN_OR_RETURN(const auto operations, Operations::Create(options));
  const Backend& backend = operations->backend();
  if (backend.info().bf16_flops > 0) return backend.info().bf16_flops;
  // A device's calls return before the work is done: only it can time itself.
  if (!backend.host_memory()) return operations->MeasurePeakFlops();
  absl::Duration best;
  MT_ASSIGN_OR_RETURN(double peak, Measure(*operations, dtype, 256, absl::Milliseconds(5), &best));
  if (best < absl::Milliseconds(2)) {  // fast enough for a size that reaches the peak
    MT_ASSIGN_OR_RETURN(const double larger, Measure(*operations, dtype, 768, budget, &best));
    peak = std::max(peak, larger);
  }
  return peak;
}

}  // namespace mt
