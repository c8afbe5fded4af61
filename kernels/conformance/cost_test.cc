// The costs from arguments agree with those that the benchmark's table states on its own.
#include "kernels/conformance/cost.h"

#include <gtest/gtest.h>

#include "kernels/abi/operation_names.h"
#include "kernels/conformance/cases.h"

namespace mt::conformance {
namespace {

TEST(CostTest, TheTablesOwnFigures) {
  for (const BenchmarkCase& each : BenchmarkCases(*FindBenchmarkModel("default"))) {
    for (const int32_t dtype : {MT_F32, MT_BF16}) {
      // Any pointers but null: only that is looked at.
      std::vector<void*> pointers(each.item.tensors.size());
      for (size_t i = 0; i < pointers.size(); ++i)
        pointers[i] = each.item.tensors[i].alias >= 0 ? pointers[each.item.tensors[i].alias]
                                                      : reinterpret_cast<void*>(64 * (i + 1));
      const std::vector<char> arguments = each.item.arguments(dtype, pointers.data());
      const Cost cost = CostOf(each.item.operation, arguments.data());
      const double bytes = TrafficBytes(each.item, dtype);
      EXPECT_NEAR(cost.bytes, bytes, 0.05 * bytes + 64) << each.item.name << " type " << dtype;
      if (each.item.name.find("documents") != std::string::npos) {
        EXPECT_GT(cost.flops, 4 * each.item.flops)
            << each.item.name;  // the arguments do not tell where documents begin
      } else if (cost.flops > 0) {
        EXPECT_NEAR(cost.flops, each.item.flops, 0.01 * each.item.flops) << each.item.name;
      }
    }
  }
}

TEST(CostTest, TypesCount) {
  mt_matmul_args args = {};
  args.dtype = MT_BF16;
  args.output_dtype = MT_F32;
  args.m = 16;
  args.n = 32;
  args.k = 64;
  args.beta = 1;  // reads what it adds to
  const Cost cost = CostOf(MT_OP_MATMUL, &args);
  EXPECT_EQ(cost.bytes, 2 * 16 * 64 + 2 * 64 * 32 + 2 * 4 * 16 * 32);
  EXPECT_EQ(cost.flops, 2 * 16 * 32 * 64);
  EXPECT_EQ(cost.dtype, MT_BF16);
}

TEST(CostTest, TheFloorIsTheLargerOfBytesAndOperations) {
  const Ceilings ceilings{.bytes_per_second = 100, .f32_flops = 10, .bf16_flops = 1000};
  EXPECT_EQ(ceilings.Floor({.bytes = 200, .flops = 50, .dtype = MT_F32}), 5);
  EXPECT_FALSE(ceilings.BoundByBytes({.bytes = 200, .flops = 50, .dtype = MT_F32}));
  EXPECT_EQ(ceilings.Floor({.bytes = 200, .flops = 50, .dtype = MT_BF16}), 2);
  EXPECT_TRUE(ceilings.BoundByBytes({.bytes = 200, .flops = 50, .dtype = MT_BF16}));
}

}  // namespace
}  // namespace mt::conformance
