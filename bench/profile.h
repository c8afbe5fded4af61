// A table of a step's time by operation against its floor. Installed as the observer of a rank's operations, it brackets every
// call with events (a device) or looks at the clock (host memory); calls of one operation, kernel and shape are one row.
#pragma once

#include <chrono>
#include <map>
#include <string>
#include <vector>

#include "kernels/conformance/cost.h"
#include "worker/backend/operations.h"

namespace mt {

class Profile : public OperationObserver {
 public:
  struct Row {
    std::string operation, shape, kernel;
    conformance::Cost cost;
    int64_t calls = 0;   // per step
    double seconds = 0;  // per step: the median of the steps
    double floor = 0;    // per step
  };
  ~Profile() override;

  int32_t Run(const mt_backend& backend, int32_t operation, const void* arguments) override;
  // Calls until now belong to no step, or to the step before. The device must have done them: a step has just ended.
  absl::Status EndStep(bool counts);
  // By time, longest first.
  std::vector<Row> Rows(const conformance::Ceilings& ceilings) const;

 private:
  struct Call {
    std::string key;
    mt_event begin = nullptr, end = nullptr;
    double seconds = 0;
  };
  struct Entry {
    Row row;
    std::vector<double> step_seconds;
  };

  const mt_backend* backend_ = nullptr;
  bool host_memory_ = false;
  std::vector<Call> calls_;  // of this step
  std::vector<mt_event> events_;
  size_t events_used_ = 0;
  std::map<std::string, Entry> entries_;
};

// One line per row and a sum; rows that reach less than 85% of their floor's rate and are bound by memory are marked `<`.
std::string FormatProfile(const std::vector<Profile::Row>& rows, double step_seconds,
                          const conformance::Ceilings& ceilings);
std::string ProfileJson(const std::vector<Profile::Row>& rows);

}  // namespace mt
