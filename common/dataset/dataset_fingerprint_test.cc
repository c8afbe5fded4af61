#include "common/dataset/dataset_fingerprint.h"

#include <filesystem>
#include <fstream>

#include "common/check.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class DatasetFingerprintTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/fingerprint." + std::to_string(getpid());
    std::filesystem::create_directories(folder_);
    prefix_ = folder_ + "/set";
    Write(".idx", "index");
    Write(".bin", std::string(10'000'001, 'a'));
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void Write(const char* suffix, const std::string& contents) {
    std::ofstream(prefix_ + suffix, std::ios::binary) << contents;
  }
  void Change(const char* suffix, int64_t offset) {
    std::fstream file(prefix_ + suffix, std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(offset);
    file.put('b');
  }
  std::string Fingerprint() { return DatasetFingerprint(Env::Real(), prefix_).value(); }

  std::string folder_, prefix_;
};

TEST_F(DatasetFingerprintTest, EqualCopiesAreEqualAndChangesAreNamed) {
  const std::string before = Fingerprint();
  EXPECT_EQ(Fingerprint(), before);
  EXPECT_EQ(DifferenceOf(prefix_, before, Fingerprint()), "");
  // The first token and the last are always seen; so is any in a file that is read whole.
  for (const int64_t offset : {0, 10'000'000}) {
    Change(".bin", offset);
    EXPECT_THAT(DifferenceOf(prefix_, Fingerprint(), before),
                HasSubstr("set.bin has 10000001 bytes on both, but not the same"));
    Write(".bin", std::string(10'000'001, 'a'));
    EXPECT_EQ(Fingerprint(), before);
  }
  Write(".bin", std::string(10'000'002, 'a'));
  EXPECT_THAT(DifferenceOf(prefix_, Fingerprint(), before),
              HasSubstr("set.bin has 10000002 bytes here and 10000001 there"));
  Write(".bin", std::string(10'000'001, 'a'));
  Change(".idx", 2);
  EXPECT_THAT(DifferenceOf(prefix_, Fingerprint(), before), HasSubstr("set.idx has 5 bytes on"));
  Write(".idx", "index");
  Write(".loss", "l");
  EXPECT_THAT(DifferenceOf(prefix_, before, Fingerprint()),
              HasSubstr("set.loss is missing here and is there"));
  EXPECT_THAT(DatasetFilesOf(Env::Real(), prefix_),
              ElementsAre(prefix_ + ".idx", prefix_ + ".bin", prefix_ + ".loss"));
}

TEST_F(DatasetFingerprintTest, SmallFilesAreReadWhole) {
  Write(".bin", std::string(kFingerprintBlocks * kFingerprintBlockBytes, 'a'));
  const std::string before = Fingerprint();
  for (int64_t offset = 0; offset < 4 << 20; offset += 65535) {
    Change(".bin", offset);
    EXPECT_NE(Fingerprint(), before) << offset;
    Write(".bin", std::string(kFingerprintBlocks * kFingerprintBlockBytes, 'a'));
  }
  Write(".bin", "");
  EXPECT_THAT(Fingerprint(), HasSubstr(" bin:0:"));
  std::filesystem::remove(prefix_ + ".bin");
  EXPECT_EQ(DatasetFingerprint(Env::Real(), prefix_).status().code(), absl::StatusCode::kNotFound);
}

TEST(DatasetPrefixesTest, EachOnceAndOnlyWhatIsOpened) {
  v1::JobSpec spec;
  for (const char* prefix : {"b", "a", "b"}) spec.mutable_data()->add_train()->set_prefix(prefix);
  spec.mutable_data()->add_validation()->set_prefix("v");
  spec.mutable_data()->add_test()->set_prefix("t");
  EXPECT_THAT(DatasetPrefixesOf(spec), ElementsAre("b", "a"));
  spec.mutable_training()->mutable_evaluation()->set_every_steps(3);
  EXPECT_THAT(DatasetPrefixesOf(spec), ElementsAre("b", "a", "v"));
}

}  // namespace
}  // namespace mt
