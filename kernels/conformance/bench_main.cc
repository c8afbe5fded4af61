// mt-kernel-bench LIBRARY [THREADS] [FILTER]: what each operation of a training step takes at the
// default benchmark shape, how near it is to the limits of the machine, and its share of the step. With one thread the clock is the thread's own, so that
// what else runs on the machine counts less.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

#include "kernels/conformance/runner.h"

namespace {

double Now(bool one_thread) {
  timespec time;
  clock_gettime(one_thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace

int main(int argc, char** argv) {
  using mt::conformance::BenchmarkCase;
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s LIBRARY [THREADS] [FILTER]\n", argv[0]);
    return 2;
  }
  std::string error;
  const mt_backend* backend = mt::conformance::LoadLibrary(argv[1], &error);
  if (backend == nullptr || backend->open(0, argc > 2 ? std::atoi(argv[2]) : 0) != MT_OK) {
    std::fprintf(stderr, "%s\n", backend == nullptr ? error.c_str() : backend->error_message());
    return 1;
  }
  mt_device_info info = {};
  info.struct_size = sizeof info;
  backend->probe(&info);
  std::printf("%s: %s, %s, peak %.0f GFLOP/s\n", backend->name, info.name, info.detail,
              info.peak_flops / 1e9);
  std::printf("%-56s %9s %8s %9s %5s %9s\n", "operation", "ms", "GB/s", "GFLOP/s", "runs",
              "ms/step");
  const bool one_thread = argc > 2 && std::atoi(argv[2]) == 1;
  double total = 0;
  for (const BenchmarkCase& each : mt::conformance::BenchmarkCases()) {
    if (argc > 3 && std::strstr(each.item.name.c_str(), argv[3]) == nullptr) continue;
    const auto values = mt::conformance::MakeValues(each.item, 1);
    mt::conformance::Problem problem(backend, each.item, MT_F32, values);
    if (!problem.supported()) {
      std::printf("%-56s not supported\n", each.item.name.c_str());
      continue;
    }
    double best = 1e9, spent = 0;
    for (int run = 0; run < 20 && (run < 3 || spent < 0.3); ++run) {
      const double start = Now(one_thread);
      if (problem.Run() != MT_OK) {
        std::fprintf(stderr, "%s: %s\n", each.item.name.c_str(), backend->error_message());
        return 1;
      }
      const double seconds = Now(one_thread) - start;
      if (run > 0) best = std::min(best, seconds);
      spent += seconds;
    }
    const double step = best * static_cast<double>(each.runs_per_step);
    total += step;
    std::printf("%-56s %9.3f %8.1f %9.1f %5lld %9.2f\n", each.item.name.c_str(), best * 1e3,
                each.item.bytes / best / 1e9, each.item.flops / best / 1e9,
                static_cast<long long>(each.runs_per_step), step * 1e3);
  }
  std::printf("%-56s %43.2f\n", "sum of one step", total * 1e3);
  return 0;
}
