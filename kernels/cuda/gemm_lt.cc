#include "kernels/cuda/gemm_lt.h"

#include <cstdio>
#include <memory>

#include "kernels/cuda/device.h"
#include "kernels/cuda/gemm_measure.h"
#include "kernels/cuda/gemm_planner.h"

namespace mt::cuda {
namespace {

// The library wants its workspace aligned to this; ours may begin anywhere in the caller's.
constexpr size_t kWorkspaceAlignment = 256;

struct State {
  const CublasLt* lt = nullptr;
  cublasLtHandle_t handle = nullptr;
  bool tf32 = false;
  std::unique_ptr<GemmPlanner> planner;
};
// Set by OpenGemm; lives as long as the process.
State* state = nullptr;

void Log(const std::string& line) { std::fprintf(stderr, "mt_backend_cuda: %s\n", line.c_str()); }

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
  std::unique_ptr<GemmCache> cache;
  if (!options.cache_path.empty()) {
    const Device* device = OpenedDevice();
    cache = std::make_unique<GemmCache>(
        options.cache_path,
        device->name + ", driver " + device->driver + ", cuBLASLt " + VersionText(lt.version));
  }
  const auto measure = [library, handle = made->handle](const GemmProblem& problem,
                                                        const auto& algorithms) {
    return MeasureAlgorithms(*library, handle, problem, algorithms, kGemmWorkspaceBytes);
  };
  made->planner = std::make_unique<GemmPlanner>(lt, made->handle, std::move(cache), measure, Log);
  state = made.release();
  return MT_OK;
}

bool GemmSupports(const mt_matmul_args& args) {
  if (!GemmIsSupported(args)) return false;
  const Device* device = OpenedDevice();
  if (device == nullptr || args.dtype == MT_F32 || args.dtype == MT_BF16 || device->has_fp8())
    return true;
  host::Fail(MT_ERROR_UNSUPPORTED, MT_OP_MATMUL,
             "%s (compute capability %d.%d) has no FP8 products; 8.9 is the least",
             device->name.c_str(), device->major, device->minor);
  return false;
}

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
  return IsEmpty(args) ? 0 : static_cast<int64_t>(kGemmWorkspaceBytes + kWorkspaceAlignment);
}

int32_t PrepareGemm(const mt_matmul_args& args) {
  if (state == nullptr || IsEmpty(args)) return MT_OK;
  return state->planner->Prepare(MakeGemmProblem(args, state->tf32));
}

int32_t Gemm(const mt_matmul_args& args, const Launch& launch) {
  if (IsEmpty(args)) return RunEmpty(args, launch);
  const GemmProblem problem = MakeGemmProblem(args, state->tf32);
  GemmPlan* plan = nullptr;
  if (const int32_t code = state->planner->Find(problem, &plan); code != MT_OK) return code;
  const auto begin = reinterpret_cast<uintptr_t>(args.workspace);
  const uintptr_t aligned =
      (begin + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
  return RunLt(*state->lt, state->handle, problem, plan->layouts, MakeGemmOperands(args),
               plan->algorithm, static_cast<float>(args.alpha), reinterpret_cast<void*>(aligned),
               kGemmWorkspaceBytes, launch.stream);
}

}  // namespace mt::cuda
