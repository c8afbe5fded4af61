// The contract of kernels/abi/mt_backend.h as checks: bad arguments are refused before a kernel
// reads them.
#include <algorithm>
#include <cmath>

#include "kernels/abi/attention_shape.h"
#include "kernels/host/argument_checker.h"
#include "kernels/host/host.h"

namespace mt::host {
namespace {

bool IsFp8(int32_t dtype) { return dtype == MT_F8_E4M3 || dtype == MT_F8_E5M2; }

void Check(Checker& c, const mt_fill_args& a) {
  c.Range("count", a.count, 0);
  c.Pointer("data", a.data, a.count);
}

void Check(Checker& c, const mt_fill_normal_args& a) {
  c.Range("rows", a.rows, 0);
  c.Range("columns", a.columns, 0);
  c.Product("rows", a.rows, a.columns);
  c.Pointer("data", a.data, a.rows * a.columns);
}

void Check(Checker& c, const mt_copy_args& a) {
  c.Range("count", a.count, 0);
  c.Pointer("source", a.source, a.count);
  c.Pointer("destination", a.destination, a.count);
}

void Check(Checker& c, const mt_add_args& a) {
  c.Range("count", a.count, 0);
  c.Pointer("a", a.a, a.count);
  c.Pointer("b", a.b, a.count);
  c.Pointer("destination", a.destination, a.count);
}

void Check(Checker& c, const mt_scale_args& a) {
  c.Range("count", a.count, 0);
  c.Pointer("data", a.data, a.count);
}

void Check(Checker& c, const mt_squared_sum_args& a) {
  c.Range("count", a.count, 0);
  c.Pointer("data", a.data, a.count);
  c.Pointer("result", a.result);
}

void Check(Checker& c, const mt_clip_factor_args& a) {
  c.Pointer("squared_norm", a.squared_norm);
  c.Pointer("factor", a.factor);
}

void Check(Checker& c, const mt_column_sum_args& a) {
  c.Range("rows", a.rows, 0);
  c.Range("columns", a.columns, 0);
  c.Range("row_stride", a.row_stride, std::max<int64_t>(a.columns, 0));
  c.Product("rows", a.rows, a.row_stride);
  c.Pointer("data", a.data, a.rows > 0 && a.columns > 0);
  c.Pointer("result", a.result, a.columns);
}

void Check(Checker& c, const mt_matmul_args& a) {
  c.Range("m", a.m, 0);
  c.Range("n", a.n, 0);
  c.Range("k", a.k, 0);
  c.Rule(a.lda >= std::max<int64_t>(1, a.transpose_a ? a.m : a.k), "lda", a.lda,
         "is smaller than a row of A");
  c.Rule(a.ldb >= std::max<int64_t>(1, a.transpose_b ? a.k : a.n), "ldb", a.ldb,
         "is smaller than a row of B");
  c.Rule(a.ldd >= std::max<int64_t>(1, a.n), "ldd", a.ldd, "is smaller than a row of D");
  c.Range("lda", a.lda, 1);
  c.Range("ldb", a.ldb, 1);
  c.Range("ldd", a.ldd, 1);
  c.Product("m", std::max(a.m, a.k), std::max({a.lda, a.ldb, a.ldd}));
  c.Rule(a.beta == 0 || a.beta == 1, "beta", static_cast<int64_t>(a.beta), "is neither 0 nor 1");
  const int32_t b_dtype = a.b_dtype != 0 ? a.b_dtype : a.dtype;
  const bool fp8 = IsFp8(a.dtype);
  c.Rule(fp8 ? IsFp8(b_dtype) : b_dtype == a.dtype, "b_dtype", b_dtype,
         "does not go with A's type: only the two FP8 types are multiplied with each other");
  c.Rule(!IsFp8(a.output_dtype), "output_dtype", a.output_dtype, "is FP8: quantise apart");
  c.Rule(!fp8 || a.output_dtype == MT_BF16 || a.output_dtype == MT_F32, "output_dtype",
         a.output_dtype, "of an FP8 product is neither BF16 nor F32");
  c.Pointer("a_scale", a.a_scale, fp8);
  c.Pointer("b_scale", a.b_scale, fp8);
  c.Pointer("a", a.a, a.m > 0 && a.k > 0);
  c.Pointer("b", a.b, a.n > 0 && a.k > 0);
  c.Pointer("d", a.d, a.m > 0 && a.n > 0);
}

void Check(Checker& c, const mt_embedding_args& a, bool backward) {
  c.Range("rows", a.rows, 0);
  c.Range("columns", a.columns, 1);
  c.Range("vocab_start", a.vocab_start, 0, INT32_MAX);
  c.Range("vocab_rows", a.vocab_rows, 0, INT32_MAX);
  c.Product("columns", a.columns, std::max(a.rows, a.vocab_rows));
  c.Pointer("ids", a.ids, a.rows);
  c.Pointer("table", a.table, backward ? 0 : a.vocab_rows);
  c.Pointer("output", a.output, backward ? 0 : a.rows);
  c.Pointer("output_gradient", a.output_gradient, backward ? a.rows : 0);
  c.Pointer("table_gradient", a.table_gradient, backward ? a.vocab_rows : 0);
}

void Check(Checker& c, const mt_rmsnorm_args& a, bool backward) {
  c.Range("rows", a.rows, 0);
  c.Range("columns", a.columns, 1);
  c.Product("rows", a.rows, a.columns);
  c.Rule(backward || a.eps >= 0, "eps", static_cast<int64_t>(a.eps), "is negative");
  c.Pointer("weight", a.weight);
  c.Pointer("rstd", a.rstd, a.rows);
  c.Pointer("x", a.x, backward ? 0 : a.rows);
  c.Pointer("output", a.output, backward ? 0 : a.rows);
  c.Pointer("sum", a.sum, backward ? a.rows : 0);
  c.Pointer("output_gradient", a.output_gradient, backward ? a.rows : 0);
  c.Pointer("input_gradient", a.input_gradient, backward ? a.rows : 0);
  c.Pointer("weight_gradient", a.weight_gradient, backward);
}

void Check(Checker& c, const mt_layernorm_args& a, bool backward) {
  c.Range("rows", a.rows, 0);
  c.Range("columns", a.columns, 1);
  c.Product("rows", a.rows, a.columns);
  c.Rule(backward || a.eps >= 0, "eps", static_cast<int64_t>(a.eps), "is negative");
  c.Pointer("weight", a.weight);
  c.Pointer("mean", a.mean, a.rows);
  c.Pointer("rstd", a.rstd, a.rows);
  c.Pointer("bias", a.bias, !backward);
  c.Pointer("x", a.x, backward ? 0 : a.rows);
  c.Pointer("output", a.output, backward ? 0 : a.rows);
  c.Pointer("sum", a.sum, backward ? a.rows : 0);
  c.Pointer("output_gradient", a.output_gradient, backward ? a.rows : 0);
  c.Pointer("input_gradient", a.input_gradient, backward ? a.rows : 0);
  c.Pointer("weight_gradient", a.weight_gradient, backward);
  c.Pointer("bias_gradient", a.bias_gradient, backward);
}

void Rotary(Checker& c, int32_t rotary_dim, int64_t head_dim) {
  c.Range("rotary_dim", rotary_dim, 0, std::max<int64_t>(head_dim, 0));
  c.Rule(rotary_dim % 2 == 0, "rotary_dim", rotary_dim, "is odd");
  c.Rule(rotary_dim != 0 || head_dim % 2 == 0, "head_dim", head_dim, "is odd");
}

void Check(Checker& c, const mt_rope_args& a) {
  c.Range("sequence", a.sequence, 0);
  c.Range("batch", a.batch, 0);
  c.Range("heads", a.heads, 0, 1 << 20);
  c.Range("head_dim", a.head_dim, 2, 1 << 16);
  Rotary(c, a.rotary_dim, a.head_dim);
  c.Range("first_position", a.first_position, 0);
  c.Rule(a.row_stride >= a.heads * a.head_dim, "row_stride", a.row_stride,
         "is smaller than heads * head_dim");
  c.Pointer("data", a.data, a.sequence * a.batch * a.heads);
  c.Pointer("cos_sin", a.cos_sin, a.sequence);
}

void Check(Checker& c, const mt_qk_norm_rope_args& a, bool backward) {
  c.Range("sequence", a.sequence, 0, 1 << 30);
  c.Range("batch", a.batch, 0, 1 << 30);
  c.Range("heads", a.heads, 0, 1 << 20);
  c.Range("head_dim", a.head_dim, 2, 1 << 16);
  Rotary(c, a.rotary_dim, a.head_dim);
  c.Range("first_position", a.first_position, 0);
  c.Rule(backward || a.eps >= 0, "eps", static_cast<int64_t>(a.eps), "is negative");
  if (c.code() != MT_OK) return;
  const int64_t width = a.heads * a.head_dim, count = a.sequence * a.batch * a.heads;
  c.Rule(a.x_stride >= width, "x_stride", a.x_stride, "is smaller than heads * head_dim");
  c.Rule(a.y_stride >= width, "y_stride", a.y_stride, "is smaller than heads * head_dim");
  c.Pointer("cos_sin", a.cos_sin, a.sequence);
  c.Pointer("weight", a.weight);
  c.Pointer("x", a.x, count);
  c.Pointer("rstd", a.rstd, count);
  c.Pointer("y", a.y, backward ? 0 : count);
  c.Pointer("output_gradient", a.output_gradient, backward ? count : 0);
  c.Pointer("input_gradient", a.input_gradient, backward ? count : 0);
  c.Pointer("weight_gradient", a.weight_gradient, backward);
}

// What 1.2 and 1.3 added: which keys are seen, and the logits without a value.
void CheckMask(Checker& c, const mt_attention_args& a, bool backward) {
  c.Range("v_head_dim", a.v_head_dim, 0, 1 << 16);
  c.Range("window", a.window, 0);
  c.Rule(a.window == 0 || a.causal != 0, "window", a.window, "needs causal");
  c.Range("key_sequence", a.key_sequence, 0, 1 << 30);
  c.Rule(a.key_sequence == 0 || a.key_sequence >= a.sequence, "key_sequence", a.key_sequence,
         "is smaller than sequence: every query stands among the keys");
  c.Rule(!backward || a.key_sequence == 0 || a.key_sequence == a.sequence, "key_sequence",
         a.key_sequence, "differs from sequence, which backward does not know");
  const bool documents = a.document_start != nullptr;
  c.Rule(!documents || a.causal != 0, "causal", a.causal, "with document_start: it needs causal");
  c.Rule(!documents || a.key_sequence == 0 || a.key_sequence == a.sequence, "key_sequence",
         a.key_sequence, "with document_start: documents have as many keys as queries");
  if (!backward || a.sinks_gradient == nullptr) return;
  c.Pointer("sinks", a.sinks);
  c.Rule(a.sinks_gradient_dtype != 0, "sinks_gradient_dtype", a.sinks_gradient_dtype,
         "says no type");
}

void Check(Checker& c, const mt_attention_args& a, bool backward) {
  c.Range("sequence", a.sequence, 0, 1 << 30);
  c.Range("batch", a.batch, 0, 1 << 30);
  c.Range("heads", a.heads, 1, 1 << 20);
  c.Range("kv_heads", a.kv_heads, 1, 1 << 20);
  c.Range("head_dim", a.head_dim, 1, 1 << 16);
  CheckMask(c, a, backward);
  if (c.code() != MT_OK) return;
  c.Rule(a.heads % a.kv_heads == 0, "kv_heads", a.kv_heads, "does not divide heads");
  const int64_t v_head_dim = mt_attention_v_head_dim(&a);
  const auto stride = [&c](const char* field, int64_t value, int64_t heads, int64_t dim) {
    c.Rule(value >= heads * dim, field, value, "is smaller than a row of all heads");
  };
  stride("q_stride", a.q_stride, a.heads, a.head_dim);
  stride("k_stride", a.k_stride, a.kv_heads, a.head_dim);
  stride("v_stride", a.v_stride, a.kv_heads, v_head_dim);
  stride("o_stride", a.o_stride, a.heads, v_head_dim);
  const int64_t rows = a.sequence * a.batch;
  c.Pointer("q", a.q, rows);
  c.Pointer("k", a.k, rows);
  c.Pointer("v", a.v, rows);
  c.Pointer("o", a.o, rows);
  c.Pointer("lse", a.lse, rows);
  if (!backward) return;
  stride("o_gradient_stride", a.o_gradient_stride, a.heads, v_head_dim);
  stride("dq_stride", a.dq_stride, a.heads, a.head_dim);
  stride("dk_stride", a.dk_stride, a.kv_heads, a.head_dim);
  stride("dv_stride", a.dv_stride, a.kv_heads, v_head_dim);
  c.Pointer("o_gradient", a.o_gradient, rows);
  c.Pointer("dq", a.dq, rows);
  c.Pointer("dk", a.dk, rows);
  c.Pointer("dv", a.dv, rows);
}

void Check(Checker& c, const mt_swiglu_args& a, bool backward) {
  c.Range("rows", a.rows, 0);
  c.Range("columns", a.columns, 0);
  c.Product("rows", a.rows, 2 * a.columns);
  c.Real(a.limit >= 0 && std::isfinite(a.limit), "limit", a.limit, "is no size; 0 = no limit");
  c.Real(a.alpha >= 0 && std::isfinite(a.alpha), "alpha", a.alpha, "is no slope; 0 = 1");
  c.Real(std::isfinite(a.offset), "offset", a.offset, "is not finite");
  const int64_t count = c.code() == MT_OK ? a.rows * a.columns : 0;
  c.Pointer("gate_up", a.gate_up, count);
  c.Pointer("output", a.output, backward ? 0 : count);
  c.Pointer("output_gradient", a.output_gradient, backward ? count : 0);
  c.Pointer("gate_up_gradient", a.gate_up_gradient, backward ? count : 0);
}

void Check(Checker& c, const mt_gelu_args& a, bool backward) {
  c.Range("rows", a.rows, 0);
  c.Range("columns", a.columns, 0);
  c.Product("rows", a.rows, a.columns);
  const int64_t count = c.code() == MT_OK ? a.rows * a.columns : 0;
  c.Pointer("x", a.x, count);
  c.Pointer("output", a.output, backward ? 0 : count);
  c.Pointer("output_gradient", a.output_gradient, backward ? count : 0);
  c.Pointer("input_gradient", a.input_gradient, backward ? count : 0);
}

void Check(Checker& c, const mt_amax_args& a) {
  c.Range("count", a.count, 0);
  c.Pointer("data", a.data, a.count);
  c.Pointer("amax", a.amax);
}

void Check(Checker& c, const mt_quantize_args& a) {
  c.Range("rows", a.rows, 0);
  c.Range("columns", a.columns, 0);
  c.Product("rows", a.rows, a.columns);
  c.Rule(IsFp8(a.output_dtype), "output_dtype", a.output_dtype, "is no FP8 type");
  c.Rule(!IsFp8(a.dtype), "dtype", a.dtype, "is FP8 already");
  c.Pointer("source", a.source, c.code() == MT_OK ? a.rows * a.columns : 0);
  c.Pointer("amax", a.amax);
  c.Pointer("output_scale", a.output_scale);
}

void Check(Checker& c, const mt_cross_entropy_args& a, bool backward) {
  c.Range("rows", a.rows, 0);
  c.Range("columns", a.columns, 0, INT32_MAX);
  c.Range("valid_columns", a.valid_columns, 0, std::max<int64_t>(a.columns, 0));
  c.Range("vocab_start", a.vocab_start, 0, INT32_MAX);
  c.Range("row_stride", a.row_stride, a.columns);
  c.Product("rows", a.rows, a.row_stride);
  c.Pointer("logits", a.logits, a.rows > 0 && a.columns > 0);
  c.Pointer("targets", a.targets, a.rows);
  c.Pointer("maximum", a.maximum, backward ? 0 : a.rows);
  c.Pointer("sum", a.sum, backward ? 0 : a.rows);
  c.Pointer("target_logit", a.target_logit, backward ? 0 : a.rows);
  c.Pointer("lse", a.lse, backward ? a.rows : 0);
}

void Check(Checker& c, const mt_cross_entropy_combine_args& a) {
  c.Range("rows", a.rows, 0);
  c.Range("world", a.world, 1, 1 << 20);
  c.Product("rows", a.rows, a.world);
  c.Pointer("maximum", a.maximum, a.rows);
  c.Pointer("sum", a.sum, a.rows);
  c.Pointer("target_logit", a.target_logit, a.rows);
  c.Pointer("targets", a.targets, a.rows);
  c.Pointer("lse", a.lse, a.rows);
  c.Pointer("row_loss", a.row_loss, a.rows);
}

void Check(Checker& c, const mt_adamw_args& a) {
  c.Range("count", a.count, 0);
  c.Range("step", a.step, 1);
  c.Pointer("parameter", a.parameter, a.count);
  c.Pointer("master", a.master, a.count);
  c.Pointer("gradient", a.gradient, a.count);
  c.Pointer("exp_avg", a.exp_avg, a.count);
  c.Pointer("exp_avg_sq", a.exp_avg_sq, a.count);
}

void Check(Checker& c, const mt_mla_expand_args& a) {
  c.Range("rows", a.rows, 0);
  c.Range("heads", a.heads, 1, 1 << 20);
  c.Range("nope_dim", a.nope_dim, 1, 1 << 16);
  c.Range("rope_dim", a.rope_dim, 1, 1 << 16);
  c.Range("v_dim", a.v_dim, 1, 1 << 16);
  if (c.code() != MT_OK) return;
  c.Product("rows", a.rows, a.heads * (a.nope_dim + std::max(a.rope_dim, a.v_dim)));
  c.Pointer("kv", a.kv, a.rows);
  c.Pointer("key_rope", a.key_rope, a.rows);
  c.Pointer("key", a.key, a.rows);
  c.Pointer("value", a.value, a.rows);
}

// Calls `visit(args, which...)` with the operation's own struct and, where operations share one, which of them it is (backward
// or not); false if there is no such operation.
template <typename Visit>
bool Dispatch(int32_t operation, const void* args, Visit&& visit) {
#define OPERATION(number, type, ...)                                   \
  case number:                                                         \
    visit(*static_cast<const type*>(args) __VA_OPT__(, ) __VA_ARGS__); \
    return true
  switch (operation) {
    OPERATION(MT_OP_FILL, mt_fill_args);
    OPERATION(MT_OP_FILL_NORMAL, mt_fill_normal_args);
    OPERATION(MT_OP_COPY, mt_copy_args);
    OPERATION(MT_OP_ADD, mt_add_args);
    OPERATION(MT_OP_SCALE, mt_scale_args);
    OPERATION(MT_OP_SQUARED_SUM, mt_squared_sum_args);
    OPERATION(MT_OP_MATMUL, mt_matmul_args);
    OPERATION(MT_OP_EMBEDDING_FORWARD, mt_embedding_args, false);
    OPERATION(MT_OP_EMBEDDING_BACKWARD, mt_embedding_args, true);
    OPERATION(MT_OP_RMSNORM_FORWARD, mt_rmsnorm_args, false);
    OPERATION(MT_OP_RMSNORM_BACKWARD, mt_rmsnorm_args, true);
    OPERATION(MT_OP_ROPE, mt_rope_args);
    OPERATION(MT_OP_ATTENTION_FORWARD, mt_attention_args, false);
    OPERATION(MT_OP_ATTENTION_BACKWARD, mt_attention_args, true);
    OPERATION(MT_OP_SWIGLU_FORWARD, mt_swiglu_args, false);
    OPERATION(MT_OP_SWIGLU_BACKWARD, mt_swiglu_args, true);
    OPERATION(MT_OP_CROSS_ENTROPY_STATISTICS, mt_cross_entropy_args, false);
    OPERATION(MT_OP_CROSS_ENTROPY_GRADIENT, mt_cross_entropy_args, true);
    OPERATION(MT_OP_ADAMW, mt_adamw_args);
    OPERATION(MT_OP_CROSS_ENTROPY_COMBINE, mt_cross_entropy_combine_args);
    OPERATION(MT_OP_SUM, mt_squared_sum_args);
    OPERATION(MT_OP_CLIP_FACTOR, mt_clip_factor_args);
    OPERATION(MT_OP_COLUMN_SUM, mt_column_sum_args);
    OPERATION(MT_OP_LAYERNORM_FORWARD, mt_layernorm_args, false);
    OPERATION(MT_OP_LAYERNORM_BACKWARD, mt_layernorm_args, true);
    OPERATION(MT_OP_GELU_FORWARD, mt_gelu_args, false);
    OPERATION(MT_OP_GELU_BACKWARD, mt_gelu_args, true);
    OPERATION(MT_OP_QK_NORM_ROPE_FORWARD, mt_qk_norm_rope_args, false);
    OPERATION(MT_OP_QK_NORM_ROPE_BACKWARD, mt_qk_norm_rope_args, true);
    OPERATION(MT_OP_AMAX, mt_amax_args);
    OPERATION(MT_OP_QUANTIZE, mt_quantize_args);
    OPERATION(MT_OP_MOE_ROUTE_FORWARD, mt_moe_route_args, false);
    OPERATION(MT_OP_MOE_ROUTE_BACKWARD, mt_moe_route_args, true);
    OPERATION(MT_OP_MOE_SORT, mt_moe_sort_args);
    OPERATION(MT_OP_MOE_GATHER, mt_moe_rows_args, Rows::kGather);
    OPERATION(MT_OP_MOE_COMBINE, mt_moe_rows_args, Rows::kCombine);
    OPERATION(MT_OP_MOE_COMBINE_BACKWARD, mt_moe_rows_args, Rows::kCombineBackward);
    OPERATION(MT_OP_GROUPED_MATMUL, mt_grouped_matmul_args);
    OPERATION(MT_OP_GROUPED_COLUMN_SUM, mt_grouped_column_sum_args);
    OPERATION(MT_OP_MLA_EXPAND_FORWARD, mt_mla_expand_args);
    OPERATION(MT_OP_MLA_EXPAND_BACKWARD, mt_mla_expand_args);
    OPERATION(MT_OP_BALANCE_UPDATE, mt_balance_update_args);
    default:
      return false;
  }
#undef OPERATION
}

}  // namespace

int32_t CheckArguments(int32_t operation, const void* args, bool with_pointers) {
  if (args == nullptr) return Fail(MT_ERROR_INVALID, operation, "arguments are null");
  Checker checker(operation, with_pointers);
  const bool known = Dispatch(operation, args, [&](const auto& a, auto... which) {
    if (checker.Size(a)) Check(checker, a, which...);
  });
  if (!known)
    return Fail(MT_ERROR_UNSUPPORTED, 0, "operation %d is unknown to this backend", operation);
  return checker.code();
}

int TypesOf(int32_t operation, const void* args, int32_t types[3]) {
  int count = 0;
  Dispatch(operation, args, [&](const auto& a, auto... which) {
    if constexpr (requires { a.source_dtype; }) {
      types[count++] = a.source_dtype;
      types[count++] = a.destination_dtype;
    } else if constexpr (requires { a.dtype; }) {
      types[count++] = a.dtype;
    }
    if constexpr (requires { a.b_dtype; }) {
      if (a.b_dtype != 0) types[count++] = a.b_dtype;
    }
    if constexpr (requires { a.output_dtype; }) types[count++] = a.output_dtype;
    if constexpr (requires { a.state_dtype; }) types[count++] = a.state_dtype;
    if constexpr (requires { a.gradient_dtype; }) {
      // Forward passes make no weight gradient: the field may be left out.
      bool makes_gradient = (... && static_cast<bool>(which));
      if constexpr (requires { a.mode; }) makes_gradient = a.mode == MT_GROUPED_WEIGHT_GRADIENT;
      if (makes_gradient || a.gradient_dtype != 0) types[count++] = a.gradient_dtype;
    }
    if constexpr (requires { a.sinks_gradient_dtype; }) {
      if (a.sinks_gradient_dtype != 0) types[count++] = a.sinks_gradient_dtype;
    }
  });
  return count;
}

Workspace WorkspaceOf(int32_t operation, const void* args) {
  Workspace workspace;
  Dispatch(operation, args, [&](const auto& a, auto...) {
    if constexpr (requires { a.workspace; }) workspace = {a.workspace, a.workspace_bytes};
  });
  return workspace;
}

}  // namespace mt::host
