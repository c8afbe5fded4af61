// A pipeline schedule is data: per stage, a list of actions that one executor runs in order.
//
// Every list must satisfy, and schedule_test.cc checks by running all stages against each other:
//   complete        every micro-batch goes forward and backward once on every stage, forward first;
//   deadlock-free   as long as a sender may run `Communicator::kSendAhead` messages ahead of each
//   receiver; bounded         at most `stages - stage` micro-batches are between forward and
//   backward on a stage (1F1B).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mt {

enum class ActionKind {
  kReceiveActivation,  // from the stage before
  kForward,            // on the last stage with the loss
  kSendActivation,     // to the stage after
  kReceiveGradient,    // from the stage after
  kBackward,           // input and weight gradients, block by block
  kSendGradient,       // to the stage before
};

struct Action {
  ActionKind kind;
  int64_t micro_batch = 0;
  bool operator==(const Action&) const = default;
};

// 1F1B (Narayanan et al. 2021, "PipeDream-Flush"): stage s runs stages - s - 1 forwards ahead, then
// alternates.
std::vector<Action> OneForwardOneBackward(int stages, int stage, int64_t micro_batches);

// Forward passes alone, one micro-batch after the other: what an evaluation runs.
std::vector<Action> ForwardOnly(int stages, int stage, int64_t micro_batches);

}  // namespace mt
