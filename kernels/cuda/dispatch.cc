#include "kernels/cuda/dispatch.h"

#include <type_traits>

#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

// One operation of our own: its launcher, its scratch memory and the name of its kernels.
template <typename Args>
struct Kernel {
  const char* name;
  int32_t (*run)(const Args& args, const Launch& launch);
  int64_t (*workspace)(const Args& args) = nullptr;
  // What types do not tell; says why not through host::Fail.
  bool (*supports)(int32_t operation, const Args& args) = nullptr;
  // Where the choice of kernels depends on the arguments.
  const char* (*name_of)(const Args& args) = nullptr;
};

// Calls visit(args, kernel) for the operation; `other` for those that the backend provides and for unknown numbers.
template <typename Visit, typename Other>
auto Dispatch(int32_t operation, const void* args, Visit&& visit, Other&& other) {
#define OPERATION(number, type, ...) \
  case number:                       \
    return visit(*static_cast<const type*>(args), Kernel<type>{__VA_ARGS__})
  switch (operation) {
    OPERATION(MT_OP_FILL, mt_fill_args, "mt:elementwise", Fill);
    OPERATION(MT_OP_FILL_NORMAL, mt_fill_normal_args, "mt:philox", FillNormal);
    OPERATION(MT_OP_COPY, mt_copy_args, "mt:elementwise", Copy);
    OPERATION(MT_OP_ADD, mt_add_args, "mt:elementwise", Add);
    OPERATION(MT_OP_SCALE, mt_scale_args, "mt:elementwise", Scale);
    OPERATION(MT_OP_SQUARED_SUM, mt_squared_sum_args, "mt:reduction", SquaredSum, SumWorkspace);
    OPERATION(MT_OP_SUM, mt_squared_sum_args, "mt:reduction", Sum, SumWorkspace);
    OPERATION(MT_OP_CLIP_FACTOR, mt_clip_factor_args, "mt:reduction", ClipFactor);
    OPERATION(MT_OP_COLUMN_SUM, mt_column_sum_args, "mt:reduction", ColumnSum, ColumnSumWorkspace);
    OPERATION(MT_OP_AMAX, mt_amax_args, "mt:reduction", Amax);
    OPERATION(MT_OP_ADAMW, mt_adamw_args, "mt:adamw", AdamW);
    OPERATION(MT_OP_QUANTIZE, mt_quantize_args, "mt:quantize", Quantize);
    OPERATION(MT_OP_EMBEDDING_FORWARD, mt_embedding_args, "mt:embedding", EmbeddingForward);
    OPERATION(MT_OP_EMBEDDING_BACKWARD, mt_embedding_args, "mt:embedding", EmbeddingBackward,
              EmbeddingBackwardWorkspace);
    OPERATION(MT_OP_RMSNORM_FORWARD, mt_rmsnorm_args, "mt:rmsnorm", RmsNormForward);
    OPERATION(MT_OP_RMSNORM_BACKWARD, mt_rmsnorm_args, "mt:rmsnorm", RmsNormBackward,
              RmsNormBackwardWorkspace);
    OPERATION(MT_OP_LAYERNORM_FORWARD, mt_layernorm_args, "mt:layernorm", LayerNormForward);
    OPERATION(MT_OP_LAYERNORM_BACKWARD, mt_layernorm_args, "mt:layernorm", LayerNormBackward,
              LayerNormBackwardWorkspace);
    OPERATION(MT_OP_ROPE, mt_rope_args, "mt:rope", Rope);
    OPERATION(MT_OP_QK_NORM_ROPE_FORWARD, mt_qk_norm_rope_args, "mt:rope", QkNormRopeForward);
    OPERATION(MT_OP_QK_NORM_ROPE_BACKWARD, mt_qk_norm_rope_args, "mt:rope", QkNormRopeBackward,
              QkNormRopeBackwardWorkspace);
    OPERATION(MT_OP_SWIGLU_FORWARD, mt_swiglu_args, "mt:activation", SwigluForward);
    OPERATION(MT_OP_SWIGLU_BACKWARD, mt_swiglu_args, "mt:activation", SwigluBackward);
    OPERATION(MT_OP_GELU_FORWARD, mt_gelu_args, "mt:activation", GeluForward);
    OPERATION(MT_OP_GELU_BACKWARD, mt_gelu_args, "mt:activation", GeluBackward);
    OPERATION(MT_OP_CROSS_ENTROPY_STATISTICS, mt_cross_entropy_args, "mt:cross-entropy",
              CrossEntropyStatistics);
    OPERATION(MT_OP_CROSS_ENTROPY_GRADIENT, mt_cross_entropy_args, "mt:cross-entropy",
              CrossEntropyGradient);
    OPERATION(MT_OP_CROSS_ENTROPY_COMBINE, mt_cross_entropy_combine_args, "mt:cross-entropy",
              CrossEntropyCombine);
    OPERATION(MT_OP_MOE_ROUTE_FORWARD, mt_moe_route_args, "mt:moe-route", MoeRouteForward,
              MoeRouteForwardWorkspace, MoeRouteSupports);
    OPERATION(MT_OP_MOE_ROUTE_BACKWARD, mt_moe_route_args, "mt:moe-route", MoeRouteBackward,
              nullptr, MoeRouteSupports);
    OPERATION(MT_OP_MOE_SORT, mt_moe_sort_args, "mt:moe-sort", MoeSort, MoeSortWorkspace,
              MoeSortSupports);
    OPERATION(MT_OP_MOE_GATHER, mt_moe_rows_args, "mt:moe-rows", MoeGather);
    OPERATION(MT_OP_MOE_COMBINE, mt_moe_rows_args, "mt:moe-rows", MoeCombine);
    OPERATION(MT_OP_MOE_COMBINE_BACKWARD, mt_moe_rows_args, "mt:moe-rows", MoeCombineBackward);
    OPERATION(MT_OP_GROUPED_MATMUL, mt_grouped_matmul_args, nullptr, GroupedMatmul, nullptr,
              GroupedMatmulSupports, GroupedMatmulName);
    OPERATION(MT_OP_GROUPED_COLUMN_SUM, mt_grouped_column_sum_args, "mt:grouped-reduction",
              GroupedColumnSum);
    OPERATION(MT_OP_MLA_EXPAND_FORWARD, mt_mla_expand_args, "mt:mla-expand", MlaExpandForward);
    OPERATION(MT_OP_MLA_EXPAND_BACKWARD, mt_mla_expand_args, "mt:mla-expand", MlaExpandBackward);
    OPERATION(MT_OP_BALANCE_UPDATE, mt_balance_update_args, "mt:balance", BalanceUpdate);
    default:
      return other();
  }
#undef OPERATION
}

