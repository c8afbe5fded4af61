#include "kernels/conformance/cases.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#include "kernels/abi/operation_names.h"

namespace mt::conformance {
namespace {

template <typename Args>
std::vector<char> Bytes(Args args) {
  args.struct_size = sizeof args;
  std::vector<char> bytes(sizeof args);
  std::memcpy(bytes.data(), &args, sizeof args);
  return bytes;
}

std::string Name(int32_t operation, std::initializer_list<std::pair<const char*, int64_t>> sizes,
                 const char* option = "") {
  std::string name = std::string(mt_operation_name(operation)) + "/";
  for (const auto& [key, value] : sizes) name += std::string(key) + std::to_string(value) + "_";
  if (*option != '\0') return name + option;
  name.pop_back();
  return name;
}

Tensor In(const char* name, int64_t count) { return {.name = name, .count = count}; }
Tensor Out(const char* name, int64_t count) {
  return {.name = name, .count = count, .role = Role::kOutput};
}
Tensor Update(const char* name, int64_t count) {
  return {.name = name, .count = count, .role = Role::kUpdate};
}
Tensor Long(Tensor tensor) {
  tensor.long_sum = true;
  return tensor;
}
Tensor Positive(Tensor tensor) {
  tensor.value = [](double normal, int64_t) { return 0.1 + std::fabs(normal); };
  return tensor;
}
Tensor Around(Tensor tensor, double mean, double spread) {
  tensor.value = [=](double normal, int64_t) { return mean + spread * normal; };
  return tensor;
}
Tensor Alias(Tensor tensor, int other) {
  tensor.alias = other;
  return tensor;
}
// Integers of [low, high), spread by the normal number.
Tensor Integers(const char* name, int64_t count, int64_t low, int64_t high) {
  return {.name = name,
          .count = count,
          .element = Element::kInt32,
          .value = [=](double normal, int64_t index) {
            const auto mixed = static_cast<int64_t>(std::fabs(normal) * 1e6) + index;
            return static_cast<double>(low + mixed % (high - low));
          }};
}

Case Fill(int64_t n) {
  return {Name(MT_OP_FILL, {{"count", n}}),
          MT_OP_FILL,
          {Out("data", n)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_fill_args{.dtype = type, .data = p[0], .count = n, .value = 0.25});
          },
          0,
          4.0 * n};
}

Case FillNormal(int64_t rows, int64_t columns, uint64_t first, uint64_t stride) {
  return {Name(MT_OP_FILL_NORMAL,
               {{"rows", rows}, {"columns", columns}, {"first", static_cast<int64_t>(first)}}),
          MT_OP_FILL_NORMAL,
          {Out("data", rows * columns)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_fill_normal_args{.dtype = type,
                                             .data = p[0],
                                             .rows = rows,
                                             .columns = columns,
                                             .first_index = first,
                                             .row_stride = stride,
                                             .seed = 1234,
                                             .stream = 77,
                                             .mean = 0.5,
                                             .std = 0.02});
          },
          0,
          4.0 * rows * columns};
}

Case Copy(int64_t n) {
  return {Name(MT_OP_COPY, {{"count", n}}),
          MT_OP_COPY,
          {In("source", n), Out("destination", n)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_copy_args{.source_dtype = type,
                                      .destination_dtype = type,
                                      .source = p[0],
                                      .destination = p[1],
                                      .count = n});
          },
          0,
          8.0 * n};
}

Case CopyToDouble(int64_t n) {
  Tensor destination = Out("destination", n);
  destination.element = Element::kDouble;
  return {Name(MT_OP_COPY, {{"count", n}}, "cast"),
          MT_OP_COPY,
          {In("source", n), destination},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_copy_args{.source_dtype = type,
                                      .destination_dtype = MT_F64,
                                      .source = p[0],
                                      .destination = p[1],
                                      .count = n});
          },
          0,
          12.0 * n};
}

