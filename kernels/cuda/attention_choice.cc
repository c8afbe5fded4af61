#include "kernels/cuda/attention_choice.h"

#include <cudnn_graph.h>

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <memory>
#include <mutex>

#include "kernels/abi/attention_shape.h"
#include "kernels/cuda/attention_cudnn.h"
#include "kernels/cuda/attention_policy.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/libraries.h"
#include "kernels/cuda/types.h"
#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

// All that a plan depends on.
using Key = std::array<int64_t, 18>;
Key KeyOf(const mt_attention_args& a, bool backward) {
  Key key = {backward,   a.sequence,
             a.batch,    a.heads,
             a.kv_heads, a.head_dim,
             a.q_stride, a.k_stride,
             a.v_stride, a.o_stride,
             a.causal,   std::bit_cast<int64_t>(a.scale),
             a.window,   mt_attention_v_head_dim(&a)};
  if (backward) {
    key[14] = a.o_gradient_stride;
    key[15] = a.dq_stride;
    key[16] = a.dk_stride;
    key[17] = a.dv_stride;
  }
  return key;
}

struct Entry {
  std::unique_ptr<CudnnAttention> plan;  // null: cuDNN declined
  std::string reason, name;
};

// One line, not long.
std::string Short(const std::string& reason) {
  const std::string line = reason.substr(0, reason.find('\n'));
  return line.size() <= 160 ? line : line.substr(0, 157) + "...";
}

class Choice {
 public:
  static Choice& Get() {
    static Choice* choice = new Choice;
    return *choice;
  }

  int32_t Open(const std::string& choice, const AttentionDevice& device) {
    const std::lock_guard lock(mutex_);
    required_ = choice == "cudnn";
    if (choice == "flash" || (choice == "auto" && device.major < 9)) return MT_OK;
    architecture_ = 10 * device.major + device.minor;
    const Cudnn* const cudnn = LoadCudnn();
    cudnnHandle_t handle = nullptr;
    cudnnStatus_t status = CUDNN_STATUS_SUCCESS;
    if (cudnn == nullptr) {
      missing_ = host::ErrorMessage();
    } else if ((status = cudnn->cudnnCreate(&handle)) != CUDNN_STATUS_SUCCESS) {
      missing_ = std::string("cudnnCreate: ") + cudnn->cudnnGetErrorString(status);
    } else {
      handle_ = handle;
    }
    wanted_ = true;
    if (required_ && handle_ == nullptr)
      return host::Fail(MT_ERROR_UNSUPPORTED, 0, "attention = cudnn: %s", missing_.c_str());
    return MT_OK;
  }

  // The plan for this shape, made now if it is new; null if cuDNN is not wanted for it.
  const Entry* Ask(const mt_attention_args& args, bool backward) {
    const std::lock_guard lock(mutex_);
    const CudnnUse use = UseOfCudnn(args);
    if (!wanted_ || use == CudnnUse::kNever || (!required_ && use != CudnnUse::kByItself))
      return nullptr;
    const auto [at, is_new] = entries_.try_emplace(KeyOf(args, backward));
    Entry& entry = at->second;
    if (!is_new) return &entry;
    entry.reason = missing_;
    // Kernels are loaded into the device that is current.
    if (handle_ != nullptr && BindThread() == MT_OK)
      entry.plan = CudnnAttention::Make(args, backward, {handle_, "", architecture_},
                                        {.may_exceed = required_}, &entry.reason);
    if (entry.plan != nullptr) {
      entry.name = "cudnn:" + VersionText(LoadCudnn()->version) + ":" + entry.plan->engine();
      if (backward) entry.name += ":deterministic";
      if (const CudnnPart part = entry.plan->part(); part.kv_heads < args.kv_heads)
        entry.name += ":" + std::to_string(part.kv_heads) + " key heads at once";
      else if (part.sequences < args.batch)
        entry.name += ":" + std::to_string(part.sequences) + " sequences at once";
    } else {
      entry.name =
          std::string(FlashAttentionName(args, backward)) + " (cuDNN: " + Short(entry.reason) + ")";
    }
    return &entry;
  }