const char* TypeName(int32_t type) {
  constexpr const char* kNames[] = {"no type", "float32", "float64", "bfloat16", "e4m3",
                                    "e5m2",    "int32",   "int64",   "uint8"};
  return type >= 0 && type <= MT_U8 ? kNames[type] : "unknown type";
}

// Collects the first type that the kernels do not have.
class TypeChecker {
 public:
  explicit TypeChecker(int32_t operation) : operation_(operation) {}
  template <typename... Allowed>
  void Field(const char* field, int32_t type, Allowed... allowed) {
    if (code_ != MT_OK || (... || (type == allowed))) return;
    code_ = host::Fail(MT_ERROR_UNSUPPORTED, operation_, "%s = %d (%s) has no kernel here", field,
                       type, TypeName(type));
  }
  int32_t code() const { return code_; }

 private:
  int32_t operation_;
  int32_t code_ = MT_OK;
};

// Most operations: float32 or bfloat16 data, weight gradients in float32.
template <typename Args>
int32_t CheckTypes(int32_t operation, const Args& args) {
  TypeChecker checker(operation);
  if constexpr (requires { args.source_dtype; }) {
    checker.Field("source_dtype", args.source_dtype, MT_F32, MT_BF16, MT_F64);
    checker.Field("destination_dtype", args.destination_dtype, MT_F32, MT_BF16, MT_F64);
  } else if constexpr (requires { args.value; }) {
    checker.Field("dtype", args.dtype, MT_F32, MT_BF16, MT_F64, MT_I32, MT_I64, MT_U8);
  } else if constexpr (std::is_same_v<Args, mt_moe_route_args> ||
                       std::is_same_v<Args, mt_moe_sort_args>) {
    checker.Field("dtype", args.dtype, MT_F32);  // the statistic type
  } else if constexpr (requires { args.dtype; }) {
    checker.Field("dtype", args.dtype, MT_F32, MT_BF16);
  }
  if constexpr (requires { args.state_dtype; })
    checker.Field("state_dtype", args.state_dtype, MT_F32);
  // Forward passes make no weight gradient: the field may be left out.
  if constexpr (requires { args.gradient_dtype; })
    checker.Field("gradient_dtype", args.gradient_dtype, MT_F32, 0);
  if constexpr (requires { args.output_scale; })
    checker.Field("output_dtype", args.output_dtype, MT_F8_E4M3, MT_F8_E5M2);
  return checker.code();
}

