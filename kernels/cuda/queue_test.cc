// Device, memory, streams, events and graphs against a CUDA runtime that is played here: no device is needed to see which calls
// are made for which thread, on which stream, and what becomes of their errors. Linked instead of NVIDIA's.
#include "kernels/cuda/queue.h"

#include <cuda_runtime.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <set>
#include <thread>

#include "kernels/cuda/device.h"

namespace {

// The played machine: two H200. Calls that need a device are refused on a thread whose current one is not the second.
struct Machine {
  cudaError_t count_error = cudaSuccess;
  int major = 9;
  cudaError_t next = cudaSuccess;  // what the next call below returns
  std::set<cudaGraph_t> graphs;
  std::set<cudaGraphExec_t> executables;
  cudaStream_t last_stream = nullptr;
  unsigned stream_flags = 0;
  int contexts = 0;  // calls that make a context
  bool capturing = false;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
} machine;
thread_local int current = 0;
thread_local cudaError_t last_error = cudaSuccess;
int serial = 0;

cudaError_t Failed(cudaError_t error) { return last_error = error; }
// A call that needs the device.
cudaError_t Call(cudaStream_t stream = nullptr) {
  ++machine.contexts;
  if (stream != nullptr) machine.last_stream = stream;
  if (current != 1) return Failed(cudaErrorInvalidDevice);
  const cudaError_t error = machine.next;
  machine.next = cudaSuccess;
  return error == cudaSuccess ? error : Failed(error);
}
template <typename Handle>
Handle Make() {
  return reinterpret_cast<Handle>(static_cast<uintptr_t>(0x1000 + 16 * ++serial));
}

}  // namespace

extern "C" {
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorInsufficientDriver ? "cudaErrorInsufficientDriver" : "cudaErrorPlayed";
}
const char* cudaGetErrorString(cudaError_t) { return "as played"; }
cudaError_t cudaGetDeviceCount(int* count) {
  if (machine.count_error != cudaSuccess) return Failed(machine.count_error);
  *count = 2;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "NVIDIA H200");
  properties->major = machine.major;
  properties->multiProcessorCount = 132;
  properties->totalGlobalMem = size_t{141} << 30;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  ++machine.contexts;
  current = device;
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** pointer, size_t) {
  if (machine.capturing) return Failed(cudaErrorStreamCaptureUnsupported);
  *pointer = Make<void*>();
  return Call();
}
cudaError_t cudaFree(void*) { return Call(); }
cudaError_t cudaMallocHost(void** pointer, size_t) {
  *pointer = Make<void*>();
  return Call();
}
cudaError_t cudaFreeHost(void*) { return Call(); }
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *free_bytes = 77;
  *total_bytes = 99;
  return Call();
}
cudaError_t cudaMemcpyAsync(void*, const void*, size_t, cudaMemcpyKind, cudaStream_t stream) {
  return Call(stream);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  machine.stream_flags = flags;
  *stream = Make<cudaStream_t>();
  return Call();
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return Call(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return Call(); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) { return Call(stream); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = Make<cudaEvent_t>();
  return Call();
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t stream) { return Call(stream); }
cudaError_t cudaEventQuery(cudaEvent_t) { return Call(); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return Call(); }
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t, cudaEvent_t) {
  *milliseconds = 2.5f;
  return Call();
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return Call(); }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  machine.capturing = true;
  machine.mode = mode;
  return Call(stream);
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  machine.capturing = false;
  const cudaError_t error = Call(stream);
  if (error == cudaSuccess) machine.graphs.insert(*graph = Make<cudaGraph_t>());
  return error;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t, unsigned long long) {
  const cudaError_t error = Call();
  if (error == cudaSuccess) machine.executables.insert(*executable = Make<cudaGraphExec_t>());
  return error;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  machine.graphs.erase(graph);
  return Call();
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t stream) { return Call(stream); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t stream) { return Call(stream); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  machine.executables.erase(executable);
  return Call();
}
}  // extern "C"

