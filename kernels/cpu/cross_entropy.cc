// Cross entropy: two passes over each row of logits for the statistics, one for the gradient, in
// place.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/cross_entropy.cc"
#include "hwy/foreach_target.h"
// After foreach_target:
#include <cmath>
#include <limits>

#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"

HWY_BEFORE_NAMESPACE();
namespace mt::cpu::HWY_NAMESPACE {

template <typename T>
void StatisticsOf(const mt_cross_entropy_args& args, int64_t first, int64_t last) {
  const Full d;
  const One one;
  const int64_t columns = args.valid_columns, lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto at = [&](const T* p) HWY_ATTR { return hn::GetLane(Read(one, p)); };
  for (int64_t i = first; i < last; ++i) {
    const T* logits = static_cast<const T*>(args.logits) + i * args.row_stride;
    const float lowest = -std::numeric_limits<float>::infinity();
    Vector max_lanes = hn::Set(d, lowest);
    int64_t c = 0;
    for (; c + lanes <= columns; c += lanes) max_lanes = hn::Max(max_lanes, Read(d, logits + c));
    float maximum = Maximum(max_lanes);
    for (; c < columns; ++c) maximum = std::max(maximum, at(logits + c));
    const Vector m = hn::Set(d, maximum);
    Vector sum0 = hn::Zero(d), sum1 = hn::Zero(d);
    double sum = 0;
    for (c = 0; c + 2 * lanes <= columns; c += 2 * lanes) {
      sum0 = hn::Add(sum0, Exp(d, hn::Sub(Read(d, logits + c), m)));
      sum1 = hn::Add(sum1, Exp(d, hn::Sub(Read(d, logits + c + lanes), m)));
    }
    for (; c < columns; ++c) sum += hn::GetLane(Exp(one, hn::Set(one, at(logits + c) - maximum)));
    sum += Sum(hn::Add(sum0, sum1));
    const int64_t column = args.targets[i] - args.vocab_start;
    const bool here = args.targets[i] >= 0 && column >= 0 && column < columns;
    static_cast<float*>(args.maximum)[i] = maximum;
    static_cast<float*>(args.sum)[i] = static_cast<float>(sum);
    static_cast<float*>(args.target_logit)[i] = here ? at(logits + column) : 0.0f;
  }
}

void StatisticsRows(const mt_cross_entropy_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return StatisticsOf<Bf16>(args, first, last);
  StatisticsOf<float>(args, first, last);
}

template <typename T>
void GradientOf(const mt_cross_entropy_args& args, int64_t first, int64_t last) {
  const Full d;
  const One one;
  const int64_t columns = args.valid_columns, lanes = static_cast<int64_t>(hn::Lanes(d));
  const double loss_scale =
      args.loss_scale * (args.loss_scale_pointer != nullptr ? *args.loss_scale_pointer : 1);
  for (int64_t i = first; i < last; ++i) {
    T* logits = static_cast<T*>(args.logits) + i * args.row_stride;
    if (args.targets[i] < 0) {
      std::fill(logits, logits + args.columns, T{0});
      continue;
    }
    const float lse = static_cast<const float*>(args.lse)[i];
    const float factor = static_cast<float>(loss_scale * (1 + 2 * args.z_loss * lse));
    const int64_t column = args.targets[i] - args.vocab_start;
    const bool here = column >= 0 && column < columns;
    const float target = here ? hn::GetLane(Read(one, logits + column)) : 0.0f;
    const auto scaled = [&](auto tag, auto x) HWY_ATTR {
      return hn::Mul(Exp(tag, hn::Sub(x, hn::Set(tag, lse))), hn::Set(tag, factor));
    };
    int64_t c = 0;
    for (; c + lanes <= columns; c += lanes) Write(scaled(d, Read(d, logits + c)), d, logits + c);
    for (; c < columns; ++c) Write(scaled(one, Read(one, logits + c)), one, logits + c);
    std::fill(logits + columns, logits + args.columns, T{0});
    if (here) {
      const auto one_hot = hn::Set(one, static_cast<float>(loss_scale));
      Write(hn::Sub(scaled(one, hn::Set(one, target)), one_hot), one, logits + column);
    }
  }
}

void GradientRows(const mt_cross_entropy_args& args, int64_t first, int64_t last) {
  if (args.dtype == MT_BF16) return GradientOf<Bf16>(args, first, last);
  GradientOf<float>(args, first, last);
}

}  // namespace mt::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace mt::cpu {
HWY_EXPORT(StatisticsRows);
HWY_EXPORT(GradientRows);

void CrossEntropyStatistics(const mt_cross_entropy_args& args) {
  ParallelRanges(args.rows, 4 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(StatisticsRows)(args, first, last);
  });
}

void CrossEntropyGradient(const mt_cross_entropy_args& args) {
  ParallelRanges(args.rows, 8 * args.columns, [&](int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(GradientRows)(args, first, last);
  });
}

// A few numbers per row: float64, one thread.
void CrossEntropyCombine(const mt_cross_entropy_combine_args& args) {
  const float* maxima = static_cast<const float*>(args.maximum);  // (world, rows)
  const float* sums = static_cast<const float*>(args.sum);
  const float* target_logits = static_cast<const float*>(args.target_logit);
  for (int64_t i = 0; i < args.rows; ++i) {
    double maximum = -std::numeric_limits<double>::infinity(), sum = 0, target_logit = 0;
    for (int64_t r = 0; r < args.world; ++r)
      maximum = std::max<double>(maximum, maxima[r * args.rows + i]);
    for (int64_t r = 0; r < args.world; ++r) {
      const double part = sums[r * args.rows + i];
      if (part > 0) sum += part * std::exp(maxima[r * args.rows + i] - maximum);
      target_logit += target_logits[r * args.rows + i];
    }
    const double lse = maximum + std::log(sum);
    static_cast<float*>(args.lse)[i] = static_cast<float>(lse);
    static_cast<float*>(args.row_loss)[i] =
        args.targets[i] < 0 ? 0.0f
                            : static_cast<float>(lse - target_logit + args.z_loss * lse * lse);
  }
}

}  // namespace mt::cpu
#endif  // HWY_ONCE
