#include "kernels/cuda/gemm_lt.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm_cache.h"
#include "kernels/cuda/gemm_lt_plan.h"
#include "kernels/cuda/gemm_measure.h"

namespace mt::cuda {
namespace {

// What NVIDIA advises for Hopper; also enough everywhere else.
constexpr size_t kLibraryWorkspaceBytes = size_t{32} << 20;
// The library wants its workspace aligned to this; ours may begin anywhere in the caller's.
constexpr size_t kWorkspaceAlignment = 256;
constexpr int kCandidates = 8;
// The library's first proposal stays unless another is clearly faster than it: measurements scatter by about this much.
constexpr double kClearlyFaster = 0.98;

struct Plan {
  LtLayouts layouts;
  cublasLtMatmulAlgo_t algorithm;
};

struct State {
  const CublasLt* lt = nullptr;
  cublasLtHandle_t handle = nullptr;
  bool tf32 = false;
  std::shared_mutex mutex;  // of `plans`
  std::mutex making;        // one plan is made at a time; also of `cache`
  std::unordered_map<GemmProblem, std::unique_ptr<Plan>, GemmProblemHash> plans;
  std::unique_ptr<GemmCache> cache;
};
// Set by OpenGemm; lives as long as the process.
State* state = nullptr;

void Log(const std::string& text) { std::fprintf(stderr, "mt_backend_cuda: %s\n", text.c_str()); }

Plan* FindPlan(const GemmProblem& problem) {
  const std::shared_lock lock(state->mutex);
  const auto it = state->plans.find(problem);
  return it != state->plans.end() ? it->second.get() : nullptr;
}

GemmAlgorithm ToCache(const cublasLtMatmulAlgo_t& algorithm) {
  GemmAlgorithm words;
  static_assert(sizeof words == sizeof algorithm.data);
  std::memcpy(words.data(), algorithm.data, sizeof algorithm.data);
  return words;
}

cublasLtMatmulAlgo_t FromCache(const GemmAlgorithm& words) {
  cublasLtMatmulAlgo_t algorithm;
  std::memcpy(algorithm.data, words.data(), sizeof algorithm.data);
  return algorithm;
}

// Index of the fastest; 0, the library's own choice, if nothing is clearly faster or nothing could be measured.
size_t Fastest(const GemmProblem& problem, const std::vector<cublasLtMatmulAlgo_t>& algorithms) {
  if (algorithms.size() < 2) return 0;
  const std::vector<double> seconds =
      MeasureAlgorithms(*state->lt, state->handle, problem, algorithms, kLibraryWorkspaceBytes);
  if (seconds.empty()) {
    Log("matmul " + problem.Text() + ": algorithms are not compared: " + host::ErrorMessage());
    return 0;
  }
  const auto fastest = std::min_element(seconds.begin(), seconds.end());
  return *fastest < kClearlyFaster * seconds[0] ? static_cast<size_t>(fastest - seconds.begin())
                                                : 0;
}

// Shapes are declared without pointers, so without a bias: the algorithm of the product without one serves if it can add one.
bool TakeFromPlanWithoutBias(GemmProblem problem, cublasLtMatmulAlgo_t* algorithm) {
  if (!problem.bias) return false;
  const GemmProblem with_bias = problem;
  problem.bias = false;
  problem.bias_alignment = GemmProblem().bias_alignment;
  const Plan* plan = FindPlan(problem);
  if (plan == nullptr ||
      !AlgorithmFits(*state->lt, state->handle, with_bias, kLibraryWorkspaceBytes, plan->algorithm))
    return false;
  *algorithm = plan->algorithm;
  return true;
}

// The remembered algorithm, or with a cache the fastest, or the library's first. `measure` is false inside a step.
int32_t ChooseAlgorithm(const GemmProblem& problem, bool measure, cublasLtMatmulAlgo_t* algorithm) {
  const CublasLt& lt = *state->lt;
  const auto fits = [&](const cublasLtMatmulAlgo_t& one) {
    return AlgorithmFits(lt, state->handle, problem, kLibraryWorkspaceBytes, one);
  };
  const std::string key = problem.Text();
  if (state->cache != nullptr) {
    if (const auto known = state->cache->Find(key); known.has_value() && fits(FromCache(*known))) {
      *algorithm = FromCache(*known);
      return MT_OK;
    }
  }
  if (!measure) {
    if (TakeFromPlanWithoutBias(problem, algorithm)) return MT_OK;
    Log("matmul " + key +
        " was not declared when the job began: the library's first algorithm is used");
  }
  std::vector<cublasLtMatmulAlgo_t> proposals;
  if (const int32_t code = ProposeAlgorithms(lt, state->handle, problem, kLibraryWorkspaceBytes,
                                             kCandidates, &proposals);
      code != MT_OK)
    return code;
  *algorithm = proposals[0];
  if (state->cache == nullptr || !measure) return MT_OK;
  *algorithm = proposals[Fastest(problem, proposals)];
  std::string error;
  const cublasLtMatmulAlgo_t counts =
      FromCache(state->cache->Store(key, ToCache(*algorithm), &error));
  if (!error.empty()) Log("the choice of matmul algorithms is not remembered: " + error);
  if (fits(counts)) *algorithm = counts;
  return MT_OK;
}

int32_t MakePlan(const GemmProblem& problem, bool measure, Plan** made) {
  const std::lock_guard lock(state->making);
  *made = FindPlan(problem);
  if (*made != nullptr) return MT_OK;
  auto plan = std::make_unique<Plan>();
  if (const int32_t code = MakeLayouts(*state->lt, problem, &plan->layouts); code != MT_OK)
    return code;
  if (const int32_t code = ChooseAlgorithm(problem, measure, &plan->algorithm); code != MT_OK)
    return code;
  *made = plan.get();
  const std::unique_lock write(state->mutex);
  state->plans.emplace(problem, std::move(plan));
  return MT_OK;
}

bool IsEmpty(const mt_matmul_args& args) { return args.m == 0 || args.n == 0 || args.k == 0; }

// A sum over nothing: zeros, or what D held.
int32_t RunEmpty(const mt_matmul_args& args, const Launch& launch) {
  if (args.m == 0 || args.n == 0 || args.beta != 0) return MT_OK;
  const auto bytes = [&](int64_t elements) {
    return static_cast<size_t>(elements * ElementBytes(args.output_dtype));
  };
  MT_CUDA(cudaMemset2DAsync(args.d, bytes(args.ldd), 0, bytes(args.n), static_cast<size_t>(args.m),
                            launch.stream));
  return MT_OK;
}

double MeasurePeak() {
  constexpr int64_t kSize = 8192;
  mt_matmul_args args = {.struct_size = sizeof args, .dtype = MT_BF16, .output_dtype = MT_BF16};
  args.transpose_b = 1;
  args.m = args.n = args.k = args.lda = args.ldb = args.ldd = kSize;
  const GemmProblem problem = MakeGemmProblem(args, false);
  std::vector<cublasLtMatmulAlgo_t> proposals;
  if (ProposeAlgorithms(*state->lt, state->handle, problem, kLibraryWorkspaceBytes, 1,
                        &proposals) != MT_OK)
    return 0;
  const std::vector<double> seconds =
      MeasureAlgorithms(*state->lt, state->handle, problem, proposals, kLibraryWorkspaceBytes);
  return seconds.empty() ? 0 : 2.0 * kSize * kSize * kSize / seconds[0];
}

}  // namespace

int32_t OpenGemm(const GemmOptions& options) {
  if (state != nullptr) return MT_OK;
  const CublasLt* library = LoadCublasLt();
  if (library == nullptr) return MT_ERROR_UNSUPPORTED;
  const CublasLt& lt = *library;
  auto made = std::make_unique<State>();
  made->lt = library;
  made->tf32 = options.tf32;
  MT_LT(cublasLtCreate(&made->handle));
  if (!options.cache_path.empty()) {
    const Device* device = OpenedDevice();
    made->cache = std::make_unique<GemmCache>(
        options.cache_path,
        device->name + ", driver " + device->driver + ", cuBLASLt " + VersionText(lt.version));
  }
  state = made.release();
  return MT_OK;
}

bool GemmSupports(const mt_matmul_args& args) { return GemmIsSupported(args); }

const char* GemmName(const mt_matmul_args& args) {
  switch (args.dtype) {
    case MT_BF16:
      return "cublaslt:bf16";
    case MT_F32:
      return state != nullptr && state->tf32 ? "cublaslt:tf32" : "cublaslt:f32";
    default:
      return "cublaslt:fp8";
  }
}

int64_t GemmWorkspace(const mt_matmul_args& args) {
  return IsEmpty(args) ? 0 : static_cast<int64_t>(kLibraryWorkspaceBytes + kWorkspaceAlignment);
}

int32_t PrepareGemm(const mt_matmul_args& args) {
  if (state == nullptr || IsEmpty(args)) return MT_OK;
  const GemmProblem problem = MakeGemmProblem(args, state->tf32);
  Plan* plan = FindPlan(problem);
  return plan != nullptr ? MT_OK : MakePlan(problem, true, &plan);
}

int32_t Gemm(const mt_matmul_args& args, const Launch& launch) {
  if (IsEmpty(args)) return RunEmpty(args, launch);
  const GemmProblem problem = MakeGemmProblem(args, state->tf32);
  Plan* plan = FindPlan(problem);
  if (plan == nullptr) {
    if (const int32_t code = MakePlan(problem, false, &plan); code != MT_OK) return code;
  }
  const auto begin = reinterpret_cast<uintptr_t>(args.workspace);
  const uintptr_t aligned =
      (begin + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
  return RunLt(*state->lt, state->handle, problem, plan->layouts, MakeGemmOperands(args),
               plan->algorithm, static_cast<float>(args.alpha), reinterpret_cast<void*>(aligned),
               kLibraryWorkspaceBytes, launch.stream);
}

double MeasureGemmPeak() {
  if (state == nullptr) return 0;
  static const double measured = MeasurePeak();
  return measured;
}

}  // namespace mt::cuda
