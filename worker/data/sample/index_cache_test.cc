#include "worker/data/sample/index_cache.h"

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "common/check.h"
#include "common/hash.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mt {
namespace {

class IndexCacheTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/index_cache." + std::to_string(getpid()) + "." +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // Arrays of `bytes` bytes, each equal to `value`; counts how often it is called.
  IndexCache::Build Filled(char value, uint64_t bytes = 100) {
    return [this, value, bytes]() -> absl::StatusOr<IndexArrays> {
      ++builds_;
      MT_ASSIGN_OR_RETURN(IndexArrays arrays, IndexArrays::Allocate({bytes, 3}));
      std::ranges::fill(arrays.array<char>(0), value);
      return arrays;
    };
  }
  static std::string First(const IndexArrays& arrays) {
    return {arrays.bytes(0).begin(), arrays.bytes(0).end()};
  }
  std::vector<std::string> Files() const {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      if (entry.path().extension() != ".lock") files.push_back(entry.path());
    }
    return files;
  }

  std::string folder_;
  std::atomic<int> builds_ = 0;
};

TEST_F(IndexCacheTest, WhatIsBuiltOnceIsMappedByAll) {
  const IndexCache cache(Env::Real(), folder_), other(Env::Real(), folder_);
  const std::string expected(100, 'a');
  EXPECT_EQ(First(cache.Get("key", Filled('a')).value()), expected);
  EXPECT_EQ(First(other.Get("key", Filled('b')).value()), expected);
  EXPECT_EQ(builds_, 1);
  EXPECT_EQ(First(other.Get("another key", Filled('b')).value()), std::string(100, 'b'));
  EXPECT_EQ(builds_, 2);
}

TEST_F(IndexCacheTest, OneOfManyRanksBuilds) {
  std::vector<std::thread> ranks;
  std::atomic<int> right = 0;
  for (int i = 0; i < 8; ++i) {
    ranks.emplace_back([&] {
      const IndexCache cache(Env::Real(), folder_);
      right += First(cache.Get("key", Filled('a', 1 << 20)).value()) == std::string(1 << 20, 'a');
    });
  }
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(right, 8);
  EXPECT_EQ(builds_, 1);
}

TEST_F(IndexCacheTest, ABrokenFileIsBuiltAgain) {
  const IndexCache cache(Env::Real(), folder_);
  ASSERT_TRUE(cache.Get("key", Filled('a')).ok());
  const std::string path = Files().at(0);
  const auto size = static_cast<int64_t>(std::filesystem::file_size(path));
  int expected = 1;
  for (int64_t at = 0; at < size; at += 7) {
    {
      std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
      file.seekg(at);
      const char flipped = static_cast<char>(file.get() ^ 16);
      file.seekp(at);
      file.put(flipped);
    }
    EXPECT_EQ(First(cache.Get("key", Filled('a')).value()), std::string(100, 'a')) << at;
    EXPECT_EQ(builds_, ++expected) << at;
  }
  for (const int64_t bytes : {int64_t{0}, int64_t{10}, size - 1}) {
    std::filesystem::resize_file(path, static_cast<uint64_t>(bytes));
    EXPECT_EQ(First(cache.Get("key", Filled('a')).value()), std::string(100, 'a')) << bytes;
    EXPECT_EQ(builds_, ++expected) << bytes;
  }
  EXPECT_EQ(Files().size(), 1u);
}

TEST_F(IndexCacheTest, MappedOrdersOutliveTheirFiles) {
  const IndexCache cache(Env::Real(), folder_, {.max_bytes = 2000});
  const IndexArrays first = cache.Get("0", Filled('0', 1000)).value();
  for (const char key : {'1', '2', '3'})
    ASSERT_TRUE(cache.Get(std::string(1, key), Filled(key, 1000)).ok());
  uint64_t total = 0;
  for (const std::string& file : Files()) total += std::filesystem::file_size(file);
  EXPECT_LE(total, 2000u);
  EXPECT_EQ(First(first), std::string(1000, '0'));
  EXPECT_EQ(builds_, 4);
  // The newest stayed; what is larger than the bound is kept alone.
  ASSERT_TRUE(cache.Get("3", Filled('3', 1000)).ok());
  EXPECT_EQ(builds_, 4);
  EXPECT_EQ(First(cache.Get("large", Filled('l', 5000)).value()), std::string(5000, 'l'));
  EXPECT_EQ(Files().size(), 1u);
}

TEST_F(IndexCacheTest, WhatAKilledBuildLeftIsRemoved) {
  const IndexCache cache(Env::Real(), folder_);
  std::filesystem::create_directories(folder_);
  std::ofstream(folder_ + "/0123.index.partial") << "half";
  ASSERT_TRUE(cache.Get("key", Filled('a')).ok());
  EXPECT_EQ(Files().size(), 1u);
}

TEST_F(IndexCacheTest, WithoutAPlaceToPutItTheOrderIsInMemory) {
  std::ofstream(folder_) << "a file where the folder should be";
  const IndexCache cache(Env::Real(), folder_);
  EXPECT_EQ(First(cache.Get("key", Filled('a')).value()), std::string(100, 'a'));
  // Nor where a build of it hangs, with its lock. Other orders do not wait for that one.
  const std::string held = folder_ + ".held";
  const IndexCache waiting(Env::Real(), held, {.patience = absl::ZeroDuration()});
  ASSERT_TRUE(Env::Real()->CreateDirectories(held).ok());
  const auto lock =
      Env::Real()->Lock(absl::StrCat(held, "/", Xxh3Hex("key"), ".index.lock")).value();
  EXPECT_EQ(First(waiting.Get("key", Filled('b')).value()), std::string(100, 'b'));
  EXPECT_FALSE(std::filesystem::exists(absl::StrCat(held, "/", Xxh3Hex("key"), ".index")));
  EXPECT_EQ(First(waiting.Get("other", Filled('c')).value()), std::string(100, 'c'));
  EXPECT_TRUE(std::filesystem::exists(absl::StrCat(held, "/", Xxh3Hex("other"), ".index")));
  std::filesystem::remove_all(held);
}

TEST_F(IndexCacheTest, OrdersAreKeyedByEverythingTheyDependOn) {
  const IndexCache cache(Env::Real(), folder_);
  const std::vector<int32_t> lengths = {5, 9, 3, 12, 7, 4}, others = {5, 9, 3, 12, 4, 7};
  const SampleIndexOptions options = {.sequences = {0, 6}, .sequence_length = 8, .num_samples = 9};
  std::vector<std::pair<const std::vector<int32_t>*, SampleIndexOptions>> cases(
      7, {&lengths, options});
  cases[1].first = &others;
  cases[2].second.sequences = {0, 5};
  cases[3].second.sequence_length = 7;
  cases[4].second.num_samples = 4;
  cases[5].second.seed = 1;
  cases[6].second.pack_documents = true;
  for (size_t round = 0; round < 2; ++round) {
    for (const auto& [of, asked] : cases) {
      const SequenceLengths view{std::span<const int32_t>(*of)};
      const SampleIndex cached = cache.SampleIndexOf(view, asked).value();
      const SampleIndex built = BuildSampleIndex(view, asked).value();
      EXPECT_TRUE(std::ranges::equal(cached.document_index, built.document_index));
      EXPECT_TRUE(std::ranges::equal(cached.sample_index, built.sample_index));
      EXPECT_TRUE(std::ranges::equal(cached.shuffle_index, built.shuffle_index));
    }
    EXPECT_EQ(Files().size(), cases.size());
  }
}

}  // namespace
}  // namespace mt
