#include "coordinator/jobs/dataset_digester.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>

#include "common/hash.h"
#include "common/testing/mem_env.h"

namespace mt {
namespace {

using ::testing::HasSubstr;

class DatasetDigesterTest : public ::testing::Test {
 protected:
  DatasetDigesterTest() {
    EXPECT_TRUE(env_.CreateDirectories("/data").ok());
    for (const char* name :
         {"/data/a.idx", "/data/a.bin", "/data/b.idx", "/data/b.bin", "/data/b.loss"})
      EXPECT_TRUE(WriteFileAtomically(&env_, name, absl::StrCat("contents of ", name)).ok());
  }
  ~DatasetDigesterTest() override {
    std::promise<void> done;
    loop_->Post([&] {
      digester_ = nullptr;
      done.set_value();
    });
    done.get_future().get();
  }
  absl::StatusOr<std::vector<v1::DatasetFile>> Digest(std::vector<std::string> prefixes) {
    std::promise<absl::StatusOr<std::vector<v1::DatasetFile>>> done;
    std::shared_ptr<const void> work;
    loop_->Post([&] {
      work = digester_->Digest(
          std::move(prefixes), [](int64_t, int64_t) {},
          [&](auto files) { done.set_value(std::move(files)); });
    });
    return done.get_future().get();
  }

  MemEnv env_;
  std::unique_ptr<EventLoop> loop_ = NewThreadEventLoop("test");
  std::unique_ptr<DatasetDigester> digester_ = NewDatasetDigester(loop_.get(), &env_);
};

TEST_F(DatasetDigesterTest, EveryFileOfEveryPrefixWithSizeAndDigest) {
  const auto files = Digest({"/data/a", "/data/b"});
  ASSERT_TRUE(files.ok()) << files.status();
  ASSERT_EQ(files->size(), 5u) << "b has a .loss, a has none";
  for (const v1::DatasetFile& file : *files) {
    const std::string contents = "contents of " + file.path();
    EXPECT_EQ(file.bytes(), static_cast<int64_t>(contents.size()));
    EXPECT_EQ(file.xxh3_128(), Xxh3Hex(contents));
  }
}

TEST_F(DatasetDigesterTest, WhatNobodyWantsAnyMoreIsReadNoFurther) {
  std::promise<absl::Status> ended;
  std::promise<void> reading, dropped;
  std::atomic<int> reads{0};
  env_.SetFault([&](absl::string_view operation, const std::string&) {
    if (operation != "read" || ++reads > 1) return absl::OkStatus();
    reading.set_value();
    dropped.get_future().wait();
    return absl::OkStatus();
  });
  std::shared_ptr<const void> work;
  loop_->Post([&] {
    work = digester_->Digest(
        {"/data/a"}, [](int64_t, int64_t) {}, [&](auto files) { ended.set_value(files.status()); });
  });
  reading.get_future().wait();
  work = nullptr;  // the loop is done with it: it has posted what reads now
  dropped.set_value();
  EXPECT_TRUE(absl::IsCancelled(ended.get_future().get()));
  EXPECT_EQ(reads, 1) << "the second file is not opened";
}

TEST_F(DatasetDigesterTest, AnUnchangedFileIsReadOnceAndAChangedOneAgain) {
  std::atomic<int> reads{0};
  env_.SetFault([&](absl::string_view operation, const std::string&) {
    if (operation == "read") ++reads;
    return absl::OkStatus();
  });
  ASSERT_TRUE(Digest({"/data/a"}).ok());
  const int first = reads;
  EXPECT_GT(first, 0);
  ASSERT_TRUE(Digest({"/data/a"}).ok());
  EXPECT_EQ(reads, first);
  ASSERT_TRUE(WriteFileAtomically(&env_, "/data/a.bin", "contents of /data/X.bin").ok());
  const auto again = Digest({"/data/a"});
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->at(1).xxh3_128(), Xxh3Hex("contents of /data/X.bin"));
}

TEST_F(DatasetDigesterTest, WhatCannotBeReadIsNamedWithTheRemedy) {
  const absl::Status missing = Digest({"/data/c"}).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(missing));
  EXPECT_THAT(std::string(missing.message()), HasSubstr("/data/c.idx"));
  EXPECT_THAT(std::string(missing.message()), HasSubstr("unset data.distribute"));
  env_.SetFault([](absl::string_view operation, const std::string& path) {
    return operation == "read" && path == "/data/a.bin" ? absl::DataLossError(path + ": EIO")
                                                        : absl::OkStatus();
  });
  EXPECT_THAT(std::string(Digest({"/data/a"}).status().message()), HasSubstr("/data/a.bin: EIO"));
}

}  // namespace
}  // namespace mt
