// One function per operation that makes a case of given sizes and options.
#pragma once

#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/abi/operation_names.h"
#include "kernels/conformance/cases.h"

namespace mt::conformance {

template <typename Args>
std::vector<char> Bytes(Args args) {
  args.struct_size = sizeof args;
  std::vector<char> bytes(sizeof args);
  std::memcpy(bytes.data(), &args, sizeof args);
  return bytes;
}

// "rope/t9_b2_interleaved"
std::string Name(int32_t operation, std::initializer_list<std::pair<const char*, int64_t>> sizes,
                 const std::string& option = "");

Tensor In(const char* name, int64_t count);
Tensor Out(const char* name, int64_t count);
Tensor Update(const char* name, int64_t count);
// Changes of a tensor.
Tensor Long(Tensor tensor, int64_t terms = 0);  // a long sum
Tensor Wide(Tensor tensor);                     // of the statistic type
Tensor Rounded(Tensor tensor);                  // of the statistic type, made from rounded data
Tensor Exact(Tensor tensor);
Tensor As(Element element, Tensor tensor);
Tensor Around(Tensor tensor, double mean, double spread);
Tensor Positive(Tensor tensor);
Tensor Alias(Tensor tensor, int other);
// Integers of [low, high), spread by the normal number.
Tensor Integers(const char* name, int64_t count, int64_t low, int64_t high);
// Targets of cross entropy: some absent from this rank, every fifth row masked.
Tensor Targets(int64_t rows, int64_t vocab);
// *amax before the operation: sometimes larger than anything that comes.
Tensor AmaxField();
inline float* AmaxPointer(void* pointer) { return static_cast<float*>(pointer); }
// The type of main gradients and optimizer state.
inline int32_t WideType(int32_t dtype) { return TypeOf(Element::kWide, dtype); }

// Every tensor of data begins one element past an aligned address.
Case Unaligned(Case item);
Case Slow(Case item);

// elementwise_cases.cc
Case Fill(int64_t n);
Case FillNormal(int64_t rows, int64_t columns, uint64_t first, uint64_t stride);
Case Copy(int64_t n, Element from, Element to);
Case Add(int64_t n, bool alias);
Case Scale(int64_t n, bool by_pointer);
Case Sum(int32_t operation, int64_t n, bool accumulate);
enum class Loss { kNone, kFinite, kNotANumber };
Case ClipFactor(double squared_norm, double limit, Loss loss);
Case ColumnSum(int64_t rows, int64_t columns, int64_t padding);
Case Amax(int64_t n, double before);
// amax_field: what the operation is told; the source's values are scaled to it.
Case Quantize(int64_t rows, int64_t columns, int32_t output, double amax, bool plain,
              bool transposed);
enum class ClipPointer { kNone, kFinite, kInfinite, kNotANumber };
// own_parameter: a working copy of the type under test, else it is the master itself (not in BF16).
Case AdamW(int64_t n, int64_t step, bool own_parameter, ClipPointer clip);

// norm_cases.cc
enum class Residual { kNone, kKept, kInPlace };
enum class GradientAlias { kNone, kOverResidual, kOverOutput };
Case RmsNormForward(int64_t rows, int64_t columns, Residual residual, bool amax = false);
Case RmsNormBackward(int64_t rows, int64_t columns, bool residual, GradientAlias alias,
                     bool amax = false);
Case LayerNormForward(int64_t rows, int64_t columns, Residual residual, bool amax = false);
Case LayerNormBackward(int64_t rows, int64_t columns, bool residual, GradientAlias alias,
                       bool amax = false);

// layer_cases.cc
// ids of a word distribution (1/rank), or evenly spread with some outside the rank's rows.
Case Embedding(bool backward, int64_t rows, int64_t columns, int64_t start, int64_t vocab,
               bool words = false);
struct Rotary {
  int64_t sequence, batch, heads, head_dim;
  int64_t first = 0;
  int32_t rotary_dim = 0;
  bool interleaved = false;
  int64_t padding = 0;     // of a row
  bool positions = false;  // of every row, in any order
};
Case Rope(const Rotary& size, bool inverse);
Case QkNormRope(bool backward, const Rotary& size, bool in_place = false);
struct Gate {
  double limit = 0, alpha = 0, offset = 0;
};
Case SwigluForward(int64_t rows, int64_t columns, bool amax = false, const Gate& gate = {});
Case SwigluBackward(int64_t rows, int64_t columns, bool in_place, bool recompute, bool amax = false,
                    const Gate& gate = {});
// over: 0 = a tensor of its own, 1 = in place of x, 2 = in place of the output's gradient (backward)
Case Gelu(bool backward, int64_t rows, int64_t columns, bool bias, bool tanh, int over = 0,
          bool amax = false);

// product_cases.cc
struct Product {
  int64_t m, n, k;
  bool transpose_a = false, transpose_b = false;
  double beta = 0;
  int64_t padding = 0;
  double alpha = 1;
  bool bias = false;
  bool wide_output = false;  // float32 of bfloat16
};
Case Matmul(const Product& size);
// op(A) op(B)^T with both contiguous along k; D of the type under test (F32 or BF16).
Case MatmulFp8(const Product& size, Element a, Element b);
struct Logits {
  int64_t rows, columns, valid, start = 0, padding = 0;
};
Case CrossEntropyStatistics(const Logits& size);
Case CrossEntropyGradient(const Logits& size, double z_loss, bool scale_by_pointer = false);
Case CrossEntropyCombine(int64_t rows, int64_t world, double z_loss);

// attention_cases.cc
struct AttendTraits {
  int64_t v_head_dim = 0, window = 0, key_sequence = 0;
  std::optional<double> sinks = {};  // their mean; they are spread by 1
  bool apart = false;                // q, k and v in tensors of their own
  int64_t document = 0;              // mean length, other ones in each sequence; 0 = no documents
};
struct Attend {
  int64_t sequence, batch, heads, kv_heads, head_dim;
  bool causal = true;
  AttendTraits traits = {};
};
Case Attention(bool backward, const Attend& size);
std::vector<Case> AttentionCases();

// moe_cases.cc
// `index` moved to another place of [0, size), in another order for every row.
int64_t Permuted(int64_t row, int64_t index, int64_t size);
// Given values, whatever the seed.
Tensor Numbers(const char* name, std::vector<double> numbers, Element element);
// kTies, kNotANumber: small integers, of which many are equal; some are NaN.
enum class RouterLogits { kClear, kTies, kNotANumber };
struct Routing {
  int64_t rows, experts, top_k;
  int32_t score = MT_MOE_SOFTMAX;
  bool normalize = false;
  double scale = 1;
  int64_t batch = 1;
  int64_t groups = 0, top_groups = 0;
  bool group_top_2 = false;
  bool bias = false;
  int64_t stride = 0;   // of the statistics, and of the balance gradient
  bool metrics = true;  // score and z sums; backward: balance gradient and z term
  RouterLogits logits = RouterLogits::kClear;
};
Case MoeRouteForward(const Routing& size);
Case MoeRouteBackward(const Routing& size);
struct Sorting {
  int64_t rows, experts, top_k, capacity = 0;
  bool lightest = false, nan = false;
};
Case MoeSort(const Sorting& size);
// own_parameter: as ADAMW's.
Case BalanceUpdate(int64_t n, bool own_parameter, ClipPointer clip);

// expert_cases.cc
struct ExpertRows {
  int64_t rows, columns, top_k, dropped = 0;
};
Case MoeGather(const ExpertRows& size);
Case MoeCombine(const ExpertRows& size, bool weights, bool accumulate);
Case MoeCombineBackward(const ExpertRows& size, bool in_place);
struct Grouped {
  int64_t groups, rows, in, out;
  int64_t unused = 0;  // of the rows
  int64_t padding = 0;
  bool bias = false;
};
Case GroupedMatmul(int32_t mode, const Grouped& size, double beta = 0);
Case GroupedColumnSum(const Grouped& size);  // of `out` columns
struct Latent {
  int64_t rows, heads, nope, rope, v;
};
Case MlaExpand(bool backward, const Latent& size);

// moe_table.cc
std::vector<Case> ExpertCases();

// benchmark_experts.cc
std::vector<BenchmarkCase> ExpertBenchmarkCases(const BenchmarkModel& model);

}  // namespace mt::conformance
