// Rotation of queries and keys by their position (Su et al. 2021, arXiv 2104.09864), alone and after a norm of each head.
#include <algorithm>
#include <cmath>

#include "kernels/reference/operations.h"

namespace mt::reference {
namespace {

// Which elements of a head turn together, and by which entry of the table.
struct Rotation {
  int64_t rotated;  // elements
  bool interleaved;
  int64_t First(int64_t pair) const { return interleaved ? 2 * pair : pair; }
  int64_t Second(int64_t pair) const { return interleaved ? 2 * pair + 1 : pair + rotated / 2; }

  // `x` (d) turned by the angles of one row of the table: cosines, then sines.
  template <typename X, typename Table>
  void Turn(X* x, const Table* cosine, bool inverse) const {
    const Table* sine = cosine + rotated / 2;
    for (int64_t j = 0; j < rotated / 2; ++j) {
      const double first = x[First(j)], second = x[Second(j)];
      const double c = cosine[j], s = inverse ? -sine[j] : sine[j];
      x[First(j)] = static_cast<X>(first * c - second * s);
      x[Second(j)] = static_cast<X>(second * c + first * s);
    }
  }
};

template <typename Args>
Rotation RotationOf(const Args& args) {
  return {args.rotary_dim != 0 ? args.rotary_dim : args.head_dim, args.interleaved != 0};
}

// Calls body(row, head, table row) for every head of every row (t, b).
template <typename Args, typename Body>
void ForEachHead(const Args& args, const Body& body) {
  for (int64_t t = 0; t < args.sequence; ++t) {
    for (int64_t b = 0; b < args.batch; ++b) {
      const int64_t row = t * args.batch + b, position = args.positions != nullptr
                                                             ? args.positions[row]
                                                             : args.first_position + t;
      for (int64_t h = 0; h < args.heads; ++h) body(row, h, position * RotationOf(args).rotated);
    }
  }
}

}  // namespace

void Rope(const mt_rope_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const auto* cos_sin = static_cast<const Statistic<T>*>(args.cos_sin);
    ForEachHead(args, [&](int64_t row, int64_t head, int64_t table) {
      T* x = static_cast<T*>(args.data) + row * args.row_stride + head * args.head_dim;
      RotationOf(args).Turn(x, cos_sin + table, args.inverse != 0);
    });
  });
}

// The normed head is turned in the workspace (d doubles): nothing is rounded in between.
void QkNormRopeForward(const mt_qk_norm_rope_args& args) {
  double* y = static_cast<double*>(args.workspace);
  const int64_t d = args.head_dim;
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    using S = Statistic<T>;
    const auto* cos_sin = static_cast<const S*>(args.cos_sin);
    const T* weight = static_cast<const T*>(args.weight);
    ForEachHead(args, [&](int64_t row, int64_t head, int64_t table) {
      const T* x = static_cast<const T*>(args.x) + row * args.x_stride + head * d;
      T* output = static_cast<T*>(args.y) + row * args.y_stride + head * d;
      double square = 0;
      for (int64_t j = 0; j < d; ++j) square += static_cast<double>(x[j]) * x[j];
      const double r = 1 / std::sqrt(square / static_cast<double>(d) + args.eps);
      static_cast<S*>(args.rstd)[row * args.heads + head] = static_cast<S>(r);
      for (int64_t j = 0; j < d; ++j) y[j] = x[j] * r * weight[j];
      RotationOf(args).Turn(y, cos_sin + table, false);
      for (int64_t j = 0; j < d; ++j) output[j] = static_cast<T>(y[j]);
    });
  });
}

// With g = dy turned back: RMSNorm's backward of g. Workspace: g (d doubles), the weight's gradient (d doubles).
void QkNormRopeBackward(const mt_qk_norm_rope_args& args) {
  const int64_t d = args.head_dim;
  double* g = static_cast<double*>(args.workspace);
  double* dw = g + d;
  std::fill(dw, dw + d, 0.0);
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    using S = Statistic<T>;
    const auto* cos_sin = static_cast<const S*>(args.cos_sin);
    const T* weight = static_cast<const T*>(args.weight);
    ForEachHead(args, [&](int64_t row, int64_t head, int64_t table) {
      const T* x = static_cast<const T*>(args.x) + row * args.x_stride + head * d;
      const T* dy = static_cast<const T*>(args.output_gradient) + row * args.y_stride + head * d;
      T* dx = static_cast<T*>(args.input_gradient) + row * args.x_stride + head * d;
      const double r = static_cast<const S*>(args.rstd)[row * args.heads + head];
      for (int64_t j = 0; j < d; ++j) g[j] = dy[j];
      RotationOf(args).Turn(g, cos_sin + table, true);
      double mean = 0;
      for (int64_t j = 0; j < d; ++j) mean += weight[j] * g[j] * x[j];
      mean /= static_cast<double>(d);
      for (int64_t j = 0; j < d; ++j) {
        dw[j] += g[j] * x[j] * r;
        dx[j] = static_cast<T>(r * (weight[j] * g[j] - x[j] * r * r * mean));
      }
    });
  });
  WithType(args.gradient_dtype, [&](auto type) {
    using G = decltype(type);
    G* weight_gradient = static_cast<G*>(args.weight_gradient);
    for (int64_t j = 0; j < d; ++j) weight_gradient[j] = static_cast<G>(weight_gradient[j] + dw[j]);
  });
}

}  // namespace mt::reference
