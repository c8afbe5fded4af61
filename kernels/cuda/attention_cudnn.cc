#include "kernels/cuda/attention_cudnn.h"

#include <cudnn_graph.h>

#include <exception>
#include <unordered_map>
#include <vector>

#include "kernels/abi/attention_shape.h"
#include "kernels/cuda/libraries.h"
#include "kernels/host/host.h"

#if MT_HAS_CUDNN_FRONTEND
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#include <cudnn_frontend.h>
#pragma GCC diagnostic pop
#endif

namespace mt::cuda {

int64_t SequencesAtOnce(int64_t batch, int64_t bytes, int64_t limit) {
  for (int64_t sequences = batch; sequences > 1; --sequences) {
    if (batch % sequences == 0 && bytes / batch * sequences <= limit) return sequences;
  }
  return 1;
}

#if MT_HAS_CUDNN_FRONTEND
namespace {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

enum Uid : int64_t { kQ = 1, kK, kV, kO, kLse, kOGradient, kDq, kDk, kDv };

// Of one direction, for `sequences` of the batch.
struct Description {
  const mt_attention_args& args;
  int64_t sequences;
  bool backward;
  const CudnnOptions& options;
};

// (sequences, heads, T, d), element (b, h, t, j) at b * stride + h * d + t * batch * stride + j.
fe::graph::Tensor_attributes Rows(const Description& about, Uid uid, int64_t heads, int64_t stride,
                                  int64_t head_dim) {
  const mt_attention_args& a = about.args;
  fe::graph::Tensor_attributes tensor;
  tensor.set_uid(uid)
      .set_dim({about.sequences, heads, a.sequence, head_dim})
      .set_stride({stride, head_dim, a.batch * stride, 1})
      .set_data_type(fe::DataType_t::BFLOAT16);
  return tensor;
}
// Queries and keys, or values and what has their size.
fe::graph::Tensor_attributes KeyRows(const Description& about, Uid uid, int64_t heads,
                                     int64_t stride) {
  return Rows(about, uid, heads, stride, about.args.head_dim);
}
fe::graph::Tensor_attributes ValueRows(const Description& about, Uid uid, int64_t heads,
                                       int64_t stride) {
  return Rows(about, uid, heads, stride, mt_attention_v_head_dim(&about.args));
}
fe::graph::Tensor_attributes Lse(const Description& about) {
  const mt_attention_args& a = about.args;
  fe::graph::Tensor_attributes tensor;
  tensor.set_uid(kLse)
      .set_dim({about.sequences, a.heads, a.sequence, 1})
      .set_stride({a.heads * a.sequence, a.sequence, 1, 1})
      .set_data_type(fe::DataType_t::FLOAT);
  return tensor;
}

template <typename Options>
void SetMask(const mt_attention_args& args, Options* options) {
  options->set_attn_scale(static_cast<float>(args.scale));
  if (args.causal)
    options->set_diagonal_alignment(fe::DiagonalAlignment_t::TOP_LEFT)
        .set_diagonal_band_right_bound(0);
  // Keys are seen where key + bound > query: our window.
  if (args.window != 0 && args.window < args.sequence)
    options->set_diagonal_band_left_bound(static_cast<int>(args.window));
}

void SetOutput(const Tensor& tensor, const fe::graph::Tensor_attributes& as) {
  tensor->set_output(true)
      .set_uid(as.get_uid())
      .set_dim(as.get_dim())
      .set_stride(as.get_stride())
      .set_data_type(as.get_data_type());
}

void Describe(const Description& about, fe::graph::Graph* graph) {
  const mt_attention_args& a = about.args;
  graph->set_io_data_type(fe::DataType_t::BFLOAT16)
      .set_intermediate_data_type(fe::DataType_t::FLOAT)
      .set_compute_data_type(fe::DataType_t::FLOAT);
  const Tensor q = graph->tensor(KeyRows(about, kQ, a.heads, a.q_stride)),
               k = graph->tensor(KeyRows(about, kK, a.kv_heads, a.k_stride)),
               v = graph->tensor(ValueRows(about, kV, a.kv_heads, a.v_stride));
  if (!about.backward) {
    fe::graph::SDPA_attributes options;
    options.set_name("attention").set_generate_stats(true);
    SetMask(a, &options);
    auto [o, lse] = graph->sdpa(q, k, v, options);
    SetOutput(o, ValueRows(about, kO, a.heads, a.o_stride));
    SetOutput(lse, Lse(about));
    return;
  }
  const Tensor o = graph->tensor(ValueRows(about, kO, a.heads, a.o_stride)),
               o_gradient =
                   graph->tensor(ValueRows(about, kOGradient, a.heads, a.o_gradient_stride)),
               lse = graph->tensor(Lse(about));
  fe::graph::SDPA_backward_attributes options;
  options.set_name("attention_backward").set_deterministic_algorithm(about.options.deterministic);
  SetMask(a, &options);
  auto [dq, dk, dv] = graph->sdpa_backward(q, k, v, o, o_gradient, lse, options);
  SetOutput(dq, KeyRows(about, kDq, a.heads, a.dq_stride));
  SetOutput(dk, KeyRows(about, kDk, a.kv_heads, a.dk_stride));
  SetOutput(dv, ValueRows(about, kDv, a.kv_heads, a.dv_stride));
}

class Plan final : public CudnnAttention {
 public:
  Plan(int64_t sequences, bool backward, const CudnnTarget& target)
      : sequences_(sequences),
        backward_(backward),
        handle_(static_cast<cudnnHandle_t>(target.handle)) {}

