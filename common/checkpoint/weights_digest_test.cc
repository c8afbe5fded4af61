#include "common/checkpoint/weights_digest.h"

#include <gtest/gtest.h>

#include <numeric>

namespace mt {
namespace {

// A 6x5 matrix of floats cut into the given boxes {row, column, rows, columns}, one file each.
struct Cut {
  int64_t row, column, rows, columns;
};
v1::CheckpointManifest ManifestOf(const std::vector<float>& matrix, const std::vector<Cut>& cuts) {
  v1::CheckpointManifest manifest;
  for (const Cut& cut : cuts) {
    std::vector<float> box;
    for (int64_t r = 0; r < cut.rows; ++r) {
      for (int64_t c = 0; c < cut.columns; ++c)
        box.push_back(matrix[(cut.row + r) * 5 + cut.column + c]);
    }
    v1::CheckpointFile* file = manifest.add_files();
    file->set_name(absl::StrCat("shard-r", manifest.files_size() - 1, ".safetensors"));
    v1::TensorSlice* slice = file->add_slices();
    slice->set_tensor("w");
    for (const int64_t size : {6, 5}) slice->add_global_shape(size);
    for (const int64_t at : {cut.row, cut.column}) slice->add_offset(at);
    for (const int64_t size : {cut.rows, cut.columns}) slice->add_shape(size);
    slice->set_content_sum(
        SumOfBox("w", "F32", {6, 5}, {cut.row, cut.column}, {cut.rows, cut.columns}, 4, box.data())
            .Hex());
  }
  return manifest;
}
std::vector<float> Matrix() {
  std::vector<float> matrix(30);
  std::iota(matrix.begin(), matrix.end(), -3.5f);
  return matrix;
}

TEST(WeightsDigest, DoesNotDependOnTheCut) {
  const std::string whole = *WeightsDigest(ManifestOf(Matrix(), {{0, 0, 6, 5}}));
  EXPECT_EQ(whole.size(), 32u);
  EXPECT_EQ(*WeightsDigest(ManifestOf(Matrix(), {{0, 0, 2, 5}, {2, 0, 4, 5}})), whole);
  EXPECT_EQ(*WeightsDigest(ManifestOf(Matrix(), {{0, 3, 6, 2}, {0, 0, 6, 3}})), whole);
  EXPECT_EQ(*WeightsDigest(ManifestOf(Matrix(), {{0, 0, 1, 5}, {1, 0, 5, 2}, {1, 2, 5, 3}})),
            whole);
}

TEST(WeightsDigest, DependsOnEveryElementAndItsPlace) {
  const std::string whole = *WeightsDigest(ManifestOf(Matrix(), {{0, 0, 6, 5}}));
  for (int i = 0; i < 30; ++i) {
    std::vector<float> changed = Matrix();
    changed[i] = -changed[i];
    EXPECT_NE(*WeightsDigest(ManifestOf(changed, {{0, 0, 6, 5}})), whole) << i;
    std::vector<float> swapped = Matrix();
    std::swap(swapped[i], swapped[(i + 1) % 30]);
    EXPECT_NE(*WeightsDigest(ManifestOf(swapped, {{0, 0, 6, 5}})), whole) << i;
  }
  v1::CheckpointManifest renamed = ManifestOf(Matrix(), {{0, 0, 6, 5}});
  renamed.mutable_files(0)->mutable_slices(0)->set_tensor("v");
  EXPECT_NE(*WeightsDigest(renamed), whole);
}

// The definition is part of the format: it may not drift.
TEST(WeightsDigest, IsTheDefinedOne) {
  EXPECT_EQ(*WeightsDigest(ManifestOf(Matrix(), {{0, 0, 6, 5}})),
            "c087799aa3c4b712f6258a04fae48511");
}

TEST(WeightsDigest, NeedsEverySum) {
  v1::CheckpointManifest manifest = ManifestOf(Matrix(), {{0, 0, 6, 5}});
  manifest.mutable_files(0)->mutable_slices(0)->set_content_sum("xyz");
  EXPECT_EQ(WeightsDigest(manifest).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(CheckCoverage, TakesExactCuts) {
  EXPECT_TRUE(CheckCoverage(ManifestOf(Matrix(), {{0, 0, 6, 5}})).ok());
  EXPECT_TRUE(CheckCoverage(ManifestOf(Matrix(), {{0, 0, 1, 5}, {1, 0, 5, 2}, {1, 2, 5, 3}})).ok());
}

TEST(CheckCoverage, NamesWhatIsMissingOrDoubled) {
  const absl::Status missing = CheckCoverage(ManifestOf(Matrix(), {{0, 0, 2, 5}, {3, 0, 3, 5}}));
  EXPECT_EQ(missing.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(missing.message().find("tensor w: the files hold 25 of its 30 elements"),
            absl::string_view::npos)
      << missing;
  // The same number of elements as the tensor, but one column twice and one not at all.
  const absl::Status overlap = CheckCoverage(ManifestOf(Matrix(), {{0, 0, 6, 3}, {0, 2, 6, 2}}));
  EXPECT_EQ(overlap.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(overlap.message().find("overlap"), absl::string_view::npos) << overlap;
  EXPECT_NE(overlap.message().find("shard-r1.safetensors"), absl::string_view::npos) << overlap;
}

TEST(CheckCoverage, RefusesImpossibleBoxes) {
  v1::CheckpointManifest manifest = ManifestOf(Matrix(), {{0, 0, 6, 5}});
  v1::TensorSlice* slice = manifest.mutable_files(0)->mutable_slices(0);
  const v1::TensorSlice good = *slice;
  slice->set_offset(0, 1);
  EXPECT_EQ(CheckCoverage(manifest).code(), absl::StatusCode::kInvalidArgument);
  *slice = good;
  slice->set_shape(0, -1);
  EXPECT_EQ(CheckCoverage(manifest).code(), absl::StatusCode::kInvalidArgument);
  *slice = good;
  slice->set_offset(0, INT64_MAX);
  EXPECT_EQ(CheckCoverage(manifest).code(), absl::StatusCode::kInvalidArgument);
  *slice = good;
  slice->set_global_shape(0, INT64_MAX);
  EXPECT_EQ(CheckCoverage(manifest).code(), absl::StatusCode::kInvalidArgument);
  *slice = good;
  slice->add_shape(1);
  EXPECT_EQ(CheckCoverage(manifest).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace mt
