#include "kernels/cuda/gemm_measure.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <limits>
#include <random>

#include "kernels/cuda/status.h"
#include "kernels/cuda/types.h"

namespace mt::cuda {
namespace {

constexpr size_t kPatternBytes = 1 << 20;
constexpr int kRounds = 7;
// Before anything is timed: clocks of an idle GPU take a while to rise.
constexpr double kWarmUpSeconds = 0.005;
constexpr double kMeasuredSeconds = 0.0002;

// Device memory, a stream and events of one measurement.
class Scratch {
 public:
  Scratch() = default;
  ~Scratch() {
    for (void* pointer : pointers_) cudaFree(pointer);
    for (cudaEvent_t event : {first, last}) {
      if (event != nullptr) cudaEventDestroy(event);
    }
    if (stream != nullptr) cudaStreamDestroy(stream);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  int32_t Open() {
    MT_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    MT_CUDA(cudaEventCreate(&first));
    MT_CUDA(cudaEventCreate(&last));
    return MT_OK;
  }
  int32_t Allocate(size_t bytes, void** pointer) {
    MT_CUDA(cudaMalloc(pointer, std::max<size_t>(bytes, 1)));
    pointers_.push_back(*pointer);
    return MT_OK;
  }
  // Memory filled with small random numbers of the type: a pattern of a MiB, then copies of it.
  int32_t AllocateRandom(int32_t type, int64_t elements, void** pointer) {
    const size_t bytes = static_cast<size_t>(elements * ElementBytes(type));
    if (const int32_t code = Allocate(bytes, pointer); code != MT_OK) return code;
    const std::vector<char> pattern = Pattern(type);
    size_t filled = std::min(bytes, pattern.size());
    MT_CUDA(cudaMemcpyAsync(*pointer, pattern.data(), filled, cudaMemcpyHostToDevice, stream));
    while (filled < bytes) {
      const size_t more = std::min(filled, bytes - filled);
      MT_CUDA(cudaMemcpyAsync(static_cast<char*>(*pointer) + filled, *pointer, more,
                              cudaMemcpyDeviceToDevice, stream));
      filled += more;
    }
    MT_CUDA(cudaStreamSynchronize(stream));
    return MT_OK;
  }

  cudaStream_t stream = nullptr;
  cudaEvent_t first = nullptr, last = nullptr;

 private:
  static std::vector<char> Pattern(int32_t type) {
    std::vector<char> bytes(kPatternBytes);
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 0.5f);
    const int64_t elements = static_cast<int64_t>(kPatternBytes) / ElementBytes(type);
    for (int64_t i = 0; i < elements; ++i) {
      const float value = normal(random);
      if (type == MT_BF16)
        reinterpret_cast<uint16_t*>(bytes.data())[i] = mt_bf16_from_float(value);
      else if (type == MT_F8_E4M3)
        reinterpret_cast<uint8_t*>(bytes.data())[i] = mt_e4m3_from_float(value);
      else if (type == MT_F8_E5M2)
        reinterpret_cast<uint8_t*>(bytes.data())[i] = mt_e5m2_from_float(value);
      else
        reinterpret_cast<float*>(bytes.data())[i] = value;
    }
    return bytes;
  }

  std::vector<void*> pointers_;
};

int32_t MakeOperands(const GemmProblem& p, Scratch* scratch, GemmOperands* operands) {
  void *a = nullptr, *b = nullptr, *d = nullptr, *bias = nullptr, *scale = nullptr;
  int32_t code = scratch->AllocateRandom(p.a_type, StoredColumnsOfA(p) * p.lda, &a);
  if (code == MT_OK) code = scratch->AllocateRandom(p.b_type, StoredColumnsOfB(p) * p.ldb, &b);
  if (code == MT_OK) code = scratch->AllocateRandom(p.d_type, p.columns * p.ldd, &d);
  if (code == MT_OK && p.bias) code = scratch->AllocateRandom(p.d_type, p.rows, &bias);
  if (code == MT_OK && ElementBytes(p.a_type) == 1) {
    code = scratch->Allocate(sizeof(float), &scale);
    const float one = 1.0f;
    if (code == MT_OK) {
      MT_CUDA(cudaMemcpyAsync(scale, &one, sizeof one, cudaMemcpyHostToDevice, scratch->stream));
      MT_CUDA(cudaStreamSynchronize(scratch->stream));
    }
  }
  *operands = {a, b, d, bias, static_cast<const float*>(scale), static_cast<const float*>(scale)};
  return code;
}

}  // namespace

std::vector<double> MeasureAlgorithms(const CublasLt& lt, cublasLtHandle_t handle,
                                      const GemmProblem& p,
                                      const std::vector<cublasLtMatmulAlgo_t>& algorithms,
                                      size_t workspace_bytes) {
  Scratch scratch;
  GemmOperands operands;
  LtLayouts layouts;
  void* workspace = nullptr;
  if (scratch.Open() != MT_OK || MakeLayouts(lt, p, &layouts) != MT_OK ||
      MakeOperands(p, &scratch, &operands) != MT_OK ||
      scratch.Allocate(workspace_bytes, &workspace) != MT_OK)
    return {};
  const auto enqueue = [&](size_t index) {
    return RunLt(lt, handle, p, layouts, operands, algorithms[index], 1.0f, workspace,
                 workspace_bytes, scratch.stream) == MT_OK;
  };
  // Seconds of one product out of `count` in a row; infinity if one fails.
  const auto seconds = [&](size_t index, int count) {
    bool done = cudaEventRecord(scratch.first, scratch.stream) == cudaSuccess;
    for (int i = 0; i < count; ++i) done = done && enqueue(index);
    float milliseconds = 0;
    done = done && cudaEventRecord(scratch.last, scratch.stream) == cudaSuccess &&
           cudaEventSynchronize(scratch.last) == cudaSuccess &&
           cudaEventElapsedTime(&milliseconds, scratch.first, scratch.last) == cudaSuccess;
    if (!done) cudaGetLastError();
    return done ? milliseconds * 1e-3 / count : std::numeric_limits<double>::infinity();
  };
  double spent = 0, shortest = std::numeric_limits<double>::infinity();
  for (int i = 0; i < 1000 && spent < kWarmUpSeconds; ++i) {
    const double one = seconds(static_cast<size_t>(i) % algorithms.size(), 1);
    spent += one;
    shortest = std::min(shortest, one);
  }
  // Short products several at a time, so that what is compared is not the time of a launch.
  const int count = static_cast<int>(std::clamp(kMeasuredSeconds / shortest, 1.0, 20.0));
  // In turns, so that a drift of the clock is everyone's.
  std::vector<std::vector<double>> times(algorithms.size());
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < algorithms.size(); ++i) times[i].push_back(seconds(i, count));
  }
  std::vector<double> medians;
  for (std::vector<double>& each : times) {
    std::nth_element(each.begin(), each.begin() + kRounds / 2, each.end());
    medians.push_back(each[kRounds / 2]);
  }
  return medians;
}

}  // namespace mt::cuda
