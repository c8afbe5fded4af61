// The cpu backend's entry: every operation but QUANTIZE, in float32 and bfloat16.
#include <atomic>
#include <cstdio>
#include <cstring>

#include "kernels/cpu/operations.h"
#include "kernels/cpu/parallel.h"
#include "kernels/host/host.h"

namespace mt::cpu {
namespace {

std::atomic<bool> opened{false};

int32_t Probe(mt_device_info* info) {
  host::DescribeProcessor(info);
  std::snprintf(info->detail, sizeof info->detail, "%s, oneDNN, %d threads", InstructionSet(),
                Threads());
  if (opened) info->peak_flops = MeasurePeakFlops();
  return 1;
}

int32_t Open(int32_t device, int32_t threads) {
  if (device != 0)
    return host::Fail(MT_ERROR_INVALID, 0, "open: device %d does not exist; the host is device 0",
                      device);
  if (threads < 0 || threads > 4096)
    return host::Fail(MT_ERROR_INVALID, 0, "open: %d threads; 0 to 4096", threads);
  SetThreads(threads);
  opened = true;
  return MT_OK;
}

// Float32 and bfloat16 data; what is added to in float32 stays float32.
int32_t CheckTypes(int32_t operation, const void* args) {
  if (operation == MT_OP_QUANTIZE)
    return host::Fail(MT_ERROR_UNSUPPORTED, operation, "the cpu backend does not have it");
  int32_t types[3];
  const int count = host::TypesOf(operation, args, types);
  for (int i = 0; i < count; ++i) {
    if (types[i] == MT_F32 || (types[i] == MT_F64 && operation == MT_OP_COPY)) continue;
    // The first is the data's; later ones are of gradients and optimizer state.
    const bool small = i == 0 || operation == MT_OP_COPY || operation == MT_OP_MATMUL ||
                       (operation == MT_OP_ADAMW && i == 2);
    if (types[i] == MT_BF16 && small) continue;
    return host::Fail(MT_ERROR_UNSUPPORTED, operation,
                      "type %d: the cpu backend has float32 and bfloat16 data, float32 gradients",
                      types[i]);
  }
  if (operation == MT_OP_MATMUL && types[0] == MT_F32 && types[count - 1] != MT_F32) {
    return host::Fail(MT_ERROR_UNSUPPORTED, operation,
                      "a bfloat16 product of float32 matrices: round them first");
  }
  return MT_OK;
}

int32_t Supports(int32_t operation, const void* args) {
  return host::CheckArguments(operation, args, false) == MT_OK &&
         CheckTypes(operation, args) == MT_OK;
}

const char* KernelName(int32_t operation, const void*) {
  static char highway[32], attention[48];
  static const bool once = [] {
    std::snprintf(highway, sizeof highway, "highway:%s", InstructionSet());
    std::snprintf(attention, sizeof attention, "flash:onednn+highway:%s", InstructionSet());
    return true;
  }();
  static_cast<void>(once);
  switch (operation) {
    case MT_OP_MATMUL:
    case MT_OP_GROUPED_MATMUL:
      return "onednn:sgemm";
    case MT_OP_ATTENTION_FORWARD:
    case MT_OP_ATTENTION_BACKWARD:
      return attention;
    case MT_OP_FILL:
    case MT_OP_FILL_NORMAL:
    case MT_OP_COPY:
    case MT_OP_EMBEDDING_FORWARD:
    case MT_OP_EMBEDDING_BACKWARD:
    case MT_OP_CROSS_ENTROPY_COMBINE:
    case MT_OP_CLIP_FACTOR:
    case MT_OP_MOE_SORT:
    case MT_OP_MOE_GATHER:
    case MT_OP_MLA_EXPAND_FORWARD:
    case MT_OP_BALANCE_UPDATE:
      return "loops";
    default:
      return highway;
  }
}

int64_t Workspace(int32_t operation, const void* args) {
  switch (operation) {
    case MT_OP_MATMUL:
      return MatmulWorkspace(*static_cast<const mt_matmul_args*>(args));
    case MT_OP_SQUARED_SUM:
    case MT_OP_SUM:
      return SumWorkspace(*static_cast<const mt_squared_sum_args*>(args));
    case MT_OP_COLUMN_SUM:
      return ColumnSumWorkspace(*static_cast<const mt_column_sum_args*>(args));
    case MT_OP_LAYERNORM_BACKWARD:
      return LayerNormBackwardWorkspace(*static_cast<const mt_layernorm_args*>(args));
    case MT_OP_QK_NORM_ROPE_BACKWARD:
      return QkNormRopeBackwardWorkspace(*static_cast<const mt_qk_norm_rope_args*>(args));
    case MT_OP_MOE_ROUTE_FORWARD:
      return MoeRouteForwardWorkspace(*static_cast<const mt_moe_route_args*>(args));
    case MT_OP_MOE_ROUTE_BACKWARD:
      return MoeRouteBackwardWorkspace(*static_cast<const mt_moe_route_args*>(args));
    case MT_OP_MOE_SORT:
      return MoeSortWorkspace(*static_cast<const mt_moe_sort_args*>(args));
    case MT_OP_GROUPED_MATMUL:
      return GroupedMatmulWorkspace(*static_cast<const mt_grouped_matmul_args*>(args));
    case MT_OP_RMSNORM_BACKWARD:
      return RmsNormBackwardWorkspace(*static_cast<const mt_rmsnorm_args*>(args));
    case MT_OP_ATTENTION_FORWARD:
      return AttentionForwardWorkspace(*static_cast<const mt_attention_args*>(args));
    case MT_OP_ATTENTION_BACKWARD:
      return AttentionBackwardWorkspace(*static_cast<const mt_attention_args*>(args));
    default:
      return 0;
  }
}

int64_t WorkspaceBytes(int32_t operation, const void* args) {
  const int32_t code = host::CheckArguments(operation, args, false);
  return code != MT_OK ? code : Workspace(operation, args);
}

int32_t Run(int32_t operation, const void* args, mt_stream) {
  if (const int32_t code = host::CheckArguments(operation, args, true); code != MT_OK) return code;
  if (const int32_t code = CheckTypes(operation, args); code != MT_OK) return code;
  const host::Workspace workspace = host::WorkspaceOf(operation, args);
  const int64_t need = Workspace(operation, args);
  if (need > 0 && (workspace.data == nullptr || static_cast<int64_t>(workspace.bytes) < need)) {
    return host::Fail(MT_ERROR_INVALID, operation, "workspace of %zu bytes; %lld are needed",
                      workspace.bytes, static_cast<long long>(need));
  }
#define MT_RUN(op, function, type)             \
  case op:                                     \
    function(*static_cast<const type*>(args)); \
    return MT_OK
#define MT_RETURN(op, function, type) \
  case op:                            \
    return function(*static_cast<const type*>(args))
  switch (operation) {
    MT_RUN(MT_OP_FILL, Fill, mt_fill_args);
    MT_RUN(MT_OP_FILL_NORMAL, FillNormal, mt_fill_normal_args);
    MT_RUN(MT_OP_COPY, Copy, mt_copy_args);
    MT_RUN(MT_OP_ADD, Add, mt_add_args);
    MT_RUN(MT_OP_SCALE, Scale, mt_scale_args);
    MT_RUN(MT_OP_SQUARED_SUM, SquaredSum, mt_squared_sum_args);
    MT_RETURN(MT_OP_MATMUL, Matmul, mt_matmul_args);
    MT_RUN(MT_OP_EMBEDDING_FORWARD, EmbeddingForward, mt_embedding_args);
    MT_RUN(MT_OP_EMBEDDING_BACKWARD, EmbeddingBackward, mt_embedding_args);
    MT_RUN(MT_OP_RMSNORM_FORWARD, RmsNormForward, mt_rmsnorm_args);
    MT_RUN(MT_OP_RMSNORM_BACKWARD, RmsNormBackward, mt_rmsnorm_args);
    MT_RUN(MT_OP_LAYERNORM_FORWARD, LayerNormForward, mt_layernorm_args);
    MT_RUN(MT_OP_LAYERNORM_BACKWARD, LayerNormBackward, mt_layernorm_args);
    MT_RUN(MT_OP_ROPE, Rope, mt_rope_args);
    MT_RUN(MT_OP_QK_NORM_ROPE_FORWARD, QkNormRopeForward, mt_qk_norm_rope_args);
    MT_RUN(MT_OP_QK_NORM_ROPE_BACKWARD, QkNormRopeBackward, mt_qk_norm_rope_args);
    MT_RETURN(MT_OP_ATTENTION_FORWARD, AttentionForward, mt_attention_args);
    MT_RETURN(MT_OP_ATTENTION_BACKWARD, AttentionBackward, mt_attention_args);
    MT_RUN(MT_OP_SWIGLU_FORWARD, SwigluForward, mt_swiglu_args);
    MT_RUN(MT_OP_SWIGLU_BACKWARD, SwigluBackward, mt_swiglu_args);
    MT_RUN(MT_OP_GELU_FORWARD, GeluForward, mt_gelu_args);
    MT_RUN(MT_OP_GELU_BACKWARD, GeluBackward, mt_gelu_args);
    MT_RUN(MT_OP_CROSS_ENTROPY_STATISTICS, CrossEntropyStatistics, mt_cross_entropy_args);
    MT_RUN(MT_OP_CROSS_ENTROPY_GRADIENT, CrossEntropyGradient, mt_cross_entropy_args);
    MT_RUN(MT_OP_ADAMW, AdamW, mt_adamw_args);
    MT_RUN(MT_OP_CROSS_ENTROPY_COMBINE, CrossEntropyCombine, mt_cross_entropy_combine_args);
    MT_RUN(MT_OP_SUM, Sum, mt_squared_sum_args);
    MT_RUN(MT_OP_CLIP_FACTOR, ClipFactor, mt_clip_factor_args);
    MT_RUN(MT_OP_COLUMN_SUM, ColumnSum, mt_column_sum_args);
    MT_RUN(MT_OP_AMAX, Amax, mt_amax_args);
    MT_RUN(MT_OP_MOE_ROUTE_FORWARD, MoeRouteForward, mt_moe_route_args);
    MT_RUN(MT_OP_MOE_ROUTE_BACKWARD, MoeRouteBackward, mt_moe_route_args);
    MT_RUN(MT_OP_MOE_SORT, MoeSort, mt_moe_sort_args);
    MT_RUN(MT_OP_MOE_GATHER, MoeGather, mt_moe_rows_args);
    MT_RUN(MT_OP_MOE_COMBINE, MoeCombine, mt_moe_rows_args);
    MT_RUN(MT_OP_MOE_COMBINE_BACKWARD, MoeCombineBackward, mt_moe_rows_args);
    MT_RETURN(MT_OP_GROUPED_MATMUL, GroupedMatmul, mt_grouped_matmul_args);
    MT_RUN(MT_OP_GROUPED_COLUMN_SUM, GroupedColumnSum, mt_grouped_column_sum_args);
    MT_RUN(MT_OP_MLA_EXPAND_FORWARD, MlaExpandForward, mt_mla_expand_args);
    MT_RUN(MT_OP_MLA_EXPAND_BACKWARD, MlaExpandBackward, mt_mla_expand_args);
    MT_RUN(MT_OP_BALANCE_UPDATE, BalanceUpdate, mt_balance_update_args);
    default:
      return host::Fail(MT_ERROR_UNSUPPORTED, 0, "operation %d is unknown", operation);
  }
#undef MT_RUN
#undef MT_RETURN
}

mt_backend MakeBackend() {
  mt_backend backend = {};
  backend.struct_size = sizeof backend;
  backend.abi_major = MT_BACKEND_ABI_MAJOR;
  backend.abi_minor = MT_BACKEND_ABI_MINOR;
  backend.name = "cpu";
  backend.version = "1";
  backend.probe = Probe;
  backend.open = Open;
  backend.error_message = host::ErrorMessage;
  backend.supports = Supports;
  backend.kernel_name = KernelName;
  backend.workspace_bytes = WorkspaceBytes;
  backend.run = Run;
  host::FillMemoryFunctions(&backend);
  return backend;
}

}  // namespace
}  // namespace mt::cpu

extern "C" __attribute__((visibility("default"))) const mt_backend* mt_backend_entry_v1(void) {
  static const mt_backend backend = mt::cpu::MakeBackend();
  return &backend;
}
