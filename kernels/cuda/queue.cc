#include "kernels/cuda/queue.h"

#include <algorithm>

#include "kernels/abi/operation_names.h"
#include "kernels/cuda/device.h"

namespace mt::cuda {
namespace {

cudaEvent_t Of(mt_event event) { return reinterpret_cast<cudaEvent_t>(event); }
cudaGraphExec_t Of(mt_graph graph) { return reinterpret_cast<cudaGraphExec_t>(graph); }

// An error of work that was enqueued earlier, perhaps long before the call that found it.
int32_t EarlierFailed(cudaError_t error, const char* call, const char* file, int line) {
  cudaGetLastError();
  const char* name = mt_operation_name(LastOperation());
  return host::Fail(MT_ERROR_DEVICE, 0,
                    "%s at %s:%d: %s (%s), from work enqueued before it, the last being %s; "
                    "CUDA_LAUNCH_BLOCKING=1 finds the call itself (in a job together with "
                    "runtime.graphs: off, because some drivers cannot record graphs with it)",
                    call, file, line, cudaGetErrorString(error), cudaGetErrorName(error),
                    name != nullptr ? name : "a copy");
}
#define MT_CUDA_WAIT(call)                                                      \
  do {                                                                          \
    if (const cudaError_t mt_cuda_error = (call); mt_cuda_error != cudaSuccess) \
      return EarlierFailed(mt_cuda_error, #call, __FILE__, __LINE__);           \
  } while (false)

int32_t Allocate(size_t bytes, void** pointer) {
  MT_BIND_THREAD();
  *pointer = nullptr;
  const cudaError_t error = cudaMalloc(pointer, std::max<size_t>(bytes, 1));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    size_t free_bytes = 0, total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    return host::Fail(MT_ERROR_MEMORY, 0,
                      "allocate: no device memory for %zu bytes; %zu of %zu are free", bytes,
                      free_bytes, total_bytes);
  }
  if (error != cudaSuccess) return CudaFailed(error, "cudaMalloc", __FILE__, __LINE__);
  return MT_OK;
}

int32_t Free(void* pointer) {
  if (pointer == nullptr) return MT_OK;
  MT_BIND_THREAD();
  MT_CUDA_WAIT(cudaFree(pointer));
  return MT_OK;
}

int32_t AllocateHost(size_t bytes, void** pointer) {
  MT_BIND_THREAD();
  *pointer = nullptr;
  MT_CUDA(cudaMallocHost(pointer, std::max<size_t>(bytes, 1)));
  return MT_OK;
}

int32_t FreeHost(void* pointer) {
  if (pointer == nullptr) return MT_OK;
  MT_BIND_THREAD();
  MT_CUDA_WAIT(cudaFreeHost(pointer));
  return MT_OK;
}

int32_t MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) {
  MT_BIND_THREAD();
  size_t free_size = 0, total_size = 0;
  MT_CUDA(cudaMemGetInfo(&free_size, &total_size));
  *free_bytes = static_cast<int64_t>(free_size);
  *total_bytes = static_cast<int64_t>(total_size);
  return MT_OK;
}

int32_t CopyToDevice(void* destination, const void* source, size_t bytes, mt_stream stream) {
  if (bytes == 0) return MT_OK;
  MT_BIND_THREAD();
  RememberOperation(0);
  MT_CUDA(cudaMemcpyAsync(destination, source, bytes, cudaMemcpyHostToDevice, StreamOf(stream)));
  return MT_OK;
}

int32_t CopyToHost(void* destination, const void* source, size_t bytes, mt_stream stream) {
  if (bytes == 0) return MT_OK;
  MT_BIND_THREAD();
  // From pageable memory this waits, so it may find the error of an earlier kernel.
  MT_CUDA_WAIT(
      cudaMemcpyAsync(destination, source, bytes, cudaMemcpyDeviceToHost, StreamOf(stream)));
  return MT_OK;
}

int32_t StreamCreate(mt_stream* stream) {
  MT_BIND_THREAD();
  cudaStream_t created = nullptr;
  MT_CUDA(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking));
  *stream = reinterpret_cast<mt_stream>(created);
  return MT_OK;
}

int32_t StreamSynchronize(mt_stream stream) {
  MT_BIND_THREAD();
  MT_CUDA_WAIT(cudaStreamSynchronize(StreamOf(stream)));
  return MT_OK;
}

int32_t StreamDestroy(mt_stream stream) {
  if (stream == nullptr) return MT_OK;
  MT_BIND_THREAD();
  MT_CUDA(cudaStreamDestroy(StreamOf(stream)));
  return MT_OK;
}

