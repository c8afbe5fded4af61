#include "worker/data/build/dataset_builder.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/dataset_verifier.h"
#include "worker/data/indexed_dataset.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The real files, with the n-th change to the file system (and all after it) refused, as if the
// program had been killed.
class DyingEnv : public Env {
 public:
  explicit DyingEnv(int changes_left) : changes_left_(changes_left) {}
  bool dead() const { return changes_left_ < 0; }

  absl::StatusOr<std::unique_ptr<WritableFile>> NewWritableFile(const std::string& path,
                                                                WriteMode mode) override {
    MT_RETURN_IF_ERROR(Change());
    MT_ASSIGN_OR_RETURN(auto file, Env::Real()->NewWritableFile(path, mode));
    return std::make_unique<DyingFile>(this, std::move(file));
  }
  absl::StatusOr<std::unique_ptr<RandomAccessFile>> NewRandomAccessFile(
      const std::string& path) override {
    return Env::Real()->NewRandomAccessFile(path);
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    MT_RETURN_IF_ERROR(Change());
    return Env::Real()->Rename(from, to);
  }
  absl::Status Truncate(const std::string& path, uint64_t size) override {
    MT_RETURN_IF_ERROR(Change());
    return Env::Real()->Truncate(path, size);
  }
  absl::Status SyncDirectory(const std::string& path) override {
    MT_RETURN_IF_ERROR(Change());
    return Env::Real()->SyncDirectory(path);
  }
  absl::Status CreateDirectories(const std::string& path) override {
    return Env::Real()->CreateDirectories(path);
  }
  absl::Status RemoveFile(const std::string& path) override {
    MT_RETURN_IF_ERROR(Change());
    return Env::Real()->RemoveFile(path);
  }
  absl::Status RemoveTree(const std::string& path) override {
    return Env::Real()->RemoveTree(path);
  }
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    return Env::Real()->List(path);
  }
  absl::StatusOr<FileInfo> Stat(const std::string& path) override {
    return Env::Real()->Stat(path);
  }
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path) override {
    return Env::Real()->Lock(path);
  }
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override {
    return Env::Real()->FreeBytes(path);
  }

 private:
  class DyingFile : public WritableFile {
   public:
    DyingFile(DyingEnv* env, std::unique_ptr<WritableFile> file)
        : env_(env), file_(std::move(file)) {}
    absl::Status Append(absl::string_view data) override {
      if (absl::Status status = env_->Change(); !status.ok()) {
        file_->Append(data.substr(0, data.size() / 2)).IgnoreError();  // a torn write
        return status;
      }
      return file_->Append(data);
    }
    absl::Status Sync() override { return file_->Sync(); }
    absl::Status Close() override { return file_->Close(); }

   private:
    DyingEnv* env_;
    std::unique_ptr<WritableFile> file_;
  };
  absl::Status Change() {
    if (changes_left_ > 0) {
      --changes_left_;
      return absl::OkStatus();
    }
    changes_left_ = -1;
    return absl::ResourceExhaustedError("the disk is full");
  }
  int changes_left_;
};

class DatasetBuilderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/dataset_builder." + std::to_string(getpid()) + "." +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
    options_.inputs = {Input("a.txt", "one"),
                       Input("b.jsonl", "{\"text\": \"two\"}\noops\n{\"text\": \"x\"}\n")};
    options_.output_prefix = folder_ + "/out/set";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string Input(const std::string& name, const std::string& contents) {
    std::ofstream(folder_ + "/" + name, std::ios::trunc) << contents;
    return folder_ + "/" + name;
  }
  absl::StatusOr<BuildResult> Build(Env* env = Env::Real()) {
    const auto encoders = NewTextEncoderFactory(tokenizer_.get(), append_eod_).value();
    return BuildDataset(env, Clock::Real(), *encoders, options_);
  }
  std::vector<std::string> Output() { return Env::Real()->List(folder_ + "/out").value(); }

  std::string folder_;
  BuildOptions options_;
  bool append_eod_ = true;
  std::unique_ptr<Tokenizer> tokenizer_ = NewTokenizer(Env::Real(), "byte").value();
};

