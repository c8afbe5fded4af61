// The reference backend's entry: every operation in float32, float64 and bfloat16.
#include "kernels/abi/attention_shape.h"
#include "kernels/abi/operation_names.h"
#include "kernels/host/host.h"
#include "kernels/reference/operations.h"

namespace mt::reference {

int64_t WorkspaceBytes(int32_t operation, const void* args) {
  constexpr int64_t kDouble = sizeof(double);
  const auto* attention = static_cast<const mt_attention_args*>(args);
  switch (operation) {
    case MT_OP_RMSNORM_BACKWARD:
      return kDouble * static_cast<const mt_rmsnorm_args*>(args)->columns;
    case MT_OP_LAYERNORM_BACKWARD:
      return 2 * kDouble * static_cast<const mt_layernorm_args*>(args)->columns;
    case MT_OP_COLUMN_SUM:
      return kDouble * static_cast<const mt_column_sum_args*>(args)->columns;
    case MT_OP_QK_NORM_ROPE_FORWARD:
      return kDouble * static_cast<const mt_qk_norm_rope_args*>(args)->head_dim;
    case MT_OP_QK_NORM_ROPE_BACKWARD:
      return 2 * kDouble * static_cast<const mt_qk_norm_rope_args*>(args)->head_dim;
    case MT_OP_ATTENTION_FORWARD:
      return kDouble * mt_attention_keys(attention);
    case MT_OP_ATTENTION_BACKWARD:
      return kDouble *
             (attention->sequence * (attention->head_dim + mt_attention_v_head_dim(attention)) +
              attention->head_dim + attention->heads);
    case MT_OP_MOE_ROUTE_FORWARD:
    case MT_OP_MOE_ROUTE_BACKWARD:  // seven rows of numbers, two of marks
      return (7 * kDouble + 2) * static_cast<const mt_moe_route_args*>(args)->experts;
    case MT_OP_MOE_SORT: {
      const auto& sort = *static_cast<const mt_moe_sort_args*>(args);
      return kDouble * sort.experts + int64_t{sizeof(int32_t)} * sort.rows * sort.top_k;
    }
    case MT_OP_GROUPED_COLUMN_SUM:
      return kDouble * static_cast<const mt_grouped_column_sum_args*>(args)->columns;
    default:
      return 0;
  }
}

namespace {

int32_t Probe(mt_device_info* info) {
  host::DescribeProcessor(info);
  return 1;
}

int32_t Open(int32_t device, int32_t) {
  if (device != 0)
    return host::Fail(MT_ERROR_INVALID, 0, "open: device %d does not exist; the host is device 0",
                      device);
  return MT_OK;
}

int32_t CheckTypes(int32_t operation, const void* args) {
  int32_t types[3];
  const int count = host::TypesOf(operation, args, types);
  for (int i = 0; i < count; ++i) {
    if (types[i] == MT_F32 || types[i] == MT_F64 || types[i] == MT_BF16) continue;
    // Where FP8 may stand is the contract's (kernels/host); the integers can be filled.
    if (IsFp8(types[i]) && (operation == MT_OP_MATMUL || operation == MT_OP_QUANTIZE)) continue;
    if (operation == MT_OP_FILL && types[i] >= MT_I32 && types[i] <= MT_U8) continue;
    return host::Fail(MT_ERROR_UNSUPPORTED, operation,
                      "type %d: the reference backend has float32, float64 and bfloat16", types[i]);
  }
  return MT_OK;
}

int32_t Supports(int32_t operation, const void* args) {
  return host::CheckArguments(operation, args, false) == MT_OK &&
         CheckTypes(operation, args) == MT_OK;
}

const char* KernelName(int32_t, const void*) { return "loops:float64"; }

int64_t WorkspaceBytesChecked(int32_t operation, const void* args) {
  const int32_t code = host::CheckArguments(operation, args, false);
  return code != MT_OK ? code : WorkspaceBytes(operation, args);
}

int32_t Run(int32_t operation, const void* args, mt_stream) {
  if (const int32_t code = host::CheckArguments(operation, args, true); code != MT_OK) return code;
  if (const int32_t code = CheckTypes(operation, args); code != MT_OK) return code;
  const host::Workspace workspace = host::WorkspaceOf(operation, args);
  const int64_t need = WorkspaceBytes(operation, args);
  if (need > 0 && (workspace.data == nullptr || static_cast<int64_t>(workspace.bytes) < need)) {
    return host::Fail(MT_ERROR_INVALID, operation, "workspace of %zu bytes; %lld are needed",
                      workspace.bytes, static_cast<long long>(need));
  }
#define MT_RUN(op, function, type)             \
  case op:                                     \
    function(*static_cast<const type*>(args)); \
    return MT_OK
  switch (operation) {
    MT_RUN(MT_OP_FILL, Fill, mt_fill_args);
    MT_RUN(MT_OP_FILL_NORMAL, FillNormal, mt_fill_normal_args);
    MT_RUN(MT_OP_COPY, Copy, mt_copy_args);
    MT_RUN(MT_OP_ADD, Add, mt_add_args);
    MT_RUN(MT_OP_SCALE, Scale, mt_scale_args);
    MT_RUN(MT_OP_SQUARED_SUM, SquaredSum, mt_squared_sum_args);
    MT_RUN(MT_OP_MATMUL, Matmul, mt_matmul_args);
    MT_RUN(MT_OP_EMBEDDING_FORWARD, EmbeddingForward, mt_embedding_args);
    MT_RUN(MT_OP_EMBEDDING_BACKWARD, EmbeddingBackward, mt_embedding_args);
    MT_RUN(MT_OP_RMSNORM_FORWARD, RmsNormForward, mt_rmsnorm_args);
    MT_RUN(MT_OP_RMSNORM_BACKWARD, RmsNormBackward, mt_rmsnorm_args);
    MT_RUN(MT_OP_ROPE, Rope, mt_rope_args);
    MT_RUN(MT_OP_ATTENTION_FORWARD, AttentionForward, mt_attention_args);
    MT_RUN(MT_OP_ATTENTION_BACKWARD, AttentionBackward, mt_attention_args);
    MT_RUN(MT_OP_SWIGLU_FORWARD, SwigluForward, mt_swiglu_args);
    MT_RUN(MT_OP_SWIGLU_BACKWARD, SwigluBackward, mt_swiglu_args);
    MT_RUN(MT_OP_CROSS_ENTROPY_STATISTICS, CrossEntropyStatistics, mt_cross_entropy_args);
    MT_RUN(MT_OP_CROSS_ENTROPY_GRADIENT, CrossEntropyGradient, mt_cross_entropy_args);
    MT_RUN(MT_OP_ADAMW, AdamW, mt_adamw_args);
    MT_RUN(MT_OP_CROSS_ENTROPY_COMBINE, CrossEntropyCombine, mt_cross_entropy_combine_args);
    MT_RUN(MT_OP_SUM, Sum, mt_squared_sum_args);
    MT_RUN(MT_OP_CLIP_FACTOR, ClipFactor, mt_clip_factor_args);
    MT_RUN(MT_OP_COLUMN_SUM, ColumnSum, mt_column_sum_args);
    MT_RUN(MT_OP_LAYERNORM_FORWARD, LayerNormForward, mt_layernorm_args);
    MT_RUN(MT_OP_LAYERNORM_BACKWARD, LayerNormBackward, mt_layernorm_args);
    MT_RUN(MT_OP_GELU_FORWARD, GeluForward, mt_gelu_args);
    MT_RUN(MT_OP_GELU_BACKWARD, GeluBackward, mt_gelu_args);
    MT_RUN(MT_OP_QK_NORM_ROPE_FORWARD, QkNormRopeForward, mt_qk_norm_rope_args);
    MT_RUN(MT_OP_QK_NORM_ROPE_BACKWARD, QkNormRopeBackward, mt_qk_norm_rope_args);
    MT_RUN(MT_OP_AMAX, Amax, mt_amax_args);
    MT_RUN(MT_OP_QUANTIZE, Quantize, mt_quantize_args);
    MT_RUN(MT_OP_MOE_ROUTE_FORWARD, MoeRouteForward, mt_moe_route_args);
    MT_RUN(MT_OP_MOE_ROUTE_BACKWARD, MoeRouteBackward, mt_moe_route_args);
    MT_RUN(MT_OP_MOE_SORT, MoeSort, mt_moe_sort_args);
    MT_RUN(MT_OP_MOE_GATHER, MoeGather, mt_moe_rows_args);
    MT_RUN(MT_OP_MOE_COMBINE, MoeCombine, mt_moe_rows_args);
    MT_RUN(MT_OP_MOE_COMBINE_BACKWARD, MoeCombineBackward, mt_moe_rows_args);
    MT_RUN(MT_OP_GROUPED_MATMUL, GroupedMatmul, mt_grouped_matmul_args);
    MT_RUN(MT_OP_GROUPED_COLUMN_SUM, GroupedColumnSum, mt_grouped_column_sum_args);
    MT_RUN(MT_OP_MLA_EXPAND_FORWARD, MlaExpandForward, mt_mla_expand_args);
    MT_RUN(MT_OP_MLA_EXPAND_BACKWARD, MlaExpandBackward, mt_mla_expand_args);
    MT_RUN(MT_OP_BALANCE_UPDATE, BalanceUpdate, mt_balance_update_args);
    default:
      return host::Fail(MT_ERROR_UNSUPPORTED, 0, "operation %d is unknown", operation);
  }
#undef MT_RUN
}

mt_backend MakeBackend() {
  mt_backend backend = {};
  backend.struct_size = sizeof backend;
  backend.abi_major = MT_BACKEND_ABI_MAJOR;
  backend.abi_minor = MT_BACKEND_ABI_MINOR;
  backend.name = "reference";
  backend.version = "1";
  backend.probe = Probe;
  backend.open = Open;
  backend.error_message = host::ErrorMessage;
  backend.supports = Supports;
  backend.kernel_name = KernelName;
  backend.workspace_bytes = WorkspaceBytesChecked;
  backend.run = Run;
  host::FillMemoryFunctions(&backend);
  return backend;
}

}  // namespace
}  // namespace mt::reference

extern "C" __attribute__((visibility("default"))) const mt_backend* mt_backend_entry_v1(void) {
  static const mt_backend backend = mt::reference::MakeBackend();
  return &backend;
}
