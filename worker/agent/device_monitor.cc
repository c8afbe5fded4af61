#include "worker/agent/device_monitor.h"

#include <dlfcn.h>

#include "common/log.h"

namespace mt {
namespace {

// The part of NVML's ABI that is used here (NVIDIA, "NVML API Reference Guide"). Everything returns an nvmlReturn_t.
using NvmlDevice = struct NvmlDeviceHandle*;
constexpr int kOk = 0, kGpuIsLost = 15;
constexpr int kTemperatureOfGpu = 0;  // nvmlTemperatureSensors_t
constexpr int kSmClock = 1;           // nvmlClockType_t
constexpr int kCorrected = 0, kUncorrected = 1, kSinceDriverLoad = 0;
constexpr unsigned kNameBytes = 96;
struct NvmlMemory {
  unsigned long long total = 0, free = 0, used = 0;  // bytes
};
struct NvmlUtilization {
  unsigned gpu = 0, memory = 0;  // percent
};

struct Nvml {
  int (*init)() = nullptr;
  int (*count)(unsigned*) = nullptr;
  int (*handle)(unsigned, NvmlDevice*) = nullptr;
  const char* (*error)(int) = nullptr;
  // Any of these may be missing from an old library.
  int (*name)(NvmlDevice, char*, unsigned) = nullptr;
  int (*uuid)(NvmlDevice, char*, unsigned) = nullptr;
  int (*memory)(NvmlDevice, NvmlMemory*) = nullptr;
  int (*utilization)(NvmlDevice, NvmlUtilization*) = nullptr;
  int (*temperature)(NvmlDevice, int, unsigned*) = nullptr;
  int (*power)(NvmlDevice, unsigned*) = nullptr;       // milliwatts
  int (*clock)(NvmlDevice, int, unsigned*) = nullptr;  // MHz
  int (*ecc_errors)(NvmlDevice, int, int, unsigned long long*) = nullptr;

  std::string Message(int code) const {
    const char* text = error != nullptr ? error(code) : nullptr;
    return text != nullptr ? absl::StrCat(text, " (NVML ", code, ")")
                           : absl::StrCat("NVML error ", code);
  }
};

template <typename Function>
void Find(void* library, const char* name, Function* function) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
}

absl::StatusOr<Nvml> Load(const std::string& path) {
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return absl::NotFoundError(dlerror());
  Nvml nvml;
  Find(library, "nvmlInit_v2", &nvml.init);
  Find(library, "nvmlDeviceGetCount_v2", &nvml.count);
  Find(library, "nvmlDeviceGetHandleByIndex_v2", &nvml.handle);
  Find(library, "nvmlErrorString", &nvml.error);
  Find(library, "nvmlDeviceGetName", &nvml.name);
  Find(library, "nvmlDeviceGetUUID", &nvml.uuid);
  Find(library, "nvmlDeviceGetMemoryInfo", &nvml.memory);
  Find(library, "nvmlDeviceGetUtilizationRates", &nvml.utilization);
  Find(library, "nvmlDeviceGetTemperature", &nvml.temperature);
  Find(library, "nvmlDeviceGetPowerUsage", &nvml.power);
  Find(library, "nvmlDeviceGetClockInfo", &nvml.clock);
  Find(library, "nvmlDeviceGetTotalEccErrors", &nvml.ecc_errors);
  if (nvml.init == nullptr || nvml.count == nullptr || nvml.handle == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " has no nvmlInit_v2 and its kin: it is not NVML"));
  }
  return nvml;
}

// A driver in trouble answers slowly, and the daemon's loop waits for it: sampling may take this share of the time, no more.
constexpr double kLargestShare = 0.02;

class NvmlMonitor : public DeviceMonitor {
 public:
  NvmlMonitor(Nvml nvml, unsigned count, Clock* clock) : nvml_(nvml), clock_(clock) {
    for (unsigned i = 0; i < count; ++i) {
      Known& known = devices_.emplace_back();
      known.last.set_index(static_cast<int>(i));
    }
  }

