// One table of cases, operation x shapes x options, from which the conformance tests and the
// benchmarks of every backend are made. A case names its tensors and how an argument struct points
// to them; the runner makes the data, poisons what the operation has to write, and compares with
// the reference backend in float64.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/abi/mt_backend.h"

namespace mt::conformance {

enum class Role {
  kInput,   // must not change
  kOutput,  // filled with NaN before
  kUpdate,  // read and written
};
enum class Element { kData, kInt32, kDouble };  // kData: the type under test

struct Tensor {
  std::string name;
  int64_t count = 0;
  Role role = Role::kInput;
  Element element = Element::kData;
  // From a standard normal number and the element's index; null = the normal itself.
  std::function<double(double normal, int64_t index)> value;
  int alias = -1;  // shares the memory of this earlier tensor
  bool long_sum =
      false;  // a sum over many terms of either sign: judged against the tensor's own size
};

struct Case {
  std::string name;  // "rmsnorm_forward/rows7_columns33_residual"
  int32_t operation = 0;
  std::vector<Tensor> tensors;
  // The operation's struct, for data of `dtype` and one pointer per tensor.
  std::function<std::vector<char>(int32_t dtype, void* const* pointers)> arguments;
  double flops = 0;  // that the operation cannot do without
  double bytes = 0;  // of memory traffic that it cannot do without, in float32
};

std::vector<Case> ConformanceCases();
// The shapes of one training step of the default benchmark model (bench/README.md), with how often
// a step runs each.
struct BenchmarkCase {
  Case item;
  int64_t runs_per_step = 1;
};
std::vector<BenchmarkCase> BenchmarkCases();

}  // namespace mt::conformance
