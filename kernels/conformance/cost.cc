#include "kernels/conformance/cost.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/abi/attention_shape.h"

namespace mt::conformance {
namespace {

double D(int64_t number) { return static_cast<double>(number); }
double StatisticBytes(int32_t dtype) { return dtype == MT_F64 ? 8 : 4; }
double GradientBytes(int32_t dtype, int32_t gradient_dtype) {
  return D(BytesOf(gradient_dtype != 0 ? gradient_dtype : dtype));
}
int Given(const void* pointer) { return pointer != nullptr ? 1 : 0; }

template <typename Args>
const Args& As(const void* arguments) {
  return *static_cast<const Args*>(arguments);
}

std::string Rows(int64_t rows, int64_t columns) {
  return "r" + std::to_string(rows) + " c" + std::to_string(columns);
}
std::string Count(int64_t count) { return "n" + std::to_string(count); }

Cost MatmulCost(const mt_matmul_args& a) {
  const int32_t b_dtype = a.b_dtype != 0 ? a.b_dtype : a.dtype;
  return {D(a.m) * D(a.k) * D(BytesOf(a.dtype)) + D(a.k) * D(a.n) * D(BytesOf(b_dtype)) +
              D(a.m) * D(a.n) * D(BytesOf(a.output_dtype)) * (a.beta != 0 ? 2 : 1),
          2 * D(a.m) * D(a.n) * D(a.k), a.dtype,
          "m" + std::to_string(a.m) + " n" + std::to_string(a.n) + " k" + std::to_string(a.k) +
              " " + (a.transpose_a ? "t" : "n") + (a.transpose_b ? "t" : "n") +
              (a.beta != 0 ? "+" : "")};
}

Cost AttentionCost(const mt_attention_args& a, bool backward) {
  const double rows = D(a.sequence) * D(a.batch), s = D(BytesOf(a.dtype));
  const int64_t keys = mt_attention_keys(&a), v_head_dim = mt_attention_v_head_dim(&a);
  // Older keys than the first query's window are not read.
  const double key_rows =
      D(a.batch) * D(a.window != 0 ? std::min(keys, a.sequence + a.window - 1) : keys);
  const double q = rows * D(a.heads) * D(a.head_dim) * s, o = rows * D(a.heads) * D(v_head_dim) * s,
               k = key_rows * D(a.kv_heads) * D(a.head_dim) * s,
               v = key_rows * D(a.kv_heads) * D(v_head_dim) * s,
               lse = rows * D(a.heads) * StatisticBytes(a.dtype);
  const double pairs = D(a.batch) * D(a.heads) * VisiblePairs(a);
  std::string shape = "t" + std::to_string(a.sequence) + " b" + std::to_string(a.batch) + " h" +
                      std::to_string(a.heads) + "/" + std::to_string(a.kv_heads) + " d" +
                      std::to_string(a.head_dim);
  if (v_head_dim != a.head_dim) shape += "/" + std::to_string(v_head_dim);
  if (a.window != 0) shape += " w" + std::to_string(a.window);
  if (keys != a.sequence) shape += " k" + std::to_string(keys);
  // Forward: S and O, from q, k, v. Backward: S, dP, dV, dK, dQ, from q, k, v, o, do to dq, dk, dv.
  return {(backward ? 2 : 1) * (q + k + v + o) + lse,
          2 * pairs *
              (backward ? 3 * D(a.head_dim) + 2 * D(v_head_dim) : D(a.head_dim) + D(v_head_dim)),
          a.dtype, shape};
}

Cost RmsNormCost(const mt_rmsnorm_args& a, bool backward) {
  const int tensors = backward ? 3 + Given(a.residual_gradient)
                               : 2 + Given(a.residual) + (Given(a.sum) && a.sum != a.x ? 1 : 0);
  const double s = D(BytesOf(a.dtype));
  return {D(a.rows) * (D(a.columns) * s * tensors + StatisticBytes(a.dtype)) +
              D(a.columns) * (s + (backward ? 2 * GradientBytes(a.dtype, a.gradient_dtype) : 0)),
          0, a.dtype, Rows(a.rows, a.columns)};
}
Cost LayerNormCost(const mt_layernorm_args& a, bool backward) {
  const int tensors = backward ? 3 + Given(a.residual_gradient)
                               : 2 + Given(a.residual) + (Given(a.sum) && a.sum != a.x ? 1 : 0);
  const double s = D(BytesOf(a.dtype));
  return {
      D(a.rows) * (D(a.columns) * s * tensors + 2 * StatisticBytes(a.dtype)) +
          2 * D(a.columns) * (s + (backward ? 2 * GradientBytes(a.dtype, a.gradient_dtype) : 0)),
      0, a.dtype, Rows(a.rows, a.columns)};
}

Cost EmbeddingCost(const mt_embedding_args& a, bool backward) {
  const double s = D(BytesOf(a.dtype)), c = D(a.columns), ids = 4 * D(a.rows);
  if (!backward) return {ids + 2 * D(a.rows) * c * s, 0, a.dtype, Rows(a.rows, a.columns)};
  const double touched = D(std::min(a.rows, a.vocab_rows));
  return {ids + D(a.rows) * c * s + 2 * touched * c * GradientBytes(a.dtype, a.gradient_dtype), 0,
          a.dtype, Rows(a.rows, a.columns)};
}

Cost RopeCost(const mt_rope_args& a) {
  const double r = D(a.rotary_dim > 0 ? a.rotary_dim : a.head_dim),
               rows = D(a.sequence) * D(a.batch);
  return {
      2 * rows * D(a.heads) * r * D(BytesOf(a.dtype)) + D(a.sequence) * r * StatisticBytes(a.dtype),
      0, a.dtype, Rows(a.sequence * a.batch, a.heads * a.head_dim)};
}
Cost QkNormCost(const mt_qk_norm_rope_args& a, bool backward) {
  const double values = D(a.sequence) * D(a.batch) * D(a.heads);
  return {
      values * (D(a.head_dim) * D(BytesOf(a.dtype)) * (backward ? 3 : 2) + StatisticBytes(a.dtype)),
      0, a.dtype, Rows(a.sequence * a.batch, a.heads * a.head_dim)};
}

Cost CrossEntropyCost(const mt_cross_entropy_args& a, bool gradient) {
  const double logits = D(a.rows) * D(a.columns) * D(BytesOf(a.dtype));
  return {
      (gradient ? 2 : 1) * logits + D(a.rows) * (4 + (gradient ? 1 : 3) * StatisticBytes(a.dtype)),
      0, a.dtype, Rows(a.rows, a.columns)};
}

Cost AdamWCost(const mt_adamw_args& a) {
  const double state = D(BytesOf(a.state_dtype));
  const double working = a.parameter != a.master ? D(BytesOf(a.dtype)) : 0;
  return {D(a.count) * (GradientBytes(a.dtype, a.gradient_dtype) + 6 * state + working), 0, a.dtype,
          Count(a.count)};
}

Cost Elementwise(int64_t count, double bytes_each, int32_t dtype) {
  return {D(count) * bytes_each, 0, dtype, Count(count)};
}
Cost Columns(int64_t rows, int64_t columns, double bytes_each, int32_t dtype) {
  return {D(rows) * D(columns) * bytes_each, 0, dtype, Rows(rows, columns)};
}

}  // namespace

double VisiblePairs(const mt_attention_args& args) {
  const double queries = D(args.sequence), keys = D(mt_attention_keys(&args));
  if (args.causal == 0) return queries * keys;
  const double window = args.window != 0 ? D(args.window) : keys;
  // Of the queries at positions [0, end).
  const auto before = [=](double end) {
    return end <= window ? end * end / 2 : end * window - window * window / 2;
  };
  return before(keys) - before(keys - queries);
}

int64_t BytesOf(int32_t dtype) {
  switch (dtype) {
    case MT_F64:
    case MT_I64:
      return 8;
    case MT_BF16:
      return 2;
    case MT_F8_E4M3:
    case MT_F8_E5M2:
    case MT_U8:
      return 1;
    default:
      return 4;
  }
}

Cost CostOf(int32_t operation, const void* arguments) {
  const auto size = [](int32_t dtype) { return D(BytesOf(dtype)); };
  switch (operation) {
    case MT_OP_FILL: {
      const auto& a = As<mt_fill_args>(arguments);
      return Elementwise(a.count, size(a.dtype), a.dtype);
    }
    case MT_OP_FILL_NORMAL: {
      const auto& a = As<mt_fill_normal_args>(arguments);
      return Columns(a.rows, a.columns, size(a.dtype), a.dtype);
    }
    case MT_OP_COPY: {
      const auto& a = As<mt_copy_args>(arguments);
      return Elementwise(a.count, size(a.source_dtype) + size(a.destination_dtype), a.source_dtype);
    }
    case MT_OP_ADD: {
      const auto& a = As<mt_add_args>(arguments);
      return Elementwise(a.count, 3 * size(a.dtype), a.dtype);
    }
    case MT_OP_SCALE: {
      const auto& a = As<mt_scale_args>(arguments);
      return Elementwise(a.count, 2 * size(a.dtype), a.dtype);
    }
    case MT_OP_SQUARED_SUM:
    case MT_OP_SUM: {
      const auto& a = As<mt_squared_sum_args>(arguments);
      return Elementwise(a.count, size(a.dtype), a.dtype);
    }
    case MT_OP_AMAX: {
      const auto& a = As<mt_amax_args>(arguments);
      return Elementwise(a.count, size(a.dtype), a.dtype);
    }
    case MT_OP_QUANTIZE: {
      const auto& a = As<mt_quantize_args>(arguments);
      return Columns(a.rows, a.columns,
                     size(a.dtype) + size(a.output_dtype) * (Given(a.output) + Given(a.transposed)),
                     a.dtype);
    }
    case MT_OP_COLUMN_SUM: {
      const auto& a = As<mt_column_sum_args>(arguments);
      return Columns(a.rows, a.columns, size(a.dtype), a.dtype);
    }
    case MT_OP_SWIGLU_FORWARD:
    case MT_OP_SWIGLU_BACKWARD: {
      const auto& a = As<mt_swiglu_args>(arguments);
      const int tensors = operation == MT_OP_SWIGLU_FORWARD ? 3 : 5 + Given(a.output);
      return Columns(a.rows, a.columns, tensors * size(a.dtype), a.dtype);
    }
    case MT_OP_GELU_FORWARD:
    case MT_OP_GELU_BACKWARD: {
      const auto& a = As<mt_gelu_args>(arguments);
      return Columns(a.rows, a.columns, (operation == MT_OP_GELU_FORWARD ? 2 : 3) * size(a.dtype),
                     a.dtype);
    }
    case MT_OP_CROSS_ENTROPY_COMBINE: {
      const auto& a = As<mt_cross_entropy_combine_args>(arguments);
      // Three statistics of every rank; targets, lse and loss of every row.
      const double bytes = D(a.rows) * ((3 * D(a.world) + 2) * StatisticBytes(a.dtype) + 4);
      return {bytes, 0, a.dtype, Rows(a.rows, a.world)};
    }
    case MT_OP_MATMUL:
      return MatmulCost(As<mt_matmul_args>(arguments));
    case MT_OP_EMBEDDING_FORWARD:
    case MT_OP_EMBEDDING_BACKWARD:
      return EmbeddingCost(As<mt_embedding_args>(arguments), operation == MT_OP_EMBEDDING_BACKWARD);
    case MT_OP_RMSNORM_FORWARD:
    case MT_OP_RMSNORM_BACKWARD:
      return RmsNormCost(As<mt_rmsnorm_args>(arguments), operation == MT_OP_RMSNORM_BACKWARD);
    case MT_OP_LAYERNORM_FORWARD:
    case MT_OP_LAYERNORM_BACKWARD:
      return LayerNormCost(As<mt_layernorm_args>(arguments), operation == MT_OP_LAYERNORM_BACKWARD);
    case MT_OP_ROPE:
      return RopeCost(As<mt_rope_args>(arguments));
    case MT_OP_QK_NORM_ROPE_FORWARD:
    case MT_OP_QK_NORM_ROPE_BACKWARD:
      return QkNormCost(As<mt_qk_norm_rope_args>(arguments),
                        operation == MT_OP_QK_NORM_ROPE_BACKWARD);
    case MT_OP_ATTENTION_FORWARD:
    case MT_OP_ATTENTION_BACKWARD:
      return AttentionCost(As<mt_attention_args>(arguments), operation == MT_OP_ATTENTION_BACKWARD);
    case MT_OP_CROSS_ENTROPY_STATISTICS:
    case MT_OP_CROSS_ENTROPY_GRADIENT:
      return CrossEntropyCost(As<mt_cross_entropy_args>(arguments),
                              operation == MT_OP_CROSS_ENTROPY_GRADIENT);
    case MT_OP_ADAMW:
      return AdamWCost(As<mt_adamw_args>(arguments));
    default:
      return ExpertCostOf(operation, arguments);
  }
}

double Ceilings::Flops(int32_t dtype) const {
  if (dtype == MT_BF16) return bf16_flops;
  if (dtype == MT_F8_E4M3 || dtype == MT_F8_E5M2) return fp8_flops;
  return f32_flops;
}

double Ceilings::Floor(const Cost& cost) const {
  const double flops = Flops(cost.dtype);
  return std::max(bytes_per_second > 0 ? cost.bytes / bytes_per_second : 0,
                  flops > 0 ? cost.flops / flops : 0);
}

bool Ceilings::BoundByBytes(const Cost& cost) const {
  return Floor(cost) > 0 && bytes_per_second > 0 && Floor(cost) == cost.bytes / bytes_per_second;
}

namespace {

// Memory of the backend with normal numbers in it: zeros run faster than real data.
class Memory {
 public:
  Memory(const mt_backend* backend, size_t bytes) : backend_(backend) {
    if (backend->allocate(bytes, &data) != MT_OK) data = nullptr;
  }
  ~Memory() {
    if (data != nullptr) backend_->free(data);
  }
  void* data = nullptr;

