#include "worker/train/gemm_peak.h"

#include <algorithm>
#include <vector>

#include "common/clock.h"
#include "worker/model/number_types.h"
#include "worker/train/device_objects.h"

namespace mt {
namespace {

struct Buffer {
  const Operations* operations;
  void* data = nullptr;
  ~Buffer() {
    if (data != nullptr) operations->Free(data);
  }
};

// Time of one call of `run` on the compute stream.
class StreamTimer {
 public:
  static absl::StatusOr<StreamTimer> Create(const Backend& backend) {
    MT_ASSIGN_OR_RETURN(Event first, Event::Create(backend));
    MT_ASSIGN_OR_RETURN(Event last, Event::Create(backend));
    return StreamTimer(backend, std::move(first), std::move(last));
  }
  template <typename Run>
  absl::StatusOr<absl::Duration> Time(Run&& run) {
    const absl::Duration before = Clock::Real()->Monotonic();
    MT_RETURN_IF_ERROR(first_.Record());
    MT_RETURN_IF_ERROR(run());
    MT_RETURN_IF_ERROR(last_.Record());
    MT_RETURN_IF_ERROR(backend_.ToStatus(backend_.abi().stream_synchronize(nullptr), "measuring"));
    if (backend_.host_memory()) return Clock::Real()->Monotonic() - before;
    float milliseconds = 0;
    MT_RETURN_IF_ERROR(backend_.ToStatus(
        backend_.abi().event_milliseconds(first_.get(), last_.get(), &milliseconds), "measuring"));
    return absl::Milliseconds(milliseconds);
  }

 private:
  StreamTimer(const Backend& backend, Event first, Event last)
      : backend_(backend), first_(std::move(first)), last_(std::move(last)) {}
  const Backend& backend_;
  Event first_, last_;
};

// Time of the fastest square product of this size within `budget`, but at least one.
absl::StatusOr<absl::Duration> FastestProduct(Operations& operations, mt_dtype dtype, int64_t size,
                                              absl::Duration budget) {
  mt_matmul_args product{};
  product.dtype = product.output_dtype = dtype;
  product.transpose_b = 1;
  product.m = product.n = product.k = product.lda = product.ldb = product.ldd = size;
  product.alpha = 1;
  MT_RETURN_IF_ERROR(operations.Need<MT_OP_MATMUL>(product));
  MT_RETURN_IF_ERROR(operations.Need<MT_OP_FILL>({.dtype = dtype, .count = size * size}));
  Buffer a{&operations}, b{&operations}, d{&operations};
  for (Buffer* buffer : {&a, &b, &d}) {
    MT_ASSIGN_OR_RETURN(
        buffer->data,
        operations.Allocate(static_cast<size_t>(size * size * BytesPerNumber(dtype))));
    MT_RETURN_IF_ERROR(operations.Run<MT_OP_FILL>(
        {.dtype = dtype, .data = buffer->data, .count = size * size, .value = 0.5}));
  }
  product.a = a.data;
  product.b = b.data;
  product.d = d.data;
  MT_ASSIGN_OR_RETURN(StreamTimer timer, StreamTimer::Create(operations.backend()));
  const auto run = [&] { return operations.Run<MT_OP_MATMUL>(product); };
  // Not counted: the first product makes the library generate or choose its code for these shapes,
  // which takes longer than the whole small measurement.
  MT_RETURN_IF_ERROR(timer.Time(run).status());
  absl::Duration best = absl::InfiniteDuration();
  const absl::Duration start = Clock::Real()->Monotonic();
  do {
    MT_ASSIGN_OR_RETURN(const absl::Duration one, timer.Time(run));
    best = std::min(best, one);
  } while (Clock::Real()->Monotonic() - start < budget);
  return best;
}

}  // namespace

absl::StatusOr<double> MeasureGemmPeak(const Operations::Options& options, mt_dtype dtype,
                                       absl::Duration budget) {
  MT_ASSIGN_OR_RETURN(const auto operations, Operations::Create(options));
  const double nominal = operations->backend().info().bf16_flops;
  if (dtype == MT_BF16 && nominal > 0) return nominal;
  double peak = 0;
  for (const int64_t size : {256, 768, 4096, 8192}) {
    const bool first = size == 256;
    MT_ASSIGN_OR_RETURN(
        const absl::Duration best,
        FastestProduct(*operations, dtype, size, first ? absl::Milliseconds(5) : budget));
    const double side = static_cast<double>(size);
    peak = std::max(peak, 2 * side * side * side / std::max(1e-9, absl::ToDoubleSeconds(best)));
    // The next size that is tried takes 27 to 152 times as long: not if that is more than a moment.
    if (best >= (first ? absl::Milliseconds(2) : absl::Microseconds(100)) && size < 4096) break;
  }
  return peak;
}

}  // namespace mt
