// One of NVIDIA's libraries as far as its version: what libraries_test.cc finds instead of a real one.
#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))

#if defined(FAKE_CUBLASLT)
EXPORT size_t cublasLtGetVersion(void) { return FAKE_CUBLASLT; }
#elif defined(FAKE_CUDNN)
EXPORT size_t cudnnGetVersion(void) { return FAKE_CUDNN; }
#elif defined(FAKE_NCCL)
EXPORT int ncclGetVersion(int* version) {
  *version = FAKE_NCCL;
  return 0;
}
#endif
