// What backends in host memory share: the contract check of every operation's arguments, the last
// error of a thread, and the memory and stream functions of the ABI. Arrows: kernels/abi.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/abi/mt_backend.h"

namespace mt::host {

// Sets the calling thread's message to "<operation>: <text>" and returns `code`.
[[gnu::format(printf, 3, 4)]] int32_t Fail(int32_t code, int32_t operation, const char* format,
                                           ...);
const char* ErrorMessage();

// MT_OK, or MT_ERROR_INVALID or MT_ERROR_UNSUPPORTED (no such operation) with a message that names
// field and value. Pointers are looked at only if `with_pointers`.
int32_t CheckArguments(int32_t operation, const void* args, bool with_pointers);

// Types that the arguments use, up to three; returns how many.
int TypesOf(int32_t operation, const void* args, int32_t types[3]);

// The operation's workspace field, or zeros.
struct Workspace {
  void* data = nullptr;
  size_t bytes = 0;
};
Workspace WorkspaceOf(int32_t operation, const void* args);

// Fills in memory and streams: a stream is a number, everything finishes at once.
void FillMemoryFunctions(mt_backend* backend);

// Processor brand, instruction set, cores and memory, for `probe`.
void DescribeProcessor(mt_device_info* info);

}  // namespace mt::host