 private:
  const mt_backend* const backend_;
};

double Median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Seconds of one call, 0 if it fails.
double Measure(const mt_backend* backend, int32_t operation, const void* arguments) {
  constexpr int kWarmUp = 3, kRuns = 10;
  const auto now = [] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
  };
  if (backend->supports(operation, arguments) != 1) return 0;
  std::vector<double> seconds;
  for (int run = 0; run < kWarmUp + kRuns; ++run) {
    const double start = now();
    // Several calls between two stops, so that what a stop costs does not count.
    for (int i = 0; i < 4; ++i) {
      if (backend->run(operation, arguments, nullptr) != MT_OK) return 0;
    }
    if (backend->stream_synchronize(nullptr) != MT_OK) return 0;
    if (run >= kWarmUp) seconds.push_back((now() - start) / 4);
  }
  return Median(seconds);
}

bool FillNormal(const mt_backend* backend, void* data, int32_t dtype, int64_t count) {
  mt_fill_normal_args args = {};
  args.struct_size = sizeof args;
  args.dtype = dtype;
  args.data = data;
  args.rows = 1;
  args.columns = count;
  args.row_stride = static_cast<uint64_t>(count);
  args.seed = 7;
  args.std = 1;
  return backend->run(MT_OP_FILL_NORMAL, &args, nullptr) == MT_OK;
}

double ProductFlops(const mt_backend* backend, int32_t dtype, int64_t size) {
  const bool fp8 = BytesOf(dtype) == 1;
  const size_t bytes = static_cast<size_t>(size * size * std::max<int64_t>(BytesOf(dtype), 2));
  Memory a(backend, bytes), b(backend, bytes), d(backend, bytes), scale(backend, 64);
  if (a.data == nullptr || b.data == nullptr || d.data == nullptr || scale.data == nullptr)
    return 0;
  mt_matmul_args args = {};
  args.struct_size = sizeof args;
  args.dtype = args.b_dtype = dtype;
  args.output_dtype = fp8 ? MT_BF16 : dtype;
  args.transpose_b = 1;
  args.m = args.n = args.k = args.lda = args.ldb = args.ldd = size;
  args.a = a.data;
  args.b = b.data;
  args.d = d.data;
  args.alpha = 1;
  const int64_t workspace = backend->supports(MT_OP_MATMUL, &args) == 1
                                ? backend->workspace_bytes(MT_OP_MATMUL, &args)
                                : -1;
  if (workspace < 0) return 0;
  Memory scratch(backend, static_cast<size_t>(std::max<int64_t>(workspace, 64)));
  args.workspace = scratch.data;
  args.workspace_bytes = static_cast<size_t>(workspace);
  if (fp8) {  // random bits would hold NaN: quantise normal numbers, amax 8
    const float amax = 8;
    mt_quantize_args quantize = {};
    quantize.struct_size = sizeof quantize;
    quantize.dtype = MT_BF16;
    quantize.output_dtype = dtype;
    quantize.rows = quantize.columns = size;
    quantize.source = d.data;
    quantize.amax = static_cast<const float*>(scale.data);
    quantize.output_scale = static_cast<float*>(scale.data) + 1;
    if (backend->copy_to_device(scale.data, &amax, sizeof amax, nullptr) != MT_OK) return 0;
    for (void* to : {a.data, b.data}) {
      quantize.output = to;
      if (!FillNormal(backend, d.data, MT_BF16, size * size) ||
          backend->run(MT_OP_QUANTIZE, &quantize, nullptr) != MT_OK)
        return 0;
    }
    args.a_scale = args.b_scale = quantize.output_scale;
  } else if (!FillNormal(backend, a.data, dtype, size * size) ||
             !FillNormal(backend, b.data, dtype, size * size)) {
    return 0;
  }
  const double seconds = Measure(backend, MT_OP_MATMUL, &args);
  return seconds > 0 ? 2 * D(size) * D(size) * D(size) / seconds : 0;
}

}  // namespace

Ceilings MeasureCeilings(const mt_backend* backend, bool small) {
  Ceilings ceilings;
  const int64_t count = small ? int64_t{1} << 20 : int64_t{1} << 28;  // float32: 4 MiB or 1 GiB
  {
    Memory from(backend, static_cast<size_t>(4 * count)),
        to(backend, static_cast<size_t>(4 * count));
    mt_copy_args args = {};
    args.struct_size = sizeof args;
    args.source_dtype = args.destination_dtype = MT_F32;
    args.source = from.data;
    args.destination = to.data;
    args.count = count;
    if (from.data != nullptr && to.data != nullptr &&
        FillNormal(backend, from.data, MT_F32, count)) {
      const double seconds = Measure(backend, MT_OP_COPY, &args);
      if (seconds > 0) ceilings.bytes_per_second = 8 * D(count) / seconds;
    }
  }
  const int64_t size = small ? 256 : 8192;
  ceilings.f32_flops = ProductFlops(backend, MT_F32, small ? size : 4096);
  ceilings.bf16_flops = ProductFlops(backend, MT_BF16, size);
  ceilings.fp8_flops = ProductFlops(backend, MT_F8_E4M3, size);
  return ceilings;
}

}  // namespace mt::conformance