Case Add(int64_t n, bool alias) {
  std::vector<Tensor> tensors = {alias ? Update("a", n) : In("a", n), In("b", n)};
  tensors.push_back(alias ? Alias(Update("destination", n), 0) : Out("destination", n));
  return {Name(MT_OP_ADD, {{"count", n}}, alias ? "in_place" : ""),
          MT_OP_ADD,
          tensors,
          [=](int32_t type, void* const* p) {
            return Bytes(
                mt_add_args{.dtype = type, .a = p[0], .b = p[1], .destination = p[2], .count = n});
          },
          1.0 * n,
          12.0 * n};
}

Case Scale(int64_t n, bool by_pointer) {
  Tensor factor = In("factor", 1);
  factor.element = Element::kDouble;
  return {Name(MT_OP_SCALE, {{"count", n}}, by_pointer ? "by_pointer" : ""),
          MT_OP_SCALE,
          {Update("data", n), factor},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_scale_args{
                .dtype = type,
                .data = p[0],
                .count = n,
                .factor = 0.375,
                .factor_pointer = by_pointer ? static_cast<const double*>(p[1]) : nullptr});
          },
          1.0 * n,
          8.0 * n};
}

Case SquaredSum(int64_t n, bool accumulate) {
  Tensor result = accumulate ? Update("result", 1) : Out("result", 1);
  result.element = Element::kDouble;
  return {Name(MT_OP_SQUARED_SUM, {{"count", n}}, accumulate ? "accumulate" : ""),
          MT_OP_SQUARED_SUM,
          {In("data", n), result},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_squared_sum_args{.dtype = type,
                                             .data = p[0],
                                             .count = n,
                                             .result = static_cast<double*>(p[1]),
                                             .accumulate = accumulate});
          },
          2.0 * n,
          4.0 * n};
}

Case Matmul(int64_t m, int64_t n, int64_t k, bool ta, bool tb, double beta, int64_t padding = 0,
            double alpha = 1) {
  const int64_t lda = std::max<int64_t>(1, ta ? m : k) + padding;
  const int64_t ldb = std::max<int64_t>(1, tb ? k : n) + padding;
  const int64_t ldd = n + padding;
  std::string option = std::string(ta ? "t" : "n") + (tb ? "t" : "n") +
                       (beta != 0 ? "_accumulate" : "") + (padding > 0 ? "_strided" : "") +
                       (alpha != 1 ? "_alpha" : "");
  return {Name(MT_OP_MATMUL, {{"m", m}, {"n", n}, {"k", k}}, option.c_str()),
          MT_OP_MATMUL,
          {In("a", (ta ? k : m) * lda), In("b", (tb ? n : k) * ldb),
           Long(beta != 0 ? Update("d", m * ldd) : Out("d", m * ldd))},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_matmul_args{.dtype = type,
                                        .output_dtype = type,
                                        .transpose_a = ta,
                                        .transpose_b = tb,
                                        .m = m,
                                        .n = n,
                                        .k = k,
                                        .a = p[0],
                                        .lda = lda,
                                        .b = p[1],
                                        .ldb = ldb,
                                        .d = p[2],
                                        .ldd = ldd,
                                        .alpha = alpha,
                                        .beta = beta});
          },
          2.0 * m * n * k,
          4.0 * (m * k + k * n + (beta != 0 ? 2 : 1) * m * n)};
}

// Some ids lie outside the rank's rows.
Case Embedding(bool backward, int64_t rows, int64_t columns, int64_t start, int64_t vocab) {
  const int32_t operation = backward ? MT_OP_EMBEDDING_BACKWARD : MT_OP_EMBEDDING_FORWARD;
  return {Name(operation, {{"rows", rows}, {"columns", columns}, {"start", start}}),
          operation,
          {Integers("ids", rows, 0, start + vocab + vocab / 4), In("table", vocab * columns),
           backward ? In("output_gradient", rows * columns) : Out("output", rows * columns),
           Long(backward ? Update("table_gradient", vocab * columns) : In("unused", 1))},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_embedding_args{.dtype = type,
                                           .gradient_dtype = type,
                                           .ids = static_cast<const int32_t*>(p[0]),
                                           .rows = rows,
                                           .columns = columns,
                                           .vocab_start = start,
                                           .vocab_rows = vocab,
                                           .table = p[1],
                                           .output = backward ? nullptr : p[2],
                                           .output_gradient = backward ? p[2] : nullptr,
                                           .table_gradient = backward ? p[3] : nullptr});
          },
          0,
          (backward ? 12.0 : 8.0) * rows * columns};
}

