// Plans are run by a naive column-major product, as cuBLAS documents it, and compared with the contract's row-major words.
#include "kernels/cuda/gemm_plan.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <unordered_set>
#include <vector>

#include "kernels/abi/small_floats.h"
#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

double Load(int32_t type, const void* data, int64_t index) {
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

void Store(int32_t type, void* data, int64_t index, double value) {
  const auto rounded = static_cast<float>(value);
  if (type == MT_F32) static_cast<float*>(data)[index] = rounded;
  if (type == MT_BF16) static_cast<uint16_t*>(data)[index] = mt_bf16_from_float(rounded);
  if (type == MT_F8_E4M3) static_cast<uint8_t*>(data)[index] = mt_e4m3_from_float(rounded);
  if (type == MT_F8_E5M2) static_cast<uint8_t*>(data)[index] = mt_e5m2_from_float(rounded);
}

// What cublasLtMatmul is documented to do with a plan. It checks the library's own rule that a column fits its stride.
void RunColumnMajor(const GemmProblem& p, const GemmOperands& x, double alpha) {
  ASSERT_GE(p.lda, p.transpose_a ? p.depth : p.rows);
  ASSERT_GE(p.ldb, p.transpose_b ? p.columns : p.depth);
  ASSERT_GE(p.ldd, p.rows);
  const double scale =
      alpha * (x.a_scale != nullptr ? *x.a_scale : 1) * (x.b_scale != nullptr ? *x.b_scale : 1);
  for (int64_t j = 0; j < p.columns; ++j) {
    for (int64_t i = 0; i < p.rows; ++i) {
      double sum = 0;
      for (int64_t k = 0; k < p.depth; ++k) {
        sum += Load(p.a_type, x.a, p.transpose_a ? k + i * p.lda : i + k * p.lda) *
               Load(p.b_type, x.b, p.transpose_b ? j + k * p.ldb : k + j * p.ldb);
      }
      double value = scale * sum;
      if (p.accumulate) value += Load(p.d_type, x.d, i + j * p.ldd);
      if (p.bias) value += Load(p.d_type, x.bias, i);
      Store(p.d_type, x.d, i + j * p.ldd, value);
    }
  }
}

struct Matrix {
  int32_t type;
  int64_t rows, columns, stride;
  std::vector<char> bytes;
  void* data() { return bytes.data(); }
  double at(int64_t r, int64_t c) const { return Load(type, bytes.data(), r * stride + c); }
};

class GemmPlanTest : public ::testing::Test {
 protected:
  int64_t Pick(int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random_);
  }
  Matrix Make(int32_t type, int64_t rows, int64_t columns, int64_t stride) {
    Matrix m{type, rows, columns, stride,
             std::vector<char>(static_cast<size_t>(rows * stride * ElementBytes(type)))};
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < rows * stride; ++i) Store(type, m.data(), i, normal(random_));
    return m;
  }
  std::mt19937_64 random_{20261121};
};

struct Types {
  int32_t a, b, d;
};

