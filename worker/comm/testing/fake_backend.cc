// The backend "fakedevice": the reference backend behind fake_device.h's streams, so that whole training steps run on devices
// whose work happens as late as the host can tell, in memory that the host cannot touch (guarded_memory.h). One machine per
// process; a thread is the rank that its `open` named. configure("order", "compute" or "others") chooses which streams go first.
//
// What would fail on a GPU ends the process with a line that names it: an operation that is given host memory, a copy whose
// ends are in the wrong place, and, while a graph is recorded, whatever would wait or allocate.
#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "kernels/abi/operation_names.h"
#include "worker/backend/testing/guarded_memory.h"
#include "worker/comm/testing/fake_device.h"

namespace mt::testing {
namespace {

constexpr int kDevices = 8;

const mt_backend& Reference() {
  static const mt_backend* const reference = [] {
    Dl_info self;
    dladdr(reinterpret_cast<const void*>(&Reference), &self);
    std::string folder = self.dli_fname;
    folder.resize(folder.rfind('/') + 1);
    void* library =
        dlopen((folder + "../bin/libmt_backend_reference.so").c_str(), RTLD_NOW | RTLD_LOCAL);
    void* entry = library == nullptr ? nullptr : dlsym(library, MT_BACKEND_ENTRY_SYMBOL);
    if (entry == nullptr) {
      std::fprintf(stderr, "fakedevice: %s\n", dlerror());
      std::abort();
    }
    return reinterpret_cast<mt_backend_entry>(entry)();
  }();
  return *reference;
}

FakeMachine& Machine() {
  static auto* const machine = [] {
    auto* const made = new FakeMachine(kDevices);
    made->set_lazy(false);
    static GuardedMemory::Access* access = nullptr;
    made->set_around([] { access = new GuardedMemory::Access; },
                     [] { delete std::exchange(access, nullptr); });
    made->set_clock([] {
      const auto now = std::chrono::steady_clock::now().time_since_epoch();
      return std::chrono::duration<double, std::milli>(now).count();
    });
    return made;
  }();
  return *machine;
}

template <typename... Values>
[[noreturn]] void Die(const char* format, Values... values) {
  std::fprintf(stderr, "fakedevice: ");
  std::fprintf(stderr, format, values...);
  std::fprintf(stderr, "\n");
  std::abort();
}

void NotWhileRecording(const char* call) {
  if (Machine().recording()) Die("%s while a graph is recorded", call);
}

void MustBeDevice(const void* pointer, const char* what) {
  if (!GuardedMemory::Get().Holds(pointer)) Die("%s: %p is not device memory", what, pointer);
}
void MustBeHost(const void* pointer, const char* what) {
  if (GuardedMemory::Get().IsDeviceAddress(pointer)) Die("%s: %p is device memory", what, pointer);
}

// Words that look like addresses: this process's memory lies above 2^40, sizes below it, float64 values above 2^47; an int32 with
// anything as padding behind it is small. All pointers of a contract's struct are for the device.
void CheckPointers(int32_t operation, const std::vector<char>& arguments) {
  size_t words = arguments.size() / 8;
  // Behind these there are seeds, which are any number.
  if (operation == MT_OP_FILL_NORMAL) words = offsetof(mt_fill_normal_args, first_index) / 8;
  for (size_t word = 1; word < words; ++word) {
    uint64_t value = 0;
    std::memcpy(&value, arguments.data() + 8 * word, 8);
    if (value >> 40 == 0 || value >> 47 != 0 || (value & 0xffffffff) < 1 << 16) continue;
    MustBeDevice(reinterpret_cast<const void*>(value), mt_operation_name(operation));
  }
}

// Memory of allocate_host: copies from it happen when the stream comes to them. From other memory a copy has taken what it needs
// when it returns.
class PinnedMemory {
 public:
  void* Allocate(size_t bytes) {
    void* const pointer = std::malloc(bytes + 1);
    const std::lock_guard lock(mutex_);
    blocks_[static_cast<char*>(pointer)] = bytes;
    return pointer;
  }
  void Free(void* pointer) {
    {
      const std::lock_guard lock(mutex_);
      if (pointer != nullptr && blocks_.erase(static_cast<char*>(pointer)) == 0)
        Die("free_host: %p is not pinned memory", pointer);
    }
    std::free(pointer);
  }
  bool Holds(const void* pointer) {
    const std::lock_guard lock(mutex_);
    const auto after = blocks_.upper_bound(static_cast<const char*>(pointer));
    if (after == blocks_.begin()) return false;
    const auto& [begin, bytes] = *std::prev(after);
    return pointer <= begin + bytes;
  }

