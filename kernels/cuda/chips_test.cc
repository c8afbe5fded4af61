#include "kernels/cuda/chips.h"

#include <gtest/gtest.h>

namespace mt::cuda {
namespace {

TEST(ChipsTest, NamesAreTakenWhole) {
  EXPECT_EQ(ChipByName("NVIDIA H100 80GB HBM3").bf16_flops, 989e12);
  EXPECT_EQ(ChipByName("NVIDIA H100 PCIe").bf16_flops, 756e12);
  EXPECT_EQ(ChipByName("NVIDIA H200").memory_bytes_per_second, 4.8e12);
  EXPECT_EQ(ChipByName("NVIDIA GH200 480GB").memory_bytes_per_second, 4.0e12);
  EXPECT_EQ(ChipByName("NVIDIA H20").bf16_flops, 148e12);
  EXPECT_EQ(ChipByName("NVIDIA A100-SXM4-80GB").memory_bytes_per_second, 2.039e12);
  EXPECT_EQ(ChipByName("NVIDIA A100-PCIE-40GB").memory_bytes_per_second, 1.555e12);
  EXPECT_EQ(ChipByName("NVIDIA A100 80GB PCIe").fp8_flops, 0);
  EXPECT_EQ(ChipByName("NVIDIA B200").bf16_flops, 2250e12);
}

TEST(ChipsTest, UnknownNamesHaveNoNumbers) {
  EXPECT_EQ(ChipByName("NVIDIA X1000").bf16_flops, 0);
  EXPECT_EQ(ChipByName("").memory_bytes_per_second, 0);
}

TEST(ChipsTest, CodeRunsWhereNvidiaSays) {
  const char* release = "80-real,90a-real,100-real,100-virtual";
  EXPECT_TRUE(HasCodeFor(release, 8, 0));
  EXPECT_TRUE(HasCodeFor(release, 8, 9));
  EXPECT_TRUE(HasCodeFor(release, 9, 0));
  EXPECT_TRUE(HasCodeFor(release, 10, 0));
  EXPECT_TRUE(HasCodeFor(release, 10, 3));
  EXPECT_TRUE(HasCodeFor(release, 12, 0));  // by PTX
  EXPECT_FALSE(HasCodeFor(release, 7, 5));
  EXPECT_FALSE(HasCodeFor("90a-real", 8, 0));
  EXPECT_FALSE(HasCodeFor("90a-real", 10, 0));
  EXPECT_FALSE(HasCodeFor("90a-virtual", 10,
                          0));  // PTX with an architecture's own instructions runs nowhere else
  EXPECT_TRUE(HasCodeFor("80", 12, 0));
  EXPECT_TRUE(HasCodeFor("native", 9, 0));
  EXPECT_TRUE(HasCodeFor("100f-real", 10, 3));
  EXPECT_FALSE(HasCodeFor("100f-real", 12, 0));
  EXPECT_FALSE(HasCodeFor("", 9, 0));
}

}  // namespace
}  // namespace mt::cuda
