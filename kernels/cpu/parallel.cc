#include "kernels/cpu/parallel.h"

#include <omp.h>

#include <atomic>

namespace mt::cpu {
namespace {
std::atomic<int> number_of_threads{0};
}  // namespace

void SetThreads(int threads) { number_of_threads = threads > 0 ? threads : omp_get_num_procs(); }

int Threads() {
  const int threads = number_of_threads.load(std::memory_order_relaxed);
  return threads > 0 ? threads : 1;
}

void KeepLibrariesOnThisThread() {
  thread_local bool done = false;
  if (done) return;
  omp_set_num_threads(1);  // of this thread only; ParallelBlocks always says how many it wants
  done = true;
}

int ThreadNumber() { return omp_get_thread_num(); }

}  // namespace mt::cpu
