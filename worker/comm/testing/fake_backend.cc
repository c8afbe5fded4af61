// The backend "fakedevice": the reference backend behind fake_device.h's streams, so that whole training steps run on devices
// whose work happens as late as the host can tell. One machine per process; a thread is the rank that its `open` named.
// configure("order", "compute" or "others") chooses which streams go first.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

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
  static auto* const machine = new FakeMachine(kDevices);
  return *machine;
}

int32_t Probe(mt_device_info* info) {
  const int32_t score = Reference().probe(info);
  info->capabilities &= ~static_cast<uint32_t>(MT_CAPABILITY_HOST_MEMORY);
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
  Machine().Compute([operation, copy = std::vector<char>(first, first + bytes)] {
    if (Reference().run(operation, copy.data(), nullptr) == MT_OK) return;
    std::fprintf(stderr, "fakedevice: %s\n", Reference().error_message());
    std::abort();
  });
  return MT_OK;
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
    t.allocate_host = t.allocate;
    t.free_host = t.free;
    t.memory_info = [](int64_t* free_bytes, int64_t* total_bytes) -> int32_t {
      *free_bytes = *total_bytes = int64_t{1} << 30;
      return MT_OK;
    };
    Machine().set_lazy(false);
    return t;
  }();
  return &table;
}
