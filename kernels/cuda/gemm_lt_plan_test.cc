// The library's own descriptors, made without a device and read back.
#include "kernels/cuda/gemm_lt_plan.h"

#include <gtest/gtest.h>

#include "kernels/host/host.h"

namespace mt::cuda {
namespace {

class GemmLtPlanTest : public ::testing::Test {
 protected:
  void SetUp() override {
    lt_ = LoadCublasLt();
    if (lt_ == nullptr) GTEST_SKIP() << "skipped: " << host::ErrorMessage();
  }
  template <typename Value>
  Value Of(const cublasLtMatmulDescOpaque_t& descriptor, cublasLtMatmulDescAttributes_t attribute) {
    Value value{};
    size_t written = 0;
    auto copy = descriptor;
    EXPECT_EQ(lt_->cublasLtMatmulDescGetAttribute(&copy, attribute, &value, sizeof value, &written),
              CUBLAS_STATUS_SUCCESS);
    EXPECT_EQ(written, sizeof value);
    return value;
  }
  template <typename Value>
  Value Of(const cublasLtMatrixLayoutOpaque_t& layout, cublasLtMatrixLayoutAttribute_t attribute) {
    Value value{};
    size_t written = 0;
    auto copy = layout;
    EXPECT_EQ(
        lt_->cublasLtMatrixLayoutGetAttribute(&copy, attribute, &value, sizeof value, &written),
        CUBLAS_STATUS_SUCCESS);
    return value;
  }
  const CublasLt* lt_ = nullptr;
};

mt_matmul_args Fp8() {
  mt_matmul_args args = {.struct_size = sizeof args, .dtype = MT_F8_E4M3, .output_dtype = MT_BF16};
  args.transpose_b = 1;
  args.m = 64;
  args.n = 32;
  args.k = 48;
  args.lda = 64;
  args.ldb = 80;
  args.ldd = 40;
  args.b_dtype = MT_F8_E5M2;
  return args;
}

TEST_F(GemmLtPlanTest, LayoutsAreTheColumnMajorMatrices) {
  LtLayouts layouts;
  ASSERT_EQ(MakeLayouts(*lt_, MakeGemmProblem(Fp8(), false), &layouts), MT_OK)
      << host::ErrorMessage();
  // The contract's B (n, k) of stride ldb: k rows, n columns.
  EXPECT_EQ(Of<uint32_t>(layouts.a, CUBLASLT_MATRIX_LAYOUT_TYPE),
            static_cast<uint32_t>(CUDA_R_8F_E5M2));
  EXPECT_EQ(Of<uint64_t>(layouts.a, CUBLASLT_MATRIX_LAYOUT_ROWS), 48u);
  EXPECT_EQ(Of<uint64_t>(layouts.a, CUBLASLT_MATRIX_LAYOUT_COLS), 32u);
  EXPECT_EQ(Of<int64_t>(layouts.a, CUBLASLT_MATRIX_LAYOUT_LD), 80);
  EXPECT_EQ(Of<uint32_t>(layouts.b, CUBLASLT_MATRIX_LAYOUT_TYPE),
            static_cast<uint32_t>(CUDA_R_8F_E4M3));
  EXPECT_EQ(Of<uint64_t>(layouts.b, CUBLASLT_MATRIX_LAYOUT_ROWS), 48u);
  EXPECT_EQ(Of<uint64_t>(layouts.b, CUBLASLT_MATRIX_LAYOUT_COLS), 64u);
  EXPECT_EQ(Of<int64_t>(layouts.b, CUBLASLT_MATRIX_LAYOUT_LD), 64);
  EXPECT_EQ(Of<uint64_t>(layouts.d, CUBLASLT_MATRIX_LAYOUT_ROWS), 32u);
  EXPECT_EQ(Of<uint64_t>(layouts.d, CUBLASLT_MATRIX_LAYOUT_COLS), 64u);
  EXPECT_EQ(Of<int64_t>(layouts.d, CUBLASLT_MATRIX_LAYOUT_LD), 40);
}

TEST_F(GemmLtPlanTest, Float32IsNotTf32UnlessAsked) {
  mt_matmul_args args = {.struct_size = sizeof args, .dtype = MT_F32, .output_dtype = MT_F32};
  args.m = args.n = args.k = args.lda = args.ldb = args.ldd = 16;
  cublasLtMatmulDescOpaque_t descriptor;
  ASSERT_EQ(MakeDescriptor(*lt_, MakeGemmProblem(args, false), {}, &descriptor), MT_OK)
      << host::ErrorMessage();
  EXPECT_EQ(Of<int32_t>(descriptor, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE),
            static_cast<int32_t>(CUBLAS_COMPUTE_32F));
  ASSERT_EQ(MakeDescriptor(*lt_, MakeGemmProblem(args, true), {}, &descriptor), MT_OK);
  EXPECT_EQ(Of<int32_t>(descriptor, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE),
            static_cast<int32_t>(CUBLAS_COMPUTE_32F_FAST_TF32));
}

TEST_F(GemmLtPlanTest, ScalesAndBiasGoWithTheirOperands) {
  mt_matmul_args args = Fp8();
  const float scales[2] = {1, 2};
  const uint16_t bias[32] = {};
  args.a_scale = &scales[0];
  args.b_scale = &scales[1];
  args.bias = bias;
  cublasLtMatmulDescOpaque_t descriptor;
  ASSERT_EQ(MakeDescriptor(*lt_, MakeGemmProblem(args, false), MakeGemmOperands(args), &descriptor),
            MT_OK)
      << host::ErrorMessage();
  EXPECT_EQ(Of<int32_t>(descriptor, CUBLASLT_MATMUL_DESC_TRANSA),
            static_cast<int32_t>(CUBLAS_OP_T));
  EXPECT_EQ(Of<int32_t>(descriptor, CUBLASLT_MATMUL_DESC_TRANSB),
            static_cast<int32_t>(CUBLAS_OP_N));
  EXPECT_EQ(Of<const void*>(descriptor, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER), &scales[1]);
  EXPECT_EQ(Of<const void*>(descriptor, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER), &scales[0]);
  EXPECT_EQ(Of<const void*>(descriptor, CUBLASLT_MATMUL_DESC_BIAS_POINTER), bias);
  EXPECT_EQ(Of<uint32_t>(descriptor, CUBLASLT_MATMUL_DESC_EPILOGUE),
            static_cast<uint32_t>(CUBLASLT_EPILOGUE_BIAS));
  EXPECT_EQ(Of<int8_t>(descriptor, CUBLASLT_MATMUL_DESC_FAST_ACCUM), 0)
      << "an E5M2 operand is a gradient";
  args.b_dtype = 0;
  ASSERT_EQ(MakeDescriptor(*lt_, MakeGemmProblem(args, false), MakeGemmOperands(args), &descriptor),
            MT_OK);
  EXPECT_EQ(Of<int8_t>(descriptor, CUBLASLT_MATMUL_DESC_FAST_ACCUM), 1);
}

}  // namespace
}  // namespace mt::cuda
