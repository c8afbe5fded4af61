// The one GPU of this process: which there are, the one that `open` bound, its compute stream. Functions give the ABI's codes
// and leave a message (host::Fail).
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "kernels/abi/mt_backend.h"
#include "kernels/cuda/status.h"

namespace mt::cuda {

struct Device {
  int index = 0;
  std::string name;    // "NVIDIA H200"
  std::string driver;  // "580.159.04", or the driver's CUDA version where the system does not tell
  int major = 0, minor = 0;
  int multiprocessors = 0;
  bool has_fp8() const { return major > 8 || (major == 8 && minor == 9); }
  cudaStream_t compute = nullptr;  // the ABI's null stream; does not wait for CUDA's legacy stream
};

// Describes device 0, or the one that is open. 1 if this build can use it, else 0 and the reason in info->detail. Makes no
// context on the device.
int32_t ProbeDevice(mt_device_info* info);

// Binds the process to a device. Again with the same device: nothing happens; with another: MT_ERROR_INVALID.
int32_t OpenDevice(int32_t index);
// Null before a successful OpenDevice; afterwards always the same.
const Device* OpenedDevice();

// Makes the opened device the calling thread's: CUDA keeps a current device per thread, 0 at first. Every entry of the ABI that
// calls CUDA begins with this. MT_ERROR_INVALID before `open`.
int32_t BindThread();

// The ABI's stream, null being the compute stream.
inline cudaStream_t StreamOf(mt_stream stream) {
  return stream != nullptr ? reinterpret_cast<cudaStream_t>(stream) : OpenedDevice()->compute;
}

// Remembered so that an error that comes to light later can name what was enqueued last.
void RememberOperation(int32_t operation);
int32_t LastOperation();

}  // namespace mt::cuda

// Returns from an entry of the ABI unless a device is open and current.
#define MT_BIND_THREAD()                                                            \
  if (const int32_t mt_bind_code = ::mt::cuda::BindThread(); mt_bind_code != MT_OK) \
  return mt_bind_code
