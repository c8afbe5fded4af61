// The operations of one rank, resolved to backends once, at start; then each call is one indirect
// call.
//
//   MT_ASSIGN_OR_RETURN(std::unique_ptr<Operations> ops, Operations::Create({.backend = "cpu",
//   .threads = 2})); MT_RETURN_IF_ERROR(ops->Need<MT_OP_ADD>({.dtype = MT_F32, .count = n})); //
//   when the plan is made MT_RETURN_IF_ERROR(ops->Run<MT_OP_ADD>({.dtype = MT_F32, .a = a, .b = b,
//   .destination = d, .count = n}));
//
// Invariants
//  - An operation runs on the override's backend if the job names one, else on the first of (the
//  job's backend, then the
//    other backends in host memory) that supports every shape given to Need. What none supports
//    fails in Need.
//  - A backend of an older minor version of the contract is never given a field that it does not
//  know (kernels/abi/minor_version.h): it would ignore it.
//  - Run fills in struct_size, and, where `workspace` is null, this table's own scratch: as large
//  as the largest Need.
//    So one Operations serves one stream of calls; ranks that are threads have one each.
//  - Run allocates nothing unless it fails.
#pragma once

#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "common/status.h"
#include "kernels/abi/minor_version.h"
#include "mt/v1/jobs.pb.h"
#include "worker/backend/backend.h"

namespace mt {

// The argument struct of an operation.
template <mt_operation Op>
struct OperationArguments;
#define MT_OPERATION_ARGUMENTS(op, args) \
  template <>                            \
  struct OperationArguments<op> {        \
    using type = args;                   \
  }
MT_OPERATION_ARGUMENTS(MT_OP_FILL, mt_fill_args);
MT_OPERATION_ARGUMENTS(MT_OP_FILL_NORMAL, mt_fill_normal_args);
MT_OPERATION_ARGUMENTS(MT_OP_COPY, mt_copy_args);
MT_OPERATION_ARGUMENTS(MT_OP_ADD, mt_add_args);
MT_OPERATION_ARGUMENTS(MT_OP_SCALE, mt_scale_args);
MT_OPERATION_ARGUMENTS(MT_OP_SQUARED_SUM, mt_squared_sum_args);
MT_OPERATION_ARGUMENTS(MT_OP_MATMUL, mt_matmul_args);
MT_OPERATION_ARGUMENTS(MT_OP_EMBEDDING_FORWARD, mt_embedding_args);
MT_OPERATION_ARGUMENTS(MT_OP_EMBEDDING_BACKWARD, mt_embedding_args);
MT_OPERATION_ARGUMENTS(MT_OP_RMSNORM_FORWARD, mt_rmsnorm_args);
MT_OPERATION_ARGUMENTS(MT_OP_RMSNORM_BACKWARD, mt_rmsnorm_args);
MT_OPERATION_ARGUMENTS(MT_OP_ROPE, mt_rope_args);
MT_OPERATION_ARGUMENTS(MT_OP_ATTENTION_FORWARD, mt_attention_args);
MT_OPERATION_ARGUMENTS(MT_OP_ATTENTION_BACKWARD, mt_attention_args);
MT_OPERATION_ARGUMENTS(MT_OP_SWIGLU_FORWARD, mt_swiglu_args);
MT_OPERATION_ARGUMENTS(MT_OP_SWIGLU_BACKWARD, mt_swiglu_args);
MT_OPERATION_ARGUMENTS(MT_OP_CROSS_ENTROPY_STATISTICS, mt_cross_entropy_args);
MT_OPERATION_ARGUMENTS(MT_OP_CROSS_ENTROPY_GRADIENT, mt_cross_entropy_args);
MT_OPERATION_ARGUMENTS(MT_OP_ADAMW, mt_adamw_args);
MT_OPERATION_ARGUMENTS(MT_OP_CROSS_ENTROPY_COMBINE, mt_cross_entropy_combine_args);
MT_OPERATION_ARGUMENTS(MT_OP_SUM, mt_squared_sum_args);
MT_OPERATION_ARGUMENTS(MT_OP_CLIP_FACTOR, mt_clip_factor_args);
MT_OPERATION_ARGUMENTS(MT_OP_COLUMN_SUM, mt_column_sum_args);
MT_OPERATION_ARGUMENTS(MT_OP_LAYERNORM_FORWARD, mt_layernorm_args);
MT_OPERATION_ARGUMENTS(MT_OP_LAYERNORM_BACKWARD, mt_layernorm_args);
MT_OPERATION_ARGUMENTS(MT_OP_GELU_FORWARD, mt_gelu_args);
MT_OPERATION_ARGUMENTS(MT_OP_GELU_BACKWARD, mt_gelu_args);
MT_OPERATION_ARGUMENTS(MT_OP_QK_NORM_ROPE_FORWARD, mt_qk_norm_rope_args);
MT_OPERATION_ARGUMENTS(MT_OP_QK_NORM_ROPE_BACKWARD, mt_qk_norm_rope_args);
MT_OPERATION_ARGUMENTS(MT_OP_AMAX, mt_amax_args);
MT_OPERATION_ARGUMENTS(MT_OP_QUANTIZE, mt_quantize_args);
MT_OPERATION_ARGUMENTS(MT_OP_MOE_ROUTE_FORWARD, mt_moe_route_args);
MT_OPERATION_ARGUMENTS(MT_OP_MOE_ROUTE_BACKWARD, mt_moe_route_args);
MT_OPERATION_ARGUMENTS(MT_OP_MOE_SORT, mt_moe_sort_args);
MT_OPERATION_ARGUMENTS(MT_OP_MOE_GATHER, mt_moe_rows_args);
MT_OPERATION_ARGUMENTS(MT_OP_MOE_COMBINE, mt_moe_rows_args);
MT_OPERATION_ARGUMENTS(MT_OP_MOE_COMBINE_BACKWARD, mt_moe_rows_args);
MT_OPERATION_ARGUMENTS(MT_OP_GROUPED_MATMUL, mt_grouped_matmul_args);
MT_OPERATION_ARGUMENTS(MT_OP_GROUPED_COLUMN_SUM, mt_grouped_column_sum_args);
MT_OPERATION_ARGUMENTS(MT_OP_MLA_EXPAND_FORWARD, mt_mla_expand_args);
MT_OPERATION_ARGUMENTS(MT_OP_MLA_EXPAND_BACKWARD, mt_mla_expand_args);
MT_OPERATION_ARGUMENTS(MT_OP_BALANCE_UPDATE, mt_balance_update_args);
#undef MT_OPERATION_ARGUMENTS

template <mt_operation Op>
using Arguments = typename OperationArguments<Op>::type;

// Makes every call itself, so as to measure it; what it returns is the call's code.
class OperationObserver {
 public:
  virtual ~OperationObserver() = default;
  virtual int32_t Run(const mt_backend& backend, int32_t operation, const void* arguments) = 0;
};

class Operations {
 public:
  struct Options {
    std::string backend;  // empty or "auto": the best that probes well
    std::map<std::string, std::string>
        overrides;  // operation name -> backend name (RuntimeSpec.operations)
    int device = 0;
    int threads = 0;  // CPU backends; 0 = all cores
    // Told to the job's backend before it is opened (mt_backend.configure); it skips keys that it
    // does not have.
    std::map<std::string, std::string> configuration;
    OperationObserver* observer = nullptr;  // for benchmarks; outlives this
  };
  // INVALID_ARGUMENT: an override names no operation, or a value of the configuration is not
  // allowed; else what LoadBackend and ChooseBackend return.
  static absl::StatusOr<std::unique_ptr<Operations>> Create(const Options& options);
  ~Operations();
  Operations(const Operations&) = delete;
  Operations& operator=(const Operations&) = delete;