  // An empty string, or why cuDNN has no plan.
  std::string Build(const mt_attention_args& args, const CudnnTarget& target,
                    const CudnnOptions& options) {
    graph_.set_sm_version(target.architecture);  // before the operations, which remember it
    Describe({args, sequences_, backward_, options}, &graph_);
    std::string reason;
    const auto failed = [&](const char* step, fe::error_t status) {
      if (status.is_bad()) reason = std::string(step) + ": " + status.get_message();
      return status.is_bad();
    };
    if (target.handle == nullptr) {
      auto properties = std::make_shared<fe::DeviceProperties>();
      if (failed("device properties", properties->deserialize({target.device_properties.begin(),
                                                               target.device_properties.end()})))
        return reason;
      graph_.set_device_properties(properties);
    }
    if (failed("validate", graph_.validate()) ||
        failed("operation graph", handle_ != nullptr ? graph_.build_operation_graph(handle_)
                                                     : graph_.build_operation_graph()) ||
        failed("heuristics", graph_.create_execution_plans({fe::HeurMode_t::A})) ||
        failed("support", graph_.check_support()) || failed("plans", graph_.build_plans()) ||
        failed("workspace", graph_.get_workspace_size(workspace_bytes_)) ||
        failed("plan name", graph_.get_plan_name(engine_)))
      return reason;
    return "";
  }

  int64_t workspace_bytes() const override { return workspace_bytes_; }
  int64_t sequences_at_once() const override { return sequences_; }
  const std::string& engine() const override { return engine_; }

  int32_t Run(const mt_attention_args& a) const override {
    const int32_t operation = backward_ ? MT_OP_ATTENTION_BACKWARD : MT_OP_ATTENTION_FORWARD;
    try {
      for (int64_t b = 0; b < a.batch; b += sequences_) {
        const auto at = [b](const void* data, int64_t stride) -> void* {
          return static_cast<uint16_t*>(const_cast<void*>(data)) + b * stride;
        };
        std::unordered_map<int64_t, void*> pointers = {
            {kQ, at(a.q, a.q_stride)},
            {kK, at(a.k, a.k_stride)},
            {kV, at(a.v, a.v_stride)},
            {kO, at(a.o, a.o_stride)},
            {kLse, static_cast<float*>(a.lse) + b * a.heads * a.sequence},
        };
        if (backward_) {
          pointers.emplace(kOGradient, at(a.o_gradient, a.o_gradient_stride));
          pointers.emplace(kDq, at(a.dq, a.dq_stride));
          pointers.emplace(kDk, at(a.dk, a.dk_stride));
          pointers.emplace(kDv, at(a.dv, a.dv_stride));
        }
        fe::error_t status = graph_.execute(handle_, pointers, a.workspace);
        if (status.is_bad()) {
          return host::Fail(MT_ERROR_DEVICE, operation, "cuDNN's execute at %s:%d: %s", __FILE__,
                            __LINE__, status.get_message().c_str());
        }
      }
    } catch (const std::exception& error) {
      return host::Fail(MT_ERROR_DEVICE, operation, "cuDNN's execute at %s:%d: %s", __FILE__,
                        __LINE__, error.what());
    }
    return MT_OK;
  }

 private:
  int64_t sequences_;
  bool backward_;
  cudnnHandle_t handle_;
  fe::graph::Graph graph_;
  int64_t workspace_bytes_ = 0;
  std::string engine_;
};

}  // namespace

std::unique_ptr<CudnnAttention> CudnnAttention::Make(const mt_attention_args& args, bool backward,
                                                     const CudnnTarget& target,
                                                     const CudnnOptions& options,
                                                     std::string* reason) {
  if (LoadCudnn() == nullptr) {
    *reason = host::ErrorMessage();
    return nullptr;
  }
  if (args.sinks != nullptr || mt_attention_keys(&args) != args.sequence) {
    *reason = "sinks and older keys are not described to cuDNN";
    return nullptr;
  }
  // dP, 2 bytes for each query and key of each head, in tiles of 64 and 128; the rest of the workspace is small beside it.
  const auto padded = [&](int64_t tile) { return (args.sequence + tile - 1) / tile * tile; };
  const int64_t bytes = backward && options.deterministic
                            ? args.batch * args.heads * padded(64) * padded(128) * 2
                            : 0;
  try {
    for (int64_t sequences = SequencesAtOnce(args.batch, bytes, options.workspace_limit);;) {
      auto plan = std::make_unique<Plan>(sequences, backward, target);
      *reason = plan->Build(args, target, options);
      if (!reason->empty()) return nullptr;
      if (plan->workspace_bytes() <= options.workspace_limit || sequences == 1) return plan;
      int64_t fewer = sequences - 1;
      while (args.batch % fewer != 0) --fewer;
      sequences = fewer;
    }
  } catch (const std::exception& error) {
    *reason = error.what();
    return nullptr;
  }
}

#else

std::unique_ptr<CudnnAttention> CudnnAttention::Make(const mt_attention_args&, bool,
                                                     const CudnnTarget&, const CudnnOptions&,
                                                     std::string* reason) {
  *reason = "built without cudnn-frontend";
  return nullptr;
}

#endif

}  // namespace mt::cuda
