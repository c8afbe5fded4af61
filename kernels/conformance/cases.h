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
  kInput,        // must not change
  kOutput,       // filled with NaN before
  kUpdate,       // read and written
  kUnspecified,  // written, but the contract does not say with what
};
enum class Element {
  kData,  // the type under test
  kWide,  // statistics, main gradients, optimizer state: float32, float64 with float64 data
  kFloat,
  kDouble,
  kInt32,
  kE4M3,  // numbers; float64 for the reference
  kE5M2,
  kCode,  // bytes
};
// The mt_dtype of an element in memory when data are of `dtype`.
int32_t TypeOf(Element element, int32_t dtype);
int64_t SizeOf(int32_t dtype);

// Host copies of one case's tensors as float64 (integers and codes too).
using Values = std::vector<std::vector<double>>;

struct Tensor {
  std::string name;
  int64_t count = 0;
  Role role = Role::kInput;
  Element element = Element::kData;
  // mean + spread * normal, or, if there is a function, what it makes of the normal and the index.
  double mean = 0, spread = 1;
  std::function<double(double normal, int64_t index)> value;
  int alias = -1;          // shares the memory of this earlier tensor
  int64_t misaligned = 0;  // elements past an aligned address
  // How it is judged (Compare in runner.h): as a sum over many terms of either sign, against the
  // tensor's own size; a statistic of data that were rounded, with the tolerance of the data; with
  // no tolerance at all.
  bool long_sum = false, rounded = false, exact = false;
  int64_t terms =
      0;  // of a long sum, about 1 each: where the tensor is too small to tell its own size
  double slack = 1;  // times the tolerance
  // Of a sum whose terms may be rounded to the type of the data before they are added: for every element the root of the sum of
  // its terms' squares, from the case's inputs (runner.h, Compare).
  std::function<std::vector<double>(const Values& inputs)> term_norms;
  int64_t traffic = -1;  // elements that must be moved, where that is not `count`
};

struct Case {
  std::string name;  // "rmsnorm_forward/rows7_columns33_residual"
  int32_t operation = 0;
  std::vector<Tensor> tensors;
  // The operation's struct, for data of `dtype` and one pointer per tensor.
  std::function<std::vector<char>(int32_t dtype, void* const* pointers)> arguments;
  double flops = 0;  // that the operation cannot do without
  // Of a tensor and another that is it rounded, bit for bit: their indices, if there are such.
  int original = -1, rounded_copy = -1;
  std::vector<int32_t> types = {MT_F32, MT_F64, MT_BF16};  // that it makes sense for
  bool slow = false;                                       // many rows: not in every run
};
// Bytes of memory traffic that the operation cannot do without.
double TrafficBytes(const Case& item, int32_t dtype);

std::vector<Case> ConformanceCases();
// `per_operation` cases of every operation with random sizes, strides and options.
std::vector<Case> RandomCases(uint64_t seed, int per_operation);

// The shapes of one training step, with how often a step runs each.
struct BenchmarkCase {
  Case item;
  int64_t runs_per_step = 1;
};
struct BenchmarkExperts {
  int64_t experts = 0, top_k = 0;  // 0 experts: a dense model
  int32_t score = MT_MOE_SOFTMAX;
  int64_t groups = 0, top_groups = 0;
  int64_t nope = 0, rope = 0, v = 0;  // of the heads, where attention is latent
};
struct BenchmarkModel {
  const char* name;
  int64_t layers, hidden, heads, kv_heads, head_dim, ffn, vocabulary, sequence, batch;
  BenchmarkExperts moe = {};  // with `ffn` of one expert; then the cases are those of experts alone
};
// kBenchmarkShapes' names; null for another.
inline constexpr const char* kBenchmarkShapes =
    "default|1.3b|0.4b|tiny|deepseek-v3|mixtral-8x7b|qwen3-30b-a3b|tiny-experts";
const BenchmarkModel* FindBenchmarkModel(const std::string& name);
std::vector<BenchmarkCase> BenchmarkCases(const BenchmarkModel& model);

}  // namespace mt::conformance
