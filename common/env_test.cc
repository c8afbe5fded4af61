#include "common/env.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <thread>

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

// One opens the file, the holder removes it and lets go, and the other two must not hold one each.
TEST(EnvTest, ALockWhoseFileIsRemovedStillHasOneHolder) {
  Env* env = Env::Real();
  const std::string path = JoinPath(Scratch(""), "lock");
  std::atomic<int> holders = 0, taken = 0, together = 0;
  const auto work = [&] {
    while (taken < 5000) {
      const auto lock = env->Lock(path);
      if (!lock.ok()) {
        EXPECT_EQ(lock.status().code(), absl::StatusCode::kFailedPrecondition) << lock.status();
        continue;
      }
      if (++holders > 1) ++together;
      ++taken;
      --holders;
      EXPECT_TRUE(env->RemoveFile(path).ok() || together > 0);
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(together, 0);
}

TEST(EnvTest, SharedFilesFollowTheUmaskAndOthersAreTheUsersAlone) {
  const std::string folder = Scratch("");
  const auto modes = [&](Env* env, const std::string& name) {
    const std::string below = JoinPath(folder, name);
    EXPECT_TRUE(env->CreateDirectories(below).ok());
    EXPECT_TRUE(WriteFileAtomically(env, JoinPath(below, "file"), "x").ok());
    const auto lock = env->Lock(JoinPath(below, "lock"));
    std::vector<int> modes;
    for (const char* of : {"", "/file", "/lock"})
      modes.push_back(static_cast<int>(std::filesystem::status(below + of).permissions()));
    return modes;
  };
  const mode_t before = umask(027);
  EXPECT_THAT(modes(Env::Real(), "own"), testing::ElementsAre(0700, 0600, 0600));
  EXPECT_THAT(modes(Env::Real()->ForSharedFiles(), "shared"),
              testing::ElementsAre(0750, 0640, 0640));
  umask(077);
  EXPECT_THAT(modes(Env::Real()->ForSharedFiles()->ForSharedFiles(), "none"),
              testing::ElementsAre(0700, 0600, 0600));
  umask(before);
}

TEST(EnvTest, APipeIsRefusedAndNotWaitedFor) {
  const std::string path = JoinPath(Scratch(""), "pipe");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const absl::Status status = Env::Real()->NewRandomAccessFile(path).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(path + ": a pipe"));
  EXPECT_TRUE(Env::Real()->Stat(path)->is_special);
  EXPECT_FALSE(Env::Real()->Stat("/")->is_special);
}

TEST(EnvTest, ALinkAndItsTargetAreToldApart) {
  Env* env = Env::Real();
  const std::string folder = Scratch("");
  ASSERT_TRUE(WriteFileAtomically(env, JoinPath(folder, "file"), "contents").ok());
  const std::string link = JoinPath(folder, "link");
  std::filesystem::create_symlink("file", link);
  EXPECT_TRUE(env->Stat(link)->is_symlink);
  EXPECT_FALSE(env->StatTarget(link)->is_symlink);
  EXPECT_EQ(env->StatTarget(link)->size_bytes, 8u);
  EXPECT_EQ(env->StatTarget(link)->modified_ns, env->Stat(JoinPath(folder, "file"))->modified_ns);
  ASSERT_TRUE(env->RemoveFile(JoinPath(folder, "file")).ok());
  EXPECT_TRUE(env->Stat(link).ok());
  EXPECT_EQ(env->StatTarget(link).status().code(), absl::StatusCode::kNotFound);
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
