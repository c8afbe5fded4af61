// What an operation cannot do without, from its arguments alone: the bytes it must move (each input read once, each output
// written once) and its floating-point operations. Measured time is judged against them.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/abi/mt_backend.h"

namespace mt::conformance {

struct Cost {
  double bytes = 0;
  double flops = 0;        // of matrix products, causal attention counted once
  int32_t dtype = MT_F32;  // of the products' operands
  std::string shape;       // "m4096 n2048 k2048"
};
// `arguments` is the operation's struct; of its pointers only whether they are null matters.
Cost CostOf(int32_t operation, const void* arguments);
// Of those of mixtures of experts and latent attention, which CostOf asks too.
Cost ExpertCostOf(int32_t operation, const void* arguments);

int64_t BytesOf(int32_t dtype);
// Pairs of a query and a key that it sees, per head and sequence; half a key per query is not counted under a causal mask, as usual.
double VisiblePairs(const mt_attention_args& args);

// A device's measured ceilings; 0 = unknown.
struct Ceilings {
  double bytes_per_second = 0;  // read plus written
  double f32_flops = 0, bf16_flops = 0, fp8_flops = 0;

  // The least seconds that the cost can take, and whether bytes or operations say so.
  double Floor(const Cost& cost) const;
  bool BoundByBytes(const Cost& cost) const;
  double Flops(int32_t dtype) const;
};
// By the backend's own copy and products of the types it supports (backend open): events' medians on a device, the best of a
// few on the host. Takes about a second on a GPU. `small`: sizes for a processor.
Ceilings MeasureCeilings(const mt_backend* backend, bool small);

}  // namespace mt::conformance