enum class Residual { kNone, kKept, kInPlace };

Case RmsNormForward(int64_t rows, int64_t columns, Residual residual) {
  const int64_t n = rows * columns;
  const bool in_place = residual == Residual::kInPlace;
  std::vector<Tensor> tensors = {In("x", n), in_place ? Update("residual", n) : In("residual", n),
                                 In("weight", columns), Out("output", n), Out("rstd", rows)};
  tensors.push_back(in_place ? Alias(Update("sum", n), 1) : Out("sum", n));
  if (residual == Residual::kNone) tensors[5].role = Role::kInput;
  return {Name(MT_OP_RMSNORM_FORWARD, {{"rows", rows}, {"columns", columns}},
               residual == Residual::kNone ? ""
               : in_place                  ? "residual_in_place"
                                           : "residual"),
          MT_OP_RMSNORM_FORWARD,
          tensors,
          [=](int32_t type, void* const* p) {
            const bool none = residual == Residual::kNone;
            return Bytes(mt_rmsnorm_args{.dtype = type,
                                         .rows = rows,
                                         .columns = columns,
                                         .eps = 1e-5,
                                         .x = p[0],
                                         .residual = none ? nullptr : p[1],
                                         .sum = none ? nullptr : p[5],
                                         .weight = p[2],
                                         .output = p[3],
                                         .rstd = p[4]});
          },
          5.0 * n,
          (residual == Residual::kNone ? 8.0 : 16.0) * n};
}

// alias: 0 none, 1 input_gradient is residual_gradient, 2 it is output_gradient.
Case RmsNormBackward(int64_t rows, int64_t columns, bool residual, int alias) {
  const int64_t n = rows * columns;
  const char* options[] = {"", "over_residual", "over_output"};
  std::vector<Tensor> tensors = {
      In("sum", n), In("weight", columns), Positive(In("rstd", rows)),
      alias == 2 ? Update("output_gradient", n) : In("output_gradient", n),
      alias == 1 ? Update("residual_gradient", n) : In("residual_gradient", n)};
  Tensor input_gradient = alias == 0 ? Out("input_gradient", n)
                                     : Alias(Update("input_gradient", n), alias == 1 ? 4 : 3);
  tensors.push_back(Long(input_gradient));
  tensors.push_back(Long(Update("weight_gradient", columns)));
  return {Name(MT_OP_RMSNORM_BACKWARD,
               {{"rows", rows}, {"columns", columns}, {"residual", residual}}, options[alias]),
          MT_OP_RMSNORM_BACKWARD,
          tensors,
          [=](int32_t type, void* const* p) {
            return Bytes(mt_rmsnorm_args{.dtype = type,
                                         .gradient_dtype = type,
                                         .rows = rows,
                                         .columns = columns,
                                         .eps = 1e-5,
                                         .sum = p[0],
                                         .weight = p[1],
                                         .rstd = p[2],
                                         .output_gradient = p[3],
                                         .residual_gradient = residual ? p[4] : nullptr,
                                         .input_gradient = p[5],
                                         .weight_gradient = p[6]});
          },
          10.0 * n,
          (residual ? 16.0 : 12.0) * n};
}

Case Rope(int64_t sequence, int64_t batch, int64_t heads, int64_t d, int64_t first, bool inverse,
          int64_t padding = 0) {
  const int64_t stride = heads * d + padding;
  return {
      Name(MT_OP_ROPE, {{"t", sequence}, {"b", batch}, {"h", heads}, {"d", d}, {"first", first}},
           inverse ? "inverse" : ""),
      MT_OP_ROPE,
      {Update("data", sequence * batch * stride), In("cos_sin", (first + sequence) * d)},
      [=](int32_t type, void* const* p) {
        return Bytes(mt_rope_args{.dtype = type,
                                  .data = p[0],
                                  .sequence = sequence,
                                  .batch = batch,
                                  .heads = heads,
                                  .head_dim = d,
                                  .row_stride = stride,
                                  .first_position = first,
                                  .cos_sin = p[1],
                                  .inverse = inverse});
      },
      3.0 * sequence * batch * heads * d,
      8.0 * sequence * batch * heads * d};
}