  bool required() const { return required_; }

  // True if cuDNN has a plan and has run it; `*status` is then what came of it.
  bool Run(const mt_attention_args& args, bool backward, const Launch& launch, int32_t* status) {
    const std::lock_guard lock(mutex_);
    // Sinks are seen here at the latest: shapes may be asked about without pointers.
    if (handle_ == nullptr || UseOfCudnn(args) == CudnnUse::kNever) return false;
    const auto at = entries_.find(KeyOf(args, backward));
    if (at == entries_.end() || at->second.plan == nullptr || !Aligned(args, backward))
      return false;
    const Cudnn& cudnn = *LoadCudnn();
    if (const cudnnStatus_t set = cudnn.cudnnSetStream(handle_, launch.stream);
        set != CUDNN_STATUS_SUCCESS) {
      *status = host::Fail(
          MT_ERROR_DEVICE, backward ? MT_OP_ATTENTION_BACKWARD : MT_OP_ATTENTION_FORWARD,
          "cudnnSetStream at %s:%d: %s", __FILE__, __LINE__, cudnn.cudnnGetErrorString(set));
    } else {
      *status = at->second.plan->Run(args);
    }
    return true;
  }

 private:
  static bool Aligned(const mt_attention_args& a, bool backward) {
    for (const void* pointer : {a.q, a.k, a.v, static_cast<const void*>(a.o)}) {
      if (!IsAligned(pointer)) return false;
    }
    return !backward ||
           (IsAligned(a.o_gradient) && IsAligned(a.dq) && IsAligned(a.dk) && IsAligned(a.dv));
  }

  std::mutex mutex_;
  bool wanted_ = false, required_ = false;
  int architecture_ = 0;
  std::string missing_;
  cudnnHandle_t handle_ = nullptr;
  std::map<Key, Entry> entries_;  // never erased: names are static storage
};

}  // namespace

int32_t OpenAttention(const std::string& choice, const AttentionDevice& device) {
  return Choice::Get().Open(choice, device);
}

bool AttentionSupports(const mt_attention_args& args, bool backward) {
  const Entry* const entry = Choice::Get().Ask(args, backward);
  if (entry != nullptr && entry->plan != nullptr) return true;
  if (entry != nullptr && Choice::Get().required()) {
    host::Fail(MT_ERROR_UNSUPPORTED, backward ? MT_OP_ATTENTION_BACKWARD : MT_OP_ATTENTION_FORWARD,
               "attention = cudnn, which declines: %s", entry->reason.c_str());
    return false;
  }
  return FlashAttentionSupports(args, backward);
}

const char* AttentionName(const mt_attention_args& args, bool backward) {
  const Entry* const entry = Choice::Get().Ask(args, backward);
  return entry != nullptr ? entry->name.c_str() : FlashAttentionName(args, backward);
}

// Enough for our own kernels too, which take over where a pointer is not aligned.
int64_t AttentionWorkspace(const mt_attention_args& args, bool backward) {
  const Entry* const entry = Choice::Get().Ask(args, backward);
  const int64_t bytes =
      entry != nullptr && entry->plan != nullptr ? entry->plan->workspace_bytes() : 0;
  return std::max(bytes, FlashAttentionWorkspace(args, backward));
}

int32_t AttentionForward(const mt_attention_args& args, const Launch& launch) {
  int32_t status = MT_OK;
  return Choice::Get().Run(args, false, launch, &status) ? status
                                                         : FlashAttentionForward(args, launch);
}

int32_t AttentionBackward(const mt_attention_args& args, const Launch& launch) {
  int32_t status = MT_OK;
  return Choice::Get().Run(args, true, launch, &status) ? status
                                                        : FlashAttentionBackward(args, launch);
}

}  // namespace mt::cuda