TEST_F(GemmPlanTest, PlansComputeTheContract) {
  const Types all[] = {{MT_F32, MT_F32, MT_F32},          {MT_BF16, MT_BF16, MT_BF16},
                       {MT_BF16, MT_BF16, MT_F32},        {MT_F8_E4M3, MT_F8_E4M3, MT_BF16},
                       {MT_F8_E5M2, MT_F8_E4M3, MT_BF16}, {MT_F8_E4M3, MT_F8_E5M2, MT_F32}};
  for (int trial = 0; trial < 600; ++trial) {
    const Types types = all[trial % 6];
    const bool fp8 = types.a == MT_F8_E4M3 || types.a == MT_F8_E5M2;
    const int64_t unit = fp8 ? 16 : 1;
    mt_matmul_args args = {.struct_size = sizeof args, .dtype = types.a, .output_dtype = types.d};
    args.transpose_a = fp8 ? 0 : static_cast<int32_t>(Pick(0, 1));
    args.transpose_b = fp8 ? 1 : static_cast<int32_t>(Pick(0, 1));
    args.m = Pick(1, 20);
    args.n = Pick(1, 20 / unit + 1) * unit;
    args.k = Pick(1, 20 / unit + 1) * unit;
    args.b_dtype = types.a == types.b && Pick(0, 1) ? 0 : types.b;
    const int64_t a_rows = args.transpose_a ? args.k : args.m,
                  a_columns = args.transpose_a ? args.m : args.k;
    const int64_t b_rows = args.transpose_b ? args.n : args.k,
                  b_columns = args.transpose_b ? args.k : args.n;
    args.lda = a_columns + Pick(0, 3) * unit;
    args.ldb = b_columns + Pick(0, 3) * unit;
    args.ldd = args.n + Pick(0, 3) * unit;
    args.alpha = Pick(0, 1) ? 1.0 : -0.375;
    args.beta = static_cast<double>(Pick(0, 1));
    Matrix a = Make(types.a, a_rows, a_columns, args.lda),
           b = Make(types.b, b_rows, b_columns, args.ldb);
    Matrix d = Make(types.d, args.m, args.n, args.ldd), bias = Make(types.d, 1, args.n, args.n);
    const float a_scale = 0.5f, b_scale = 0.125f;
    args.a = a.data();
    args.b = b.data();
    args.d = d.data();
    if (Pick(0, 1) && !(fp8 && types.d == MT_F32)) args.bias = bias.data();
    if (fp8) {
      args.a_scale = &a_scale;
      args.b_scale = &b_scale;
    }
    ASSERT_EQ(host::CheckArguments(MT_OP_MATMUL, &args, true), MT_OK) << host::ErrorMessage();
    ASSERT_TRUE(GemmIsSupported(args)) << host::ErrorMessage();

    const Matrix before = d;
    RunColumnMajor(MakeGemmProblem(args, false), MakeGemmOperands(args), args.alpha);
    const GemmProblem problem = MakeGemmProblem(args, false);
    for (int64_t i = 0; i < args.m; ++i) {
      for (int64_t j = 0; j < args.ldd; ++j) {
        if (j >= args.n) {
          ASSERT_EQ(d.at(i, j), before.at(i, j))
              << "written beyond column " << args.n << " by " << problem.Text();
          continue;
        }
        double sum = 0;
        for (int64_t k = 0; k < args.k; ++k) {
          sum += (args.transpose_a ? a.at(k, i) : a.at(i, k)) *
                 (args.transpose_b ? b.at(j, k) : b.at(k, j));
        }
        double expected = args.alpha * sum * (fp8 ? double{a_scale} * b_scale : 1.0);
        if (args.beta != 0) expected += before.at(i, j);
        if (args.bias != nullptr) expected += bias.at(0, j);
        const double tolerance =
            (types.d == MT_BF16 ? 1.0 / 256 : 1e-6) * std::abs(expected) + 1e-6;
        ASSERT_NEAR(d.at(i, j), expected, tolerance) << problem.Text() << " at " << i << ", " << j;
      }
    }
  }
}

mt_matmul_args Plain(int32_t type, int64_t m, int64_t n, int64_t k) {
  mt_matmul_args args = {.struct_size = sizeof args, .dtype = type, .output_dtype = type};
  args.transpose_b = 1;
  args.m = m;
  args.n = n;
  args.k = k;
  args.lda = args.ldb = k;
  args.ldd = n;
  args.alpha = 1;
  return args;
}

TEST_F(GemmPlanTest, KeysDifferWhereTheBestAlgorithmMay) {
  std::unordered_set<GemmProblem, GemmProblemHash> problems;
  std::unordered_set<std::string> texts;
  const auto add = [&](auto change, bool tf32 = false) {
    mt_matmul_args args = Plain(MT_F32, 64, 32, 48);
    change(args);
    const GemmProblem problem = MakeGemmProblem(args, tf32);
    EXPECT_TRUE(problems.insert(problem).second) << problem.Text();
    EXPECT_TRUE(texts.insert(problem.Text()).second) << problem.Text();
  };
  add([](auto&) {});
  add([](auto&) {}, true);
  add([](auto& a) { a.m = 65; });
  add([](auto& a) { a.n = 31; });
  add([](auto& a) { a.k = 47; });
  add([](auto& a) { a.lda = 52; });
  add([](auto& a) { a.ldb = 52; });
  add([](auto& a) { a.ldd = 36; });
  add([](auto& a) { a.transpose_a = 1, a.lda = 64; });
  add([](auto& a) { a.transpose_b = 0; });
  add([](auto& a) { a.beta = 1; });
  add([](auto& a) { a.bias = reinterpret_cast<void*>(4096); });
  add([](auto& a) { a.bias = reinterpret_cast<void*>(4104); });
  add([](auto& a) { a.a = reinterpret_cast<void*>(4100); });
  add([](auto& a) { a.b = reinterpret_cast<void*>(4100); });
  add([](auto& a) { a.d = reinterpret_cast<void*>(4100); });
  add([](auto& a) { a.dtype = MT_BF16; });
  add([](auto& a) { a.dtype = a.output_dtype = MT_BF16; });
  add([](auto& a) { a.dtype = MT_F8_E4M3; });
  add([](auto& a) { a.dtype = MT_F8_E4M3, a.b_dtype = MT_F8_E5M2; });
  add([](auto& a) { a.dtype = MT_F8_E5M2, a.b_dtype = MT_F8_E4M3; });
}

