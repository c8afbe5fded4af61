// cuDNN's functions that cudnn-frontend calls by name, forwarded to the library that was loaded while the program runs: the
// plug-in is not linked with cuDNN. Nobody else sees these symbols. Before LoadCudnn has succeeded they fail as the functions do
// without cuDNN's handle.
#include <cudnn_graph.h>

#include "kernels/cuda/libraries.h"

#if MT_HAS_CUDNN_FRONTEND

#define MT_FORWARD(result, name, parameters, arguments, failed)                         \
  extern "C" __attribute__((visibility("hidden"))) result CUDNNWINAPI name parameters { \
    const mt::cuda::Cudnn* const cudnn = mt::cuda::LoadCudnn();                         \
    return cudnn != nullptr ? cudnn->name arguments : failed;                           \
  }
#define MT_FORWARD_STATUS(name, parameters, arguments) \
  MT_FORWARD(cudnnStatus_t, name, parameters, arguments, CUDNN_STATUS_NOT_INITIALIZED)

MT_FORWARD(size_t, cudnnGetVersion, (), (), 0)
MT_FORWARD(const char*, cudnnGetErrorString, (cudnnStatus_t status), (status),
           "cuDNN is not loaded")
extern "C" __attribute__((visibility("hidden"))) void CUDNNWINAPI
cudnnGetLastErrorString(char* message, size_t size) {
  if (const mt::cuda::Cudnn* const cudnn = mt::cuda::LoadCudnn(); cudnn != nullptr) {
    cudnn->cudnnGetLastErrorString(message, size);
  } else if (size > 0) {
    *message = 0;
  }
}
MT_FORWARD_STATUS(cudnnGetStream, (cudnnHandle_t handle, cudaStream_t* stream), (handle, stream))
MT_FORWARD_STATUS(cudnnBackendCreateDescriptor,
                  (cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t* descriptor),
                  (type, descriptor))
MT_FORWARD_STATUS(cudnnBackendDestroyDescriptor, (cudnnBackendDescriptor_t descriptor),
                  (descriptor))
MT_FORWARD_STATUS(cudnnBackendFinalize, (cudnnBackendDescriptor_t descriptor), (descriptor))
MT_FORWARD_STATUS(cudnnBackendSetAttribute,
                  (cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                   cudnnBackendAttributeType_t type, int64_t count, const void* elements),
                  (descriptor, name, type, count, elements))
MT_FORWARD_STATUS(cudnnBackendGetAttribute,
                  (const cudnnBackendDescriptor_t descriptor, cudnnBackendAttributeName_t name,
                   cudnnBackendAttributeType_t type, int64_t requested, int64_t* count,
                   void* elements),
                  (descriptor, name, type, requested, count, elements))
MT_FORWARD_STATUS(cudnnBackendExecute,
                  (cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                   cudnnBackendDescriptor_t pointers),
                  (handle, plan, pointers))

#endif
