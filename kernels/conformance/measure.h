// Times one case on a backend: data made in the backend's memory, copies of the problem in turn so that nothing stays in a
// cache, the middle of many runs.
#pragma once

#include <string>

#include "kernels/conformance/cases.h"

namespace mt::conformance {

struct MeasureOptions {
  int32_t dtype = MT_F32;
  // The clock: the calling thread's own on a host backend with one thread (what else runs on the machine counts less), the
  // wall's with more; events of the device on a device.
  bool one_thread = false;
  bool device = false;
};
struct Measured {
  double seconds = 0;
  int runs = 0;
  std::string kernel;
  std::string failure;  // why there is no time; empty otherwise
};
Measured Measure(const mt_backend* backend, const Case& item, const MeasureOptions& options);

// Bytes per second, read and written, of copying half a gigabyte on a device, 64 MiB on a host.
double MeasureCopy(const mt_backend* backend, const MeasureOptions& options);

}  // namespace mt::conformance
