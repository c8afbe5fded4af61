// The CUDA kernels on the processor (vendor/host.h) as a backend of the ordinary kind, "emulated": for tests, which run the table
// of cases and train small models with the very code that a GPU gets. Not shipped, never chosen by itself. Matrix products,
// which the CUDA backend has from a library, are plain loops here.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/cuda/dispatch.h"
#include "kernels/cuda/types.h"
#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

bool IsFp8(int32_t type) { return type == MT_F8_E4M3 || type == MT_F8_E5M2; }

float Load(int32_t type, const void* data, int64_t index) {
  switch (type) {
    case MT_BF16:
      return mt_float_from_bf16(static_cast<const uint16_t*>(data)[index]);
    case MT_F8_E4M3:
      return mt_float_from_e4m3(static_cast<const uint8_t*>(data)[index]);
    case MT_F8_E5M2:
      return mt_float_from_e5m2(static_cast<const uint8_t*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

void Store(int32_t type, void* data, int64_t index, float value) {
  if (type == MT_BF16)
    static_cast<uint16_t*>(data)[index] = mt_bf16_from_float(value);
  else
    static_cast<float*>(data)[index] = value;
}

int32_t BType(const mt_matmul_args& args) { return args.b_dtype != 0 ? args.b_dtype : args.dtype; }

bool MatmulSupports(const mt_matmul_args& args) {
  const bool fp8 = IsFp8(args.dtype) && IsFp8(BType(args));
  const bool plain = (args.dtype == MT_F32 || args.dtype == MT_BF16) && BType(args) == args.dtype;
  const bool output =
      args.output_dtype == MT_F32 || (args.output_dtype == MT_BF16 && args.dtype != MT_F32);
  if ((fp8 || plain) && output) return true;
  host::Fail(MT_ERROR_UNSUPPORTED, MT_OP_MATMUL, "types %d x %d -> %d have no kernel here",
             args.dtype, BType(args), args.output_dtype);
  return false;
}
const char* MatmulName(const mt_matmul_args&) { return "loops:float32"; }
int64_t MatmulWorkspace(const mt_matmul_args&) { return 0; }

// The stored matrix, transposed if asked, as (rows, columns) of floats.
std::vector<float> Expand(int32_t type, const void* data, int64_t stride, bool transpose,
                          int64_t rows, int64_t columns) {
  std::vector<float> result(static_cast<size_t>(rows * columns));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c)
      result[static_cast<size_t>(r * columns + c)] =
          Load(type, data, transpose ? c * stride + r : r * stride + c);
  }
  return result;
}

int32_t Matmul(const mt_matmul_args& args, const Launch&) {
  const std::vector<float> a =
      Expand(args.dtype, args.a, args.lda, args.transpose_a != 0, args.m, args.k);
  const std::vector<float> b =
      Expand(BType(args), args.b, args.ldb, args.transpose_b != 0, args.k, args.n);
  float scale = static_cast<float>(args.alpha);
  if (IsFp8(args.dtype)) {
    if (args.a_scale != nullptr) scale *= *args.a_scale;
    if (args.b_scale != nullptr) scale *= *args.b_scale;
  }
  // Piece by piece, as the tiles of a real library: thousands of terms one after the other cost a digit.
  constexpr int64_t kPiece = 128;
  std::vector<float> sums(static_cast<size_t>(args.n)), piece(sums.size());
  for (int64_t i = 0; i < args.m; ++i) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t first = 0; first < args.k; first += kPiece) {
      std::fill(piece.begin(), piece.end(), 0.0f);
      for (int64_t k = first; k < std::min(args.k, first + kPiece); ++k) {
        const float factor = a[static_cast<size_t>(i * args.k + k)];
        const float* row = b.data() + k * args.n;
        for (int64_t j = 0; j < args.n; ++j) piece[static_cast<size_t>(j)] += factor * row[j];
      }
      for (size_t j = 0; j < sums.size(); ++j) sums[j] += piece[j];
    }
    for (int64_t j = 0; j < args.n; ++j) {
      float value = scale * sums[static_cast<size_t>(j)];
      if (args.beta != 0) value += Load(args.output_dtype, args.d, i * args.ldd + j);
      if (args.bias != nullptr) value += Load(args.output_dtype, args.bias, j);
      Store(args.output_dtype, args.d, i * args.ldd + j, value);
    }
  }
  return MT_OK;
}

const Provided& EmulatedOperations() {
  static const Provided provided = [] {
    Provided p;
    p.matmul_supports = MatmulSupports;
    p.matmul_name = MatmulName;
    p.matmul_workspace = MatmulWorkspace;
    p.matmul = Matmul;
    return p;
  }();
  return provided;
}

// More than one, so that grids of loops have several blocks also here.
constexpr Launch kLaunch = {nullptr, 3};

int32_t Probe(mt_device_info* info) {
  host::DescribeProcessor(info);
  std::snprintf(info->detail, sizeof info->detail, "CUDA kernels on the processor, for tests");
  info->capabilities = MT_CAPABILITY_HOST_MEMORY | MT_CAPABILITY_FP8;
#ifdef MT_EMULATOR_NEEDS_FMA
  if (!__builtin_cpu_supports("fma")) {
    std::snprintf(info->detail, sizeof info->detail, "no fused multiply-add in this processor");
    return 0;
  }
#endif
  return 1;
}

int32_t Open(int32_t device, int32_t) {
  if (device == 0) return MT_OK;
  return host::Fail(MT_ERROR_INVALID, 0, "open: device %d does not exist; the host is device 0",
                    device);
}

// "shared_bytes": dynamic shared memory of a block, as other devices have it.
int32_t Configure(const char* key, const char* value) {
  if (std::strcmp(key, "shared_bytes") != 0)
    return host::Fail(MT_ERROR_UNSUPPORTED, 0, "configure: no key %s", key);
  emulator::LimitShared(std::atoi(value));
  return MT_OK;
}

mt_backend MakeBackend() {
  mt_backend backend = {};
  backend.struct_size = sizeof backend;
  backend.abi_major = MT_BACKEND_ABI_MAJOR;
  backend.abi_minor = MT_BACKEND_ABI_MINOR;
  backend.name = "emulated";
  backend.version = "1";
  backend.probe = Probe;
  backend.open = Open;
  backend.error_message = host::ErrorMessage;
  backend.supports = [](int32_t operation, const void* args) {
    return Supports(operation, args, EmulatedOperations());
  };
  backend.kernel_name = [](int32_t operation, const void* args) {
    return KernelName(operation, args, EmulatedOperations());
  };
  backend.workspace_bytes = [](int32_t operation, const void* args) {
    return WorkspaceBytes(operation, args, EmulatedOperations());
  };
  backend.run = [](int32_t operation, const void* args, mt_stream) {
    return Run(operation, args, EmulatedOperations(), kLaunch);
  };
  host::FillMemoryFunctions(&backend);
  backend.configure = Configure;
  return backend;
}

}  // namespace
}  // namespace mt::cuda

extern "C" __attribute__((visibility("default"))) const mt_backend* mt_backend_entry_v1(void) {
  static const mt_backend backend = mt::cuda::MakeBackend();
  return &backend;
}