// q, k, v are views of one packed tensor; the gradients too.
Case Attention(bool backward, int64_t T, int64_t B, int64_t H, int64_t K, int64_t d, bool causal) {
  const int32_t operation = backward ? MT_OP_ATTENTION_BACKWARD : MT_OP_ATTENTION_FORWARD;
  const int64_t width = (H + 2 * K) * d, rows = T * B, o_stride = H * d + (T % 2 ? 3 : 0);
  std::vector<Tensor> tensors = {In("qkv", rows * width)};
  if (backward) {
    tensors.push_back(In("o", rows * o_stride));
    tensors.push_back(Around(In("lse", B * H * T), std::log(static_cast<double>(T)) + 1, 0.2));
    tensors.push_back(In("o_gradient", rows * o_stride));
    tensors.push_back(Long(Out("qkv_gradient", rows * width)));
  } else {
    tensors.push_back(Long(Out("o", rows * o_stride)));
    tensors.push_back(Out("lse", B * H * T));
  }
  const double products = (backward ? 5 : 2) * (causal ? 0.5 : 1.0);
  return {Name(operation, {{"t", T}, {"b", B}, {"h", H}, {"k", K}, {"d", d}},
               causal ? "causal" : "full"),
          operation,
          tensors,
          [=](int32_t type, void* const* p) {
            const int64_t size = type == MT_F64 ? 8 : 4;
            char* qkv = static_cast<char*>(p[0]);
            mt_attention_args a = {.dtype = type,
                                   .sequence = T,
                                   .batch = B,
                                   .heads = H,
                                   .kv_heads = K,
                                   .head_dim = d,
                                   .scale = 1 / std::sqrt(static_cast<double>(d)),
                                   .causal = causal};
            a.q = qkv;
            a.k = qkv + size * H * d;
            a.v = qkv + size * (H + K) * d;
            a.q_stride = a.k_stride = a.v_stride = width;
            a.o = p[1];
            a.o_stride = o_stride;
            a.lse = p[2];
            if (backward) {
              char* gradient = static_cast<char*>(p[4]);
              a.o_gradient = p[3];
              a.o_gradient_stride = o_stride;
              a.dq = gradient;
              a.dk = gradient + size * H * d;
              a.dv = gradient + size * (H + K) * d;
              a.dq_stride = a.dk_stride = a.dv_stride = width;
            }
            return Bytes(a);
          },
          products * 2.0 * T * T * d * H * B,
          (backward ? 2.0 : 1.0) * 4.0 * rows * (width + H * d)};
}

Case SwigluForward(int64_t rows, int64_t columns) {
  const int64_t n = rows * columns;
  return {Name(MT_OP_SWIGLU_FORWARD, {{"rows", rows}, {"columns", columns}}),
          MT_OP_SWIGLU_FORWARD,
          {Around(In("gate_up", 2 * n), 0, 3), Out("output", n)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_swiglu_args{
                .dtype = type, .rows = rows, .columns = columns, .gate_up = p[0], .output = p[1]});
          },
          20.0 * n,
          12.0 * n};
}

Case SwigluBackward(int64_t rows, int64_t columns, bool in_place, bool recompute) {
  const int64_t n = rows * columns;
  std::vector<Tensor> tensors = {
      Around(in_place ? Update("gate_up", 2 * n) : In("gate_up", 2 * n), 0, 3),
      In("output_gradient", n)};
  tensors.push_back(in_place ? Alias(Update("gate_up_gradient", 2 * n), 0)
                             : Out("gate_up_gradient", 2 * n));
  tensors.push_back(recompute ? Out("output", n) : In("unused", 1));
  return {
      Name(MT_OP_SWIGLU_BACKWARD, {{"rows", rows}, {"columns", columns}, {"recompute", recompute}},
           in_place ? "in_place" : ""),
      MT_OP_SWIGLU_BACKWARD,
      tensors,
      [=](int32_t type, void* const* p) {
        return Bytes(mt_swiglu_args{.dtype = type,
                                    .rows = rows,
                                    .columns = columns,
                                    .gate_up = p[0],
                                    .output = recompute ? p[3] : nullptr,
                                    .output_gradient = p[1],
                                    .gate_up_gradient = p[2]});
      },
      25.0 * n,
      (recompute ? 24.0 : 20.0) * n};
}

