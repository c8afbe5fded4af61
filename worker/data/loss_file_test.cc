#include "worker/data/loss_file.h"

#include <random>
#include <vector>

#include "common/testing/mem_env.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mt {
namespace {

using ::testing::HasSubstr;

constexpr char kPrefix[] = "/d/set";

std::vector<uint8_t> Losses(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> losses(n);
  for (uint8_t& loss : losses) loss = random() & 1;
  return losses;
}

std::string Packed(const std::vector<uint8_t>& losses) {
  LossPacker packer;
  std::string packed;
  packer.Append(losses, &packed);
  packer.Finish(&packed);
  return packed;
}

class LossFileTest : public ::testing::Test {
 protected:
  void Write(const std::string& bytes) {
    ASSERT_TRUE(env_.CreateDirectories("/d").ok());
    ASSERT_TRUE(WriteFileAtomically(&env_, LossPath(kPrefix), bytes).ok());
  }
  MemEnv env_;
};

TEST_F(LossFileTest, LowestBitIsTheFirstToken) {
  EXPECT_EQ(Packed({1, 0, 0, 0, 0, 0, 0, 0, 0, 1}), std::string("\x01\x02", 2));
  EXPECT_EQ(Packed({0, 0, 0, 0, 0, 0, 0, 1}), "\x80");
  EXPECT_EQ(Packed({}), "");
}

TEST_F(LossFileTest, EveryRangeComesBack) {
  for (const size_t n : {1, 7, 8, 9, 64, 203}) {
    const std::vector<uint8_t> losses = Losses(n, 1);
    Write(Packed(losses));
    const auto file = LossFile::Open(&env_, kPrefix, static_cast<int64_t>(n)).value();
    for (size_t first = 0; first <= n; ++first) {
      for (size_t count = 0; first + count <= n; ++count) {
        std::vector<uint8_t> read(count, 9);
        ASSERT_TRUE(file->Read(static_cast<int64_t>(first), read).ok());
        ASSERT_TRUE(std::equal(read.begin(), read.end(), losses.begin() + first))
            << first << " " << count;
      }
    }
  }
}

TEST_F(LossFileTest, LongerThanAnyBuffer) {
  const std::vector<uint8_t> losses = Losses(100003, 2);
  Write(Packed(losses));
  const auto file = LossFile::Open(&env_, kPrefix, 100003).value();
  for (const size_t first : {0, 1, 8, 13}) {
    std::vector<uint8_t> read(losses.size() - first);
    ASSERT_TRUE(file->Read(static_cast<int64_t>(first), read).ok());
    ASSERT_TRUE(std::equal(read.begin(), read.end(), losses.begin() + first));
  }
}

TEST_F(LossFileTest, PartsGiveTheWhole) {
  const std::vector<uint8_t> losses = Losses(1000, 3);
  std::mt19937 random(4);
  std::string packed;
  LossPacker packer;
  for (size_t done = 0; done < losses.size();) {
    const size_t count = std::min<size_t>(random() % 20, losses.size() - done);
    packer.Append(std::span(losses).subspan(done, count), &packed);
    done += count;
    LossPacker resumed;
    resumed.set_open_byte(packer.open_byte());
    packer = resumed;
  }
  packer.Finish(&packed);
  EXPECT_EQ(packed, Packed(losses));
}

TEST_F(LossFileTest, WrongSizesAreRefused) {
  EXPECT_EQ(LossFile::Open(&env_, kPrefix, 8).status().code(), absl::StatusCode::kNotFound);
  Write("ab");
  for (const int64_t tokens : {0, 8, 17}) {
    const absl::Status status = LossFile::Open(&env_, kPrefix, tokens).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(status.message(), HasSubstr("/d/set.loss: 2 bytes"));
  }
  const auto file = LossFile::Open(&env_, kPrefix, 13).value();
  std::vector<uint8_t> losses(4);
  for (const int64_t first : {-1, 10, 14})
    EXPECT_EQ(file->Read(first, losses).code(), absl::StatusCode::kOutOfRange);
  ASSERT_TRUE(env_.TruncateFile(LossPath(kPrefix), 1).ok());
  EXPECT_EQ(file->Read(9, losses).code(), absl::StatusCode::kDataLoss);
}

}  // namespace
}  // namespace mt
