#include "common/env.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "common/hash.h"

namespace mt {
namespace {

std::string Scratch(const std::string& name) {
  const std::string path = testing::TempDir() + "/" +
                           testing::UnitTest::GetInstance()->current_test_info()->name() + name;
  EXPECT_TRUE(Env::Real()->RemoveTree(path).ok());
  EXPECT_TRUE(Env::Real()->CreateDirectories(path).ok());
  return path;
}

TEST(EnvTest, AtomicWriteReplacesAndLeavesNoTemporary) {
  Env* env = Env::Real();
  const std::string folder = Scratch("");
  const std::string path = JoinPath(folder, "file");
  ASSERT_TRUE(WriteFileAtomically(env, path, "one").ok());
  ASSERT_TRUE(WriteFileAtomically(env, path, "two").ok());
  EXPECT_EQ(*ReadFile(env, path), "two");
  EXPECT_THAT(*env->List(folder), testing::ElementsAre("file"));
}

TEST(EnvTest, ErrorsNameThePath) {
  const auto missing = ReadFile(Env::Real(), "/nowhere/at/all");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), testing::HasSubstr("/nowhere/at/all"));
}

TEST(EnvTest, AWriteChangesTheTimeOfModification) {
  Env* env = Env::Real();
  const std::string path = JoinPath(Scratch(""), "file");
  ASSERT_TRUE(WriteFileAtomically(env, path, "one").ok());
  const int64_t before = env->Stat(path)->modified_ns;
  EXPECT_GT(before, 0);
  EXPECT_EQ(env->Stat(path)->modified_ns, before);
  std::filesystem::last_write_time(
      path, std::filesystem::last_write_time(path) + std::chrono::nanoseconds(10'000'000));
  EXPECT_NE(env->Stat(path)->modified_ns, before);
}

TEST(EnvTest, TruncateCutsAndNeverGrows) {
  Env* env = Env::Real();
  const std::string path = JoinPath(Scratch(""), "file");
  ASSERT_TRUE(WriteFileAtomically(env, path, "one two").ok());
  ASSERT_TRUE(env->Truncate(path, 3).ok());
  EXPECT_EQ(*ReadFile(env, path), "one");
  EXPECT_EQ(env->Truncate(path, 4).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(env->Truncate(path + "x", 0).code(), absl::StatusCode::kNotFound);
}

TEST(EnvTest, ASecondLockIsRefused) {
  Env* env = Env::Real();
  const std::string path = JoinPath(Scratch(""), "lock");
  auto first = env->Lock(path);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(env->Lock(path).status().code(), absl::StatusCode::kFailedPrecondition);
  first->reset();
  EXPECT_TRUE(env->Lock(path).ok());
}

TEST(HashTest, FileDigestEqualsDigestOfContents) {
  Env* env = Env::Real();
  const std::string path = JoinPath(Scratch(""), "file");
  const std::string contents(3'000'001, 'x');
  ASSERT_TRUE(WriteFileAtomically(env, path, contents).ok());
  EXPECT_EQ(*Xxh3HexOfFile(env, path), Xxh3Hex(contents));
  EXPECT_EQ(Xxh3Hex(""),
            "99aa06d3014798d86001c324468d497f");  // published XXH3-128 of the empty input
}

}  // namespace
}  // namespace mt
