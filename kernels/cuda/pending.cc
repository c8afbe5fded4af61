// Placeholders of operations that are still being written; a real definition elsewhere replaces each.
#include "kernels/cuda/operations.h"
#include "kernels/host/host.h"

namespace mt::cuda {
#define PENDING(name, args)                                                                   \
  __attribute__((weak)) int32_t name(const args&, const Launch&) {                            \
    return host::Fail(MT_ERROR_UNSUPPORTED, 0, #name " is not written yet");                  \
  }
#define PENDING_BYTES(name, args) \
  __attribute__((weak)) int64_t name(const args&) { return 0; }
}  // namespace mt::cuda