// Targets: some absent from this rank, every fifth row masked.
Tensor Targets(int64_t rows, int64_t vocab) {
  Tensor targets = Integers("targets", rows, 0, vocab);
  const auto inner = targets.value;
  targets.value = [inner](double normal, int64_t i) {
    return i % 5 == 3 ? -1.0 : inner(normal, i);
  };
  return targets;
}

Case CrossEntropyStatistics(int64_t rows, int64_t columns, int64_t valid, int64_t start,
                            int64_t padding) {
  const int64_t stride = columns + padding;
  return {Name(MT_OP_CROSS_ENTROPY_STATISTICS,
               {{"rows", rows}, {"columns", columns}, {"valid", valid}, {"start", start}}),
          MT_OP_CROSS_ENTROPY_STATISTICS,
          {Around(In("logits", rows * stride), 0, 4), Targets(rows, start + columns + 10),
           Out("maximum", rows), Out("sum", rows), Out("target_logit", rows)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_cross_entropy_args{.dtype = type,
                                               .rows = rows,
                                               .columns = columns,
                                               .valid_columns = valid,
                                               .row_stride = stride,
                                               .vocab_start = start,
                                               .logits = p[0],
                                               .targets = static_cast<const int32_t*>(p[1]),
                                               .maximum = p[2],
                                               .sum = p[3],
                                               .target_logit = p[4]});
          },
          12.0 * rows * columns,
          4.0 * rows * columns};
}

Case CrossEntropyGradient(int64_t rows, int64_t columns, int64_t valid, int64_t start,
                          int64_t padding, double z_loss) {
  const int64_t stride = columns + padding;
  return {Name(MT_OP_CROSS_ENTROPY_GRADIENT,
               {{"rows", rows}, {"columns", columns}, {"valid", valid}, {"start", start}},
               z_loss != 0 ? "z_loss" : ""),
          MT_OP_CROSS_ENTROPY_GRADIENT,
          {Around(Update("logits", rows * stride), 0, 2), Targets(rows, start + columns + 10),
           Around(In("lse", rows), 9, 0.3)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_cross_entropy_args{.dtype = type,
                                               .rows = rows,
                                               .columns = columns,
                                               .valid_columns = valid,
                                               .row_stride = stride,
                                               .vocab_start = start,
                                               .logits = p[0],
                                               .targets = static_cast<const int32_t*>(p[1]),
                                               .lse = p[2],
                                               .loss_scale = 0.125,
                                               .z_loss = z_loss});
          },
          12.0 * rows * columns,
          8.0 * rows * columns};
}

Case CrossEntropyCombine(int64_t rows, int64_t world, double z_loss) {
  return {Name(MT_OP_CROSS_ENTROPY_COMBINE, {{"rows", rows}, {"world", world}},
               z_loss != 0 ? "z_loss" : ""),
          MT_OP_CROSS_ENTROPY_COMBINE,
          {Around(In("maximum", rows * world), 8, 1), Positive(In("sum", rows * world)),
           In("target_logit", rows * world), Targets(rows, 100), Out("lse", rows),
           Out("row_loss", rows)},
          [=](int32_t type, void* const* p) {
            return Bytes(mt_cross_entropy_combine_args{.dtype = type,
                                                       .rows = rows,
                                                       .world = world,
                                                       .maximum = p[0],
                                                       .sum = p[1],
                                                       .target_logit = p[2],
                                                       .targets = static_cast<const int32_t*>(p[3]),
                                                       .lse = p[4],
                                                       .row_loss = p[5],
                                                       .z_loss = z_loss});
          },
          20.0 * rows * world,
          12.0 * rows * world};
}

