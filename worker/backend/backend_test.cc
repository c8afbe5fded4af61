#include "worker/backend/backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "worker/backend/operations.h"

namespace mt {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

TEST(BackendTest, MissingLibraryNamesTheFoldersAndTheVariable) {
  const auto backend = LoadBackend("nowhere");
  ASSERT_TRUE(absl::IsNotFound(backend.status()));
  EXPECT_THAT(std::string(backend.status().message()), HasSubstr("libmt_backend_nowhere.so"));
  EXPECT_THAT(std::string(backend.status().message()), HasSubstr("MT_BACKEND_PATH"));
}

TEST(BackendTest, NameCannotLeaveTheFolders) {
  EXPECT_TRUE(absl::IsInvalidArgument(LoadBackend("../reference").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(LoadBackend("").status()));
}

TEST(BackendTest, AnotherAbiGenerationIsRefused) {
  const auto backend = LoadBackend("otherabi");
  ASSERT_TRUE(absl::IsFailedPrecondition(backend.status())) << backend.status();
  EXPECT_THAT(std::string(backend.status().message()),
              HasSubstr("has ABI 2.0; this program needs 1.x"));
}

TEST(BackendTest, ReferenceIsOnlyChosenWhenAsked) {
  const auto reference = ChooseBackend("reference");
  ASSERT_TRUE(reference.ok()) << reference.status();
  EXPECT_EQ((*reference)->name(), "reference");
  EXPECT_TRUE((*reference)->host_memory());
  EXPECT_EQ(*reference, *LoadBackend("reference"));
  const auto best = ChooseBackend("auto");
  if (best.ok()) {
    EXPECT_NE((*best)->name(), "reference");
  }
}

// The plug-in for NVIDIA's GPUs, where it was built, on a machine that has none.
TEST(BackendTest, CudaWithoutADeviceDeclinesAndTheProcessorIsChosen) {
#ifndef MT_HAS_CUDA
  GTEST_SKIP() << "skipped: built without CUDA";
#endif
  const auto cuda = LoadBackend("cuda");
  if (cuda.ok()) GTEST_SKIP() << "skipped: there is a CUDA device";
  ASSERT_TRUE(absl::IsFailedPrecondition(cuda.status())) << cuda.status();
  EXPECT_THAT(std::string(cuda.status().message()), HasSubstr("no CUDA device"));
  EXPECT_THAT(DescribeBackends(), Contains(HasSubstr("cuda: no CUDA device")));
  const auto best = ChooseBackend("auto");
  ASSERT_TRUE(best.ok()) << best.status();
  EXPECT_EQ((*best)->name(), "cpu");
  const auto operations = Operations::Create({});
  ASSERT_TRUE(operations.ok()) << operations.status();
  EXPECT_EQ((*operations)->backend().name(), "cpu");
}

TEST(OperationsTest, RunsAndReportsWhatWasResolved) {
  auto operations = Operations::Create({.backend = "reference"});
  ASSERT_TRUE(operations.ok()) << operations.status();
  Operations& ops = **operations;
  ASSERT_TRUE(ops.Need<MT_OP_ADD>({.dtype = MT_F64, .count = 3}).ok());
  const double a[] = {1, 2, 3}, b[] = {10, 20, 30};
  double sum[3] = {};
  ASSERT_TRUE(
      ops.Run<MT_OP_ADD>({.dtype = MT_F64, .a = a, .b = b, .destination = sum, .count = 3}).ok());
  EXPECT_THAT(sum, ::testing::ElementsAre(11, 22, 33));
  const auto rows = ops.Resolved();
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].operation(), "add");
  EXPECT_EQ(rows[0].backend(), "reference");
  EXPECT_EQ(rows[0].kernel(), "loops:float64");
}

