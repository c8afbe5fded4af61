#include "worker/unpack_libraries.h"

#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include "common/check.h"

namespace mt {
namespace {

class UnpackTest : public testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/mt-unpack-XXXXXX";
    folder_ = mkdtemp(path);
    for (size_t i = 0; i < contents_.size(); ++i)
      contents_[i] = static_cast<char>(i * 2654435761u >> 11);
    gzFile file = gzopen((folder_ + "/libx.so.2.gz").c_str(), "wb");
    MT_CHECK(gzwrite(file, contents_.data(), static_cast<unsigned>(contents_.size())) > 0 &&
             gzclose(file) == Z_OK);
  }
  void TearDown() override { MT_CHECK_OK(env_->RemoveTree(folder_)); }

  Env* const env_ = Env::Real();
  std::string folder_;
  std::string contents_ = std::string(3 << 20, '\0');
};

TEST_F(UnpackTest, LibraryAppearsOnceAndWhole) {
  ASSERT_TRUE(UnpackLibrariesIn(env_, folder_).ok());
  EXPECT_EQ(*ReadFile(env_, folder_ + "/libx.so.2"), contents_);
  ASSERT_TRUE(WriteFileAtomically(env_, folder_ + "/libx.so.2", "there already").ok());
  ASSERT_TRUE(UnpackLibrariesIn(env_, folder_).ok());
  EXPECT_EQ(*ReadFile(env_, folder_ + "/libx.so.2"), "there already");
}

TEST_F(UnpackTest, DamagedLibraryNeverAppears) {
  const std::string packed = *ReadFile(env_, folder_ + "/libx.so.2.gz");
  std::string flipped = packed;
  flipped[packed.size() / 2] ^= 1;
  for (const std::string& damaged :
       {packed.substr(0, packed.size() / 2), packed.substr(0, packed.size() - 3), flipped}) {
    ASSERT_TRUE(WriteFileAtomically(env_, folder_ + "/libx.so.2.gz", damaged).ok());
    EXPECT_EQ(UnpackLibrariesIn(env_, folder_).code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(env_->List(folder_)->size(), 1u);
  }
}

}  // namespace
}  // namespace mt
