#include "kernels/cuda/gemm_cache.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

namespace mt::cuda {
namespace {

constexpr GemmAlgorithm kFirst = {1, 2, 3, 4, 5, 6, 7, 0xfedcba9876543210u};
constexpr GemmAlgorithm kSecond = {8, 7, 6, 5, 4, 3, 2, 1};

class GemmCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ =
        std::filesystem::temp_directory_path() / ("gemm_cache_test." + std::to_string(getpid()));
    std::filesystem::create_directories(folder_);
    path_ = folder_ / "gemm";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Contents() const {
    std::ifstream file(path_);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
  }
  void Put(const std::string& text) const { std::ofstream(path_) << text; }
  GemmAlgorithm Store(GemmCache& cache, const std::string& key, const GemmAlgorithm& algorithm) {
    std::string error;
    const GemmAlgorithm counts = cache.Store(key, algorithm, std::nullopt, &error);
    EXPECT_EQ(error, "");
    return counts;
  }
  std::filesystem::path folder_, path_;
};

TEST_F(GemmCacheTest, ARestartFindsTheChoice) {
  {
    GemmCache cache(path_, "H200 580 13.1.0");
    EXPECT_FALSE(cache.Find("bf16 1x2x3").has_value());
    EXPECT_EQ(Store(cache, "bf16 1x2x3", kFirst), kFirst);
    EXPECT_EQ(cache.Find("bf16 1x2x3"), kFirst);
  }
  GemmCache again(path_, "H200 580 13.1.0");
  EXPECT_EQ(again.Find("bf16 1x2x3"), kFirst);
  EXPECT_FALSE(again.Find("bf16 1x2x4").has_value());
}

TEST_F(GemmCacheTest, OtherEnvironmentsAreNotUsedButKept) {
  GemmCache old(path_, "H100 580 13.1.0");
  Store(old, "key", kFirst);
  GemmCache cache(path_, "H100 590 13.1.0");
  EXPECT_FALSE(cache.Find("key").has_value());
  Store(cache, "key", kSecond);
  EXPECT_EQ(GemmCache(path_, "H100 580 13.1.0").Find("key"), kFirst);
  EXPECT_EQ(GemmCache(path_, "H100 590 13.1.0").Find("key"), kSecond);
}

TEST_F(GemmCacheTest, TheFirstOfTwoProcessesDecides) {
  GemmCache one(path_, "env"), other(path_, "env");
  EXPECT_EQ(Store(one, "key", kFirst), kFirst);
  EXPECT_EQ(Store(other, "key", kSecond), kFirst);
  EXPECT_EQ(other.Find("key"), kFirst);
  EXPECT_EQ(GemmCache(path_, "env").Find("key"), kFirst);
}

TEST_F(GemmCacheTest, AnEntryThatCannotBeUsedIsReplacedUnlessAnotherProcessHasDoneSo) {
  constexpr GemmAlgorithm kThird = {3, 3, 3, 3, 3, 3, 3, 3};
  GemmCache old(path_, "env");
  Store(old, "key", kFirst);
  GemmCache one(path_, "env"), other(path_, "env");
  std::string error;
  EXPECT_EQ(one.Store("key", kSecond, kFirst, &error), kSecond);
  EXPECT_EQ(other.Store("key", kThird, kFirst, &error), kSecond);
  EXPECT_EQ(GemmCache(path_, "env").Find("key"), kSecond);
}

TEST_F(GemmCacheTest, NoEntryOfProcessesThatWriteTogetherIsLost) {
  constexpr int kProcesses = 4, kKeys = 25;
  std::vector<pid_t> children;
  for (int p = 0; p < kProcesses; ++p) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      GemmCache cache(path_, "env");
      std::string error;
      for (int k = 0; k < kKeys; ++k)
        cache.Store("key " + std::to_string(p) + " " + std::to_string(k), kFirst, std::nullopt,
                    &error);
      _exit(error.empty() ? 0 : 1);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
  }
  GemmCache cache(path_, "env");
  for (int p = 0; p < kProcesses; ++p) {
    for (int k = 0; k < kKeys; ++k)
      EXPECT_TRUE(cache.Find("key " + std::to_string(p) + " " + std::to_string(k)).has_value());
  }
}

TEST_F(GemmCacheTest, DamagedLinesAreIgnoredAndDisappear) {
  {
    GemmCache cache(path_, "env");
    Store(cache, "whole", kFirst);
    Store(cache, "bent", kSecond);
  }
  std::string text = Contents();
  const size_t bent = text.find("|bent|") + 20;
  text[bent] = text[bent] == '0' ? '1' : '0';
  Put("junk\n\nmt-gemm 1|\nmt-gemm 2|env|key|00|00\n" + text + "mt-gemm 1|env|cut off|0000");
  GemmCache cache(path_, "env");
  EXPECT_EQ(cache.Find("whole"), kFirst);
  EXPECT_FALSE(cache.Find("bent").has_value());
  EXPECT_FALSE(cache.Find("cut off").has_value());
  Store(cache, "more", kFirst);
  EXPECT_EQ(Contents().find("junk"), std::string::npos);
  EXPECT_EQ(Contents().find("cut off"), std::string::npos);
  EXPECT_EQ(GemmCache(path_, "env").Find("whole"), kFirst);
}

TEST_F(GemmCacheTest, EveryDamageOfAnEntryIsSeen) {
  {
    GemmCache cache(path_, "env");
    Store(cache, "key", kFirst);
  }
  const std::string text = Contents();
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    std::string damaged = text;
    damaged[i] = damaged[i] == 'x' ? 'y' : 'x';
    Put(damaged);
    EXPECT_FALSE(GemmCache(path_, "env").Find("key").has_value()) << "byte " << i;
    Put(text.substr(0, i));
    EXPECT_FALSE(GemmCache(path_, "env").Find("key").has_value()) << "length " << i;
  }
}

TEST_F(GemmCacheTest, WhereNothingCanBeWrittenTheChoiceCountsForTheProcess) {
  GemmCache cache(folder_ / "absent" / "gemm", "env");
  std::string error;
  EXPECT_EQ(cache.Store("key", kFirst, std::nullopt, &error), kFirst);
  EXPECT_NE(error, "");
  EXPECT_EQ(cache.Find("key"), kFirst);
}

TEST_F(GemmCacheTest, SeparatorsInNamesDoNotConfuse) {
  GemmCache cache(path_, "a|b\nc");
  Store(cache, "k|e\ny", kFirst);
  EXPECT_EQ(GemmCache(path_, "a|b\nc").Find("k|e\ny"), kFirst);
}

}  // namespace
}  // namespace mt::cuda
