// The processor as a device (host.h): what kernels may rely on, and that mistakes show.
#include "kernels/cuda/vendor/host.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/reduce.h"

#if defined(__SANITIZE_THREAD__)
// Races are counted here, and expected of one kernel; each test says how many it had.
static int races = 0;
extern "C" void __tsan_on_report(void*) { ++races; }
extern "C" const char* __tsan_default_options() { return "exitcode=0:suppress_equal_addresses=0"; }
constexpr bool kFindsRaces = true;
#else
constexpr int races = 0;
constexpr bool kFindsRaces = false;
#endif

namespace mt::cuda {
namespace {

using ::testing::Each;
using ::testing::ElementsAreArray;

constexpr const char* kSeeds[] = {"0", "1", "2", "3", "4", "5", "6", "7"};

// The parameter is MT_EMULATOR_SEED.
class EmulatorTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { setenv("MT_EMULATOR_SEED", GetParam(), 1); }
  void TearDown() override { EXPECT_EQ(races, races_before_); }

 private:
  const int races_before_ = races;
};
INSTANTIATE_TEST_SUITE_P(Seeds, EmulatorTest, ::testing::ValuesIn(kSeeds));
using EmulatorDeathTest = EmulatorTest;
INSTANTIATE_TEST_SUITE_P(Seeds, EmulatorDeathTest, ::testing::Values("0", "5"));

__global__ void WriteOwnIndex(int* out) {
  const auto block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const auto thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] +=
      static_cast<int>(block * 1000 + thread);
}

TEST_P(EmulatorTest, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<int> out(2 * 3 * 4 * 30, 0), expected;
  ASSERT_EQ(MT_LAUNCH(WriteOwnIndex, dim3(2, 3, 4), dim3(5, 3, 2), 0, nullptr, out.data()),
            cudaSuccess);
  for (int block = 0; block < 24; ++block) {
    for (int thread = 0; thread < 30; ++thread) expected.push_back(block * 1000 + thread);
  }
  EXPECT_EQ(out, expected);
}

// Moves values to the left around a ring in shared memory, `turns` times; a barrier on either side of each move.
template <bool kBefore, bool kAfter>
__global__ void Ring(int* data, int turns) {
  MT_DYNAMIC_SHARED(int, ring);
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  int value = data[i];
  for (int turn = 0; turn < turns; ++turn) {
    ring[i] = value;
    if (kAfter) __syncthreads();
    value = ring[(i + 1) % n];
    if (kBefore) __syncthreads();
  }
  data[i] = value;
}

std::vector<int> RunRing(void (*kernel)(int*, int), int threads, int turns) {
  std::vector<int> data(static_cast<size_t>(threads));
  std::iota(data.begin(), data.end(), 0);
  EXPECT_EQ(MT_LAUNCH(kernel, dim3(1), dim3(static_cast<unsigned>(threads)),
                      data.size() * sizeof(int), nullptr, data.data(), turns),
            cudaSuccess);
  return data;
}

TEST_P(EmulatorTest, BarriersOrderSharedMemory) {
  std::vector<int> expected(100);
  for (int i = 0; i < 100; ++i) expected[static_cast<size_t>(i)] = (i + 7) % 100;
  EXPECT_EQ(RunRing(Ring<true, true>, 100, 7), expected);
}

TEST(EmulatorRaceTest, ThreadSanitizerFindsAMissingBarrierInAnyOrder) {
  if (!kFindsRaces) GTEST_SKIP() << "built without ThreadSanitizer";
  setenv("MT_EMULATOR_SEED", "0", 1);
  int before = races;
  RunRing(Ring<true, true>, 64, 5);
  EXPECT_EQ(races, before);
  RunRing(Ring<false, true>, 64, 5);
  EXPECT_GT(races, before);
  before = races;
  RunRing(Ring<true, false>, 64, 5);
  EXPECT_GT(races, before);
}

TEST(EmulatorRaceTest, AMissingBarrierShowsUnderSomeSeed) {
  const std::vector<int> right = [] {
    setenv("MT_EMULATOR_SEED", "0", 1);
    return RunRing(Ring<true, true>, 64, 5);
  }();
  int first_missed = 0, second_missed = 0;
  for (const char* seed : kSeeds) {
    setenv("MT_EMULATOR_SEED", seed, 1);
    first_missed += RunRing(Ring<false, true>, 64, 5) != right;
    second_missed += RunRing(Ring<true, false>, 64, 5) != right;
  }
  EXPECT_GE(first_missed, 7);  // in order the mistake may be hidden
  EXPECT_GE(second_missed, 7);
}

__global__ void EarlyReturn(int* out, int count) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= count) return;
  MT_DYNAMIC_SHARED(int, values);
  values[i] = i;
  __syncthreads();
  out[i] = values[count - 1 - i];
}

