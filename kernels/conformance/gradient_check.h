// What the tests of kernels_gradient_test are made of: calls in float64, and central differences.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <vector>

#include "kernels/abi/philox.h"
#include "kernels/conformance/runner.h"

namespace mt::conformance {

// The library under test.
extern const mt_backend* backend;
using Vector = std::vector<double>;

inline Vector Normals(int64_t count, uint64_t stream) {
  Vector out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) out[i] = mt_normal(7, stream, i);
  return out;
}

template <typename Args>
void Call(int32_t operation, Args args) {
  args.struct_size = sizeof args;
  args.dtype = MT_F64;
  Vector workspace;
  if constexpr (requires { args.workspace; }) {
    workspace.assign(static_cast<size_t>(backend->workspace_bytes(operation, &args) / 8 + 1), NAN);
    args.workspace = workspace.data();
    args.workspace_bytes = workspace.size() * 8;
  }
  ASSERT_EQ(backend->run(operation, &args, nullptr), MT_OK) << backend->error_message();
}

inline double Dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

// `gradient` against central differences of `loss` by each element of `x`, which `loss` reads.
inline void ExpectGradient(Vector& x, const Vector& gradient, const std::function<double()>& loss,
                           const char* what) {
  constexpr double kStep = 1e-5;
  for (size_t i = 0; i < x.size(); ++i) {
    const double kept = x[i];
    x[i] = kept + kStep;
    const double above = loss();
    x[i] = kept - kStep;
    const double below = loss();
    x[i] = kept;
    ASSERT_NEAR(gradient[i], (above - below) / (2 * kStep),
                1e-8 * std::max(1.0, std::fabs(gradient[i])))
        << what << "[" << i << "]";
  }
}

}  // namespace mt::conformance
