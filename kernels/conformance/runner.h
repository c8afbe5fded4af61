// Runs cases of the table on a backend library, in host or device memory.
#pragma once

#include <string>
#include <vector>

#include "kernels/conformance/cases.h"

namespace mt::conformance {

// Loads a backend library by path; null with a reason in `error`. `declined` (may be null): the
// library is sound but cannot work on this machine; then `error` is its reason alone.
const mt_backend* LoadLibrary(const std::string& path, std::string* error,
                              bool* declined = nullptr);
// MT_CONFORMANCE_SEED: a number, or `random` for a fresh one; without it always the same, so that what was green once stays green
// until the code changes.
uint64_t SeedFromEnvironment();
// "float32", "bfloat16", "float64"
const char* TypeName(int32_t dtype);

// `value` rounded to `type`, at `out`; NaN, where a type has none, is something that no case uses.
void Encode(int32_t type, double value, char* out);

// Fresh inputs for a seed, already rounded to what the tensors are in memory with data of `dtype`
// (float64 data: to float32), so that a comparison sees the operation's own error only; NaN where
// the operation has to write.
Values MakeValues(const Case& item, int32_t dtype, uint64_t seed);

// A case's tensors in the backend's memory, with guard bands around each and a poisoned workspace.
class Problem {
 public:
  Problem(const mt_backend* backend, const Case& item, int32_t dtype, const Values& values);
  ~Problem();
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  bool supported() const { return supported_; }
  // Runs and waits; an error of the device in between is the result too.
  int32_t Run();
  // Tensors as they are now.
  Values Read();
  // Empty, or which guard band was written or which copy failed.
  std::string CheckGuards();

 private:
  struct Block {
    void* device = nullptr;  // guard, data, guard
    size_t bytes = 0, start = 0;
  };
  std::vector<char> Fetch(const Block& block);

  const mt_backend* backend_;
  const Case& case_;
  int32_t dtype_;
  std::vector<Block> blocks_;
  std::vector<char> arguments_;
  void* workspace_ = nullptr;
  size_t workspace_bytes_ = 0;
  bool supported_ = false;
  std::string failure_;
};

// Tells an operation's struct where its workspace is; false if the struct cannot carry one.
bool SetWorkspace(int32_t operation, std::vector<char>& arguments, void* workspace, size_t bytes);

// Empty if `actual` agrees with `expected` (from float64) within the project's tolerances, else
// what differs most.
//
//   float64   1e-12 + 1e-12 |expected|
//   float32   1e-6  + 5e-6  |expected|
//   bfloat16  1e-5  + 1e-2  |expected|   and so for products of FP8 numbers
//
// Long sums of either sign are judged against the tensor's root mean square instead of |expected|
// when that is larger. Statistics and main gradients of bfloat16 data are float32 and judged so,
// unless they are made from something that was rounded. Moves, maxima and FP8 codes are exact.
//
// Sums with term_norms N: the tensor cores of attention take probabilities and their gradients as
// bfloat16. Each term x_i of a sum then has an error of its own, evenly spread over +-u |x_i| at most
// (u = 2^-8), and the errors add like a random walk: their sum is sub-Gaussian with variance at most
// u^2 / 3 N^2, N^2 = sum of x_i^2 (Hoeffding 1963; evenly spread errors have no larger tails than a
// normal with their variance), and beyond 6 of its deviations once in 10^8 sums. N may be much larger
// than the sum and than the tensor's other elements (one key with large scores), and is what the
// error is measured by, whatever the number of terms. The sum itself is rounded once more:
//   bfloat16  1e-5  + u (|expected| + 6 / sqrt(3) N)
// In other types the terms are not rounded apart: as above, with N in place of |expected| where larger.
std::string Compare(const Case& item, int32_t dtype, const Values& before, const Values& actual,
                    const Values& expected);

}  // namespace mt::conformance
