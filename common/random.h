// Randomness of the control plane (ids, jitter) is passed in. What the model computes uses the counter-based generator of
// kernels/abi/philox.h instead.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace mt {

class Random {
 public:
  virtual ~Random() = default;
  virtual uint64_t Next() = 0;
  // Uniform in [0, 1).
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }
  // `length` characters of [a-z0-9].
  std::string Id(int length);

  // From the operating system; thread-safe; lives forever.
  static Random* Real();
};

// Reproducible; not thread-safe.
std::unique_ptr<Random> NewSeededRandom(uint64_t seed);

}  // namespace mt
