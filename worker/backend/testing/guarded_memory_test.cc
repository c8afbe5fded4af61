#include "worker/backend/testing/guarded_memory.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace mt::testing {
namespace {

GuardedMemory& Memory() { return GuardedMemory::Get(); }

TEST(GuardedMemory, IsTheDevicesWhileItWorks) {
  auto* const data = static_cast<float*>(Memory().Allocate(3 * sizeof(float)));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % 256, 0u);
  {
    const GuardedMemory::Access access;
    EXPECT_TRUE(std::isnan(data[2]));
    data[2] = 5;
  }
  {
    const GuardedMemory::Access access;
    EXPECT_EQ(data[2], 5);
  }
  EXPECT_TRUE(Memory().Holds(data));
  Memory().Free(data);
  EXPECT_FALSE(Memory().Holds(data));
  EXPECT_TRUE(Memory().IsDeviceAddress(data));
  EXPECT_FALSE(Memory().IsDeviceAddress(&data));
}

TEST(GuardedMemoryDeathTest, HostCodeCannotTouchIt) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  auto* const data = static_cast<volatile char*>(Memory().Allocate(1));
  EXPECT_DEATH((void)*data, "guarded memory: the host touched device memory at");
  EXPECT_DEATH(*data = 1, "guarded memory: the host touched device memory at");
}

TEST(GuardedMemoryDeathTest, DeviceCodeStaysInWhatIsAllocated) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  auto* const data = static_cast<volatile char*>(Memory().Allocate(4096));
  auto* const gone = static_cast<volatile char*>(Memory().Allocate(10));
  Memory().Free(const_cast<char*>(gone));
  EXPECT_DEATH(
      {
        const GuardedMemory::Access access;
        data[4096] = 1;
      },
      "the device touched device memory that is not allocated at");
  EXPECT_DEATH(
      {
        const GuardedMemory::Access access;
        (void)*gone;
      },
      "the device touched device memory that was freed at");
  EXPECT_DEATH((void)*gone, "the host touched device memory at");
  EXPECT_DEATH(Memory().Free(const_cast<char*>(gone)), "free of what is not allocated");
}

}  // namespace
}  // namespace mt::testing
