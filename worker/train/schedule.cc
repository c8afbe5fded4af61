#include "worker/train/schedule.h"

#include <algorithm>

namespace mt {

std::vector<Action> OneForwardOneBackward(int stages, int stage, int64_t micro_batches) {
  std::vector<Action> list;
  auto forward = [&](int64_t m) {
    if (stage > 0) list.push_back({ActionKind::kReceiveActivation, m});
    list.push_back({ActionKind::kForward, m});
    if (stage < stages - 1) list.push_back({ActionKind::kSendActivation, m});
  };
  auto backward = [&](int64_t m) {
    if (stage < stages - 1) list.push_back({ActionKind::kReceiveGradient, m});
    list.push_back({ActionKind::kBackward, m});
    if (stage > 0) list.push_back({ActionKind::kSendGradient, m});
  };
  const int64_t ahead = std::min<int64_t>(micro_batches, stages - stage - 1);
  for (int64_t m = 0; m < ahead; ++m) forward(m);
  for (int64_t m = ahead; m < micro_batches; ++m) {
    forward(m);
    backward(m - ahead);
  }
  for (int64_t m = micro_batches - ahead; m < micro_batches; ++m) backward(m);
  return list;
}

std::vector<Action> ForwardOnly(int stages, int stage, int64_t micro_batches) {
  std::vector<Action> list;
  for (int64_t m = 0; m < micro_batches; ++m) {
    if (stage > 0) list.push_back({ActionKind::kReceiveActivation, m});
    list.push_back({ActionKind::kForward, m});
    if (stage < stages - 1) list.push_back({ActionKind::kSendActivation, m});
  }
  return list;
}

}  // namespace mt
