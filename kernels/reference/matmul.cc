#include <algorithm>

#include "kernels/reference/operations.h"

namespace mt::reference {

namespace {

// k innermost in order. Sixteen columns at a time only so that B is read along its rows; the order
// in which an element's terms are added does not depend on it.
template <typename A, typename B, typename D>
void Multiply(const mt_matmul_args& args, double factor) {
  constexpr int64_t kColumns = 16;
  const auto* a = static_cast<const A*>(args.a);
  const auto* b = static_cast<const B*>(args.b);
  const auto* bias = static_cast<const D*>(args.bias);  // (n)
  D* d = static_cast<D*>(args.d);
  for (int64_t i = 0; i < args.m; ++i) {
    for (int64_t first = 0; first < args.n; first += kColumns) {
      const int64_t width = std::min(kColumns, args.n - first);
      double sum[kColumns] = {};
      for (int64_t k = 0; k < args.k; ++k) {
        const double left = args.transpose_a ? a[k * args.lda + i] : a[i * args.lda + k];
        for (int64_t j = 0; j < width; ++j) {
          const int64_t column = first + j;
          sum[j] += left * (args.transpose_b ? b[column * args.ldb + k] : b[k * args.ldb + column]);
        }
      }
      for (int64_t j = 0; j < width; ++j) {
        D& element = d[i * args.ldd + first + j];
        double value = factor * sum[j] + (args.beta != 0 ? args.beta * element : 0.0);
        if (bias != nullptr) value += bias[first + j];
        element = static_cast<D>(value);
      }
    }
  }
}

}  // namespace

void Matmul(const mt_matmul_args& args) {
  const int32_t b_dtype = args.b_dtype != 0 ? args.b_dtype : args.dtype;
  WithType(args.output_dtype, [&](auto output) {
    using D = decltype(output);
    if (!IsFp8(args.dtype)) {
      WithType(args.dtype, [&](auto input) {
        using Input = decltype(input);
        Multiply<Input, Input, D>(args, args.alpha);
      });
      return;
    }
    const double factor =
        args.alpha * static_cast<double>(*args.a_scale) * static_cast<double>(*args.b_scale);
    WithFp8(args.dtype, [&](auto a) {
      WithFp8(b_dtype, [&](auto b) { Multiply<decltype(a), decltype(b), D>(args, factor); });
    });
  });
}

}  // namespace mt::reference
