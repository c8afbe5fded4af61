// A device as lazy as one can be: the reference backend behind a queue that is worked off only when
// the host waits, and then only as far as it waits for. So host memory is read and written as late
// as the contract allows, a wait that is missing shows as a wrong result, and one that is too many
// can be counted. It says that it is a device (no MT_CAPABILITY_HOST_MEMORY) and has graphs. For one
// thread.
#include "worker/train/testing/deferred_backend.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <set>
#include <string>
#include <utility>

#include "kernels/abi/mt_backend.h"

namespace mt::testing {
namespace {

using Task = std::function<int32_t()>;
struct Event {
  uint64_t recorded_at = 0;  // number of tasks before it
};
struct Graph {
  std::vector<Task> tasks;
};

const mt_backend* reference = nullptr;
DeferredLog tape;
std::deque<Task> queue;
uint64_t enqueued = 0, done = 0;
Graph* recording = nullptr;
int32_t failure = MT_OK;

int32_t Enqueue(int32_t what, Task task) {
  if (recording != nullptr) {
    recording->tasks.push_back(std::move(task));
    return MT_OK;
  }
  tape.enqueued.push_back(what);
  queue.push_back(std::move(task));
  ++enqueued;
  return MT_OK;
}

int32_t WorkUntil(uint64_t target) {
  if (done < target) ++tape.waits_for_work;
  for (; done < target; ++done) {
    const Task task = std::move(queue.front());
    queue.pop_front();
    if (const int32_t code = task(); code != MT_OK) failure = code;
  }
  return failure;
}

int32_t Probe(mt_device_info* info) {
  std::strncpy(info->name, "deferred", sizeof info->name - 1);
  info->device_count = 1;
  info->capabilities = MT_CAPABILITY_GRAPHS | MT_CAPABILITY_FP8;
  return 1;
}

std::string ShapeOf(const mt_matmul_args& args) {
  mt_matmul_args shape = args;
  shape.a = shape.b = shape.bias = nullptr;
  shape.d = shape.workspace = nullptr;
  shape.workspace_bytes = 0;
  shape.a_scale = shape.b_scale = nullptr;
  return std::string(reinterpret_cast<const char*>(&shape), sizeof shape);
}
std::set<std::string> declared_products;

int64_t WorkspaceBytes(int32_t operation, const void* args) {
  if (operation == MT_OP_MATMUL)
    declared_products.insert(ShapeOf(*static_cast<const mt_matmul_args*>(args)));
  return reference->workspace_bytes(operation, args);
}

int32_t Run(int32_t operation, const void* args, mt_stream) {
  if (operation == MT_OP_MATMUL &&
      !declared_products.contains(ShapeOf(*static_cast<const mt_matmul_args*>(args))))
    ++tape.undeclared_products;
  uint32_t bytes = 0;
  std::memcpy(&bytes, args, sizeof bytes);
  return Enqueue(operation, [operation, copy = std::string(static_cast<const char*>(args), bytes)] {
    return reference->run(operation, copy.data(), nullptr);
  });
}

int32_t Copy(int32_t what, void* destination, const void* source, size_t bytes) {
  return Enqueue(what, [=] {
    std::memcpy(destination, source, bytes);
    return static_cast<int32_t>(MT_OK);
  });
}

int32_t Allocate(size_t bytes, void** pointer) {
  *pointer = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
  std::memset(*pointer, 0xff, bytes);  // NaN in every type
  return MT_OK;
}
int32_t Free(void* pointer) {
  WorkUntil(enqueued);
  std::free(pointer);
  return MT_OK;
}

Event* Of(mt_event event) { return reinterpret_cast<Event*>(event); }
Graph* Of(mt_graph graph) { return reinterpret_cast<Graph*>(graph); }

int32_t GraphEnd(mt_stream, mt_graph* graph) {
  Graph* const made = std::exchange(recording, nullptr);
  if (tape.refuse_graphs) {
    delete made;
    return MT_ERROR_DEVICE;
  }
  ++tape.graphs_recorded;
  *graph = reinterpret_cast<mt_graph>(made);
  return MT_OK;
}

int32_t GraphLaunch(mt_graph graph, mt_stream) {
  return Enqueue(DeferredLog::kLaunch, [graph] {
    for (const Task& task : Of(graph)->tasks) {
      if (const int32_t code = task(); code != MT_OK) return code;
    }
    return static_cast<int32_t>(MT_OK);
  });
}

void FillStreamsAndEvents(mt_backend* b) {
  b->copy_to_device = [](void* destination, const void* source, size_t bytes, mt_stream) {
    return Copy(DeferredLog::kToDevice, destination, source, bytes);
  };
  b->copy_to_host = [](void* destination, const void* source, size_t bytes, mt_stream) {
    return Copy(DeferredLog::kToHost, destination, source, bytes);
  };
  b->stream_synchronize = [](mt_stream) { return WorkUntil(enqueued); };
  b->event_create = [](mt_event* event) {
    *event = reinterpret_cast<mt_event>(new Event);
    return static_cast<int32_t>(MT_OK);
  };
  b->event_record = [](mt_event event, mt_stream) {
    Of(event)->recorded_at = enqueued;
    return static_cast<int32_t>(recording == nullptr ? MT_OK : MT_ERROR_INVALID);
  };
  b->event_wait = [](mt_event, mt_stream) {
    return Enqueue(DeferredLog::kEventWait, [] { return static_cast<int32_t>(MT_OK); });
  };
  b->event_query = [](mt_event event) {
    return static_cast<int32_t>(Of(event)->recorded_at <= done ? MT_OK : MT_IN_PROGRESS);
  };
  b->event_synchronize = [](mt_event event) { return WorkUntil(Of(event)->recorded_at); };
  // As many milliseconds as there are tasks between them; it is an error to ask before they are done.
  b->event_milliseconds = [](mt_event first, mt_event last, float* milliseconds) {
    *milliseconds = static_cast<float>(Of(last)->recorded_at - Of(first)->recorded_at);
    return static_cast<int32_t>(Of(last)->recorded_at <= done ? MT_OK : MT_ERROR_INVALID);
  };
  b->event_destroy = [](mt_event event) {
    delete Of(event);
    return static_cast<int32_t>(MT_OK);
  };
}

const mt_backend* Make() {
  static mt_backend b;
  Dl_info self;
  dladdr(reinterpret_cast<void*>(&Make), &self);
  std::string path = self.dli_fname;
  path = path.substr(0, path.rfind('/')) + "/../bin/libmt_backend_reference.so";
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return nullptr;
  reference = reinterpret_cast<mt_backend_entry>(dlsym(library, MT_BACKEND_ENTRY_SYMBOL))();
  b = *reference;
  b.name = "deferred";
  b.probe = Probe;
  b.run = Run;
  b.workspace_bytes = WorkspaceBytes;
  b.allocate = b.allocate_host = Allocate;
  b.free = b.free_host = Free;
  b.error_message = [] { return "a message"; };
  FillStreamsAndEvents(&b);
  b.graph_begin = [](mt_stream) {
    recording = new Graph;
    return static_cast<int32_t>(MT_OK);
  };
  b.graph_end = GraphEnd;
  b.graph_launch = GraphLaunch;
  b.graph_destroy = [](mt_graph graph) {
    WorkUntil(enqueued);
    delete Of(graph);
    return static_cast<int32_t>(MT_OK);
  };
  return &b;
}

}  // namespace
}  // namespace mt::testing

extern "C" __attribute__((visibility("default"))) const mt_backend* mt_backend_entry_v1(void) {
  static const mt_backend* const backend = mt::testing::Make();
  return backend;
}
extern "C" __attribute__((visibility("default"))) mt::testing::DeferredLog* mt_deferred_log() {
  return &mt::testing::tape;
}
