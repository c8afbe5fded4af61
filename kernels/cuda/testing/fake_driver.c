/* As much of NVIDIA's driver as lets cuDNN compile and load kernels on a machine that has none: what is loaded is never run, and
 * there are no devices. */
#define EXPORT __attribute__((visibility("default")))

enum { kSuccess = 0, kNoDevice = 100 };
static int something;

EXPORT int cuInit(unsigned flags) { return kNoDevice; }
EXPORT int cuDeviceGetCount(int* count) { return kNoDevice; }
EXPORT int cuGetErrorString(int error, const char** text) {
  *text = "a fake driver has no device";
  return kSuccess;
}
EXPORT int cuLibraryLoadData(void** library, ...) {
  *library = &something;
  return kSuccess;
}
EXPORT int cuLibraryGetKernel(void** kernel, void* library, const char* name) {
  *kernel = &something;
  return kSuccess;
}
EXPORT int cuLibraryUnload(void* library) { return kSuccess; }

/* What cuDNN looks for and must find, but has no reason to call. */
#define REFUSE(name) EXPORT int name(void) { return kNoDevice; }
REFUSE(cuCtxGetCurrent) REFUSE(cuCtxGetDevice) REFUSE(cuCtxGetLimit) REFUSE(cuCtxPopCurrent)
REFUSE(cuCtxPushCurrent) REFUSE(cuDeviceGet) REFUSE(cuDeviceGetAttribute)
REFUSE(cuDevicePrimaryCtxRelease) REFUSE(cuDevicePrimaryCtxReset) REFUSE(cuDevicePrimaryCtxRetain)
REFUSE(cuDriverGetVersion) REFUSE(cuFuncGetAttribute) REFUSE(cuFuncSetAttribute)
REFUSE(cuGetErrorName) REFUSE(cuKernelGetAttribute) REFUSE(cuKernelSetAttribute)
REFUSE(cuLaunchCooperativeKernel) REFUSE(cuLaunchKernel) REFUSE(cuLaunchKernelEx)
REFUSE(cuLibraryLoadFromFile) REFUSE(cuLinkAddData) REFUSE(cuLinkAddData_v2)
REFUSE(cuLinkAddFile_v2) REFUSE(cuLinkComplete) REFUSE(cuLinkCreate) REFUSE(cuLinkCreate_v2)
REFUSE(cuLinkDestroy) REFUSE(cuMemcpyDtoH_v2) REFUSE(cuModuleGetFunction)
REFUSE(cuModuleGetGlobal_v2) REFUSE(cuModuleLoadData) REFUSE(cuModuleLoadDataEx)
REFUSE(cuModuleLoadFatBinary) REFUSE(cuModuleUnload)
REFUSE(cuOccupancyMaxActiveBlocksPerMultiprocessor) REFUSE(cuOccupancyMaxPotentialClusterSize)
REFUSE(cuStreamGetCtx) REFUSE(cuStreamSynchronize) REFUSE(cuTensorMapEncodeTiled)
