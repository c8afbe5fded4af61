// What ThreadSanitizer is told about an emulated launch: every fiber is a thread of its own, and only barriers, __syncwarp and the
// launch's beginning and end order one thread's accesses before another's. Two threads that touch the same element of shared or
// global memory with nothing of that between are then reported as a race, in whatever order they happened to run. Shuffles and
// ballots order nothing, as on a device. Blocks are ordered here, so races between blocks are not seen.
//
// The emulator itself is compiled without the sanitizer, and between fibers calls nothing that the sanitizer intercepts (memcpy,
// allocation): what it does there is no access of a kernel. Elsewhere all of this is nothing.
#pragma once

#if defined(MT_EMULATOR_RACES)
#include <sanitizer/tsan_interface.h>
#endif

namespace mt::emulator {

// What comes before a Publish of an object comes before what follows a later Observe of it.
inline void Publish([[maybe_unused]] void* object) {
#if defined(MT_EMULATOR_RACES)
  __tsan_release(object);
#endif
}
inline void Observe([[maybe_unused]] void* object) {
#if defined(MT_EMULATOR_RACES)
  __tsan_acquire(object);
#endif
}

}  // namespace mt::emulator