int32_t Unknown(int32_t operation) {
  return host::Fail(MT_ERROR_UNSUPPORTED, 0, "operation %d is unknown to this backend", operation);
}

bool IsAttention(int32_t operation) {
  return operation == MT_OP_ATTENTION_FORWARD || operation == MT_OP_ATTENTION_BACKWARD;
}

// MT_OK if `run` would accept everything but the pointers; CheckArguments has accepted the arguments.
int32_t CheckSupported(int32_t operation, const void* args, const Provided& provided) {
  return Dispatch(
      operation, args,
      [&](const auto& a, const auto& kernel) -> int32_t {
        if (const int32_t code = CheckTypes(operation, a); code != MT_OK) return code;
        return kernel.supports == nullptr || kernel.supports(operation, a) ? MT_OK
                                                                           : MT_ERROR_UNSUPPORTED;
      },
      [&]() -> int32_t {
        bool supported = false;
        if (operation == MT_OP_MATMUL) {
          supported = provided.matmul_supports(*static_cast<const mt_matmul_args*>(args));
        } else if (IsAttention(operation)) {
          supported = provided.attention_supports(*static_cast<const mt_attention_args*>(args),
                                                  operation == MT_OP_ATTENTION_BACKWARD);
        } else {
          return Unknown(operation);
        }
        return supported ? MT_OK : MT_ERROR_UNSUPPORTED;
      });
}

// Bytes for arguments that are supported.
int64_t Bytes(int32_t operation, const void* args, const Provided& provided) {
  return Dispatch(
      operation, args,
      [](const auto& a, const auto& kernel) {
        return kernel.workspace == nullptr ? int64_t{0} : kernel.workspace(a);
      },
      [&]() -> int64_t {
        if (operation == MT_OP_MATMUL)
          return provided.matmul_workspace(*static_cast<const mt_matmul_args*>(args));
        return provided.attention_workspace(*static_cast<const mt_attention_args*>(args),
                                            operation == MT_OP_ATTENTION_BACKWARD);
      });
}

int32_t Check(int32_t operation, const void* args, const Provided& provided, bool with_pointers) {
  if (const int32_t code = host::CheckArguments(operation, args, with_pointers); code != MT_OK)
    return code;
  return CheckSupported(operation, args, provided);
}

}  // namespace

int32_t Supports(int32_t operation, const void* args, const Provided& provided) {
  return Check(operation, args, provided, false) == MT_OK;
}

const char* KernelName(int32_t operation, const void* args, const Provided& provided) {
  return Dispatch(
      operation, args,
      [](const auto& a, const auto& kernel) {
        return kernel.name_of != nullptr ? kernel.name_of(a) : kernel.name;
      },
      [&]() -> const char* {
        if (operation == MT_OP_MATMUL)
          return provided.matmul_name(*static_cast<const mt_matmul_args*>(args));
        if (!IsAttention(operation)) return "";
        return provided.attention_name(*static_cast<const mt_attention_args*>(args),
                                       operation == MT_OP_ATTENTION_BACKWARD);
      });
}

int64_t WorkspaceBytes(int32_t operation, const void* args, const Provided& provided) {
  if (const int32_t code = Check(operation, args, provided, false); code != MT_OK) return code;
  return Bytes(operation, args, provided);
}

int32_t Run(int32_t operation, const void* args, const Provided& provided, const Launch& launch) {
  if (const int32_t code = Check(operation, args, provided, true); code != MT_OK) return code;
  const host::Workspace workspace = host::WorkspaceOf(operation, args);
  const int64_t need = Bytes(operation, args, provided);
  if (need > 0 && (workspace.data == nullptr || static_cast<int64_t>(workspace.bytes) < need)) {
    return host::Fail(MT_ERROR_INVALID, operation, "workspace of %zu bytes; %lld are needed",
                      workspace.bytes, static_cast<long long>(need));
  }
  return Dispatch(
      operation, args, [&](const auto& a, const auto& kernel) { return kernel.run(a, launch); },
      [&]() -> int32_t {
        if (operation == MT_OP_MATMUL)
          return provided.matmul(*static_cast<const mt_matmul_args*>(args), launch);
        const auto& attention = *static_cast<const mt_attention_args*>(args);
        return operation == MT_OP_ATTENTION_FORWARD
                   ? provided.attention_forward(attention, launch)
                   : provided.attention_backward(attention, launch);
      });
}

}  // namespace mt::cuda
