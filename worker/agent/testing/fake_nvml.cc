// A libnvidia-ml.so.1 whose devices are what the test wrote into fake_nvml_state(). FAKE_NVML_OLD lacks what old drivers
// lack, FAKE_NVML_EMPTY everything.
#include "worker/agent/testing/fake_nvml.h"

#include <cstdio>
#include <cstring>

#ifdef FAKE_NVML_EMPTY
extern "C" int some_other_library() { return 0; }
#else
namespace {

FakeNvml state;

// Handles are indices plus one.
int Index(void* device) { return static_cast<int>(reinterpret_cast<size_t>(device)) - 1; }
const FakeNvmlDevice& At(void* device) { return state.devices[Index(device)]; }

int Answer(void* device) {
  ++state.calls;
  return At(device).code;
}
int Text(void* device, char* out, unsigned bytes, const char* prefix) {
  std::snprintf(out, bytes, "%s-%d", prefix, Index(device));
  return Answer(device);
}

}  // namespace

extern "C" {

FakeNvml* fake_nvml_state() { return &state; }

int nvmlInit_v2() { return state.init_code; }
const char* nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "another error"; }
int nvmlDeviceGetCount_v2(unsigned* count) {
  *count = static_cast<unsigned>(state.count);
  return 0;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** device) {
  *device = reinterpret_cast<void*>(static_cast<size_t>(index) + 1);
  return state.devices[index].code;
}
int nvmlDeviceGetName(void* device, char* out, unsigned bytes) {
  return Text(device, out, bytes, "Fake GPU");
}
int nvmlDeviceGetUUID(void* device, char* out, unsigned bytes) {
  return Text(device, out, bytes, "GPU");
}
int nvmlDeviceGetMemoryInfo(void* device, unsigned long long* memory) {  // total, free, used
  memory[0] = 80ull << 30;
  memory[2] = static_cast<unsigned long long>(Index(device) + 1) << 30;
  memory[1] = memory[0] - memory[2];
  return Answer(device);
}
int nvmlDeviceGetUtilizationRates(void* device, unsigned* percent) {  // gpu, memory
  percent[0] = 75;
  percent[1] = 30;
  return Answer(device);
}
int nvmlDeviceGetTemperature(void* device, int sensor, unsigned* value) {
  *value = sensor == 0 ? At(device).temperature : 999;
  return Answer(device);
}
#ifndef FAKE_NVML_OLD
int nvmlDeviceGetPowerUsage(void* device, unsigned* value) {
  *value = 431500;
  return Answer(device);
}
int nvmlDeviceGetClockInfo(void* device, int type, unsigned* value) {
  *value = type == 1 ? 1755 : 999;
  return Answer(device);
}
int nvmlDeviceGetTotalEccErrors(void* device, int kind, int counter, unsigned long long* value) {
  *value = counter == 0 ? (kind == 0 ? 5 : At(device).uncorrected) : 999;
  return At(device).has_ecc ? Answer(device) : 3;  // not supported
}
#endif
}
#endif
