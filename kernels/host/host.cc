#include "kernels/host/host.h"

#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/abi/operation_names.h"

namespace mt::host {
namespace {

thread_local char last_error[512] = "";

int32_t Allocate(size_t bytes, void** pointer) {
  // Large pages where the system gives them: alignment of 2 MiB for what is larger.
  const size_t alignment = bytes >= (size_t{2} << 20) ? size_t{2} << 20 : 64;
  if (bytes > SIZE_MAX - alignment) return Fail(MT_ERROR_MEMORY, 0, "allocate: %zu bytes", bytes);
  const size_t rounded = (std::max<size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  *pointer = std::aligned_alloc(alignment, rounded);
  if (*pointer == nullptr)
    return Fail(MT_ERROR_MEMORY, 0, "allocate: no memory for %zu bytes", bytes);
  return MT_OK;
}

int32_t Free(void* pointer) {
  std::free(pointer);
  return MT_OK;
}

int32_t Copy(void* destination, const void* source, size_t bytes, mt_stream) {
  if (bytes > 0) std::memcpy(destination, source, bytes);
  return MT_OK;
}

int32_t StreamCreate(mt_stream* stream) {
  *stream = nullptr;
  return MT_OK;
}

int32_t StreamNothing(mt_stream) { return MT_OK; }

int32_t Configure(const char* key, const char*) {
  return Fail(MT_ERROR_UNSUPPORTED, 0, "configure: '%s' is not an option of this backend", key);
}

int32_t MemoryInfo(int64_t* free_bytes, int64_t* total_bytes) {
  *free_bytes = static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  *total_bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  return MT_OK;
}

// An event is the time at which it was recorded: everything before it has finished.
struct HostEvent {
  timespec time;
};
HostEvent* Of(mt_event event) { return reinterpret_cast<HostEvent*>(event); }

int32_t EventCreate(mt_event* event) {
  *event = reinterpret_cast<mt_event>(new HostEvent{});
  return MT_OK;
}
int32_t EventRecord(mt_event event, mt_stream) {
  clock_gettime(CLOCK_MONOTONIC, &Of(event)->time);
  return MT_OK;
}
int32_t EventWait(mt_event, mt_stream) { return MT_OK; }
int32_t EventNothing(mt_event) { return MT_OK; }
int32_t EventMilliseconds(mt_event first, mt_event last, float* milliseconds) {
  const timespec a = Of(first)->time, b = Of(last)->time;
  *milliseconds = static_cast<float>(static_cast<double>(b.tv_sec - a.tv_sec) * 1e3 +
                                     static_cast<double>(b.tv_nsec - a.tv_nsec) * 1e-6);
  return MT_OK;
}
int32_t EventDestroy(mt_event event) {
  delete Of(event);
  return MT_OK;
}

int32_t NoGraphs() {
  return Fail(MT_ERROR_UNSUPPORTED, 0, "a backend in host memory has no graphs");
}
int32_t GraphBegin(mt_stream) { return NoGraphs(); }
int32_t GraphEnd(mt_stream, mt_graph*) { return NoGraphs(); }
int32_t GraphLaunch(mt_graph, mt_stream) { return NoGraphs(); }
int32_t GraphDestroy(mt_graph) { return NoGraphs(); }

const mt_collectives* NoCollectives() {
  Fail(MT_ERROR_UNSUPPORTED, 0, "ranks in host memory meet over shared memory or Gloo");
  return nullptr;
}

}  // namespace

int32_t Fail(int32_t code, int32_t operation, const char* format, ...) {
  const char* name = mt_operation_name(operation);
  int used = 0;
  if (name != nullptr) used = std::snprintf(last_error, sizeof last_error, "%s: ", name);
  va_list list;
  va_start(list, format);
  std::vsnprintf(last_error + used, sizeof last_error - used, format, list);
  va_end(list);
  return code;
}

const char* ErrorMessage() { return last_error; }

void FillMemoryFunctions(mt_backend* backend) {
  backend->allocate = Allocate;
  backend->free = Free;
  backend->copy_to_device = Copy;
  backend->copy_to_host = Copy;
  backend->stream_create = StreamCreate;
  backend->stream_synchronize = StreamNothing;
  backend->stream_destroy = StreamNothing;
  backend->configure = Configure;
  backend->allocate_host = Allocate;
  backend->free_host = Free;
  backend->memory_info = MemoryInfo;
  backend->event_create = EventCreate;
  backend->event_record = EventRecord;
  backend->event_wait = EventWait;
  backend->event_query = EventNothing;
  backend->event_synchronize = EventNothing;
  backend->event_milliseconds = EventMilliseconds;
  backend->event_destroy = EventDestroy;
  backend->graph_begin = GraphBegin;
  backend->graph_end = GraphEnd;
  backend->graph_launch = GraphLaunch;
  backend->graph_destroy = GraphDestroy;
  backend->collectives = NoCollectives;
}

void DescribeProcessor(mt_device_info* info) {
  std::snprintf(info->name, sizeof info->name, "processor");
#if defined(__x86_64__)
  __builtin_cpu_init();
  const char* isa = __builtin_cpu_supports("avx512f") ? "avx512"
                    : __builtin_cpu_supports("avx2")  ? "avx2"
                                                      : "sse";
#else
  const char* isa = "generic";
#endif
  std::snprintf(info->detail, sizeof info->detail, "%s", isa);
  if (std::FILE* file = std::fopen("/proc/cpuinfo", "re")) {
    char line[256];
    while (std::fgets(line, sizeof line, file) != nullptr) {
      char* colon = std::strchr(line, ':');
      if (std::strncmp(line, "model name", 10) != 0 || colon == nullptr) continue;
      colon[std::strcspn(colon, "\n")] = '\0';
      std::snprintf(info->name, sizeof info->name, "%.120s", colon + 2);
      break;
    }
    std::fclose(file);
  }
  cpu_set_t set;
  info->cores = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  info->memory_bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE);
  info->device_count = 1;
  info->capabilities = MT_CAPABILITY_HOST_MEMORY;
}

}  // namespace mt::host