int32_t EventCreate(mt_event* event) {
  MT_BIND_THREAD();
  cudaEvent_t created = nullptr;
  MT_CUDA(cudaEventCreateWithFlags(&created, cudaEventDefault));
  *event = reinterpret_cast<mt_event>(created);
  return MT_OK;
}

int32_t EventRecord(mt_event event, mt_stream stream) {
  MT_BIND_THREAD();
  MT_CUDA(cudaEventRecord(Of(event), StreamOf(stream)));
  return MT_OK;
}

int32_t EventWait(mt_event event, mt_stream stream) {
  MT_BIND_THREAD();
  MT_CUDA(cudaStreamWaitEvent(StreamOf(stream), Of(event), cudaEventWaitDefault));
  return MT_OK;
}

int32_t EventQuery(mt_event event) {
  MT_BIND_THREAD();
  const cudaError_t error = cudaEventQuery(Of(event));
  if (error == cudaErrorNotReady) {
    cudaGetLastError();  // a launch that follows must not take it for its own error
    return MT_IN_PROGRESS;
  }
  if (error != cudaSuccess) return EarlierFailed(error, "cudaEventQuery", __FILE__, __LINE__);
  return MT_OK;
}

int32_t EventSynchronize(mt_event event) {
  MT_BIND_THREAD();
  MT_CUDA_WAIT(cudaEventSynchronize(Of(event)));
  return MT_OK;
}

int32_t EventMilliseconds(mt_event first, mt_event last, float* milliseconds) {
  MT_BIND_THREAD();
  MT_CUDA(cudaEventElapsedTime(milliseconds, Of(first), Of(last)));
  return MT_OK;
}

int32_t EventDestroy(mt_event event) {
  if (event == nullptr) return MT_OK;
  MT_BIND_THREAD();
  MT_CUDA(cudaEventDestroy(Of(event)));
  return MT_OK;
}

// Thread-local: other threads of the process (checkpoints, NCCL's) may allocate and synchronise while this one records.
int32_t GraphBegin(mt_stream stream) {
  MT_BIND_THREAD();
  MT_CUDA(cudaStreamBeginCapture(StreamOf(stream), cudaStreamCaptureModeThreadLocal));
  return MT_OK;
}

int32_t GraphEnd(mt_stream stream, mt_graph* graph) {
  MT_BIND_THREAD();
  *graph = nullptr;
  cudaGraph_t recorded = nullptr;
  // Ends the recording also where it was broken, so that the stream can be used again.
  MT_CUDA(cudaStreamEndCapture(StreamOf(stream), &recorded));
  cudaGraphExec_t executable = nullptr;
  const cudaError_t instantiated = cudaGraphInstantiate(&executable, recorded, 0);
  cudaGraphDestroy(recorded);
  if (instantiated != cudaSuccess)
    return CudaFailed(instantiated, "cudaGraphInstantiate", __FILE__, __LINE__);
  if (const cudaError_t error = cudaGraphUpload(executable, StreamOf(stream));
      error != cudaSuccess) {
    cudaGraphExecDestroy(executable);
    return CudaFailed(error, "cudaGraphUpload", __FILE__, __LINE__);
  }
  *graph = reinterpret_cast<mt_graph>(executable);
  return MT_OK;
}

int32_t GraphLaunch(mt_graph graph, mt_stream stream) {
  MT_BIND_THREAD();
  MT_CUDA(cudaGraphLaunch(Of(graph), StreamOf(stream)));
  return MT_OK;
}

int32_t GraphDestroy(mt_graph graph) {
  if (graph == nullptr) return MT_OK;
  MT_BIND_THREAD();
  MT_CUDA(cudaGraphExecDestroy(Of(graph)));
  return MT_OK;
}

}  // namespace

void FillQueueFunctions(mt_backend* backend) {
  backend->allocate = Allocate;
  backend->free = Free;
  backend->copy_to_device = CopyToDevice;
  backend->copy_to_host = CopyToHost;
  backend->stream_create = StreamCreate;
  backend->stream_synchronize = StreamSynchronize;
  backend->stream_destroy = StreamDestroy;
  backend->allocate_host = AllocateHost;
  backend->free_host = FreeHost;
  backend->memory_info = MemoryInfo;
  backend->event_create = EventCreate;
  backend->event_record = EventRecord;
  backend->event_wait = EventWait;
  backend->event_query = EventQuery;
  backend->event_synchronize = EventSynchronize;
  backend->event_milliseconds = EventMilliseconds;
  backend->event_destroy = EventDestroy;
  backend->graph_begin = GraphBegin;
  backend->graph_end = GraphEnd;
  backend->graph_launch = GraphLaunch;
  backend->graph_destroy = GraphDestroy;
}

}  // namespace mt::cuda