TEST(OperationsTest, WorkspaceOfTheLargestShapeIsKept) {
  auto ops = Operations::Create({.backend = "reference"});
  ASSERT_TRUE(ops.ok());
  mt_rmsnorm_args norm = {
      .dtype = MT_F32, .gradient_dtype = MT_F32, .rows = 1, .columns = 4, .eps = 1e-5};
  ASSERT_TRUE((*ops)->Need<MT_OP_RMSNORM_BACKWARD>(norm).ok());
  const std::vector<float> ones(4, 1.0f);
  std::vector<float> dx(4), dw(4);
  norm.weight = norm.output_gradient = ones.data();
  norm.rstd = const_cast<float*>(ones.data());
  norm.sum = const_cast<float*>(ones.data());
  norm.input_gradient = dx.data();
  norm.weight_gradient = dw.data();
  EXPECT_TRUE((*ops)->Run<MT_OP_RMSNORM_BACKWARD>(norm).ok());
  EXPECT_FLOAT_EQ(dw[0], 1.0f);
  norm.columns = 4096;  // larger than any shape that was declared
  const absl::Status status = (*ops)->Run<MT_OP_RMSNORM_BACKWARD>(norm);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("workspace of 32 bytes; 32768 are needed"));
}

TEST(OperationsTest, UndeclaredAndUnsupportedAndInvalidAreErrorsNotCrashes) {
  auto ops = Operations::Create({.backend = "reference"});
  ASSERT_TRUE(ops.ok());
  float x = 0;
  EXPECT_TRUE(absl::IsFailedPrecondition(
      (*ops)->Run<MT_OP_FILL>({.dtype = MT_F32, .data = &x, .count = 1})));
  const absl::Status unsupported = (*ops)->Need<MT_OP_ADD>({.dtype = MT_I32, .count = 1});
  EXPECT_TRUE(absl::IsUnimplemented(unsupported)) << unsupported;
  EXPECT_THAT(std::string(unsupported.message()),
              HasSubstr("reference backend has float32, float64 and bfloat16"));
  ASSERT_TRUE((*ops)->Need<MT_OP_FILL>({.dtype = MT_F32, .count = 1}).ok());
  const absl::Status null = (*ops)->Run<MT_OP_FILL>({.dtype = MT_F32, .data = nullptr, .count = 1});
  EXPECT_TRUE(absl::IsInvalidArgument(null));
  EXPECT_THAT(std::string(null.message()), HasSubstr("data is null"));
}

// The older plug-in would accept the call and ignore the field.
TEST(OperationsTest, APluginOfAnOlderContractIsNotGivenWhatItDoesNotKnow) {
  const int32_t position = 0;
  float data[2] = {1, 2};
  const float table[2] = {1, 0};
  const mt_rope_args plain = {.dtype = MT_F32,
                              .data = data,
                              .sequence = 1,
                              .batch = 1,
                              .heads = 1,
                              .head_dim = 2,
                              .row_stride = 2,
                              .cos_sin = table};
  mt_rope_args positions = plain;
  positions.positions = &position;
  const auto resolve = [](std::map<std::string, std::string> overrides) {
    auto ops = Operations::Create({.backend = "older", .overrides = std::move(overrides)});
    EXPECT_TRUE(ops.ok()) << ops.status();
    return *std::move(ops);
  };

  auto ops = resolve({});
  ASSERT_TRUE(ops->Need<MT_OP_ROPE>(plain).ok());
  ASSERT_TRUE(ops->Run<MT_OP_ROPE>(plain).ok());
  EXPECT_EQ(data[0], -1);  // what the older one knows is its own
  data[0] = 1;
  const absl::Status undeclared = ops->Run<MT_OP_ROPE>(positions);
  EXPECT_TRUE(absl::IsFailedPrecondition(undeclared)) << undeclared;
  EXPECT_THAT(std::string(undeclared.message()), HasSubstr("runs with positions"));
  EXPECT_EQ(data[0], 1);

  // Declared: another backend in host memory takes the operation over, for all its shapes.
  ASSERT_TRUE(ops->Need<MT_OP_ROPE>(positions).ok());
  EXPECT_NE(ops->Resolved().at(0).backend(), "older");
  ASSERT_TRUE(ops->Run<MT_OP_ROPE>(positions).ok());
  ASSERT_TRUE(ops->Run<MT_OP_ROPE>(plain).ok());
  EXPECT_EQ(data[0], 1);

  ops = resolve({{"rope", "older"}});  // and nobody else
  const absl::Status refused = ops->Need<MT_OP_ROPE>(positions);
  EXPECT_TRUE(absl::IsUnimplemented(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()),
              HasSubstr("older: its contract is 1.2 and positions came with 1.3"));
}

