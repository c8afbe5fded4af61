// cuDNN makes plans for a GPU that is described to it: so it is known on a machine without one that our graphs are what its engines
// recognise, which engine they choose, and how much workspace it needs. Needs cuDNN 9.8 and its libraries, else skipped.
//   kernels_cuda_attention_cudnn_test FAKE_DRIVER
// Compiled kernels are "loaded" into a driver that only pretends (testing/fake_driver.c).
#include "kernels/cuda/attention_cudnn.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "kernels/cuda/libraries.h"
#include "kernels/host/host.h"

// cudnn-frontend asks the runtime which GPU is there (the link wraps these two): an H100.
extern "C" cudaError_t __wrap_cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
extern "C" cudaError_t __wrap_cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  properties->major = 9;
  properties->multiProcessorCount = 132;
  return cudaSuccess;
}

namespace mt::cuda {
namespace {

// An H100 SXM, as cuDNN 9.19 describes devices.
constexpr char kH100[] =
    R"({"deviceName": "NVIDIA H100 80GB HBM3", "cudaDeviceId": 0, "deviceVer": 900, "driverVer": 13000,
  "multiProcessorCount": 132, "maxGridSize": [2147483647, 65535, 65535], "maxBlockSize": [1024, 1024, 64], "regsPerBlock": 65536,
  "smClockRateKHz": 1980000, "memClockRateKHz": 2619000, "l2CacheSize": 52428800, "warpSize": 32,
  "maxSharedMemoryPerBlock": 49152, "maxSharedMemoryPerBlockOptin": 232448, "reservedSharedMemoryPerBlock": 1024,
  "maxRegistersPerSM": 65536, "pciDeviceId": 0, "maxCtasPerSM": 32, "maxThreadsPerBlock": 1024, "maxThreadsPerSM": 2048,
  "isTccDriver": 0, "supportCoopLaunch": 1, "totalGlobalMem": 85017755648})";

struct Shape {
  const char* name;
  int64_t batch, sequence, heads, kv_heads, head_dim;
  bool causal;
  int64_t v_head_dim = 0, window = 0;
  bool too_long = false;  // for a plan whose workspace is within the limit
};

mt_attention_args Packed(const Shape& s) {
  mt_attention_args a = {.struct_size = sizeof(mt_attention_args),
                         .dtype = MT_BF16,
                         .sequence = s.sequence,
                         .batch = s.batch,
                         .heads = s.heads,
                         .kv_heads = s.kv_heads,
                         .head_dim = s.head_dim,
                         .scale = 1 / std::sqrt(static_cast<double>(s.head_dim)),
                         .causal = s.causal,
                         .v_head_dim = s.v_head_dim,
                         .window = s.window};
  const int64_t v_head_dim = s.v_head_dim != 0 ? s.v_head_dim : s.head_dim;
  a.q_stride = a.k_stride = a.v_stride = a.dq_stride = a.dk_stride = a.dv_stride =
      (s.heads + s.kv_heads) * s.head_dim + s.kv_heads * v_head_dim;
  a.o_stride = a.o_gradient_stride = s.heads * v_head_dim;
  return a;
}

class CudnnAttentionTest : public ::testing::TestWithParam<Shape> {
 protected:
  void SetUp() override {
    if (LoadCudnn() == nullptr) GTEST_SKIP() << "no cuDNN: " << host::ErrorMessage();
    if (LoadCudnn()->version < 90800)
      GTEST_SKIP() << "cuDNN " << LoadCudnn()->version << " needs the device to be here";
  }
  static std::unique_ptr<CudnnAttention> Make(const mt_attention_args& args, bool backward,
                                              const CudnnOptions& options, std::string* reason) {
    return CudnnAttention::Make(args, backward, {nullptr, kH100, 90}, options, reason);
  }
};