Case AdamW(int64_t n, int64_t step, bool own_parameter, bool by_pointer) {
  Tensor factor = In("gradient_scale", 1);
  factor.element = Element::kDouble;
  return {
      Name(MT_OP_ADAMW, {{"count", n}, {"step", step}, {"copy", own_parameter}},
           by_pointer ? "by_pointer" : ""),
      MT_OP_ADAMW,
      {Update("master", n), own_parameter ? Out("parameter", n) : Alias(Update("parameter", n), 0),
       In("gradient", n), Update("exp_avg", n), Positive(Update("exp_avg_sq", n)), factor},
      [=](int32_t type, void* const* p) {
        return Bytes(mt_adamw_args{
            .dtype = type,
            .state_dtype = type,
            .gradient_dtype = type,
            .count = n,
            .parameter = p[1],
            .master = p[0],
            .gradient = p[2],
            .exp_avg = p[3],
            .exp_avg_sq = p[4],
            .lr = 3e-3,
            .beta1 = 0.9,
            .beta2 = 0.95,
            .eps = 1e-8,
            .weight_decay = 0.1,
            .step = step,
            .gradient_scale = 0.5,
            .gradient_scale_pointer = by_pointer ? static_cast<const double*>(p[5]) : nullptr});
      },
      15.0 * n,
      (own_parameter ? 32.0 : 28.0) * n};
}

}  // namespace

std::vector<Case> ConformanceCases() {
  std::vector<Case> cases;
  for (const int64_t n : {0, 1, 17, 1000, 200003}) {
    cases.push_back(Fill(n));
    cases.push_back(Copy(n));
    cases.push_back(CopyToDouble(n));
    cases.push_back(Add(n, false));
    cases.push_back(Add(n, true));
    cases.push_back(Scale(n, false));
    cases.push_back(Scale(n, true));
    cases.push_back(SquaredSum(n, false));
    cases.push_back(SquaredSum(n, true));
    cases.push_back(AdamW(n, 1, false, false));
    cases.push_back(AdamW(n, 100, true, true));
  }
  cases.push_back(FillNormal(1, 1, 5, 1));
  cases.push_back(FillNormal(7, 33, 3, 100));
  cases.push_back(FillNormal(300, 64, uint64_t{1} << 33, 128));
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const double beta : {0.0, 1.0}) {
        cases.push_back(Matmul(1, 1, 1, ta, tb, beta));
        cases.push_back(Matmul(3, 17, 5, ta, tb, beta, 2));
        cases.push_back(Matmul(67, 130, 33, ta, tb, beta, 0, 0.5));
        cases.push_back(Matmul(300, 520, 40, ta, tb, beta, 8));
      }
    }
  }
  cases.push_back(Matmul(0, 4, 4, false, false, 0));
  cases.push_back(Matmul(4, 4, 0, false, false, 0));
  cases.push_back(Matmul(4, 4, 0, false, false, 1));
  cases.push_back(
      Matmul(24, 40, 2048, true, false, 1));  // few results, long sums: a weight gradient
  cases.push_back(Matmul(512, 70, 100, true, false, 1));  // rows of A a power of two apart
  cases.push_back(Matmul(30, 3000, 20, false, true, 0));
  for (const bool backward : {false, true}) {
    cases.push_back(Embedding(backward, 1, 1, 0, 4));
    cases.push_back(Embedding(backward, 61, 33, 10, 20));
    cases.push_back(Embedding(backward, 500, 160, 0, 97));
    for (const auto& [T, B, H, K, d] : std::vector<std::array<int64_t, 5>>{{1, 1, 1, 1, 2},
                                                                           {5, 2, 2, 1, 3},
                                                                           {33, 2, 4, 2, 8},
                                                                           {70, 1, 3, 3, 16},
                                                                           {130, 2, 8, 2, 20},
                                                                           {1100, 1, 2, 1, 8}}) {
      cases.push_back(Attention(backward, T, B, H, K, d, true));
      cases.push_back(Attention(backward, T, B, H, K, d, false));
    }
  }
  for (const auto& [rows, columns] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 8}, {1, 1}, {7, 33}, {130, 64}, {67, 515}}) {
    for (const Residual residual : {Residual::kNone, Residual::kKept, Residual::kInPlace}) {
      cases.push_back(RmsNormForward(rows, columns, residual));
    }
    cases.push_back(RmsNormBackward(rows, columns, false, 0));
    cases.push_back(RmsNormBackward(rows, columns, true, 0));
    cases.push_back(RmsNormBackward(rows, columns, true, 1));
    cases.push_back(RmsNormBackward(rows, columns, true, 2));
    cases.push_back(SwigluForward(rows, columns));
    cases.push_back(SwigluBackward(rows, columns, false, false));
    cases.push_back(SwigluBackward(rows, columns, true, true));
  }
  for (const bool inverse : {false, true}) {
    cases.push_back(Rope(1, 1, 1, 2, 0, inverse));
    cases.push_back(Rope(9, 2, 3, 6, 5, inverse, 4));
    cases.push_back(Rope(40, 3, 4, 64, 0, inverse, 64));
  }
  for (const auto& [rows, columns, valid, start, padding] :
       std::vector<std::array<int64_t, 5>>{{1, 1, 1, 0, 0},
                                           {11, 37, 30, 5, 3},
                                           {40, 1000, 1000, 0, 0},
                                           {6, 64, 0, 64, 0},
                                           {3, 513, 500, 2, 7}}) {
    cases.push_back(CrossEntropyStatistics(rows, columns, valid, start, padding));
    cases.push_back(CrossEntropyGradient(rows, columns, valid, start, padding, 0));
    cases.push_back(CrossEntropyGradient(rows, columns, valid, start, padding, 1e-2));
  }
  cases.push_back(CrossEntropyCombine(17, 1, 0));
  cases.push_back(CrossEntropyCombine(17, 4, 1e-3));
  return cases;
}

