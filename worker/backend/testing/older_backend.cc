// A backend of contract 1.2, as someone else's plug-in that was built before 1.3: it accepts every call, and ignores what it does not
// know. Its rotation sets the first number to -1.
#include <cstddef>

#include "kernels/host/host.h"

namespace {

int32_t Probe(mt_device_info* info) {
  info->capabilities = MT_CAPABILITY_HOST_MEMORY;
  return 1;
}
int32_t Run(int32_t operation, const void* args, mt_stream) {
  if (operation == MT_OP_ROPE)
    *static_cast<float*>(static_cast<const mt_rope_args*>(args)->data) = -1;
  return MT_OK;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const mt_backend* mt_backend_entry_v1(void) {
  static mt_backend backend = {};
  backend.struct_size = sizeof backend;
  backend.abi_major = MT_BACKEND_ABI_MAJOR;
  backend.abi_minor = 2;
  backend.name = "older";
  backend.version = "1";
  backend.probe = Probe;
  backend.open = [](int32_t, int32_t) -> int32_t { return MT_OK; };
  backend.error_message = mt::host::ErrorMessage;
  backend.supports = [](int32_t, const void*) -> int32_t { return 1; };
  backend.kernel_name = [](int32_t, const void*) { return "older"; };
  backend.workspace_bytes = [](int32_t, const void*) -> int64_t { return 0; };
  backend.run = Run;
  mt::host::FillMemoryFunctions(&backend);
  return &backend;
}
