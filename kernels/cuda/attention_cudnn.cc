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

std::vector<CudnnPart> CudnnParts(int64_t batch, int64_t kv_heads) {
  std::vector<CudnnPart> parts;
  for (int64_t sequences = batch; sequences > 0; --sequences) {
    if (batch % sequences == 0) parts.push_back({sequences, kv_heads});
  }
  for (int64_t heads = kv_heads - 1; heads > 0; --heads) {
    if (kv_heads % heads == 0) parts.push_back({1, heads});
  }
  return parts;
}

#if MT_HAS_CUDNN_FRONTEND
namespace {

namespace fe = cudnn_frontend;
using Tensor = std::shared_ptr<fe::graph::Tensor_attributes>;

enum Uid : int64_t { kQ = 1, kK, kV, kO, kLse, kOGradient, kDq, kDk, kDv };

// Of one direction, for a part of the batch.
struct Description {
  const mt_attention_args& args;
  CudnnPart part;
  bool backward;
  const CudnnOptions& options;
  int64_t heads() const { return part.kv_heads * (args.heads / args.kv_heads); }
};

// (sequences, heads, T, d), element (b, h, t, j) at b * stride + h * d + t * batch * stride + j.
fe::graph::Tensor_attributes Rows(const Description& about, Uid uid, int64_t heads, int64_t stride,
                                  int64_t head_dim) {
  const mt_attention_args& a = about.args;
  fe::graph::Tensor_attributes tensor;
  tensor.set_uid(uid)
      .set_dim({about.part.sequences, heads, a.sequence, head_dim})
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
      .set_dim({about.part.sequences, about.heads(), a.sequence, 1})
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
  const Tensor q = graph->tensor(KeyRows(about, kQ, about.heads(), a.q_stride)),
               k = graph->tensor(KeyRows(about, kK, about.part.kv_heads, a.k_stride)),
               v = graph->tensor(ValueRows(about, kV, about.part.kv_heads, a.v_stride));
  if (!about.backward) {
    fe::graph::SDPA_attributes options;
    options.set_name("attention").set_generate_stats(true);
    SetMask(a, &options);
    auto [o, lse] = graph->sdpa(q, k, v, options);
    SetOutput(o, ValueRows(about, kO, about.heads(), a.o_stride));
    SetOutput(lse, Lse(about));
    return;
  }
  const Tensor o = graph->tensor(ValueRows(about, kO, about.heads(), a.o_stride)),
               o_gradient =
                   graph->tensor(ValueRows(about, kOGradient, about.heads(), a.o_gradient_stride)),
               lse = graph->tensor(Lse(about));
  fe::graph::SDPA_backward_attributes options;
  options.set_name("attention_backward").set_deterministic_algorithm(about.options.deterministic);
  SetMask(a, &options);
  auto [dq, dk, dv] = graph->sdpa_backward(q, k, v, o, o_gradient, lse, options);
  SetOutput(dq, KeyRows(about, kDq, about.heads(), a.dq_stride));
  SetOutput(dk, KeyRows(about, kDk, about.part.kv_heads, a.dk_stride));
  SetOutput(dv, ValueRows(about, kDv, about.part.kv_heads, a.dv_stride));
}

class Plan final : public CudnnAttention {
 public:
  Plan(CudnnPart part, bool backward, const CudnnTarget& target)
      : part_(part), backward_(backward), handle_(static_cast<cudnnHandle_t>(target.handle)) {}

  // An empty string, or why cuDNN has no plan.
  std::string Build(const mt_attention_args& args, const CudnnTarget& target,
                    const CudnnOptions& options) {
    graph_.set_sm_version(target.architecture);  // before the operations, which remember it
    Describe({args, part_, backward_, options}, &graph_);
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
  CudnnPart part() const override { return part_; }
  const std::string& engine() const override { return engine_; }

  int32_t Run(const mt_attention_args& a) const override {
    const int32_t operation = backward_ ? MT_OP_ATTENTION_BACKWARD : MT_OP_ATTENTION_FORWARD;
    try {
      for (int64_t b = 0; b < a.batch; b += part_.sequences) {
        for (int64_t head = 0; head < a.kv_heads; head += part_.kv_heads) {
          auto pointers = Pointers(a, b, head);
          fe::error_t status = graph_.execute(handle_, pointers, a.workspace);
          if (status.is_bad()) {
            return host::Fail(MT_ERROR_DEVICE, operation, "cuDNN's execute at %s:%d: %s", __FILE__,
                              __LINE__, status.get_message().c_str());
          }
        }
      }
    } catch (const std::exception& error) {
      return host::Fail(MT_ERROR_DEVICE, operation, "cuDNN's execute at %s:%d: %s", __FILE__,
                        __LINE__, error.what());
    }
    return MT_OK;
  }

 private:
  // Of the part that begins with sequence b and this key head.
  std::unordered_map<int64_t, void*> Pointers(const mt_attention_args& a, int64_t b,
                                              int64_t kv_head) const {
    const int64_t head = kv_head * (a.heads / a.kv_heads), v_head_dim = mt_attention_v_head_dim(&a);
    const auto at = [b](const void* data, int64_t stride, int64_t offset) -> void* {
      return static_cast<uint16_t*>(const_cast<void*>(data)) + b * stride + offset;
    };
    std::unordered_map<int64_t, void*> pointers = {
        {kQ, at(a.q, a.q_stride, head * a.head_dim)},
        {kK, at(a.k, a.k_stride, kv_head * a.head_dim)},
        {kV, at(a.v, a.v_stride, kv_head * v_head_dim)},
        {kO, at(a.o, a.o_stride, head * v_head_dim)},
        {kLse, static_cast<float*>(a.lse) + (b * a.heads + head) * a.sequence},
    };
    if (backward_) {
      pointers.emplace(kOGradient, at(a.o_gradient, a.o_gradient_stride, head * v_head_dim));
      pointers.emplace(kDq, at(a.dq, a.dq_stride, head * a.head_dim));
      pointers.emplace(kDk, at(a.dk, a.dk_stride, kv_head * a.head_dim));
      pointers.emplace(kDv, at(a.dv, a.dv_stride, kv_head * v_head_dim));
    }
    return pointers;
  }

  CudnnPart part_;
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
  const int64_t bytes_per_kv_head = backward && options.deterministic
                                        ? args.heads / args.kv_heads * padded(64) * padded(128) * 2
                                        : 0;
  const std::vector<CudnnPart> parts = CudnnParts(args.batch, args.kv_heads);
  try {
    for (const CudnnPart& part : parts) {
      const bool last = part == parts.back();
      if (part.sequences * part.kv_heads * bytes_per_kv_head > options.workspace_limit && !last)
        continue;
      auto plan = std::make_unique<Plan>(part, backward, target);
      *reason = plan->Build(args, target, options);
      if (!reason->empty()) return nullptr;
      if (plan->workspace_bytes() <= options.workspace_limit || (last && options.may_exceed))
        return plan;
      *reason = "one sequence of one key head needs " +
                std::to_string(plan->workspace_bytes() >> 20) + " MiB of workspace";
    }
    return nullptr;
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
