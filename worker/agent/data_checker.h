// Looks at a job's training data, and at the weights it begins with, before any of its ranks starts on this node, so that a
// missing or broken file is told once, by name, and not by every rank after it has loaded a model; and takes the fingerprints by
// which the coordinator knows that all nodes have the same data. The tests' and the simulation's answer at once.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "common/env.h"
#include "common/event_loop.h"
#include "common/status.h"
#include "mt/v1/spec.pb.h"

namespace mt {

// Fingerprint (common/dataset/dataset_fingerprint.h) of each prefix that the spec trains on or evaluates.
using DataFingerprints = std::map<std::string, std::string>;

class DataChecker {
 public:
  virtual ~DataChecker() = default;
  // `done` runs once, on the agent's EventLoop, never inside Check. Errors: those of CheckInitialCheckpoint
  // (worker/checkpoint/hugging_face), CheckTrainingData (worker/data/sample/dataset_batch_source.h) and DatasetFingerprint; they
  // name the file and the remedy.
  virtual void Check(const v1::JobSpec& spec,
                     std::function<void(absl::StatusOr<DataFingerprints>)> done) = 0;
};

// The real one: reads files on a thread of its own, one job after the other. Destruction waits for what is under way.
std::unique_ptr<DataChecker> NewDataChecker(EventLoop* loop, Env* env);

}  // namespace mt
