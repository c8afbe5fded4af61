// A library with the right entry and the wrong ABI generation.
#include "kernels/abi/mt_backend.h"

extern "C" __attribute__((visibility("default"))) const mt_backend* mt_backend_entry_v1(void) {
  static mt_backend backend = {};
  backend.struct_size = sizeof backend;
  backend.abi_major = MT_BACKEND_ABI_MAJOR + 1;
  backend.name = "otherabi";
  return &backend;
}