  std::vector<v1::Device> Sample() override {
    const absl::Duration begin = clock_->Monotonic();
    if (begin >= next_) {
      for (Known& known : devices_) Read(known);
      const absl::Duration end = clock_->Monotonic();
      next_ = end + (end - begin) / kLargestShare;
    }
    std::vector<v1::Device> devices;
    for (const Known& known : devices_) devices.push_back(known.last);
    return devices;
  }

 private:
  struct Known {
    NvmlDevice handle = nullptr;
    v1::Device last;
  };

  // A call's figure, if it gave one. A lost device says so to every call.
  template <typename Function, typename... Arguments>
  bool Ask(Function function, int* worst, Arguments... arguments) {
    if (function == nullptr) return false;
    const int code = function(arguments...);
    if (code == kGpuIsLost) *worst = code;
    return code == kOk;
  }

  void Read(Known& known) {
    v1::Device device;
    device.set_index(known.last.index());
    device.set_name(known.last.name());
    device.set_uuid(known.last.uuid());
    int worst = kOk;
    if (known.handle == nullptr)
      worst = nvml_.handle(static_cast<unsigned>(device.index()), &known.handle);
    if (worst == kOk) worst = ReadFigures(known.handle, device);
    if (worst != kOk) {
      v1::Device lost;
      lost.set_index(device.index());
      lost.set_name(device.name());
      lost.set_uuid(device.uuid());
      lost.set_error(nvml_.Message(worst));
      if (known.last.error() != lost.error()) {
        MT_LOG(Warning) << "device " << device.index() << " " << device.name() << ": "
                        << lost.error();
      }
      known.handle = nullptr;  // asked for anew: a device that was reset has another
      device = std::move(lost);
    }
    known.last = std::move(device);
  }

  int ReadFigures(NvmlDevice handle, v1::Device& device) {
    int worst = kOk;
    char text[kNameBytes] = {};
    if (device.name().empty() && Ask(nvml_.name, &worst, handle, text, kNameBytes))
      device.set_name(text);
    if (device.uuid().empty() && Ask(nvml_.uuid, &worst, handle, text, kNameBytes))
      device.set_uuid(text);
    NvmlMemory memory;
    if (Ask(nvml_.memory, &worst, handle, &memory)) {
      device.set_memory_used_bytes(static_cast<int64_t>(memory.used));
      device.set_memory_total_bytes(static_cast<int64_t>(memory.total));
    }
    NvmlUtilization utilization;
    if (Ask(nvml_.utilization, &worst, handle, &utilization))
      device.set_utilization(utilization.gpu / 100.0);
    unsigned value = 0;
    if (Ask(nvml_.temperature, &worst, handle, kTemperatureOfGpu, &value))
      device.set_temperature_celsius(value);
    if (Ask(nvml_.power, &worst, handle, &value)) device.set_power_watts(value / 1e3);
    if (Ask(nvml_.clock, &worst, handle, kSmClock, &value)) device.set_sm_clock_hertz(value * 1e6);
    unsigned long long errors = 0;
    if (Ask(nvml_.ecc_errors, &worst, handle, kCorrected, kSinceDriverLoad, &errors))
      device.set_ecc_corrected_errors(static_cast<int64_t>(errors));
    if (Ask(nvml_.ecc_errors, &worst, handle, kUncorrected, kSinceDriverLoad, &errors))
      device.set_ecc_uncorrected_errors(static_cast<int64_t>(errors));
    return worst;
  }

  const Nvml nvml_;
  Clock* const clock_;
  std::vector<Known> devices_;
  absl::Duration next_;  // not sampled before
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMonitor>> NewNvmlMonitor(DeviceMonitorOptions options) {
  MT_ASSIGN_OR_RETURN(const Nvml nvml, Load(options.library));
  if (const int code = nvml.init(); code != kOk) {
    return absl::FailedPreconditionError(absl::StrCat("NVML does not start: ", nvml.Message(code)));
  }
  unsigned count = 0;
  if (const int code = nvml.count(&count); code != kOk) {
    return absl::FailedPreconditionError(
        absl::StrCat("NVML does not count its devices: ", nvml.Message(code)));
  }
  if (count == 0) return absl::NotFoundError("NVML knows no device");
  return std::make_unique<NvmlMonitor>(nvml, count, options.clock);
}

}  // namespace mt