TEST_P(CudnnAttentionTest, HopperHasPlansForPackedViews) {
  const Shape& s = GetParam();
  const mt_attention_args args = Packed(s);
  for (const bool backward : {false, true}) {
    for (const bool deterministic : {true, false}) {
      if (!deterministic && !(backward && s.batch == 4)) continue;
      std::string reason;
      const auto plan = Make(args, backward, {.deterministic = deterministic}, &reason);
      if (s.too_long && backward && reason != "built without cudnn-frontend") {
        EXPECT_EQ(plan, nullptr);
        EXPECT_NE(reason.find("one sequence of one key head needs 8"), std::string::npos) << reason;
        EXPECT_NE(Make(args, backward, {.may_exceed = true}, &reason), nullptr) << reason;
        continue;
      }
      if (reason == "built without cudnn-frontend") GTEST_SKIP() << reason;
      ASSERT_NE(plan, nullptr) << reason;
      const CudnnPart part = plan->part();
      std::printf(
          "%s %s%s: engine %s, %lld of %lld sequences and %lld of %lld key heads at once, "
          "workspace %.1f MiB\n",
          s.name, backward ? "backward" : "forward",
          backward && deterministic ? " deterministic" : "", plan->engine().c_str(),
          static_cast<long long>(part.sequences), static_cast<long long>(s.batch),
          static_cast<long long>(part.kv_heads), static_cast<long long>(s.kv_heads),
          static_cast<double>(plan->workspace_bytes()) / (1 << 20));
      EXPECT_EQ(s.batch % part.sequences, 0);
      EXPECT_EQ(s.kv_heads % part.kv_heads, 0);
      EXPECT_LE(plan->workspace_bytes(), kCudnnWorkspaceLimit);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudnnAttentionTest,
                         ::testing::Values(Shape{"billion", 4, 4096, 16, 8, 128, true},
                                           Shape{"small", 16, 2048, 16, 8, 64, true},
                                           Shape{"odd_length", 2, 1000, 4, 4, 96, true},
                                           Shape{"full", 2, 512, 8, 2, 128, false},
                                           Shape{"window", 2, 4096, 16, 4, 128, true, 0, 1024},
                                           Shape{"latent", 4, 4096, 16, 16, 192, true, 128},
                                           Shape{"llama3_8b", 2, 8192, 32, 8, 128, true},
                                           Shape{"too_long", 1, 32768, 16, 4, 128, true, 0, 0,
                                                 true}),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(CudnnPartsTest, SequencesAreCutBeforeKeyHeads) {
  using Parts = std::vector<CudnnPart>;
  EXPECT_EQ(CudnnParts(4, 1), (Parts{{4, 1}, {2, 1}, {1, 1}}));
  EXPECT_EQ(CudnnParts(1, 6), (Parts{{1, 6}, {1, 3}, {1, 2}, {1, 1}}));
  EXPECT_EQ(CudnnParts(3, 2), (Parts{{3, 2}, {1, 2}, {1, 1}}));
}

// What cuDNN does not do is declined with its reason, not run.
TEST_F(CudnnAttentionTest, DeclinesWithAReason) {
  std::string reason;
  EXPECT_EQ(Make(Packed({"", 1, 256, 2, 1, 20, true}), false, {}, &reason), nullptr);
  EXPECT_NE(reason, "");
  std::printf("head_dim 20: %s\n", reason.c_str());
  mt_attention_args args = Packed({"", 1, 256, 2, 1, 64, true});
  args.key_sequence = 512;
  EXPECT_EQ(Make(args, false, {}, &reason), nullptr);
  args.key_sequence = 0;
  args.sinks = kH100;  // any pointer
  EXPECT_EQ(Make(args, true, {}, &reason), nullptr);
}

}  // namespace
}  // namespace mt::cuda

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  // By its name, libcuda.so.1, cuDNN then finds the one that is loaded.
  if (argc != 2 || dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::fprintf(stderr, "usage: kernels_cuda_attention_cudnn_test FAKE_DRIVER\n");
    return 2;
  }
  return RUN_ALL_TESTS();
}
