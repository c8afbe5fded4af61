// What this node's GPUs say of themselves: memory, utilisation, temperature, power, clock, memory errors.
//
// NVML (libnvidia-ml.so.1) comes with the driver and is loaded at run time by name, with prototypes of our own: neither a
// build nor a node needs it. A node without it, or with no device, has no monitor and reports nothing.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/clock.h"
#include "common/status.h"
#include "mt/v1/cluster.pb.h"

namespace mt {

class DeviceMonitor {
 public:
  virtual ~DeviceMonitor() = default;
  // One entry per device, always all of them and in the driver's order. A figure that a device does not give is absent; a
  // device that no longer answers has `error`. Not thread-safe.
  virtual std::vector<v1::Device> Sample() = 0;
};

struct DeviceMonitorOptions {
  std::string library = "libnvidia-ml.so.1";
  Clock* clock = Clock::Real();
};

// NOT_FOUND: no such library, or no device. FAILED_PRECONDITION: the library lacks what every version has, or does not
// start; the message is its own. The library is never unloaded.
absl::StatusOr<std::unique_ptr<DeviceMonitor>> NewNvmlMonitor(DeviceMonitorOptions options = {});

}  // namespace mt
