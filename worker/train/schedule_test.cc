#include "worker/train/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>

#include "worker/comm/communicator.h"

namespace mt {
namespace {

struct Simulation {
  bool finished = false;
  std::vector<int64_t> most_in_flight;  // by stage
  int64_t ticks = 0;                    // to the end, when forward takes 1 and backward 2
};

// Runs all stages' lists against each other; channels hold `kSendAhead` messages per direction, as the weakest communicator
// may. Checks order and completeness on the way. Time: a message arrives when its sender has done its computation.
Simulation RunAll(int stages, int64_t micro_batches) {
  std::vector<std::vector<Action>> lists;
  for (int s = 0; s < stages; ++s) lists.push_back(OneForwardOneBackward(stages, s, micro_batches));
  struct Message {
    int64_t micro_batch, ready;
  };
  std::map<std::pair<int, int>, std::deque<Message>> channels;  // (from, to)
  std::vector<size_t> next(stages);
  std::vector<int64_t> now(stages), in_flight(stages), forwards(stages), backwards(stages);
  Simulation result{.most_in_flight = std::vector<int64_t>(stages)};
  auto run = [&](int s, const Action& a) {
    auto send = [&](int to) {
      auto& channel = channels[{s, to}];
      if (channel.size() >= static_cast<size_t>(Communicator::kSendAhead)) return false;
      channel.push_back({a.micro_batch, now[s]});
      return true;
    };
    auto receive = [&](int from) {
      auto& channel = channels[{from, s}];
      if (channel.empty()) return false;
      EXPECT_EQ(channel.front().micro_batch, a.micro_batch) << "stage " << s << " from " << from;
      now[s] = std::max(now[s], channel.front().ready);
      channel.pop_front();
      return true;
    };
    switch (a.kind) {
      case ActionKind::kReceiveActivation:
        return receive(s - 1);
      case ActionKind::kSendActivation:
        return send(s + 1);
      case ActionKind::kReceiveGradient:
        return receive(s + 1);
      case ActionKind::kSendGradient:
        return send(s - 1);
      case ActionKind::kForward:
        EXPECT_EQ(a.micro_batch, forwards[s]++);
        result.most_in_flight[s] = std::max(result.most_in_flight[s], ++in_flight[s]);
        now[s] += 1;
        return true;
      case ActionKind::kBackward:
        EXPECT_EQ(a.micro_batch, backwards[s]++);
        EXPECT_LT(a.micro_batch, forwards[s]);
        --in_flight[s];
        now[s] += 2;
        return true;
    }
    return false;
  };
  for (bool moved = true; moved;) {
    moved = false;
    for (int s = 0; s < stages; ++s) {
      while (next[s] < lists[s].size() && run(s, lists[s][next[s]])) {
        ++next[s];
        moved = true;
      }
    }
  }
  result.finished = true;
  for (int s = 0; s < stages; ++s) {
    result.finished &=
        next[s] == lists[s].size() && forwards[s] == micro_batches && backwards[s] == micro_batches;
  }
  for (const auto& [ends, channel] : channels) result.finished &= channel.empty();
  result.ticks = *std::max_element(now.begin(), now.end());
  return result;
}

TEST(ScheduleTest, CompleteAndFreeOfDeadlock) {
  for (int stages = 1; stages <= 8; ++stages) {
    for (int64_t micro_batches = 1; micro_batches <= 20; ++micro_batches) {
      EXPECT_TRUE(RunAll(stages, micro_batches).finished)
          << stages << " stages, " << micro_batches << " micro-batches";
    }
  }
}

TEST(ScheduleTest, MicroBatchesInFlightAreBoundedByTheStagesBehind) {
  for (int stages = 1; stages <= 6; ++stages) {
    for (const int64_t micro_batches : {1, 3, 6, 17}) {
      const Simulation simulation = RunAll(stages, micro_batches);
      for (int s = 0; s < stages; ++s) {
        EXPECT_EQ(simulation.most_in_flight[s], std::min<int64_t>(micro_batches, stages - s))
            << "stage " << s;
      }
    }
  }
}

TEST(ScheduleTest, BubbleIsStagesMinusOneMicroBatches) {
  for (int stages = 1; stages <= 6; ++stages) {
    for (const int64_t micro_batches : {6, 12, 24}) {
      EXPECT_EQ(RunAll(stages, micro_batches).ticks, 3 * (micro_batches + stages - 1))
          << stages << " stages";
    }
  }
}

TEST(ForwardOnly, EveryMicroBatchPassesEveryStageInOrder) {
  using enum ActionKind;
  EXPECT_EQ(ForwardOnly(1, 0, 2), (std::vector<Action>{{kForward, 0}, {kForward, 1}}));
  EXPECT_EQ(ForwardOnly(3, 0, 1), (std::vector<Action>{{kForward, 0}, {kSendActivation, 0}}));
  EXPECT_EQ(ForwardOnly(3, 1, 2), (std::vector<Action>{{kReceiveActivation, 0},
                                                       {kForward, 0},
                                                       {kSendActivation, 0},
                                                       {kReceiveActivation, 1},
                                                       {kForward, 1},
                                                       {kSendActivation, 1}}));
  EXPECT_EQ(ForwardOnly(3, 2, 1), (std::vector<Action>{{kReceiveActivation, 0}, {kForward, 0}}));
}

}  // namespace
}  // namespace mt
