#include "kernels/cuda/device.h"

#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <memory>
#include <mutex>

#include "kernels/cuda/chips.h"

namespace mt::cuda {
namespace {

std::mutex mutex;
std::atomic<const Device*> opened{nullptr};
std::atomic<int32_t> last_operation{0};

// The kernel module's version; a container may hide it.
std::string DriverVersion() {
  std::string version;
  if (std::ifstream file("/sys/module/nvidia/version"); file >> version) return version;
  int number = 0;
  if (cudaDriverGetVersion(&number) != cudaSuccess) return "unknown";
  return "CUDA " + std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

int32_t Decline(mt_device_info* info, const char* reason) {
  std::snprintf(info->detail, sizeof info->detail, "%s", reason);
  return 0;
}

int32_t Decline(mt_device_info* info, const char* what, cudaError_t error) {
  cudaGetLastError();
  std::snprintf(info->detail, sizeof info->detail, "%s (%s: %s)", what, cudaGetErrorName(error),
                cudaGetErrorString(error));
  return 0;
}

// Twice the memory clock times the width of the bus, for chips whose data sheet is not in the table; 0 if not told.
double MemoryRate(int index) {
  int kilohertz = 0, bits = 0;
  if (cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, index) != cudaSuccess ||
      cudaDeviceGetAttribute(&bits, cudaDevAttrGlobalMemoryBusWidth, index) != cudaSuccess)
    return 0;
  return 2.0 * kilohertz * 1e3 * bits / 8;
}

void Describe(const cudaDeviceProp& properties, int index, mt_device_info* info) {
  std::snprintf(info->name, sizeof info->name, "%.120s", properties.name);
  info->memory_bytes = static_cast<int64_t>(properties.totalGlobalMem);
  info->cores = properties.multiProcessorCount;
  info->capabilities = MT_CAPABILITY_FAST_BF16 | MT_CAPABILITY_GRAPHS;
  const bool fp8 = properties.major > 8 || (properties.major == 8 && properties.minor == 9);
  if (fp8) info->capabilities |= MT_CAPABILITY_FP8;
  const Chip chip = ChipByName(properties.name);
  info->bf16_flops = chip.bf16_flops;
  info->fp8_flops = fp8 ? chip.fp8_flops : 0;
  info->memory_bytes_per_second =
      chip.memory_bytes_per_second > 0 ? chip.memory_bytes_per_second : MemoryRate(index);
  info->peak_flops = chip.bf16_flops;
  std::snprintf(info->detail, sizeof info->detail,
                "compute capability %d.%d, %d multiprocessors, %.1f GiB, driver %s",
                properties.major, properties.minor, properties.multiProcessorCount,
                static_cast<double>(properties.totalGlobalMem) / (1 << 30),
                DriverVersion().c_str());
}

}  // namespace

int32_t ProbeDevice(mt_device_info* info) {
  int count = 0;
  // Without a driver this is cudaErrorInsufficientDriver, not cudaErrorNoDevice: any error means that there is none.
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess)
    return Decline(info, "no CUDA device", error);
  if (count <= 0) return Decline(info, "no CUDA device");
  info->device_count = count;
  const Device* device = opened;
  const int index = device != nullptr ? device->index : 0;
  cudaDeviceProp properties;
  if (const cudaError_t error = cudaGetDeviceProperties(&properties, index); error != cudaSuccess)
    return Decline(info, "cudaGetDeviceProperties", error);
  Describe(properties, index, info);
  if (!HasCodeFor(MT_CUDA_ARCHITECTURES, properties.major, properties.minor)) {
    char reason[160];
    std::snprintf(reason, sizeof reason, "compute capability %d.%d: this build has code for %s",
                  properties.major, properties.minor, MT_CUDA_ARCHITECTURES);
    return Decline(info, reason);
  }
  return 1;
}

int32_t OpenDevice(int32_t index) {
  const std::lock_guard lock(mutex);
  if (const Device* device = opened; device != nullptr) {
    if (device->index == index) return MT_OK;
    return host::Fail(MT_ERROR_INVALID, 0, "open: device %d, but this process has opened device %d",
                      index, device->index);
  }
  int count = 0;
  MT_CUDA(cudaGetDeviceCount(&count));
  if (index < 0 || index >= count)
    return host::Fail(MT_ERROR_INVALID, 0, "open: device %d does not exist; there are %d", index,
                      count);
  MT_CUDA(cudaSetDevice(index));
  cudaDeviceProp properties;
  MT_CUDA(cudaGetDeviceProperties(&properties, index));
  auto device = std::make_unique<Device>();
  device->index = index;
  device->name = properties.name;
  device->driver = DriverVersion();
  device->major = properties.major;
  device->minor = properties.minor;
  device->multiprocessors = properties.multiProcessorCount;
  MT_CUDA(cudaStreamCreateWithFlags(&device->compute, cudaStreamNonBlocking));
  opened = device.release();  // lives as long as the process, as the library does
  return MT_OK;
}

const Device* OpenedDevice() { return opened.load(std::memory_order_acquire); }

int32_t BindThread() {
  thread_local bool bound = false;
  if (bound) return MT_OK;
  const Device* device = OpenedDevice();
  if (device == nullptr)
    return host::Fail(MT_ERROR_INVALID, 0, "no device is open: call open first");
  MT_CUDA(cudaSetDevice(device->index));
  bound = true;
  return MT_OK;
}

void RememberOperation(int32_t operation) {
  last_operation.store(operation, std::memory_order_relaxed);
}
int32_t LastOperation() { return last_operation.load(std::memory_order_relaxed); }

}  // namespace mt::cuda
