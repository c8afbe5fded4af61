// The one thread pool: OpenMP's (libgomp), which oneDNN uses too.
//
// libgomp's idle threads spin before they sleep; several rank processes may share the cores, so the
// spinning is bounded: the loader sets GOMP_SPINCOUNT unless the environment already has it or
// OMP_WAIT_POLICY (worker/backend/backend.cc).
#pragma once

#include <algorithm>
#include <cstdint>

namespace mt::cpu {

// Threads per call, for all threads of the process that call the backend; 0 = all cores this
// process may use.
void SetThreads(int threads);
int Threads();

// Keeps oneDNN on the calling thread where it is called outside a parallel region: otherwise it would take every core, whatever
// `open` was told, and split its work by their number.
void KeepLibrariesOnThisThread();

inline int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Calls body(block) for block = 0 .. blocks - 1, each once, in any order, on up to Threads()
// threads. Blocks are handed out as threads become free, so that a core that is busy with something
// else does not hold up the rest.
template <typename Body>
void ParallelBlocks(int64_t blocks, const Body& body) {
  const int threads = static_cast<int>(std::min<int64_t>(Threads(), blocks));
  if (threads <= 1) {
    KeepLibrariesOnThisThread();
    for (int64_t block = 0; block < blocks; ++block) body(block);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t block = 0; block < blocks; ++block) body(block);
}

// Calls body(first, last) over [0, count) in pieces of about 256 KiB, `bytes_per_item` each.
template <typename Body>
void ParallelRanges(int64_t count, int64_t bytes_per_item, const Body& body) {
  constexpr int64_t kPieceBytes = 256 << 10;
  const int64_t piece = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, bytes_per_item));
  // Multiples of 16 items keep vectors whole and cache lines apart.
  const int64_t step = piece >= 16 ? piece / 16 * 16 : piece;
  ParallelBlocks(CeilDivide(count, step),
                 [&](int64_t block) { body(block * step, std::min(count, (block + 1) * step)); });
}

// This thread's number inside a body, for scratch; 0 .. Threads() - 1.
int ThreadNumber();

}  // namespace mt::cpu