namespace mt::cuda {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

mt_backend Table() {
  mt_backend backend = {};
  FillQueueFunctions(&backend);
  return backend;
}

// A device is opened once per process: what comes before that is tested in the same breath.
class QueueTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    mt_device_info info = {};
    EXPECT_EQ(ProbeDevice(&info), 1) << info.detail;
    EXPECT_EQ(machine.contexts, 0) << "a probe makes no context";
    EXPECT_EQ(info.device_count, 2);
    EXPECT_EQ(info.bf16_flops, 989e12);
    EXPECT_THAT(info.detail,
                HasSubstr("compute capability 9.0, 132 multiprocessors, 141.0 GiB, driver "));
    void* pointer = nullptr;
    EXPECT_EQ(Table().allocate(1, &pointer), MT_ERROR_INVALID);
    EXPECT_THAT(host::ErrorMessage(), HasSubstr("call open first"));
    EXPECT_EQ(OpenDevice(2), MT_ERROR_INVALID);
    EXPECT_THAT(host::ErrorMessage(), HasSubstr("device 2 does not exist; there are 2"));
    ASSERT_EQ(OpenDevice(1), MT_OK) << host::ErrorMessage();
    EXPECT_EQ(OpenDevice(1), MT_OK);
    EXPECT_EQ(OpenDevice(0), MT_ERROR_INVALID) << "one device per process";
    EXPECT_EQ(machine.stream_flags, static_cast<unsigned>(cudaStreamNonBlocking));
  }
  void SetUp() override { ASSERT_EQ(BindThread(), MT_OK); }
  void TearDown() override {
    EXPECT_EQ(cudaGetLastError(), cudaSuccess) << "an error was left for the next launch to find";
  }
  const mt_backend backend_ = Table();
};

TEST_F(QueueTest, NoDeviceIsNoErrorButAReason) {
  machine.count_error = cudaErrorInsufficientDriver;
  mt_device_info info = {};
  EXPECT_EQ(ProbeDevice(&info), 0);
  EXPECT_STREQ(info.detail, "no CUDA device (cudaErrorInsufficientDriver: as played)");
  machine.count_error = cudaSuccess;
  machine.major = 7;
  EXPECT_EQ(ProbeDevice(&info), 0);
  EXPECT_THAT(info.detail, HasSubstr("compute capability 7.0: this build has code for"));
  machine.major = 9;
}

TEST_F(QueueTest, EveryEntryMakesTheDeviceCurrentForItsThread) {
  mt_stream stream = nullptr;
  mt_event event = nullptr;
  mt_graph graph = nullptr;
  void* pointer = nullptr;
  int64_t free_bytes = 0, total_bytes = 0;
  float milliseconds = 0;
  ASSERT_EQ(backend_.stream_create(&stream), MT_OK);
  ASSERT_EQ(backend_.event_create(&event), MT_OK);
  const auto on_a_new_thread = [](auto&& call) {
    std::thread([&] { EXPECT_EQ(call(), MT_OK) << host::ErrorMessage(); }).join();
  };
  on_a_new_thread([&] { return backend_.allocate(1, &pointer); });
  on_a_new_thread([&] { return backend_.copy_to_device(pointer, &milliseconds, 4, nullptr); });
  on_a_new_thread([&] { return backend_.copy_to_host(&milliseconds, pointer, 4, stream); });
  on_a_new_thread([&] { return backend_.free(pointer); });
  on_a_new_thread([&] { return backend_.allocate_host(1, &pointer); });
  on_a_new_thread([&] { return backend_.free_host(pointer); });
  on_a_new_thread([&] { return backend_.memory_info(&free_bytes, &total_bytes); });
  on_a_new_thread([&] { return backend_.stream_synchronize(nullptr); });
  on_a_new_thread([&] { return backend_.event_record(event, stream); });
  on_a_new_thread([&] { return backend_.event_wait(event, nullptr); });
  on_a_new_thread([&] { return backend_.event_query(event); });
  on_a_new_thread([&] { return backend_.event_synchronize(event); });
  on_a_new_thread([&] { return backend_.event_milliseconds(event, event, &milliseconds); });
  on_a_new_thread([&] { return backend_.graph_begin(stream); });
  on_a_new_thread([&] { return backend_.graph_end(stream, &graph); });
  on_a_new_thread([&] { return backend_.graph_launch(graph, nullptr); });
  on_a_new_thread([&] { return backend_.graph_destroy(graph); });
  on_a_new_thread([&] { return backend_.event_destroy(event); });
  on_a_new_thread([&] { return backend_.stream_destroy(stream); });
  on_a_new_thread([&] { return backend_.stream_create(&stream); });
  on_a_new_thread([&] { return backend_.event_create(&event); });
  EXPECT_EQ(free_bytes, 77);
  EXPECT_EQ(total_bytes, 99);
}

