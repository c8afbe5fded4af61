// mt-kernel-bench LIBRARY [THREADS] [FILTER] [--dtype float32|bfloat16] [--shape NAME] [--json FILE]
//                 [--copy-gbytes N] [--gemm-cache FILE]
// What each operation of a training step takes at the shapes of a model, how near it is to the limits of the machine, and its
// share of the step. The rate of a copy is measured, or is what --copy-gbytes says where that is more; --gemm-cache as mt-bench's.
// An operation that fails has its reason in the table, and the exit status is 1.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/conformance/measure.h"
#include "kernels/conformance/runner.h"

namespace mt::conformance {
namespace {

struct Options {
  const char* library = nullptr;
  int threads = 0;
  const char* filter = "";
  int32_t dtype = MT_F32;
  const BenchmarkModel* model = FindBenchmarkModel("default");
  const char* json = nullptr;
  const char* gemm_cache = nullptr;
  double copy_bytes_per_second = 0;
};

// False if the command line makes no sense.
bool Parse(int argc, char** argv, Options* options) {
  int position = 0;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--", 2) != 0) {
      if (position == 0) options->library = argv[i];
      if (position == 1) options->threads = std::atoi(argv[i]);
      if (position == 2) options->filter = argv[i];
      if (++position > 3) return false;
      continue;
    }
    if (i + 1 >= argc) return false;
    const std::string key = argv[i], value = argv[++i];
    if (key == "--dtype" && (value == "bfloat16" || value == "bf16")) {
      options->dtype = MT_BF16;
    } else if (key == "--shape") {
      options->model = FindBenchmarkModel(value);
    } else if (key == "--json") {
      options->json = argv[i];
    } else if (key == "--gemm-cache") {
      options->gemm_cache = argv[i];
    } else if (key == "--copy-gbytes") {
      options->copy_bytes_per_second = 1e9 * std::atof(argv[i]);
    } else if (key != "--dtype" || (value != "float32" && value != "f32")) {
      return false;
    }
  }
  return options->library != nullptr && options->model != nullptr;
}

void PrintRow(const BenchmarkCase& each, const Measured& measured, int32_t dtype, double copy,
              double peak, std::FILE* json, bool first) {
  const double bytes = TrafficBytes(each.item, dtype), seconds = measured.seconds;
  const double share = copy > 0 ? 100 * bytes / seconds / copy : 0;
  const double of_peak = peak > 0 ? 100 * each.item.flops / seconds / peak : 0;
  std::printf("%-62s %9.3f %8.1f %5.0f %9.2f %5.0f %5lld %9.2f  %s\n", each.item.name.c_str(),
              seconds * 1e3, bytes / seconds / 1e9, share, each.item.flops / seconds / 1e12,
              of_peak, static_cast<long long>(each.runs_per_step),
              seconds * 1e3 * static_cast<double>(each.runs_per_step), measured.kernel.c_str());
  std::fflush(stdout);
  if (json == nullptr) return;
  std::fprintf(json,
               "%s\n    {\"operation\": \"%s\", \"dtype\": \"%s\", \"kernel\": \"%s\", "
               "\"milliseconds\": %.6f, \"gigabytes_per_second\": %.2f, "
               "\"percent_of_copy\": %.1f, \"teraflops\": %.3f, \"runs_per_step\": %lld}",
               first ? "" : ",", each.item.name.c_str(), TypeName(dtype), measured.kernel.c_str(),
               seconds * 1e3, bytes / seconds / 1e9, share, each.item.flops / seconds / 1e12,
               static_cast<long long>(each.runs_per_step));
}

int Main(int argc, char** argv) {
  Options options;
  if (!Parse(argc, argv, &options)) {
    std::fprintf(stderr,
                 "usage: %s LIBRARY [THREADS] [FILTER] [--dtype float32|bfloat16] "
                 "[--shape %s] [--json FILE] [--copy-gbytes N] [--gemm-cache FILE]\n",
                 argv[0], kBenchmarkShapes);
    return 2;
  }
  std::string error;
  bool declined = false;
  const mt_backend* backend = LoadLibrary(options.library, &error, &declined);
  if (backend != nullptr && options.gemm_cache != nullptr)
    (void)backend->configure("gemm_cache", options.gemm_cache);  // others than GPUs have none
  if (backend == nullptr || backend->open(0, options.threads) != MT_OK) {
    std::fprintf(stderr, "%s%s\n", declined ? "skipped: " : "",
                 backend == nullptr ? error.c_str() : backend->error_message());
    return declined ? 77 : 1;
  }
  mt_device_info info = {};
  info.struct_size = sizeof info;
  backend->probe(&info);
  const MeasureOptions measure = {.dtype = options.dtype,
                                  .one_thread = options.threads == 1,
                                  .device = (info.capabilities & MT_CAPABILITY_HOST_MEMORY) == 0};
  const double copy = std::max(MeasureCopy(backend, measure), options.copy_bytes_per_second);
  const double peak =
      options.dtype == MT_BF16 && info.bf16_flops > 0 ? info.bf16_flops : info.peak_flops;
  std::printf("%s: %s, %s, %s, peak %.2f TFLOP/s, copies at %.0f GB/s\n", backend->name, info.name,
              info.detail, TypeName(options.dtype), peak / 1e12, copy / 1e9);
  std::printf("%-62s %9s %8s %5s %9s %5s %5s %9s  %s\n", "operation", "ms", "GB/s", "%copy",
              "TFLOP/s", "%peak", "runs", "ms/step", "kernel");
  std::FILE* json = options.json != nullptr ? std::fopen(options.json, "w") : nullptr;
  if (options.json != nullptr && json == nullptr) {
    std::perror(options.json);
    return 1;
  }
  if (json != nullptr) {
    std::fprintf(json,
                 "{\"backend\": \"%s\", \"device\": \"%s\", \"detail\": \"%s\", \"shape\": \"%s\", "
                 "\"peak_flops\": %.6g, \"copy_bytes_per_second\": %.6g, \"operations\": [",
                 backend->name, info.name, info.detail, options.model->name, peak, copy);
  }
  double total = 0;
  bool first = true, failed = false;
  for (const BenchmarkCase& each : BenchmarkCases(*options.model)) {
    const auto& types = each.item.types;
    if (std::strstr(each.item.name.c_str(), options.filter) == nullptr ||
        std::find(types.begin(), types.end(), options.dtype) == types.end())
      continue;
    const Measured measured = Measure(backend, each.item, measure);
    if (!measured.failure.empty()) {
      std::printf("%-62s %s\n", each.item.name.c_str(), measured.failure.c_str());
      failed |= each.runs_per_step > 0;
      continue;
    }
    total += measured.seconds * static_cast<double>(each.runs_per_step);
    PrintRow(each, measured, options.dtype, copy, peak, json, first);
    first = false;
  }
  std::printf("%-62s %56.2f\n", "sum of one step", total * 1e3);
  if (json != nullptr) {
    std::fprintf(json, "\n  ],\n  \"milliseconds_per_step\": %.4f}\n", total * 1e3);
    if (std::fclose(json) != 0) return 1;
  }
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace mt::conformance

int main(int argc, char** argv) { return mt::conformance::Main(argc, argv); }
