// The cuda backend's entry: the operations of dispatch.h on one GPU, matrix products by cuBLASLt.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>

#include "kernels/cuda/attention_choice.h"
#include "kernels/cuda/collectives_nccl.h"
#include "kernels/cuda/configuration.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/gemm_lt.h"
#include "kernels/cuda/libraries.h"
#include "kernels/cuda/queue.h"
#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

std::mutex mutex;  // of what follows
Configuration configuration;
Configuration opened_configuration;
std::atomic<bool> opened{false};

const Provided& Operations() {
  static const Provided provided = [] {
    Provided p;
    p.matmul_supports = GemmSupports;
    p.matmul_name = GemmName;
    p.matmul_workspace = GemmWorkspace;
    p.matmul = Gemm;
    p.attention_supports = AttentionSupports;
    p.attention_name = AttentionName;
    p.attention_workspace = AttentionWorkspace;
    p.attention_forward = AttentionForward;
    p.attention_backward = AttentionBackward;
    return p;
  }();
  return provided;
}

int32_t Probe(mt_device_info* info) {
  if (ProbeDevice(info) <= 0) return 0;
  const CublasLt* lt = LoadCublasLt();
  if (lt == nullptr) {
    std::snprintf(info->detail, sizeof info->detail, "%s", host::ErrorMessage());
    return 0;
  }
  const size_t used = std::strlen(info->detail);
  std::snprintf(info->detail + used, sizeof info->detail - used, ", cuBLASLt %s",
                VersionText(lt->version).c_str());
  return 1;
}

int32_t Configure(const char* key, const char* value) {
  const std::lock_guard lock(mutex);
  Configuration changed = configuration;
  if (const int32_t code = SetConfiguration(key, value, &changed); code != MT_OK) return code;
  if (opened && !(changed == opened_configuration))
    return host::Fail(MT_ERROR_INVALID, 0,
                      "configure: %s = '%s' comes after open, which had another value", key, value);
  configuration = changed;
  return MT_OK;
}

int32_t Open(int32_t device, int32_t) {
  const std::lock_guard lock(mutex);
  if (const int32_t code = OpenDevice(device); code != MT_OK) return code;
  if (opened) return MT_OK;
  MT_BIND_THREAD();
  if (const int32_t code = OpenGemm({configuration.tf32, configuration.gemm_cache}); code != MT_OK)
    return code;
  if (const int32_t code =
          OpenAttention(configuration.attention, {OpenedDevice()->major, OpenedDevice()->minor});
      code != MT_OK)
    return code;
  opened_configuration = configuration;
  opened = true;
  return MT_OK;
}

int32_t IsOpen() {
  return opened ? MT_OK : host::Fail(MT_ERROR_INVALID, 0, "no device is open: call open first");
}

// Declaring a shape makes what its calls will need: nothing is planned in a step.
int64_t Workspace(int32_t operation, const void* args) {
  const int64_t bytes = WorkspaceBytes(operation, args, Operations());
  if (bytes < 0 || !opened) return bytes;
  MT_BIND_THREAD();
  int32_t code = MT_OK;
  if (operation == MT_OP_MATMUL) code = PrepareGemm(*static_cast<const mt_matmul_args*>(args));
  return code == MT_OK ? bytes : code;
}

int32_t RunOperation(int32_t operation, const void* args, mt_stream stream) {
  if (const int32_t code = IsOpen(); code != MT_OK) return code;
  MT_BIND_THREAD();
  RememberOperation(operation);
  return Run(operation, args, Operations(), {StreamOf(stream), OpenedDevice()->multiprocessors});
}

const mt_collectives* Collectives() {
  const std::lock_guard lock(mutex);
  static const mt_collectives* made = nullptr;
  if (made != nullptr) return made;
  if (IsOpen() != MT_OK) return nullptr;
  if (const Nccl* nccl = LoadNccl(); nccl != nullptr) made = MakeCollectives(nccl, BindThread);
  return made;
}

mt_backend MakeBackend() {
  mt_backend backend = {};
  backend.struct_size = sizeof backend;
  backend.abi_major = MT_BACKEND_ABI_MAJOR;
  backend.abi_minor = MT_BACKEND_ABI_MINOR;
  backend.name = "cuda";
  backend.version = "1";
  backend.probe = Probe;
  backend.open = Open;
  backend.error_message = host::ErrorMessage;
  backend.supports = [](int32_t operation, const void* args) {
    return Supports(operation, args, Operations());
  };
  backend.kernel_name = [](int32_t operation, const void* args) {
    return KernelName(operation, args, Operations());
  };
  backend.workspace_bytes = Workspace;
  backend.run = RunOperation;
  backend.configure = Configure;
  backend.collectives = Collectives;
  FillQueueFunctions(&backend);
  return backend;
}

}  // namespace
}  // namespace mt::cuda

extern "C" __attribute__((visibility("default"))) const mt_backend* mt_backend_entry_v1(void) {
  static const mt_backend backend = mt::cuda::MakeBackend();
  return &backend;
}
