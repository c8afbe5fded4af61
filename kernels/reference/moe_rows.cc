// The rows of tokens, sorted by expert and back.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/reference/operations.h"

namespace mt::reference {
namespace {

// position = -1 for what is dropped, 0 for what stays; the order of the choices, `order` (N k), is scratch.
void DropLightest(const mt_moe_sort_args& args, int32_t* order) {
  const int64_t count = args.rows * args.top_k;
  std::iota(order, order + count, 0);
  WithType(args.dtype, [&](auto type) {
    const auto* weights = static_cast<const decltype(type)*>(args.weights);
    // Expert by expert, the heavy first; NaN is lighter than every number.
    std::sort(order, order + count, [&](int32_t a, int32_t b) {
      if (args.ids[a] != args.ids[b]) return args.ids[a] < args.ids[b];
      const bool nan_a = std::isnan(weights[a]), nan_b = std::isnan(weights[b]);
      if (nan_a != nan_b) return nan_b;
      if (weights[a] != weights[b] && !nan_a) return weights[a] > weights[b];
      return a < b;
    });
  });
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || args.ids[order[i]] != args.ids[order[i - 1]]) kept = 0;
    args.position[order[i]] = kept++ < args.capacity ? 0 : -1;
  }
}

}  // namespace

void MoeSort(const mt_moe_sort_args& args) {
  const int64_t count = args.rows * args.top_k;
  int64_t* rows = static_cast<int64_t*>(args.workspace);  // (E): of each expert so far
  std::fill(args.position, args.position + count, 0);
  if (args.capacity > 0 && args.drop_lightest != 0)
    DropLightest(args, reinterpret_cast<int32_t*>(rows + args.experts));
  std::fill(rows, rows + args.experts, 0);
  int64_t dropped = 0;
  for (int64_t i = 0; i < count; ++i) {
    int64_t& mine = rows[args.ids[i]];
    if (args.position[i] < 0 || (args.capacity > 0 && mine == args.capacity)) {
      args.position[i] = -1;
      ++dropped;
    } else {
      ++mine;
    }
  }
  args.offsets[0] = 0;
  for (int64_t e = 0; e < args.experts; ++e) {
    args.offsets[e + 1] = static_cast<int32_t>(args.offsets[e] + rows[e]);
    rows[e] = args.offsets[e];
  }
  std::fill(args.source, args.source + count, -1);
  for (int64_t i = 0; i < count; ++i) {
    if (args.position[i] < 0) continue;
    args.position[i] = static_cast<int32_t>(rows[args.ids[i]]++);
    args.source[args.position[i]] = static_cast<int32_t>(i);
  }
  if (args.dropped != nullptr) *args.dropped += static_cast<double>(dropped);
}

void MoeGather(const mt_moe_rows_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t C = args.columns;
    for (int64_t i = 0; i < args.rows * args.top_k; ++i) {
      T* to = static_cast<T*>(args.sorted) + i * C;
      if (args.source[i] < 0) {
        std::fill(to, to + C, T{});
      } else {
        std::copy_n(static_cast<const T*>(args.tokens) + args.source[i] / args.top_k * C, C, to);
      }
    }
  });
}

void MoeCombine(const mt_moe_rows_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    const int64_t C = args.columns, k = args.top_k;
    const auto* weights = static_cast<const Statistic<T>*>(args.weights);
    for (int64_t n = 0; n < args.rows; ++n) {
      T* token = static_cast<T*>(args.tokens) + n * C;
      for (int64_t c = 0; c < C; ++c) {
        double sum = args.accumulate != 0 ? static_cast<double>(token[c]) : 0.0;
        for (int64_t i = n * k; i < (n + 1) * k; ++i) {
          if (args.position[i] < 0) continue;
          const double row = static_cast<const T*>(args.sorted)[args.position[i] * C + c];
          sum += weights != nullptr ? weights[i] * row : row;
        }
        token[c] = static_cast<T>(sum);
      }
    }
  });
}

void MoeCombineBackward(const mt_moe_rows_args& args) {
  WithType(args.dtype, [&](auto type) {
    using T = decltype(type);
    using S = Statistic<T>;
    const int64_t C = args.columns, k = args.top_k;
    for (int64_t i = 0; i < args.rows * k; ++i) {
      const T* token = static_cast<const T*>(args.tokens) + i / k * C;
      const double weight = static_cast<const S*>(args.weights)[i];
      double dot = 0;
      if (const int64_t at = args.position[i]; at >= 0) {
        const T* sorted = static_cast<const T*>(args.sorted) + at * C;
        T* gradient = static_cast<T*>(args.sorted_gradient) + at * C;
        for (int64_t c = 0; c < C; ++c) dot += static_cast<double>(token[c]) * sorted[c];
        for (int64_t c = 0; c < C; ++c) gradient[c] = static_cast<T>(weight * token[c]);
      }
      static_cast<S*>(args.weight_gradient)[i] = static_cast<S>(dot);
    }
    for (int64_t i = 0; i < args.rows * k; ++i) {
      if (args.source[i] < 0) std::fill_n(static_cast<T*>(args.sorted_gradient) + i * C, C, T{});
    }
  });
}

}  // namespace mt::reference
