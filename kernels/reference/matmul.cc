#include <algorithm>

#include "kernels/reference/operations.h"

namespace mt::reference {

// D = alpha op(A) op(B) + beta D, k innermost in order. Sixteen columns at a time only so that B is
// read along its rows; the order in which an element's terms are added does not depend on it.
void Matmul(const mt_matmul_args& args) {
  constexpr int64_t kColumns = 16;
  WithType(args.dtype, [&](auto input_type) {
    WithType(args.output_dtype, [&](auto output_type) {
      using D = decltype(output_type);
      const auto* a = static_cast<const decltype(input_type)*>(args.a);
      const auto* b = static_cast<const decltype(input_type)*>(args.b);
      D* d = static_cast<D*>(args.d);
      for (int64_t i = 0; i < args.m; ++i) {
        for (int64_t first = 0; first < args.n; first += kColumns) {
          const int64_t width = std::min(kColumns, args.n - first);
          double sum[kColumns] = {};
          for (int64_t k = 0; k < args.k; ++k) {
            const double left = args.transpose_a ? a[k * args.lda + i] : a[i * args.lda + k];
            for (int64_t j = 0; j < width; ++j) {
              const int64_t column = first + j;
              sum[j] +=
                  left * (args.transpose_b ? b[column * args.ldb + k] : b[k * args.ldb + column]);
            }
          }
          for (int64_t j = 0; j < width; ++j) {
            D& element = d[i * args.ldd + first + j];
            element =
                static_cast<D>(args.alpha * sum[j] + (args.beta != 0 ? args.beta * element : 0.0));
          }
        }
      }
    });
  });
}

}  // namespace mt::reference