  // Declares a use: types and shapes. Pointers are not followed, but an optional one that Run is
  // going to have is not null. UNIMPLEMENTED if no backend supports it.
  template <mt_operation Op>
  absl::Status Need(Arguments<Op> shape) {
    shape.struct_size = sizeof(shape);
    return NeedBytes(Op, &shape, sizeof(shape));
  }

  // FAILED_PRECONDITION if the operation was never needed, or now has a field that its backend does
  // not know; otherwise what the backend says.
  template <mt_operation Op>
  absl::Status Run(Arguments<Op> arguments) const {
    arguments.struct_size = sizeof(arguments);
    if constexpr (requires { arguments.workspace_bytes; }) {
      if (arguments.workspace == nullptr) {
        arguments.workspace = workspace_;
        arguments.workspace_bytes = workspace_bytes_;
      }
    }
    const Entry& entry = entries_[Op];
    if (entry.backend == nullptr) return NotResolved(Op);
    if (mt_newest_field_of(Op, &arguments).minor > entry.minor) return TooNew(Op, &arguments);
    const mt_backend& abi = entry.backend->abi();
    const int32_t code = observer_ == nullptr ? abi.run(Op, &arguments, nullptr)
                                              : observer_->Run(abi, Op, &arguments);
    if (code != MT_OK) return Failed(Op, code);
    return absl::OkStatus();
  }

  // What runs where, in operation order: for the log and the job's status.
  std::vector<v1::ResolvedOperation> Resolved() const;
  // The job's own backend.
  const Backend& backend() const { return *candidates_.front(); }

  // Device memory, aligned to 64 bytes at least; RESOURCE_EXHAUSTED. The caller frees it before
  // this object dies.
  absl::StatusOr<void*> Allocate(size_t bytes) const;
  void Free(void* pointer) const;

 private:
  struct Entry {
    const Backend* backend = nullptr;
    uint32_t minor = 0;               // of the backend's contract
    std::vector<std::string> shapes;  // argument structs given to Need
  };

  Operations() = default;
  absl::Status NeedBytes(mt_operation operation, const void* shape, size_t bytes);
  absl::Status ReserveWorkspace(int64_t bytes);
  absl::Status NotResolved(mt_operation operation) const;
  absl::Status TooNew(mt_operation operation, const void* arguments) const;
  absl::Status Failed(mt_operation operation, int32_t code) const;

  OperationObserver* observer_ = nullptr;
  std::vector<const Backend*> candidates_;  // the job's own first
  std::map<int32_t, const Backend*> overrides_;
  Entry entries_[MT_OP_END];
  void* workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
};

}  // namespace mt