TEST_P(EmulatorTest, ThreadsThatReturnedCountAsArrivedAtABarrier) {
  std::vector<int> out(70, -1), expected(70, -1);
  ASSERT_EQ(MT_LAUNCH(EarlyReturn, dim3(1), dim3(70), 70 * sizeof(int), nullptr, out.data(), 50),
            cudaSuccess);
  for (int i = 0; i < 50; ++i) expected[static_cast<size_t>(i)] = 49 - i;
  EXPECT_EQ(out, expected);
}

struct Shuffled {
  int sync, up, down, exchanged;
  double wide;
  unsigned ballot;
};
__global__ void Shuffle(Shuffled* out) {
  const int i = static_cast<int>(threadIdx.x);
  Shuffled& mine = out[i];
  mine.sync = __shfl_sync(kAllLanes, 100 + i, 5);
  mine.up = __shfl_up_sync(kAllLanes, i, 3);
  mine.down = __shfl_down_sync(kAllLanes, i, 3);
  mine.exchanged = __shfl_xor_sync(kAllLanes, i, 17);
  mine.wide = __shfl_xor_sync(kAllLanes, i + 0.5, 1);
  mine.ballot = __ballot_sync(kAllLanes, i % 3 == 0);
}

TEST_P(EmulatorTest, ShufflesAreThoseOfAWarp) {
  std::vector<Shuffled> out(64);
  ASSERT_EQ(MT_LAUNCH(Shuffle, dim3(1), dim3(64), 0, nullptr, out.data()), cudaSuccess);
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, warp = i - lane;
    const Shuffled& mine = out[static_cast<size_t>(i)];
    EXPECT_EQ(mine.sync, 100 + warp + 5);
    EXPECT_EQ(mine.up, lane >= 3 ? i - 3 : i);
    EXPECT_EQ(mine.down, lane + 3 < 32 ? i + 3 : i);
    EXPECT_EQ(mine.exchanged, warp + (lane ^ 17));
    EXPECT_EQ(mine.wide, (i ^ 1) + 0.5);
    unsigned ballot = 0;
    for (int l = 0; l < 32; ++l) ballot |= (warp + l) % 3 == 0 ? 1u << l : 0u;
    EXPECT_EQ(mine.ballot, ballot);
  }
}

// Half-warps exchange among themselves a different number of times, then with all lanes, over and over.
__global__ void GroupsOfLanes(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;
  int sum = 0;
  for (int round = 0; round < 5; ++round) {
    for (int times = 0; times < (lane < 16 ? 1 + round : 2); ++times)
      sum += __shfl_xor_sync(half, lane + 10 * times, 15);
    sum += 1000 * __shfl_xor_sync(kAllLanes, lane, 31);
    __syncwarp();
  }
  out[lane] = sum;
}

TEST_P(EmulatorTest, GroupsOfLanesExchangeAtTheirOwnPace) {
  std::vector<int> out(32), expected;
  ASSERT_EQ(MT_LAUNCH(GroupsOfLanes, dim3(1), dim3(32), 0, nullptr, out.data()), cudaSuccess);
  for (int lane = 0; lane < 32; ++lane) {
    int sum = 0;
    for (int round = 0; round < 5; ++round) {
      for (int times = 0; times < (lane < 16 ? 1 + round : 2); ++times)
        sum += (lane ^ 15) + 10 * times;
      sum += 1000 * (lane ^ 31);
    }
    expected.push_back(sum);
  }
  EXPECT_EQ(out, expected);
}

__global__ void OutsideTheMask(float* out) {
  if (threadIdx.x < 8) out[threadIdx.x] = __shfl_sync(0xffu, 1.0f, 20);
}

TEST_P(EmulatorTest, LanesOutsideTheMaskReadAsNaN) {
  std::vector<float> out(8, 0);
  ASSERT_EQ(MT_LAUNCH(OutsideTheMask, dim3(1), dim3(32), 0, nullptr, out.data()), cudaSuccess);
  for (const float value : out) EXPECT_TRUE(std::isnan(value));
}

__global__ void ReadUnwritten(float* out) {
  MT_DYNAMIC_SHARED(float, values);
  out[blockIdx.x] = values[3];
  values[3] = 1;
}

TEST_P(EmulatorTest, DynamicSharedMemoryIsNaNInEveryBlock) {
  std::vector<float> out(4, 0);
  ASSERT_EQ(MT_LAUNCH(ReadUnwritten, dim3(4), dim3(1), 16, nullptr, out.data()), cudaSuccess);
  for (const float value : out) EXPECT_TRUE(std::isnan(value));
}

__global__ void SumTwice(const int* in, int* out) {
  const int i = static_cast<int>(threadIdx.x);
  const int first = BlockReduce<128>(in[i]);
  const int second = BlockReduce<128>(in[i] * first);
  const int largest = BlockReduce<128>(in[i], 0, Maximum{});
  out[blockIdx.x * blockDim.x + threadIdx.x] = second + largest;
}

