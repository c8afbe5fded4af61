#include "kernels/cuda/gemm_planner.h"

#include <algorithm>
#include <cstring>

#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

constexpr int kCandidates = 8;
// Measurements scatter by about this much; a choice within it would be chance.
constexpr double kClearlyFaster = 0.98;

GemmAlgorithm ToCache(const cublasLtMatmulAlgo_t& algorithm) {
  GemmAlgorithm words;
  static_assert(sizeof words == sizeof algorithm.data);
  std::memcpy(words.data(), algorithm.data, sizeof algorithm.data);
  return words;
}

cublasLtMatmulAlgo_t FromCache(const GemmAlgorithm& words) {
  cublasLtMatmulAlgo_t algorithm = {};
  std::memcpy(algorithm.data, words.data(), sizeof algorithm.data);
  return algorithm;
}

}  // namespace

int32_t GemmPlanner::Prepare(const GemmProblem& problem) {
  GemmPlan* plan = Lookup(problem);
  return plan != nullptr ? MT_OK : Make(problem, false, &plan);
}

int32_t GemmPlanner::Find(const GemmProblem& problem, GemmPlan** plan) {
  *plan = Lookup(problem);
  return *plan != nullptr ? MT_OK : Make(problem, true, plan);
}

GemmPlan* GemmPlanner::Lookup(const GemmProblem& problem) {
  const std::shared_lock lock(mutex_);
  const auto it = plans_.find(problem);
  return it != plans_.end() ? it->second.get() : nullptr;
}

int32_t GemmPlanner::Make(const GemmProblem& problem, bool in_step, GemmPlan** made) {
  const std::lock_guard lock(making_);
  *made = Lookup(problem);
  if (*made != nullptr) return MT_OK;
  auto plan = std::make_unique<GemmPlan>();
  if (const int32_t code = MakeLayouts(lt_, problem, &plan->layouts); code != MT_OK) return code;
  if (const int32_t code = Choose(problem, in_step, &plan->algorithm); code != MT_OK) return code;
  *made = plan.get();
  const std::unique_lock write(mutex_);
  plans_.emplace(problem, std::move(plan));
  return MT_OK;
}

int32_t GemmPlanner::Choose(const GemmProblem& problem, bool in_step,
                            cublasLtMatmulAlgo_t* algorithm) {
  const std::string key = problem.Text();
  std::optional<GemmAlgorithm> known;
  if (cache_ != nullptr) known = cache_->Find(key);
  if (known.has_value() && Fits(problem, FromCache(*known))) {
    *algorithm = FromCache(*known);
    return MT_OK;
  }
  if (in_step) {
    if (TakeFromPlanWithoutBias(problem, algorithm)) return MT_OK;
    log_("matmul " + key +
         " was not declared when the job began: the library's first algorithm is used");
  }
  std::vector<cublasLtMatmulAlgo_t> proposals;
  if (const int32_t code =
          ProposeAlgorithms(lt_, handle_, problem, kGemmWorkspaceBytes, kCandidates, &proposals);
      code != MT_OK)
    return code;
  *algorithm = proposals[0];
  if (cache_ == nullptr || in_step) return MT_OK;
  const std::optional<size_t> fastest = Fastest(problem, proposals);
  if (!fastest.has_value()) {
    // Not remembered: a later start may have the memory to measure. Another rank of this node may have had it.
    cache_->ReadAgain();
    known = cache_->Find(key);
    if (known.has_value() && Fits(problem, FromCache(*known))) *algorithm = FromCache(*known);
    return MT_OK;
  }
  *algorithm = proposals[*fastest];
  std::string error;
  const cublasLtMatmulAlgo_t counts =
      FromCache(cache_->Store(key, ToCache(*algorithm), known, &error));
  if (!error.empty()) log_("the choice of matmul algorithms is not remembered: " + error);
  if (Fits(problem, counts)) *algorithm = counts;
  return MT_OK;
}

// Shapes are declared without pointers, so without a bias: the algorithm of the product without one serves if it can add one.
bool GemmPlanner::TakeFromPlanWithoutBias(GemmProblem problem, cublasLtMatmulAlgo_t* algorithm) {
  if (!problem.bias) return false;
  const GemmProblem with_bias = problem;
  problem.bias = false;
  problem.bias_alignment = GemmProblem().bias_alignment;
  const GemmPlan* plan = Lookup(problem);
  if (plan == nullptr || !Fits(with_bias, plan->algorithm)) return false;
  *algorithm = plan->algorithm;
  return true;
}

std::optional<size_t> GemmPlanner::Fastest(const GemmProblem& problem,
                                           const std::vector<cublasLtMatmulAlgo_t>& algorithms) {
  if (algorithms.size() < 2) return 0;
  const std::vector<double> seconds = measure_(problem, algorithms);
  if (seconds.empty()) {
    log_("matmul " + problem.Text() +
         ": algorithms are not compared, what is remembered or else the library's first is used: " +
         host::ErrorMessage());
    return std::nullopt;
  }
  const auto fastest = std::min_element(seconds.begin(), seconds.end());
  return *fastest < kClearlyFaster * seconds[0] ? static_cast<size_t>(fastest - seconds.begin())
                                                : 0;
}

bool GemmPlanner::Fits(const GemmProblem& problem, const cublasLtMatmulAlgo_t& algorithm) {
  return AlgorithmFits(lt_, handle_, problem, kGemmWorkspaceBytes, algorithm);
}

}  // namespace mt::cuda
