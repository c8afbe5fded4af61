#include <algorithm>
#include <cmath>

#include "kernels/reference/operations.h"

namespace mt::reference {

void EmbeddingForward(const mt_embedding_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const T* table = static_cast<const T*>(args.table);  // (vocab_rows, C)
    T* output = static_cast<T*>(args.output);            // (N, C)
    for (int64_t i = 0; i < args.rows; ++i) {
      const int64_t row = args.ids[i] - args.vocab_start;
      const bool here = row >= 0 && row < args.vocab_rows;
      for (int64_t c = 0; c < args.columns; ++c)
        output[i * args.columns + c] = here ? table[row * args.columns + c] : T{0};
    }
  });
}

void EmbeddingBackward(const mt_embedding_args& args) {
  WithType(args.dtype, [&](auto type) {
    WithType(args.gradient_dtype, [&](auto gradient_type) {
      using G = decltype(gradient_type);
      const auto* output_gradient =
          static_cast<const decltype(type)*>(args.output_gradient);  // (N, C)
      G* table_gradient = static_cast<G*>(args.table_gradient);      // (vocab_rows, C)
      for (int64_t i = 0; i < args.rows; ++i) {
        const int64_t row = args.ids[i] - args.vocab_start;
        if (row < 0 || row >= args.vocab_rows) continue;
        for (int64_t c = 0; c < args.columns; ++c) {
          G& element = table_gradient[row * args.columns + c];
          element = static_cast<G>(element + output_gradient[i * args.columns + c]);
        }
      }
    });
  });
}

// Zhang & Sennrich 2019 (arXiv 1910.07467).
void RmsNormForward(const mt_rmsnorm_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t C = args.columns;
    const T* weight = static_cast<const T*>(args.weight);  // (C)
    T* rstd = static_cast<T*>(args.rstd);                  // (N)
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
      rstd[i] = static_cast<T>(r);
      for (int64_t c = 0; c < C; ++c) {
        const T value = s(c);
        output[c] = static_cast<T>(value * r * weight[c]);
        if (sum != nullptr) sum[c] = value;
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
    for (int64_t i = 0; i < args.rows; ++i) {
      const T* s = static_cast<const T*>(args.sum) + i * C;
      const T* dy = static_cast<const T*>(args.output_gradient) + i * C;
      const T* extra = args.residual_gradient != nullptr
                           ? static_cast<const T*>(args.residual_gradient) + i * C
                           : nullptr;
      T* dx = static_cast<T*>(args.input_gradient) + i * C;
      const double r = static_cast<const T*>(args.rstd)[i];
      double mean = 0;
      for (int64_t c = 0; c < C; ++c) mean += static_cast<double>(weight[c]) * dy[c] * s[c];
      mean /= static_cast<double>(C);
      for (int64_t c = 0; c < C; ++c) {
        const double gradient = dy[c];
        dw[c] += gradient * s[c] * r;
        dx[c] = static_cast<T>(r * (weight[c] * gradient - s[c] * r * r * mean) +
                               (extra != nullptr ? extra[c] : T{0}));
      }
    }
  });
  WithType(args.gradient_dtype, [&](auto type) {
    using G = decltype(type);
    G* weight_gradient = static_cast<G*>(args.weight_gradient);
    for (int64_t c = 0; c < C; ++c) weight_gradient[c] = static_cast<G>(weight_gradient[c] + dw[c]);
  });
}

// Su et al. 2021 (arXiv 2104.09864), halves instead of neighbours.
void Rope(const mt_rope_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t half = args.head_dim / 2;
    const T* table = static_cast<const T*>(args.cos_sin);  // (positions, d)
    for (int64_t t = 0; t < args.sequence; ++t) {
      const T* cosine = table + (args.first_position + t) * args.head_dim;
      const T* sine = cosine + half;
      for (int64_t b = 0; b < args.batch; ++b) {
        for (int64_t h = 0; h < args.heads; ++h) {
          T* x = static_cast<T*>(args.data) + (t * args.batch + b) * args.row_stride +
                 h * args.head_dim;
          for (int64_t j = 0; j < half; ++j) {
            const double first = x[j], second = x[j + half];
            const double c = cosine[j], s = args.inverse ? -sine[j] : sine[j];
            x[j] = static_cast<T>(first * c - second * s);
            x[j + half] = static_cast<T>(second * c + first * s);
          }
        }
      }
    }
  });
}

// Shazeer 2020 (arXiv 2002.05202): silu(g) u, silu(g) = g sigmoid(g).
void SwigluForward(const mt_swiglu_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t D = args.columns;
    for (int64_t i = 0; i < args.rows; ++i) {
      const T* gate = static_cast<const T*>(args.gate_up) + i * 2 * D;
      const T* up = gate + D;
      T* output = static_cast<T*>(args.output) + i * D;
      for (int64_t c = 0; c < D; ++c) {
        const double g = gate[c];
        output[c] = static_cast<T>(g / (1 + std::exp(-g)) * up[c]);
      }
    }
  });
}

void SwigluBackward(const mt_swiglu_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t D = args.columns;
    for (int64_t i = 0; i < args.rows; ++i) {
      const T* gate = static_cast<const T*>(args.gate_up) + i * 2 * D;
      const T* up = gate + D;
      const T* dy = static_cast<const T*>(args.output_gradient) + i * D;
      T* gate_gradient = static_cast<T*>(args.gate_up_gradient) + i * 2 * D;
      T* up_gradient = gate_gradient + D;
      T* output = args.output != nullptr ? static_cast<T*>(args.output) + i * D : nullptr;
      for (int64_t c = 0; c < D; ++c) {
        const double g = gate[c], u = up[c], d = dy[c];
        const double sigmoid = 1 / (1 + std::exp(-g));
        gate_gradient[c] = static_cast<T>(d * u * sigmoid * (1 + g * (1 - sigmoid)));
        up_gradient[c] = static_cast<T>(d * g * sigmoid);
        if (output != nullptr) output[c] = static_cast<T>(g * sigmoid * u);
      }
    }
  });
}

}  // namespace mt::reference