TEST_F(DatasetBuilderTest, DocumentsComeBackAsTheyWere) {
  std::vector<int64_t> bad_lines;
  options_.on_bad_line = [&](const BadLine& bad) { bad_lines.push_back(bad.line); };
  const BuildResult result = Build().value();
  EXPECT_EQ(result.files.num_documents, 3);
  EXPECT_EQ(result.bad_lines, 1);
  EXPECT_THAT(bad_lines, ElementsAre(2));
  EXPECT_EQ(result.progress.input_bytes_done, result.progress.input_bytes_total);
  EXPECT_THAT(Output(), ElementsAre("set.bad.jsonl", "set.bin", "set.idx", "set.manifest.json"));
  const auto data = IndexedDataset::Open(Env::Real(), options_.output_prefix).value();
  EXPECT_EQ(data->type(), TokenType::kUint16);
  std::vector<int32_t> tokens(5);
  ASSERT_TRUE(data->Read(0, 0, tokens).ok());
  EXPECT_THAT(tokens, ElementsAre('o', 'n', 'e', '\n', 256));
  const DatasetReport report = VerifyDataset(Env::Real(), options_.output_prefix).value();
  EXPECT_EQ(report.largest_id, 256);
  EXPECT_EQ(report.num_tokens, 5 + 4 + 2);
  EXPECT_EQ(report.manifest->tokenizer, "byte");
  EXPECT_EQ(report.manifest->inputs.size(), 2u);
}

TEST_F(DatasetBuilderTest, StrictStopsAtTheLineAndLeavesNothing) {
  options_.strict = true;
  EXPECT_THAT(Build().status().message(), HasSubstr("b.jsonl:2: "));
  EXPECT_THAT(Output(), ElementsAre());
}

TEST_F(DatasetBuilderTest, OldDataIsKeptUnlessAsked) {
  ASSERT_TRUE(Build().ok());
  EXPECT_EQ(Build().status().code(), absl::StatusCode::kAlreadyExists);
  options_.overwrite = true;
  append_eod_ = false;
  ASSERT_TRUE(Build().ok());
  EXPECT_EQ(VerifyDataset(Env::Real(), options_.output_prefix).value().num_tokens, 4 + 3 + 1);
}

TEST_F(DatasetBuilderTest, NoTextIsAnError) {
  options_.inputs = {Input("empty.txt", "\n")};
  EXPECT_THAT(Build().status().message(), HasSubstr("no document"));
  EXPECT_THAT(Output(), ElementsAre());
}

// Stopped at any change to the files, over an older dataset: what opens is the old set or the new
// one, whole.
TEST_F(DatasetBuilderTest, WhateverStopsItNothingPassesForWhole) {
  int refused = 0;
  for (int changes = 0;; ++changes) {
    std::filesystem::remove_all(folder_ + "/out");
    options_.overwrite = true;
    append_eod_ = true;
    ASSERT_TRUE(Build().ok());
    append_eod_ = false;
    DyingEnv env(changes);
    const bool finished = Build(&env).ok();
    // The last changes only clear away; dying there is fine.
    ASSERT_TRUE(finished || env.dead());
    const absl::StatusOr<DatasetReport> report = VerifyDataset(Env::Real(), options_.output_prefix);
    if (report.ok()) {
      EXPECT_EQ(report->num_tokens, report->manifest->append_eod ? 11 : 8) << changes;
    } else {
      EXPECT_EQ(report.status().code(), absl::StatusCode::kNotFound) << changes << report.status();
      ++refused;
    }
    if (!env.dead()) break;
  }
  EXPECT_GT(refused, 0) << "the dangerous moments were never reached";
}

TEST_F(DatasetBuilderTest, VerifyFindsASingleChangedByte) {
  ASSERT_TRUE(Build().ok());
  std::fstream file(options_.output_prefix + ".bin",
                    std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(2);
  file.put('X');
  file.close();
  EXPECT_EQ(VerifyDataset(Env::Real(), options_.output_prefix).status().code(),
            absl::StatusCode::kDataLoss);
}

TEST_F(DatasetBuilderTest, VerifyFindsIdsOutsideTheVocabulary) {
  ASSERT_TRUE(Build().ok());
  EXPECT_THAT(VerifyDataset(Env::Real(), options_.output_prefix, 256).status().message(),
              HasSubstr("token id 256"));
}

}  // namespace
}  // namespace mt
