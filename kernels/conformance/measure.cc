#include "kernels/conformance/measure.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <memory>
#include <vector>

#include "kernels/abi/philox.h"
#include "kernels/conformance/runner.h"

namespace mt::conformance {
namespace {

constexpr double kCacheBytes = 256e6;  // more than any second-level cache
constexpr int kMostCopies = 8;

double Now(bool one_thread) {
  timespec time;
  clock_gettime(one_thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// A case's tensors with random numbers, made where they lie: some are gigabytes.
class Instance {
 public:
  Instance(const mt_backend* backend, const Case& item, int32_t dtype, uint64_t seed)
      : backend_(backend), item_(item), dtype_(dtype), seed_(seed) {}
  ~Instance() {
    for (void* pointer : owned_) backend_->free(pointer);
  }
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  int32_t Make() {
    for (size_t t = 0; t < item_.tensors.size(); ++t) {
      const Tensor& tensor = item_.tensors[t];
      if (tensor.alias >= 0) {
        pointers_.push_back(pointers_[static_cast<size_t>(tensor.alias)]);
        continue;
      }
      const int64_t size = SizeOf(TypeOf(tensor.element, dtype_));
      void* pointer = Allocate(static_cast<size_t>(std::max<int64_t>(1, tensor.count) * size));
      if (pointer == nullptr) return MT_ERROR_MEMORY;
      pointers_.push_back(pointer);
      if (const int32_t code = Fill(t, pointer); code != MT_OK) return code;
    }
    arguments_ = item_.arguments(dtype_, pointers_.data());
    if (backend_->supports(item_.operation, arguments_.data()) != 1) return MT_ERROR_UNSUPPORTED;
    const int64_t bytes = backend_->workspace_bytes(item_.operation, arguments_.data());
    if (bytes < 0) return static_cast<int32_t>(bytes);
    if (bytes > 0) {
      void* workspace = Allocate(static_cast<size_t>(bytes));
      if (workspace == nullptr) return MT_ERROR_MEMORY;
      SetWorkspace(item_.operation, arguments_, workspace, static_cast<size_t>(bytes));
    }
    return backend_->stream_synchronize(nullptr);
  }
  int32_t Run() { return backend_->run(item_.operation, arguments_.data(), nullptr); }
  const char* kernel() const { return backend_->kernel_name(item_.operation, arguments_.data()); }

 private:
  void* Allocate(size_t bytes) {
    void* pointer = nullptr;
    if (backend_->allocate(bytes, &pointer) != MT_OK) return nullptr;
    owned_.push_back(pointer);
    return pointer;
  }

  int32_t Fill(size_t index, void* pointer) {
    const Tensor& tensor = item_.tensors[index];
    const int32_t type = TypeOf(tensor.element, dtype_);
    if (type != MT_F32 && type != MT_BF16) return FillOnHost(index, pointer, type);
    if (tensor.value && tensor.count < 1000000) return FillOnHost(index, pointer, type);
    const mt_fill_normal_args args = {.struct_size = sizeof args,
                                      .dtype = type,
                                      .data = pointer,
                                      .rows = 1,
                                      .columns = tensor.count,
                                      .row_stride = static_cast<uint64_t>(tensor.count),
                                      .seed = seed_,
                                      .stream = index,
                                      .mean = tensor.mean,
                                      .std = tensor.spread};
    // Rows share the work of filling where there are threads.
    mt_fill_normal_args rows = args;
    if (tensor.count % 1024 == 0) {
      rows.rows = tensor.count / 1024;
      rows.columns = rows.row_stride = 1024;
    }
    return backend_->run(MT_OP_FILL_NORMAL, &rows, nullptr);
  }

  // A megabyte of elements, repeated.
  int32_t FillOnHost(size_t index, void* pointer, int32_t type) {
    const Tensor& tensor = item_.tensors[index];
    const size_t size = static_cast<size_t>(SizeOf(type));
    const int64_t count = std::min<int64_t>(tensor.count, 1 << 20);
    std::vector<char> host(static_cast<size_t>(count) * size);
    for (int64_t i = 0; i < count; ++i) {
      const double normal = mt_normal(seed_, index, static_cast<uint64_t>(i));
      Encode(type, tensor.value ? tensor.value(normal, i) : tensor.mean + tensor.spread * normal,
             host.data() + static_cast<size_t>(i) * size);
    }
    for (int64_t first = 0; first < tensor.count; first += count) {
      const size_t bytes = static_cast<size_t>(std::min(count, tensor.count - first)) * size;
      const int32_t code =
          backend_->copy_to_device(static_cast<char*>(pointer) + static_cast<size_t>(first) * size,
                                   host.data(), bytes, nullptr);
      if (code != MT_OK) return code;
    }
    return backend_->stream_synchronize(nullptr);
  }

  const mt_backend* backend_;
  const Case& item_;
  int32_t dtype_;
  uint64_t seed_;
  std::vector<void*> owned_, pointers_;
  std::vector<char> arguments_;
};

using Instances = std::vector<std::unique_ptr<Instance>>;

// Median of `runs` device times, each between two events.
int32_t TimeOnDevice(const mt_backend* backend, Instances& instances, int runs, double* seconds) {
  std::vector<mt_event> events(static_cast<size_t>(runs) + 1);
  for (mt_event& event : events) {
    if (const int32_t code = backend->event_create(&event); code != MT_OK) return code;
  }
  int32_t code = backend->event_record(events[0], nullptr);
  for (size_t i = 1; code == MT_OK && i < events.size(); ++i) {
    code = instances[i % instances.size()]->Run();
    if (code == MT_OK) code = backend->event_record(events[i], nullptr);
  }
  if (code == MT_OK) code = backend->stream_synchronize(nullptr);
  std::vector<float> times(static_cast<size_t>(runs));
  for (size_t i = 0; code == MT_OK && i < times.size(); ++i)
    code = backend->event_milliseconds(events[i], events[i + 1], &times[i]);
  for (const mt_event event : events) backend->event_destroy(event);
  std::sort(times.begin(), times.end());
  *seconds = 1e-3 * static_cast<double>(times[times.size() / 2]);
  return code;
}

// Best of up to `runs` in about a third of a second: on a shared host the rest is others' work.
int32_t TimeOnHost(const mt_backend*, Instances& instances, int runs, bool one_thread,
                   double* seconds) {
  double best = 1e9, spent = 0;
  for (int run = 0; run < runs && (run < 3 || spent < 0.3); ++run) {
    const double start = Now(one_thread);
    if (const int32_t code = instances[static_cast<size_t>(run) % instances.size()]->Run();
        code != MT_OK)
      return code;
    const double time = Now(one_thread) - start;
    if (run > 0) best = std::min(best, time);
    spent += time;
  }
  *seconds = best;
  return MT_OK;
}

}  // namespace

Measured Measure(const mt_backend* backend, const Case& item, const MeasureOptions& options) {
  Measured result;
  const double bytes = std::max(1.0, TrafficBytes(item, options.dtype));
  // A product is not bound by memory, and host caches are measured warm as they always were.
  const int copies =
      options.device ? std::clamp(static_cast<int>(std::ceil(kCacheBytes / bytes)), 1, kMostCopies)
                     : 1;
  Instances instances;
  int32_t code = MT_OK;
  for (int i = 0; code == MT_OK && i < copies; ++i) {
    instances.push_back(
        std::make_unique<Instance>(backend, item, options.dtype, static_cast<uint64_t>(i) + 1));
    code = instances.back()->Make();
  }
  constexpr int kWarmUp = 3;
  for (int i = 0; options.device && code == MT_OK && i < kWarmUp; ++i)
    code = instances[static_cast<size_t>(i) % instances.size()]->Run();
  if (code == MT_OK) {
    result.runs = options.device ? 21 : 20;
    code = options.device
               ? TimeOnDevice(backend, instances, result.runs, &result.seconds)
               : TimeOnHost(backend, instances, result.runs, options.one_thread, &result.seconds);
  }
  if (code == MT_OK) {
    result.kernel = instances[0]->kernel();
  } else {
    result.failure = code == MT_ERROR_MEMORY ? "no memory" : backend->error_message();
  }
  return result;
}

double MeasureCopy(const mt_backend* backend, const MeasureOptions& options) {
  const int64_t count = (options.device ? 512 : 64) << 18;  // float32: a quarter of the bytes
  Case copy = {.name = "copy",
               .operation = MT_OP_COPY,
               .tensors = {{.name = "source", .count = count},
                           {.name = "destination", .count = count, .role = Role::kOutput}},
               .arguments = [=](int32_t, void* const* p) {
                 const mt_copy_args args = {.struct_size = sizeof args,
                                            .source_dtype = MT_F32,
                                            .destination_dtype = MT_F32,
                                            .source = p[0],
                                            .destination = p[1],
                                            .count = count};
                 std::vector<char> bytes(sizeof args);
                 std::memcpy(bytes.data(), &args, sizeof args);
                 return bytes;
               }};
  MeasureOptions plain = options;
  plain.dtype = MT_F32;
  const Measured measured = Measure(backend, copy, plain);
  return measured.seconds > 0 ? 8.0 * static_cast<double>(count) / measured.seconds : 0;
}

}  // namespace mt::conformance
