// Looks at a job's training data, and at the weights it begins with, before any of its ranks starts on this node, so that a
// missing or broken file is told once, by name, and not by every rank after it has loaded a model. The tests' and the simulation's answer at once.
#pragma once

#include <functional>
#include <memory>

#include "common/env.h"
#include "common/event_loop.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

class DataChecker {
 public:
  virtual ~DataChecker() = default;
  // `done` runs once, on the agent's EventLoop, never inside Check. Errors: those of CheckInitialCheckpoint
  // (worker/checkpoint/hugging_face) and CheckTrainingData (worker/data/sample/dataset_batch_source.h); they name the file and the remedy.
  virtual void Check(const v1::JobSpec& spec, std::function<void(absl::Status)> done) = 0;
};

// The real one: reads files on a thread of its own, one job after the other. Destruction waits for what is under way.
std::unique_ptr<DataChecker> NewDataChecker(EventLoop* loop, Env* env);

}  // namespace mt