 private:
  std::mutex mutex_;
  std::map<const char*, size_t> blocks_;
};
PinnedMemory& Pinned() {
  static auto* const memory = new PinnedMemory;
  return *memory;
}

int32_t Probe(mt_device_info* info) {
  const int32_t score = Reference().probe(info);
  info->capabilities = MT_CAPABILITY_GRAPHS | MT_CAPABILITY_FP8;
  info->device_count = kDevices;
  return score;
}

int32_t Open(int32_t device, int32_t threads) {
  FakeMachine::Act(device);
  return Reference().open(0, threads);
}

int32_t Configure(const char* key, const char* value) {
  if (std::strcmp(key, "order") != 0) return MT_ERROR_UNSUPPORTED;
  Machine().set_lazy(std::strcmp(value, "compute") == 0);
  return MT_OK;
}

int32_t Run(int32_t operation, const void* arguments, mt_stream stream) {
  if (stream != nullptr) return MT_ERROR_UNSUPPORTED;
  uint32_t bytes = 0;
  std::memcpy(&bytes, arguments, sizeof bytes);
  const auto* first = static_cast<const char*>(arguments);
  std::vector<char> copy(first, first + bytes);
  CheckPointers(operation, copy);
  Machine().Compute([operation, copy = std::move(copy)] {
    if (Reference().run(operation, copy.data(), nullptr) != MT_OK)
      Die("%s", Reference().error_message());
  });
  return MT_OK;
}

int32_t Allocate(size_t bytes, void** pointer) {
  NotWhileRecording("allocate");
  *pointer = GuardedMemory::Get().Allocate(bytes);
  return MT_OK;
}
int32_t Free(void* pointer) {
  NotWhileRecording("free");
  Machine().Run();  // a device does what it was given first
  if (pointer != nullptr) GuardedMemory::Get().Free(pointer);
  return MT_OK;
}

int32_t CopyToDevice(void* destination, const void* source, size_t bytes, mt_stream stream) {
  if (bytes == 0) return MT_OK;
  MustBeDevice(destination, "copy_to_device's destination");
  MustBeHost(source, "copy_to_device's source");
  if (!Pinned().Holds(source)) {
    NotWhileRecording("copy_to_device from memory that is not pinned");
    return Machine().backend()->copy_to_device(destination, source, bytes, stream);
  }
  return Machine().backend()->copy_to_host(destination, source, bytes,
                                           stream);  // when it comes to it
}
int32_t CopyToHost(void* destination, const void* source, size_t bytes, mt_stream stream) {
  if (bytes == 0) return MT_OK;
  MustBeHost(destination, "copy_to_host's destination");
  MustBeDevice(source, "copy_to_host's source");
  if (!Pinned().Holds(destination)) NotWhileRecording("copy_to_host to memory that is not pinned");
  return Machine().backend()->copy_to_host(destination, source, bytes, stream);
}

}  // namespace
}  // namespace mt::testing

extern "C" __attribute__((visibility("default"))) const mt_backend* mt_backend_entry_v1(void) {
  using namespace mt::testing;
  static const mt_backend table = [] {
    mt_backend t = *Machine().backend();
    t.name = "fakedevice";
    t.probe = Probe;
    t.open = Open;
    t.configure = Configure;
    t.run = Run;
    t.supports = [](int32_t operation, const void* arguments) {
      return Reference().supports(operation, arguments);
    };
    t.kernel_name = [](int32_t operation, const void* arguments) {
      return Reference().kernel_name(operation, arguments);
    };
    t.workspace_bytes = [](int32_t operation, const void* arguments) {
      return Reference().workspace_bytes(operation, arguments);
    };
    t.allocate = Allocate;
    t.free = Free;
    t.copy_to_device = CopyToDevice;
    t.copy_to_host = CopyToHost;
    t.allocate_host = [](size_t bytes, void** pointer) -> int32_t {
      NotWhileRecording("allocate_host");
      *pointer = Pinned().Allocate(bytes);
      return MT_OK;
    };
    t.free_host = [](void* pointer) -> int32_t {
      NotWhileRecording("free_host");
      Pinned().Free(pointer);
      return MT_OK;
    };
    t.stream_synchronize = [](mt_stream stream) {
      NotWhileRecording("stream_synchronize");
      return Machine().backend()->stream_synchronize(stream);
    };
    t.event_query = [](mt_event event) {
      NotWhileRecording("event_query");
      return Machine().backend()->event_query(event);
    };
    t.event_synchronize = [](mt_event event) {
      NotWhileRecording("event_synchronize");
      return Machine().backend()->event_synchronize(event);
    };
    t.memory_info = [](int64_t* free_bytes, int64_t* total_bytes) -> int32_t {
      *free_bytes = *total_bytes = int64_t{1} << 30;
      return MT_OK;
    };
    return t;
  }();
  return &table;
}
