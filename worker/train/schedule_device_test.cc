// 1F1B between devices: every message is a rendezvous (fake_device.h), and the stages keep their buffers as the trainer does:
// one for what is sent forward, one for what is sent back, one input per micro-batch in flight.
#include <gtest/gtest.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "worker/comm/device_communicator.h"
#include "worker/comm/testing/fake_device.h"
#include "worker/train/schedule.h"

namespace mt {
namespace {

using testing::FakeMachine;

class Board : public Rendezvous {
 public:
  absl::Status Put(const std::string& key, const std::string& value) override {
    const std::lock_guard lock(mutex_);
    values_[key] = value;
    changed_.notify_all();
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration) override {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return values_.contains(key); });
    return values_[key];
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;
};

struct Stage {
  std::unique_ptr<Communicator> pipeline;
  float output = 0, gradient = 0;
  std::vector<float> inputs;  // by slot
  std::vector<float> loss,
      done;  // by micro-batch: what the last stage saw, what came back to the first
};

class Pipeline {
 public:
  explicit Pipeline(int stages) : machine_(stages), stages_(stages) {
    const DeviceAccess access{.backend = machine_.backend(), .collectives = machine_.collectives()};
    auto watch = std::make_shared<DeviceWatch>(access, /*thread=*/false);
    std::vector<std::thread> threads;
    for (int s = 0; s < stages; ++s) {
      threads.emplace_back([&, s] {
        FakeMachine::Act(s);
        DeviceGroupOptions options;
        options.name = options.prefix = "pipeline";
        options.rank = s;
        options.size = stages;
        options.links = DeviceGroupOptions::Links::kNeighbours;
        const absl::Status joined =
            NewDeviceCommunicator(options, watch, &board_, &stages_[s].pipeline);
        ASSERT_TRUE(joined.ok()) << joined;
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  // The host of every stage enqueues its whole list before any device runs. False if the devices wait for each other.
  bool Run(int64_t micro_batches) {
    const int count = static_cast<int>(stages_.size());
    machine_.set_automatic(false);
    for (int s = 0; s < count; ++s) {
      FakeMachine::Act(s);
      Stage& stage = stages_[s];
      stage.inputs.assign(static_cast<size_t>(count - s), 0);
      stage.loss.assign(static_cast<size_t>(micro_batches), 0);
      stage.done.assign(static_cast<size_t>(micro_batches), 0);
      for (const Action& action : OneForwardOneBackward(count, s, micro_batches))
        EXPECT_TRUE(Enqueue(stage, s, count, action).ok());
    }
    return machine_.Run();
  }
  const Stage& first() const { return stages_.front(); }
  const Stage& last() const { return stages_.back(); }

 private:
  absl::Status Enqueue(Stage& stage, int s, int count, const Action& action) {
    float* const input = &stage.inputs[static_cast<size_t>(action.micro_batch % (count - s))];
    const auto m = static_cast<size_t>(action.micro_batch);
    switch (action.kind) {
      case ActionKind::kReceiveActivation:
        return stage.pipeline->Receive(input, sizeof(float), s - 1);
      case ActionKind::kSendActivation:
        return stage.pipeline->Send(&stage.output, sizeof(float), s + 1);
      case ActionKind::kReceiveGradient:
        return stage.pipeline->Receive(&stage.gradient, sizeof(float), s + 1);
      case ActionKind::kSendGradient:
        return stage.pipeline->Send(&stage.gradient, sizeof(float), s - 1);
      case ActionKind::kForward:
        machine_.Compute([&stage, s, count, input, m] {
          if (s == 0) *input = 100.f * static_cast<float>(m);
          stage.output = *input + 1;
          if (s == count - 1) stage.loss[m] = stage.output;
        });
        return absl::OkStatus();
      case ActionKind::kBackward:
        machine_.Compute([&stage, s, count, m] {
          stage.gradient = s == count - 1 ? stage.loss[m] : stage.gradient + 10000;
          if (s == 0) stage.done[m] = stage.gradient;
        });
        return absl::OkStatus();
    }
    return absl::OkStatus();
  }

  Board board_;
  FakeMachine machine_;
  std::vector<Stage> stages_;
};

TEST(ScheduleOnDevices, RendezvousMessagesNeverDeadlockAndArriveWhole) {
  for (int stages = 2; stages <= 6; ++stages) {
    Pipeline pipeline(stages);
    for (const int64_t micro_batches : {1, 2, 3, 5, 8, 13}) {
      SCOPED_TRACE(absl::StrCat(stages, " stages, ", micro_batches, " micro-batches"));
      ASSERT_TRUE(pipeline.Run(micro_batches)) << "the devices wait for each other";
      for (int64_t m = 0; m < micro_batches; ++m) {
        const auto at = static_cast<size_t>(m);
        EXPECT_EQ(pipeline.last().loss[at], 100 * m + stages);
        EXPECT_EQ(pipeline.first().done[at], 100 * m + stages + 10000 * (stages - 1));
      }
    }
  }
}

}  // namespace
}  // namespace mt
