// RMSNorm and LayerNorm, with the residual addition before them.
#include <algorithm>
#include <cmath>

#include "kernels/reference/operations.h"

namespace mt::reference {

// Zhang & Sennrich 2019 (arXiv 1910.07467).
void RmsNormForward(const mt_rmsnorm_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t C = args.columns;
    const T* weight = static_cast<const T*>(args.weight);  // (C)
    auto* rstd = static_cast<Statistic<T>*>(args.rstd);    // (N)
    LargestMagnitude largest(args.amax);
    for (int64_t i = 0; i < args.rows; ++i) {
      const T* x = static_cast<const T*>(args.x) + i * C;
      const T* residual =
          args.residual != nullptr ? static_cast<const T*>(args.residual) + i * C : nullptr;
      T* sum = args.sum != nullptr ? static_cast<T*>(args.sum) + i * C : nullptr;
      T* output = static_cast<T*>(args.output) + i * C;
      // `sum` may be x or residual: s is rounded to the data's type once, then everything uses that
      // value.
      auto s = [&](int64_t c) {
        return residual != nullptr ? static_cast<T>(x[c] + residual[c]) : x[c];
      };
      double square = 0;
      for (int64_t c = 0; c < C; ++c)
        square += static_cast<double>(s(c)) * static_cast<double>(s(c));
      const double r = 1 / std::sqrt(square / static_cast<double>(C) + args.eps);
      rstd[i] = static_cast<Statistic<T>>(r);
      for (int64_t c = 0; c < C; ++c) {
        const T value = s(c);
        output[c] = static_cast<T>(value * r * weight[c]);
        if (sum != nullptr) sum[c] = value;
        largest.See(output[c]);
      }
    }
  });
}

// The weight gradient is summed over rows in the workspace (C doubles), then added once.
void RmsNormBackward(const mt_rmsnorm_args& args) {
  double* dw = static_cast<double*>(args.workspace);
  const int64_t C = args.columns;
  std::fill(dw, dw + C, 0.0);
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const T* weight = static_cast<const T*>(args.weight);
    LargestMagnitude largest(args.amax);
    for (int64_t i = 0; i < args.rows; ++i) {
      const T* s = static_cast<const T*>(args.sum) + i * C;
      const T* dy = static_cast<const T*>(args.output_gradient) + i * C;
      const T* extra = args.residual_gradient != nullptr
                           ? static_cast<const T*>(args.residual_gradient) + i * C
                           : nullptr;
      T* dx = static_cast<T*>(args.input_gradient) + i * C;
      const double r = static_cast<const Statistic<T>*>(args.rstd)[i];
      double mean = 0;
      for (int64_t c = 0; c < C; ++c) mean += static_cast<double>(weight[c]) * dy[c] * s[c];
      mean /= static_cast<double>(C);
      for (int64_t c = 0; c < C; ++c) {
        const double gradient = dy[c];
        dw[c] += gradient * s[c] * r;
        dx[c] = static_cast<T>(r * (weight[c] * gradient - s[c] * r * r * mean) +
                               (extra != nullptr ? extra[c] : T{0}));
        largest.See(dx[c]);
      }
    }
  });
  WithType(args.gradient_dtype, [&](auto type) {
    using G = decltype(type);
    G* weight_gradient = static_cast<G*>(args.weight_gradient);
    for (int64_t c = 0; c < C; ++c) weight_gradient[c] = static_cast<G>(weight_gradient[c] + dw[c]);
  });
}

// Ba, Kiros & Hinton 2016 (arXiv 1607.06450).
void LayerNormForward(const mt_layernorm_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    using S = Statistic<T>;
    const int64_t C = args.columns;
    const T* weight = static_cast<const T*>(args.weight);  // (C)
    const T* bias = static_cast<const T*>(args.bias);      // (C)
    LargestMagnitude largest(args.amax);
    for (int64_t i = 0; i < args.rows; ++i) {
      const T* x = static_cast<const T*>(args.x) + i * C;
      const T* residual =
          args.residual != nullptr ? static_cast<const T*>(args.residual) + i * C : nullptr;
      T* sum = args.sum != nullptr ? static_cast<T*>(args.sum) + i * C : nullptr;
      T* output = static_cast<T*>(args.output) + i * C;
      // As in RmsNormForward: s is rounded to the data's type once.
      auto s = [&](int64_t c) -> double {
        return residual != nullptr ? static_cast<T>(x[c] + residual[c]) : x[c];
      };
      double mean = 0, square = 0;
      for (int64_t c = 0; c < C; ++c) mean += s(c);
      mean /= static_cast<double>(C);
      for (int64_t c = 0; c < C; ++c) square += (s(c) - mean) * (s(c) - mean);
      const double r = 1 / std::sqrt(square / static_cast<double>(C) + args.eps);
      static_cast<S*>(args.mean)[i] = static_cast<S>(mean);
      static_cast<S*>(args.rstd)[i] = static_cast<S>(r);
      for (int64_t c = 0; c < C; ++c) {
        const double value = s(c);
        output[c] = static_cast<T>((value - mean) * r * weight[c] + bias[c]);
        if (sum != nullptr) sum[c] = static_cast<T>(value);
        largest.See(output[c]);
      }
    }
  });
}

// The weight and bias gradients are summed over rows in the workspace (C doubles each).
void LayerNormBackward(const mt_layernorm_args& args) {
  const int64_t C = args.columns;
  double* dw = static_cast<double*>(args.workspace);
  double* db = dw + C;
  std::fill(dw, dw + 2 * C, 0.0);
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const T* weight = static_cast<const T*>(args.weight);
    LargestMagnitude largest(args.amax);
    for (int64_t i = 0; i < args.rows; ++i) {
      const T* s = static_cast<const T*>(args.sum) + i * C;
      const T* dy = static_cast<const T*>(args.output_gradient) + i * C;
      const T* extra = args.residual_gradient != nullptr
                           ? static_cast<const T*>(args.residual_gradient) + i * C
                           : nullptr;
      T* dx = static_cast<T*>(args.input_gradient) + i * C;
      const double mean = static_cast<const Statistic<T>*>(args.mean)[i];
      const double r = static_cast<const Statistic<T>*>(args.rstd)[i];
      double g_mean = 0, gh_mean = 0;
      for (int64_t c = 0; c < C; ++c) {
        const double g = static_cast<double>(weight[c]) * dy[c], h = (s[c] - mean) * r;
        g_mean += g;
        gh_mean += g * h;
      }
      g_mean /= static_cast<double>(C);
      gh_mean /= static_cast<double>(C);
      for (int64_t c = 0; c < C; ++c) {
        const double gradient = dy[c], h = (s[c] - mean) * r;
        dw[c] += gradient * h;
        db[c] += gradient;
        dx[c] = static_cast<T>(r * (weight[c] * gradient - g_mean - h * gh_mean) +
                               (extra != nullptr ? extra[c] : T{0}));
        largest.See(dx[c]);
      }
    }
  });
  WithType(args.gradient_dtype, [&](auto type) {
    using G = decltype(type);
    G* weight_gradient = static_cast<G*>(args.weight_gradient);
    G* bias_gradient = static_cast<G*>(args.bias_gradient);
    for (int64_t c = 0; c < C; ++c) {
      weight_gradient[c] = static_cast<G>(weight_gradient[c] + dw[c]);
      bias_gradient[c] = static_cast<G>(bias_gradient[c] + db[c]);
    }
  });
}

}  // namespace mt::reference