TEST_F(GemmPlanTest, AlphaScalesAndAlignedPointersAreNotPartOfTheKey) {
  mt_matmul_args args = Plain(MT_BF16, 64, 32, 48);
  const GemmProblem planned = MakeGemmProblem(args, false);
  args.alpha = 0.5;
  args.a = reinterpret_cast<void*>(4096);
  args.b = reinterpret_cast<void*>(8208);
  args.d = reinterpret_cast<void*>(65536);
  EXPECT_EQ(MakeGemmProblem(args, false), planned);
  EXPECT_EQ(planned.Text(), "bf16:t bf16:n bf16 32x64x48 ld 48,48,32 align 16,16,16,16");
  // TF32 concerns float32 alone.
  EXPECT_EQ(MakeGemmProblem(args, true), planned);
}

TEST_F(GemmPlanTest, AlignmentIsOfPointersAndColumns) {
  mt_matmul_args args = Plain(MT_BF16, 8, 8, 12);  // columns of 24 bytes
  args.a = reinterpret_cast<void*>(4098);
  args.d = reinterpret_cast<void*>(4100);
  const GemmProblem problem = MakeGemmProblem(args, false);
  EXPECT_EQ(problem.a_alignment, 8);
  EXPECT_EQ(problem.b_alignment, 2);
  EXPECT_EQ(problem.d_alignment, 4);
}

TEST_F(GemmPlanTest, OnlyForwardFp8AccumulatesFast) {
  mt_matmul_args args = Plain(MT_F8_E4M3, 64, 32, 48);
  args.output_dtype = MT_BF16;
  EXPECT_TRUE(MakeGemmProblem(args, false).fast_accumulation);
  args.output_dtype = MT_F32;
  EXPECT_FALSE(MakeGemmProblem(args, false).fast_accumulation);
  args.output_dtype = MT_BF16;
  args.b_dtype = MT_F8_E5M2;
  EXPECT_FALSE(MakeGemmProblem(args, false).fast_accumulation);
}

TEST_F(GemmPlanTest, WhatTheLibraryLacksIsRefusedWithTheReason) {
  const auto refused = [](mt_matmul_args args, const char* why) {
    EXPECT_FALSE(GemmIsSupported(args));
    EXPECT_NE(std::strstr(host::ErrorMessage(), why), nullptr) << host::ErrorMessage();
  };
  mt_matmul_args fp8 = Plain(MT_F8_E4M3, 16, 32, 48);
  fp8.output_dtype = MT_BF16;
  EXPECT_TRUE(GemmIsSupported(fp8));
  mt_matmul_args args = fp8;
  args.transpose_b = 0;
  refused(args, "transpose_b = 1");
  args = fp8;
  args.k = 40;
  refused(args, "multiple of 16; k (40)");
  args = fp8;
  args.dtype = args.b_dtype = MT_F8_E5M2;
  refused(args, "E5M2 times E5M2");
  args = fp8;
  args.output_dtype = MT_F8_E4M3;
  refused(args, "output_dtype");
  refused(Plain(MT_F64, 1, 1, 1), "no product of this type");
  args = Plain(MT_F32, 1, 1, 1);
  args.output_dtype = MT_BF16;
  refused(args, "F32 products give F32");
  args.b_dtype = MT_BF16;
  refused(args, "different types");
}

}  // namespace
}  // namespace mt::cuda
