// SwiGLU and GELU.
#include <cmath>

#include "kernels/reference/operations.h"

namespace mt::reference {

namespace {

// Shazeer 2020 (arXiv 2002.05202): silu(g) u; silu(g) = g sigmoid(g). The limits, the steeper sigmoid and the offset are gpt-oss's.
struct Gated {
  double limit, alpha, offset;
  explicit Gated(const mt_swiglu_args& args)
      : limit(args.limit != 0 ? args.limit : HUGE_VAL),
        alpha(args.alpha != 0 ? args.alpha : 1),
        offset(args.offset) {}
  // Not std::min: NaN stays.
  double Gate(double gate) const { return gate > limit ? limit : gate; }
  double Up(double up) const { return up > limit ? limit : up < -limit ? -limit : up; }
  double Sigmoid(double gate) const { return 1 / (1 + std::exp(-alpha * Gate(gate))); }
};

}  // namespace

void SwigluForward(const mt_swiglu_args& args) {
  const Gated gated(args);
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t D = args.columns;
    LargestMagnitude largest(args.amax);
    for (int64_t i = 0; i < args.rows; ++i) {
      const T* gate = static_cast<const T*>(args.gate_up) + i * 2 * D;
      const T* up = gate + D;
      T* output = static_cast<T*>(args.output) + i * D;
      for (int64_t c = 0; c < D; ++c) {
        output[c] = static_cast<T>(gated.Gate(gate[c]) * gated.Sigmoid(gate[c]) *
                                   (gated.Up(up[c]) + gated.offset));
        largest.See(output[c]);
      }
    }
  });
}

void SwigluBackward(const mt_swiglu_args& args) {
  const Gated gated(args);
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t D = args.columns;
    LargestMagnitude largest(args.amax);
    for (int64_t i = 0; i < args.rows; ++i) {
      const T* gate = static_cast<const T*>(args.gate_up) + i * 2 * D;
      const T* up = gate + D;
      const T* dy = static_cast<const T*>(args.output_gradient) + i * D;
      T* gate_gradient = static_cast<T*>(args.gate_up_gradient) + i * 2 * D;
      T* up_gradient = gate_gradient + D;
      T* output = args.output != nullptr ? static_cast<T*>(args.output) + i * D : nullptr;
      for (int64_t c = 0; c < D; ++c) {
        const double d = dy[c], sigmoid = gated.Sigmoid(gate[c]);
        const double g = gated.Gate(gate[c]), u = gated.Up(up[c]);
        const bool gate_cut = gate[c] > gated.limit;
        const bool up_cut = std::fabs(static_cast<double>(up[c])) > gated.limit;
        const double slope = sigmoid * (1 + gated.alpha * g * (1 - sigmoid));
        gate_gradient[c] = static_cast<T>(gate_cut ? 0.0 : d * (u + gated.offset) * slope);
        up_gradient[c] = static_cast<T>(up_cut ? 0.0 : d * g * sigmoid);
        largest.See(gate_gradient[c]);
        largest.See(up_gradient[c]);
        if (output != nullptr) output[c] = static_cast<T>(g * sigmoid * (u + gated.offset));
      }
    }
  });
}

namespace {

// Hendrycks & Gimpel 2016 (arXiv 1606.08415), and its derivative.
struct Gelu {
  bool tanh_approximation;
  static constexpr double kRoot = 0.79788456080286535588;  // sqrt(2 / pi)

  double Value(double z) const {
    if (tanh_approximation) return 0.5 * z * (1 + std::tanh(kRoot * (z + 0.044715 * z * z * z)));
    return 0.5 * z * std::erfc(-z * M_SQRT1_2);
  }
  double Slope(double z) const {
    if (tanh_approximation) {
      const double t = std::tanh(kRoot * (z + 0.044715 * z * z * z));
      return 0.5 * (1 + t) + 0.5 * z * (1 - t * t) * kRoot * (1 + 3 * 0.044715 * z * z);
    }
    return 0.5 * std::erfc(-z * M_SQRT1_2) + z * std::exp(-0.5 * z * z) * 0.5 * kRoot;
  }
};

// z = x + bias at element i.
template <typename T>
double Biased(const mt_gelu_args& args, int64_t i) {
  const double x = static_cast<const T*>(args.x)[i];
  if (args.bias == nullptr) return x;
  return x + static_cast<double>(static_cast<const T*>(args.bias)[i % args.columns]);
}

}  // namespace

void GeluForward(const mt_gelu_args& args) {
  const Gelu gelu{args.tanh_approximation != 0};
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    T* output = static_cast<T*>(args.output);
    LargestMagnitude largest(args.amax);
    for (int64_t i = 0; i < args.rows * args.columns; ++i) {
      output[i] = static_cast<T>(gelu.Value(Biased<T>(args, i)));
      largest.See(output[i]);
    }
  });
}

void GeluBackward(const mt_gelu_args& args) {
  const Gelu gelu{args.tanh_approximation != 0};
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const T* dy = static_cast<const T*>(args.output_gradient);
    T* dx = static_cast<T*>(args.input_gradient);
    LargestMagnitude largest(args.amax);
    for (int64_t i = 0; i < args.rows * args.columns; ++i) {
      dx[i] = static_cast<T>(dy[i] * gelu.Slope(Biased<T>(args, i)));
      largest.See(dx[i]);
    }
  });
}

}  // namespace mt::reference
