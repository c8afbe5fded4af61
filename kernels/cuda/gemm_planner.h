// Which algorithm of cuBLASLt computes which product, and the descriptors that go with it. The library is passed in, so that its
// rules are tested without a device.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/cuda/gemm_cache.h"
#include "kernels/cuda/gemm_lt_plan.h"

namespace mt::cuda {

// What NVIDIA advises for Hopper; also enough everywhere else.
inline constexpr size_t kGemmWorkspaceBytes = size_t{32} << 20;

struct GemmPlan {
  LtLayouts layouts;
  cublasLtMatmulAlgo_t algorithm;
};

// Plans are never dropped, so a pointer to one stays valid. Thread-safe.
class GemmPlanner {
 public:
  // Median seconds of each algorithm, infinity for one that fails; empty if nothing could be measured.
  using Measure = std::function<std::vector<double>(
      const GemmProblem& problem, const std::vector<cublasLtMatmulAlgo_t>& algorithms)>;
  using Log = std::function<void(const std::string& line)>;

  // `cache` may be null.
  GemmPlanner(const CublasLt& lt, cublasLtHandle_t handle, std::unique_ptr<GemmCache> cache,
              Measure measure, Log log)
      : lt_(lt),
        handle_(handle),
        cache_(std::move(cache)),
        measure_(std::move(measure)),
        log_(std::move(log)) {}

  // Makes the plan of a product unless there is one: the remembered algorithm; else with a cache the fastest of the library's
  // proposals, which is then remembered; else its first. The first stays unless another is clearly faster. What could not be
  // measured is not remembered.
  int32_t Prepare(const GemmProblem& problem);

  // The plan; where none was prepared, one that costs no measurement, and a line in the log.
  int32_t Find(const GemmProblem& problem, GemmPlan** plan);

 private:
  GemmPlan* Lookup(const GemmProblem& problem);
  int32_t Make(const GemmProblem& problem, bool in_step, GemmPlan** plan);
  int32_t Choose(const GemmProblem& problem, bool in_step, cublasLtMatmulAlgo_t* algorithm);
  bool TakeFromPlanWithoutBias(GemmProblem problem, cublasLtMatmulAlgo_t* algorithm);
  // Nothing, and a line in the log, if they could not be measured.
  std::optional<size_t> Fastest(const GemmProblem& problem,
                                const std::vector<cublasLtMatmulAlgo_t>& algorithms);
  bool Fits(const GemmProblem& problem, const cublasLtMatmulAlgo_t& algorithm);

  const CublasLt& lt_;
  const cublasLtHandle_t handle_;
  std::mutex making_;  // one plan is made at a time; also of cache_
  const std::unique_ptr<GemmCache> cache_;
  const Measure measure_;
  const Log log_;
  std::shared_mutex mutex_;  // of plans_
  std::unordered_map<GemmProblem, std::unique_ptr<GemmPlan>, GemmProblemHash> plans_;
};

}  // namespace mt::cuda