// Every field that is newer than its struct, and that what stands for no use of it needs nothing.
TEST(OperationsTest, TheNewestFieldOfACallSaysWhichContractItNeeds) {
  const int32_t integers[1] = {};
  const double number = 1;
  const auto minor = [](int32_t operation, const auto& args) {
    return mt_newest_field_of(operation, &args).minor;
  };
  mt_rope_args rope = {};
  EXPECT_EQ(minor(MT_OP_ROPE, rope), 0u);
  rope.positions = integers;
  EXPECT_EQ(minor(MT_OP_ROPE, rope), 3u);
  mt_qk_norm_rope_args normed = {};
  EXPECT_EQ(minor(MT_OP_QK_NORM_ROPE_BACKWARD, normed), 0u);
  normed.positions = integers;
  EXPECT_EQ(minor(MT_OP_QK_NORM_ROPE_FORWARD, normed), 3u);
  EXPECT_EQ(minor(MT_OP_QK_NORM_ROPE_BACKWARD, normed), 3u);
  mt_cross_entropy_args loss = {};
  loss.loss_scale_pointer = &number;
  EXPECT_EQ(minor(MT_OP_CROSS_ENTROPY_GRADIENT, loss), 3u);
  EXPECT_EQ(minor(MT_OP_CROSS_ENTROPY_STATISTICS, loss), 0u);  // does not look at it

  const mt_attention_args plain = {
      .sequence = 8, .head_dim = 4, .v_head_dim = 4, .window = 8, .key_sequence = 8};
  EXPECT_EQ(minor(MT_OP_ATTENTION_FORWARD, plain), 0u);
  mt_attention_args attention = plain;
  attention.window = 7;
  EXPECT_EQ(minor(MT_OP_ATTENTION_BACKWARD, attention), 2u);
  attention.document_start = integers;  // the newest of the two
  EXPECT_EQ(minor(MT_OP_ATTENTION_BACKWARD, attention), 3u);
  EXPECT_EQ(minor(MT_OP_ATTENTION_FORWARD, attention), 3u);
  attention = plain;
  attention.v_head_dim = 2;
  EXPECT_EQ(minor(MT_OP_ATTENTION_FORWARD, attention), 2u);
  attention = plain;
  attention.sinks = integers;
  EXPECT_EQ(minor(MT_OP_ATTENTION_FORWARD, attention), 2u);
  attention = plain;
  attention.key_sequence = 9;
  EXPECT_EQ(minor(MT_OP_ATTENTION_FORWARD, attention), 2u);

  mt_swiglu_args gate = {.alpha = 1};
  EXPECT_EQ(minor(MT_OP_SWIGLU_FORWARD, gate), 0u);
  gate.limit = 7;
  EXPECT_EQ(minor(MT_OP_SWIGLU_BACKWARD, gate), 2u);
  gate = {.offset = 1};
  EXPECT_EQ(minor(MT_OP_SWIGLU_FORWARD, gate), 2u);
}

TEST(OperationsTest, OptionsThatABackendDoesNotHaveAreSkipped) {
  EXPECT_TRUE(
      Operations::Create({.backend = "reference", .configuration = {{"gemm_cache", "/a"}}}).ok());
}

TEST(OperationsTest, OverridesAreCheckedByName) {
  EXPECT_TRUE(absl::IsInvalidArgument(
      Operations::Create({.backend = "reference", .overrides = {{"attention", "reference"}}})
          .status()));
  EXPECT_TRUE(absl::IsNotFound(
      Operations::Create({.backend = "reference", .overrides = {{"add", "nowhere"}}}).status()));
}

}  // namespace
}  // namespace mt
