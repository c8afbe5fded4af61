// Runs cases of the table on a backend library.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/conformance/cases.h"

namespace mt::conformance {

// Loads a backend library by path; null with a reason in `error`.
const mt_backend* LoadLibrary(const std::string& path, std::string* error);

// Host copies of one case's tensors as float64 (integers too).
using Values = std::vector<std::vector<double>>;
// Fresh inputs for a seed, already rounded to float32; NaN where the operation has to write.
Values MakeValues(const Case& item, uint64_t seed);

// A case's tensors in the backend's memory, with guard bands around each and a poisoned workspace.
class Problem {
 public:
  Problem(const mt_backend* backend, const Case& item, int32_t dtype, const Values& values);
  ~Problem();
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  bool supported() const { return supported_; }
  int32_t Run();
  // Tensors as they are now.
  Values Read() const;
  // Empty, or which guard band was written.
  std::string CheckGuards() const;

 private:
  struct Block {
    void* device = nullptr;  // guard, data, guard
    std::vector<char> host;
  };
  const mt_backend* backend_;
  const Case& case_;
  int32_t dtype_;
  std::vector<Block> blocks_;
  std::vector<char> arguments_;
  void* workspace_ = nullptr;
  bool supported_ = false;
};

// Empty if `actual` agrees with `expected` (from float64) within the project's tolerances, else
// what differs most. float32: 1e-6 + 5e-6 |expected|, where long sums of either sign are judged
// against the tensor's root mean square instead of |expected| when that is larger. float64: 1e-12
// in place of both.
std::string Compare(const Case& item, int32_t dtype, const Values& before, const Values& actual,
                    const Values& expected);

}  // namespace mt::conformance