TEST_F(QueueTest, TheNullStreamIsTheComputeStream) {
  ASSERT_EQ(backend_.stream_synchronize(nullptr), MT_OK);
  EXPECT_EQ(machine.last_stream, OpenedDevice()->compute);
  EXPECT_NE(OpenedDevice()->compute, nullptr);
  mt_stream stream = nullptr;
  ASSERT_EQ(backend_.stream_create(&stream), MT_OK);
  EXPECT_EQ(machine.stream_flags, static_cast<unsigned>(cudaStreamNonBlocking));
  ASSERT_EQ(backend_.stream_synchronize(stream), MT_OK);
  EXPECT_EQ(machine.last_stream, reinterpret_cast<cudaStream_t>(stream));
}

TEST_F(QueueTest, AnEventThatIsNotReadyLeavesNoErrorBehind) {
  mt_event event = nullptr;
  ASSERT_EQ(backend_.event_create(&event), MT_OK);
  machine.next = cudaErrorNotReady;
  EXPECT_EQ(backend_.event_query(event), MT_IN_PROGRESS);
  EXPECT_EQ(backend_.event_query(event), MT_OK);
}

TEST_F(QueueTest, FullMemoryIsSaidInNumbers) {
  void* pointer = &pointer;
  machine.next = cudaErrorMemoryAllocation;
  EXPECT_EQ(backend_.allocate(1000, &pointer), MT_ERROR_MEMORY);
  EXPECT_THAT(host::ErrorMessage(),
              HasSubstr("no device memory for 1000 bytes; 77 of 99 are free"));
}

TEST_F(QueueTest, AnErrorOfEarlierWorkNamesWhatWasEnqueuedLast) {
  RememberOperation(MT_OP_ADAMW);
  machine.next = cudaErrorIllegalAddress;
  EXPECT_EQ(backend_.stream_synchronize(nullptr), MT_ERROR_DEVICE);
  EXPECT_THAT(host::ErrorMessage(), AllOf(HasSubstr("cudaStreamSynchronize"),
                                          HasSubstr("queue.cc:"), HasSubstr("adamw")));
  EXPECT_THAT(host::ErrorMessage(),
              AllOf(HasSubstr("CUDA_LAUNCH_BLOCKING=1"), HasSubstr("runtime.graphs: off")))
      << "not all drivers can record a graph with it";
}

TEST_F(QueueTest, RecordingConcernsItsThreadAlone) {
  mt_graph graph = nullptr;
  ASSERT_EQ(backend_.graph_begin(nullptr), MT_OK);
  EXPECT_EQ(machine.mode, cudaStreamCaptureModeThreadLocal);
  void* pointer = nullptr;
  EXPECT_EQ(backend_.allocate(1, &pointer), MT_ERROR_DEVICE) << "as CUDA has it";
  ASSERT_EQ(backend_.graph_end(nullptr, &graph), MT_OK);
  EXPECT_TRUE(machine.graphs.empty()) << "the recording itself is not kept";
  EXPECT_EQ(machine.executables.size(), 1u);
  ASSERT_EQ(backend_.graph_destroy(graph), MT_OK);
  EXPECT_TRUE(machine.executables.empty());
}

TEST_F(QueueTest, ABrokenRecordingLeavesNothingOpen) {
  mt_graph graph = reinterpret_cast<mt_graph>(&machine);
  ASSERT_EQ(backend_.graph_begin(nullptr), MT_OK);
  machine.next = cudaErrorStreamCaptureInvalidated;
  EXPECT_EQ(backend_.graph_end(nullptr, &graph), MT_ERROR_DEVICE);
  EXPECT_EQ(graph, nullptr);
  EXPECT_FALSE(machine.capturing);
  EXPECT_TRUE(machine.graphs.empty());
}

}  // namespace
}  // namespace mt::cuda