TEST_P(EmulatorTest, BlockReductionsFollowEachOtherAtOnce) {
  std::vector<int> in(128), out(10 * 128);
  std::iota(in.begin(), in.end(), 1);
  ASSERT_EQ(MT_LAUNCH(SumTwice, dim3(10), dim3(128), 0, nullptr, in.data(), out.data()),
            cudaSuccess);
  EXPECT_THAT(out, Each(8256 * 8256 + 128));
}

__global__ void OrderOfBlocks(int* next, int* order) {
  if (threadIdx.x == 0) order[atomicAdd(next, 1)] = static_cast<int>(blockIdx.x);
}

TEST(EmulatorLaunchTest, SeedsRepeatAnOrderAndDifferFromEachOther) {
  const auto order = [](const char* seed) {
    setenv("MT_EMULATOR_SEED", seed, 1);
    int next = 0;
    std::vector<int> blocks(50);
    EXPECT_EQ(MT_LAUNCH(OrderOfBlocks, dim3(50), dim3(2), 0, nullptr, &next, blocks.data()),
              cudaSuccess);
    return blocks;
  };
  std::vector<int> in_order(50);
  std::iota(in_order.begin(), in_order.end(), 0);
  EXPECT_EQ(order("0"), in_order);
  EXPECT_EQ(order("4"), order("4"));
  EXPECT_NE(order("4"), in_order);
  EXPECT_NE(order("4"), order("5"));
}

TEST(EmulatorLaunchTest, RanksLaunchFromThreadsOfTheirOwn) {
  setenv("MT_EMULATOR_SEED", "3", 1);
  std::vector<std::vector<int>> out(4, std::vector<int>(128));
  std::vector<int> in(128);
  std::iota(in.begin(), in.end(), 1);
  std::vector<std::thread> ranks;
  for (auto& mine : out) {
    ranks.emplace_back([&] {
      for (int i = 0; i < 20; ++i)
        EXPECT_EQ(MT_LAUNCH(SumTwice, dim3(1), dim3(128), 0, nullptr, in.data(), mine.data()),
                  cudaSuccess);
    });
  }
  for (std::thread& rank : ranks) rank.join();
  for (const auto& mine : out) EXPECT_THAT(mine, Each(8256 * 8256 + 128));
}

__global__ void Nothing() {}

TEST(EmulatorLaunchTest, LaunchesThatADeviceRefusesAreRefused) {
  const auto launch = [](dim3 grid, dim3 block, size_t shared_bytes) {
    return mt::emulator::LaunchKernel("Nothing", Nothing, grid, block, shared_bytes, nullptr);
  };
  EXPECT_EQ(launch(dim3(1), dim3(1024), 48 << 10), cudaSuccess);
  EXPECT_EQ(launch(dim3(0), dim3(32), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(1, 65536), dim3(32), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(1), dim3(1025), 0), cudaErrorInvalidConfiguration);
  EXPECT_EQ(launch(dim3(1), dim3(32), (48 << 10) + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(Nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 228 << 10),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(Nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 << 10),
            cudaSuccess);
  EXPECT_EQ(launch(dim3(1), dim3(32), 100 << 10), cudaSuccess);
}

__global__ void SomeReachTheBarrier(int* out) {
  if (threadIdx.x < 40) __syncthreads();
  out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 1);
}
__global__ void SomeLanesReturn(int* out) {
  if (threadIdx.x == 7) return;
  out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 1);
}
__global__ void MasksDiffer(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(threadIdx.x < 2 ? 0x3u : 0xfu, 1, 1);
}
__global__ void NotInTheMask(int* out) { out[threadIdx.x] = __shfl_xor_sync(0xfffeu, 1, 1); }
__global__ void BeyondShared(int* out) {
  MT_DYNAMIC_SHARED(int, values);
  values[4 + threadIdx.x] = 1;
  out[threadIdx.x] = values[4 + threadIdx.x];
}
__global__ void OtherWidth(int* out) { out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1, 1, 16); }

TEST_P(EmulatorDeathTest, MistakesEndTheProgramWithTheKernelsName) {
  std::vector<int> out(64);
  const auto run = [&](auto* kernel, unsigned threads) {
    (void)mt::emulator::LaunchKernel("MyKernel", kernel, dim3(1), dim3(threads), 16, nullptr,
                                     out.data());
  };
  EXPECT_DEATH(run(SomeReachTheBarrier, 64), "MyKernel.*threads wait for each other");
  EXPECT_DEATH(run(SomeLanesReturn, 32), "MyKernel.*threads wait for each other");
  EXPECT_DEATH(run(MasksDiffer, 4), "MyKernel.*different masks|MyKernel.*wait for each other");
  EXPECT_DEATH(run(NotInTheMask, 16), "MyKernel.*without its own lane");
  EXPECT_DEATH(run(BeyondShared, 1), "MyKernel.*beyond its dynamic shared memory");
  EXPECT_DEATH(run(OtherWidth, 32), "MyKernel.*another width");
}

}  // namespace
}  // namespace mt::cuda