// Layers 8, hidden 512, heads 8, key/value heads 4, ffn 1408, vocabulary 8192, sequence 512,
// micro-batch 4.
std::vector<BenchmarkCase> BenchmarkCases() {
  constexpr int64_t L = 8, C = 512, H = 8, K = 4, d = 64, D = 1408, V = 8192, T = 512, B = 4,
                    N = T * B, chunk = 1024;
  constexpr int64_t W = (H + 2 * K) * d,
                    parameters = L * (C * W + H * d * C + 3 * C * D + 2 * C) + 2 * V * C + C;
  std::vector<BenchmarkCase> cases;
  const auto linear = [&](int64_t out, int64_t in, int64_t rows, int64_t times) {
    cases.push_back({Matmul(rows, out, in, false, true, 0), times});   // y = x W^T
    cases.push_back({Matmul(rows, in, out, false, false, 0), times});  // dx = dy W
    cases.push_back({Matmul(out, in, rows, true, false, 1), times});   // dW += dy^T x
  };
  linear(W, C, N, L);
  linear(C, H * d, N, L);
  linear(2 * D, C, N, L);
  linear(C, D, N, L);
  linear(V, C, chunk, N / chunk);
  cases.push_back({Attention(false, T, B, H, K, d, true), L});
  cases.push_back({Attention(true, T, B, H, K, d, true), L});
  cases.push_back({RmsNormForward(N, C, Residual::kKept), 2 * L + 1});
  cases.push_back({RmsNormBackward(N, C, true, 1), 2 * L + 1});
  cases.push_back({Rope(T, B, H + K, d, 0, false, K * d), L});
  cases.push_back({Rope(T, B, H + K, d, 0, true, K * d), L});
  cases.push_back({SwigluForward(N, D), L});
  cases.push_back({SwigluBackward(N, D, true, true), L});
  cases.push_back({Embedding(false, N, C, 0, V), 1});
  cases.push_back({Embedding(true, N, C, 0, V), 1});
  cases.push_back({CrossEntropyStatistics(chunk, V, V, 0, 0), N / chunk});
  cases.push_back({CrossEntropyGradient(chunk, V, V, 0, 0, 0), N / chunk});
  cases.push_back({CrossEntropyCombine(chunk, 1, 0), N / chunk});
  cases.push_back({Fill(parameters), 1});
  cases.push_back({SquaredSum(parameters, false), 1});
  cases.push_back({AdamW(parameters, 100, false, true), 1});
  return cases;
}

}  // namespace mt::conformance
