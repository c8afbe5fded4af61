// What is known of a GPU by its name, and whether this build has code for it. Host code without CUDA.
#pragma once

#include <string>

namespace mt::cuda {

// Nominal rates without sparsity, from NVIDIA's data sheets; 0 = unknown.
struct Chip {
  double bf16_flops = 0;
  double fp8_flops = 0;
  double memory_bytes_per_second = 0;
};
// `name` as cudaDeviceProp::name, e.g. "NVIDIA H100 80GB HBM3".
Chip ChipByName(const std::string& name);

// Whether code made for `architectures` (CMAKE_CUDA_ARCHITECTURES with commas: "80-real,90a-real,100-real,100-virtual") runs on a device of
// compute capability major.minor: machine code runs on the same major version and a minor one at least as high, code for "90a"
// on exactly 9.0, code for "100f" on its family, PTX on everything newer.
bool HasCodeFor(const std::string& architectures, int major, int minor);

}  // namespace mt::cuda
