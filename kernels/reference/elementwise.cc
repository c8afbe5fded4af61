// Fill, copy, add, scale, sums and AdamW.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/abi/philox.h"
#include "kernels/reference/operations.h"

namespace mt::reference {

namespace {

template <typename T>
void FillIntegers(const mt_fill_args& args) {
  std::fill_n(static_cast<T*>(args.data), args.count, static_cast<T>(args.value));
}

}  // namespace

void Fill(const mt_fill_args& args) {
  if (args.dtype == MT_I32) return FillIntegers<int32_t>(args);
  if (args.dtype == MT_I64) return FillIntegers<int64_t>(args);
  if (args.dtype == MT_U8) return FillIntegers<uint8_t>(args);
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    T* data = static_cast<T*>(args.data);
    for (int64_t i = 0; i < args.count; ++i) data[i] = static_cast<T>(args.value);
  });
}

void FillNormal(const mt_fill_normal_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    T* data = static_cast<T*>(args.data);
    for (int64_t r = 0; r < args.rows; ++r) {
      for (int64_t c = 0; c < args.columns; ++c) {
        const uint64_t index = args.first_index + static_cast<uint64_t>(r) * args.row_stride +
                               static_cast<uint64_t>(c);
        data[r * args.columns + c] =
            static_cast<T>(args.mean + args.std * mt_normal(args.seed, args.stream, index));
      }
    }
  });
}

void Copy(const mt_copy_args& args) {
  WithType(args.source_dtype, [&](auto from) {
    WithType(args.destination_dtype, [&](auto to) {
      const auto* source = static_cast<const decltype(from)*>(args.source);
      auto* destination = static_cast<decltype(to)*>(args.destination);
      for (int64_t i = 0; i < args.count; ++i)
        destination[i] = static_cast<decltype(to)>(source[i]);
    });
  });
}

void Add(const mt_add_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const T* a = static_cast<const T*>(args.a);
    const T* b = static_cast<const T*>(args.b);
    T* destination = static_cast<T*>(args.destination);
    for (int64_t i = 0; i < args.count; ++i) destination[i] = static_cast<T>(a[i] + b[i]);
  });
}

void Scale(const mt_scale_args& args) {
  const double factor = args.factor_pointer != nullptr ? *args.factor_pointer : args.factor;
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    T* data = static_cast<T*>(args.data);
    for (int64_t i = 0; i < args.count; ++i) data[i] = static_cast<T>(data[i] * factor);
  });
}

void SquaredSum(const mt_squared_sum_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const T* data = static_cast<const T*>(args.data);
    double sum = args.accumulate ? *args.result : 0;
    for (int64_t i = 0; i < args.count; ++i)
      sum += static_cast<double>(data[i]) * static_cast<double>(data[i]);
    *args.result = sum;
  });
}

void Sum(const mt_squared_sum_args& args) {
  WithType(args.dtype, [&](auto type) {
    const auto* data = static_cast<const decltype(type)*>(args.data);
    double sum = args.accumulate ? *args.result : 0;
    for (int64_t i = 0; i < args.count; ++i) sum += static_cast<double>(data[i]);
    *args.result = sum;
  });
}

void ClipFactor(const mt_clip_factor_args& args) {
  const bool finite =
      std::isfinite(*args.squared_norm) && (args.loss == nullptr || std::isfinite(*args.loss));
  if (!finite) {
    *args.factor = std::numeric_limits<double>::quiet_NaN();
  } else if (args.limit > 0) {
    *args.factor = std::min(1.0, args.limit / (std::sqrt(*args.squared_norm) + 1e-6));
  } else {
    *args.factor = 1;
  }
}

// Sums in the workspace (C doubles), row after row, then added once.
void ColumnSum(const mt_column_sum_args& args) {
  double* sum = static_cast<double*>(args.workspace);
  std::fill(sum, sum + args.columns, 0.0);
  WithType(args.dtype, [&](auto type) {
    const auto* data = static_cast<const decltype(type)*>(args.data);
    for (int64_t r = 0; r < args.rows; ++r) {
      for (int64_t c = 0; c < args.columns; ++c)
        sum[c] += static_cast<double>(data[r * args.row_stride + c]);
    }
  });
  WithType(args.gradient_dtype, [&](auto type) {
    using G = decltype(type);
    G* result = static_cast<G*>(args.result);
    for (int64_t c = 0; c < args.columns; ++c) result[c] = static_cast<G>(result[c] + sum[c]);
  });
}

// Algorithm 2 of Loshchilov & Hutter 2019 with the decay applied first, as torch.optim.AdamW does.
void AdamW(const mt_adamw_args& args) {
  // A gradient that is not finite costs the step, not the model.
  if (args.gradient_scale_pointer != nullptr && !std::isfinite(*args.gradient_scale_pointer))
    return;
  const double scale =
      args.gradient_scale *
      (args.gradient_scale_pointer != nullptr ? *args.gradient_scale_pointer : 1.0);
  const double correction1 = 1 - std::pow(args.beta1, static_cast<double>(args.step));
  const double correction2 = 1 - std::pow(args.beta2, static_cast<double>(args.step));
  WithType(args.dtype, [&](auto parameter_type) {
    WithType(args.state_dtype, [&](auto state_type) {
      WithType(args.gradient_dtype, [&](auto gradient_type) {
        using P = decltype(parameter_type);
        using S = decltype(state_type);
        P* parameter = static_cast<P*>(args.parameter);
        S* master = static_cast<S*>(args.master);
        S* exp_avg = static_cast<S*>(args.exp_avg);
        S* exp_avg_sq = static_cast<S*>(args.exp_avg_sq);
        const auto* gradient = static_cast<const decltype(gradient_type)*>(args.gradient);
        for (int64_t i = 0; i < args.count; ++i) {
          const double g = gradient[i] * scale;
          const double m = args.beta1 * exp_avg[i] + (1 - args.beta1) * g;
          const double v = args.beta2 * exp_avg_sq[i] + (1 - args.beta2) * g * g;
          double p = master[i];
          p -= args.lr * args.weight_decay * p;
          p -= args.lr * (m / correction1) / (std::sqrt(v / correction2) + args.eps);
          exp_avg[i] = static_cast<S>(m);
          exp_avg_sq[i] = static_cast<S>(v);
          master[i] = static_cast<S>(p);
          // From the master weight as stored: the same bits as a cast of a loaded checkpoint.
          parameter[i] = static_cast<P>(static_cast<double>(master[i]));
        }
      });
    });
  });
}

void BalanceUpdate(const mt_balance_update_args& args) {
  if (args.gradient_scale_pointer != nullptr && !std::isfinite(*args.gradient_scale_pointer))
    return;
  WithType(args.dtype, [&](auto parameter_type) {
    WithType(args.state_dtype, [&](auto state_type) {
      WithType(args.gradient_dtype, [&](auto load_type) {
        using P = decltype(parameter_type);
        using S = decltype(state_type);
        S* bias = static_cast<S*>(args.bias);
        const auto* load = static_cast<const decltype(load_type)*>(args.load);
        for (int64_t i = 0; i < args.count; ++i) {
          const double missing = args.target - load[i];
          const int sign = (missing > 0) - (missing < 0);
          bias[i] = static_cast<S>(bias[i] + args.rate * sign);
          static_cast<P*>(args.parameter)[i] = static_cast<P>(static_cast<double>(bias[i]));
        }
      });
    });
  });
}

}  // namespace mt::reference
