#include "kernels/cuda/attention_policy.h"

#include <algorithm>

#include "kernels/abi/attention_shape.h"

namespace mt::cuda {
namespace {

constexpr int64_t kShortSequence = 256;

struct Rule {
  bool (*applies)(const mt_attention_args& args);
  CudnnUse most;
};
constexpr Rule kRules[] = {
    {[](const mt_attention_args& a) { return a.dtype != MT_BF16; }, CudnnUse::kNever},
    {[](const mt_attention_args& a) { return a.sequence == 0 || a.batch == 0; }, CudnnUse::kNever},
    {[](const mt_attention_args& a) { return a.sinks != nullptr; }, CudnnUse::kNever},
    {[](const mt_attention_args& a) { return a.document_start != nullptr; }, CudnnUse::kNever},
    {[](const mt_attention_args& a) { return mt_attention_keys(&a) != a.sequence; },
     CudnnUse::kNever},
    {[](const mt_attention_args& a) { return a.window != 0 && a.window < a.sequence; },
     CudnnUse::kIfAsked},
    {[](const mt_attention_args& a) { return mt_attention_v_head_dim(&a) != a.head_dim; },
     CudnnUse::kIfAsked},
    {[](const mt_attention_args& a) { return a.sequence < kShortSequence; }, CudnnUse::kIfAsked},
};

}  // namespace

CudnnUse UseOfCudnn(const mt_attention_args& args) {
  CudnnUse use = CudnnUse::kByItself;
  for (const Rule& rule : kRules) {
    if (rule.applies(args)) use = std::min(use, rule.most);
  }
  return use;
}

}  // namespace mt::cuda
