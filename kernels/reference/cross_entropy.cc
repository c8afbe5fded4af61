// Cross entropy over vocabulary-parallel logits: each rank's statistics, their combination in rank
// order, the gradient.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/reference/operations.h"

namespace mt::reference {

void CrossEntropyStatistics(const mt_cross_entropy_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    using S = Statistic<T>;
    for (int64_t i = 0; i < args.rows; ++i) {
      const T* logits = static_cast<const T*>(args.logits) + i * args.row_stride;
      double maximum = -std::numeric_limits<double>::infinity(), sum = 0;
      for (int64_t c = 0; c < args.valid_columns; ++c)
        maximum = std::max<double>(maximum, logits[c]);
      for (int64_t c = 0; c < args.valid_columns; ++c) sum += std::exp(logits[c] - maximum);
      const int64_t column = args.targets[i] - args.vocab_start;
      const bool here = args.targets[i] >= 0 && column >= 0 && column < args.valid_columns;
      static_cast<S*>(args.maximum)[i] = static_cast<S>(maximum);
      static_cast<S*>(args.sum)[i] = static_cast<S>(sum);
      static_cast<S*>(args.target_logit)[i] = here ? static_cast<S>(logits[column]) : S{0};
    }
  });
}

void CrossEntropyCombine(const mt_cross_entropy_combine_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = Statistic<decltype(type)>;
    const T* maxima = static_cast<const T*>(args.maximum);  // (world, rows)
    const T* sums = static_cast<const T*>(args.sum);
    const T* target_logits = static_cast<const T*>(args.target_logit);
    for (int64_t i = 0; i < args.rows; ++i) {
      double maximum = -std::numeric_limits<double>::infinity(), sum = 0, target_logit = 0;
      for (int64_t r = 0; r < args.world; ++r)
        maximum = std::max<double>(maximum, maxima[r * args.rows + i]);
      for (int64_t r = 0; r < args.world; ++r) {
        // A rank whose columns are all padding has maximum -infinity and sum 0.
        if (sums[r * args.rows + i] > 0)
          sum += sums[r * args.rows + i] * std::exp(maxima[r * args.rows + i] - maximum);
        target_logit += target_logits[r * args.rows + i];
      }
      const double lse = maximum + std::log(sum);
      static_cast<T*>(args.lse)[i] = static_cast<T>(lse);
      static_cast<T*>(args.row_loss)[i] =
          args.targets[i] < 0 ? T{0} : static_cast<T>(lse - target_logit + args.z_loss * lse * lse);
    }
  });
}

void CrossEntropyGradient(const mt_cross_entropy_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const double loss_scale =
        args.loss_scale * (args.loss_scale_pointer != nullptr ? *args.loss_scale_pointer : 1);
    for (int64_t i = 0; i < args.rows; ++i) {
      T* logits = static_cast<T*>(args.logits) + i * args.row_stride;
      const bool masked = args.targets[i] < 0;
      const int64_t column = args.targets[i] - args.vocab_start;
      const double lse = static_cast<const Statistic<T>*>(args.lse)[i];
      for (int64_t c = 0; c < args.columns; ++c) {
        if (masked || c >= args.valid_columns) {
          logits[c] = T{0};
          continue;
        }
        const double softmax = std::exp(logits[c] - lse);
        logits[c] = static_cast<T>(
            loss_scale * (softmax * (1 + 2 * args.z_loss * lse) - (c == column ? 1.0 : 0.0)));
      }
    }
  });
}

}  // namespace mt::reference
