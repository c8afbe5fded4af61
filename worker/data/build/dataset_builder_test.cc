#include "worker/data/build/dataset_builder.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "common/testing/mem_env.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/build/build_journal.h"
#include "worker/data/build/build_pipeline.h"
#include "worker/data/dataset_commit.h"
#include "worker/data/dataset_verifier.h"
#include "worker/data/indexed_dataset.h"
#include "worker/data/loss_file.h"
#include "worker/data/text/compress.h"

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
  absl::StatusOr<FileInfo> StatTarget(const std::string& path) override {
    return Env::Real()->StatTarget(path);
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

// Stopped at any change to the files, over an older dataset: the old set is there until nothing more can fail for want of room; then
// what opens is the old one or the new one, whole, or nothing, and the same command brings the new one.
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
      EXPECT_TRUE(
          ReadBuildJournal(Env::Real(), options_.output_prefix).value().value().sealed.has_value())
          << changes;
      ++refused;
    }
    if (!env.dead()) break;
    ASSERT_TRUE(Build().ok()) << changes;
    EXPECT_EQ(VerifyDataset(Env::Real(), options_.output_prefix).value().num_tokens, 8) << changes;
    EXPECT_THAT(Output(), ElementsAre("set.bad.jsonl", "set.bin", "set.idx", "set.manifest.json"))
        << changes;
  }
  EXPECT_GT(refused, 0) << "the dangerous moments were never reached";
}

// Downloads are often links into a cache.
TEST_F(DatasetBuilderTest, ALinkIsWhatItPointsToWhenTheBuildGoesOn) {
  std::filesystem::create_directories(folder_ + "/cache");
  const std::string target = Input("cache/blob", "one");
  std::filesystem::create_symlink(target, folder_ + "/link.txt");
  options_.inputs[0] = folder_ + "/link.txt";
  options_.journal_interval = absl::ZeroDuration();
  const std::string journal = BuildJournalPath(options_.output_prefix);
  for (int changes = 0; !Exists(Env::Real(), journal); ++changes) {
    DyingEnv env(changes);
    ASSERT_FALSE(Build(&env).ok());
    const auto found = ReadBuildJournal(Env::Real(), options_.output_prefix).value();
    if (found.has_value() && found->file == 0) std::filesystem::remove(journal);
  }
  const auto before = std::filesystem::last_write_time(target);
  Input("cache/blob", "eno");
  std::filesystem::last_write_time(target, before + std::chrono::seconds(1));
  EXPECT_THAT(std::string(Build().status().message()), HasSubstr("link.txt: has changed"));
  Input("cache/blob", "one");
  EXPECT_TRUE(Build().ok());
}

// One user builds, and those who train read.
TEST_F(DatasetBuilderTest, FilesAndFoldersFollowTheUmask) {
  const mode_t before = umask(022);
  EXPECT_TRUE(Build().ok());
  umask(before);
  const auto mode = [&](const std::string& path) {
    return static_cast<int>(std::filesystem::status(path).permissions());
  };
  EXPECT_EQ(mode(folder_ + "/out"), 0755);
  for (const std::string& name : Output()) EXPECT_EQ(mode(folder_ + "/out/" + name), 0644) << name;
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

// Texts as above; the tokens of even values have a loss. "refused" is no document, "nothing" has no tokens.
class LossFactory : public RecordEncoderFactory {
 public:
  explicit LossFactory(const Tokenizer* tokenizer) : tokenizer_(*tokenizer) {}
  class Encoder : public RecordEncoder {
   public:
    absl::Status Encode(absl::string_view record, EncodedDocument* document) override {
      document->Clear();
      if (record == "refused") return absl::InvalidArgumentError("it is refused");
      if (record == "nothing") return absl::OkStatus();
      for (const char c : record) {
        document->tokens.push_back(static_cast<unsigned char>(c));
        document->loss.push_back(c % 2 == 0 ? 1 : 0);
      }
      return absl::OkStatus();
    }
  };
  std::unique_ptr<RecordEncoder> NewEncoder() const override { return std::make_unique<Encoder>(); }
  bool wants_json() const override { return false; }
  bool appends_eod() const override { return false; }
  bool makes_loss() const override { return true; }
  std::string description() const override { return "even"; }
  const Tokenizer& tokenizer() const override { return tokenizer_; }

 private:
  const Tokenizer& tokenizer_;
};

// A corpus in memory, of all kinds of files, with bad lines and copies; and what a build of it leaves.
class BuildInMemoryTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::mt19937 random(7);
    const auto lines = [&](int count) {
      std::string text;
      for (int i = 0; i < count; ++i) {
        const uint32_t kind = random() % 12;
        if (kind == 0) {
          text += "not json\n";
        } else if (kind == 1) {
          text += "{\"text\": \"nothing\"}\n{\"text\": \"refused\"}\n";
        } else {
          text += "{\"text\": \"document " + std::to_string(random() % 40) +
                  std::string(random() % 60, 'x') + "\"}\n";
        }
      }
      return text;
    };
    std::string paragraphs;
    for (int i = 0; i < 40; ++i) paragraphs += lines(1) + (random() % 3 == 0 ? "\n" : "");
    Put("/in/a.jsonl", lines(60));
    Put("/in/b.txt", paragraphs);
    Put("/in/c.jsonl.gz", Gzip(lines(50)) + Gzip(lines(5)));
    Put("/in/d.jsonl.zst", Zstd(lines(30)) + Zstd(lines(20)));
    Put("/in/e.jsonl", "");
    Put("/in/f.txt.zst", Zstd(paragraphs));
    Put("/in/g.jsonl", lines(20));
    options_.inputs = ExpandInputs(&env_, {"/in"}).value();
    options_.text.document_separator = "";
    options_.deduplicate = true;
    options_.output_prefix = "/out/set";
    options_.chunk_bytes = 100;
    options_.journal_interval = absl::ZeroDuration();
  }
  void Put(const std::string& path, const std::string& contents) {
    ASSERT_TRUE(env_.CreateDirectories("/in").ok());
    ASSERT_TRUE(WriteFileAtomically(&env_, path, contents).ok());
  }
  absl::StatusOr<BuildResult> Build() {
    return BuildDataset(&env_, Clock::Real(), encoders_, options_);
  }
  // Every file of the output, by name.
  std::map<std::string, std::string> Output() {
    std::map<std::string, std::string> files;
    const auto names = env_.List("/out").value_or(std::vector<std::string>());
    for (const std::string& name : names) files[name] = ReadFile(&env_, "/out/" + name).value();
    return files;
  }
  void Clean() { ASSERT_TRUE(env_.RemoveTree("/out").ok()); }
  // Refuses the n-th change to the files and all that follow; returns how many there were.
  int64_t DieAfter(int64_t changes) {
    count_ = 0;
    env_.SetFault([this, changes](absl::string_view operation, const std::string&) {
      if (operation == "read" || ++count_ <= changes) return absl::OkStatus();
      return absl::UnavailableError("dead");
    });
    const bool ok = Build().ok();
    env_.SetFault(nullptr);
    return ok ? -1 : count_.load();
  }

  MemEnv env_;
  BuildOptions options_;
  std::atomic<int64_t> count_ = 0;
  std::unique_ptr<Tokenizer> tokenizer_ = NewTokenizer(Env::Real(), "byte").value();
  LossFactory encoders_{tokenizer_.get()};
};

// All that is left out counts, that is in the manifest, too, and with a limit that stands in the middle of a chunk.
class BuildOfSomeTest : public BuildInMemoryTest, public ::testing::WithParamInterface<int64_t> {};
INSTANTIATE_TEST_SUITE_P(Limits, BuildOfSomeTest, ::testing::Values(0, 25, 70, 165, 166));

TEST_P(BuildOfSomeTest, BytesDoNotDependOnThreadsNorChunksNorMemory) {
  options_.max_documents = GetParam();
  options_.threads = 1;
  options_.chunk_bytes = kChunkBytes;
  const BuildResult result = Build().value();
  if (GetParam() == 0 || GetParam() > 100) {
    EXPECT_GT(result.bad_lines, 10);
    EXPECT_GT(result.duplicates, 10);
    EXPECT_GT(result.empty_documents, 5);
  }
  const auto expected = Output();
  ASSERT_THAT(expected, ::testing::SizeIs(5));
  for (const int threads : {1, 2, 3, 8}) {
    for (const size_t chunk_bytes : {1, 50, 1000}) {
      for (const uint64_t memory : {uint64_t{0}, uint64_t{10'000}, uint64_t{1} << 30}) {
        Clean();
        options_.threads = threads;
        options_.chunk_bytes = chunk_bytes;
        options_.memory_bytes = memory;
        options_.journal_interval = memory == 0 ? absl::ZeroDuration() : absl::Hours(1);
        ASSERT_TRUE(Build().ok());
        ASSERT_EQ(Output(), expected) << threads << " threads, chunks of " << chunk_bytes;
      }
    }
  }
}

TEST_F(BuildInMemoryTest, LossesStandBesideTheirTokens) {
  ASSERT_TRUE(Build().ok());
  const std::string bin = ReadFile(&env_, "/out/set.bin").value();
  const int64_t tokens = static_cast<int64_t>(bin.size() / 2);
  const auto losses = LossFile::Open(&env_, "/out/set", tokens).value();
  std::vector<uint8_t> loss(tokens);
  ASSERT_TRUE(losses->Read(0, loss).ok());
  for (int64_t i = 0; i < tokens; ++i) ASSERT_EQ(loss[i], bin[2 * i] % 2 == 0 ? 1 : 0) << i;
}

TEST_F(BuildInMemoryTest, OfCopiesTheFirstIsKept) {
  ASSERT_TRUE(WriteFileAtomically(&env_, "/x.jsonl",
                                  "{\"text\": \"a\"}\n{\"text\": \"b\"}\n{\"text\": \"a\"}\n"
                                  "{\"x\": 1, \"text\": \"b\"}\n{\"text\": \"c\"}\n")
                  .ok());
  options_.inputs = {"/x.jsonl", "/x.jsonl"};
  const BuildResult result = Build().value();
  EXPECT_EQ(result.duplicates, 7);
  EXPECT_EQ(ReadFile(&env_, "/out/set.bin").value(), std::string("a\0b\0c\0", 6));
}

TEST_F(BuildInMemoryTest, TheFirstDocumentsAreThoseOfTheWhole) {
  ASSERT_TRUE(Build().ok());
  const std::string whole = ReadFile(&env_, "/out/set.bin").value();
  const std::string all_bad = ReadFile(&env_, "/out/set.bad.jsonl").value();
  Clean();
  options_.max_documents = 70;
  const BuildResult result = Build().value();
  EXPECT_EQ(result.files.num_documents, 70);
  const std::string part = ReadFile(&env_, "/out/set.bin").value();
  EXPECT_LT(part.size(), whole.size());
  EXPECT_TRUE(absl::StartsWith(whole, part));
  const std::string bad = ReadFile(&env_, "/out/set.bad.jsonl").value();
  EXPECT_LT(bad.size(), all_bad.size());
  EXPECT_TRUE(absl::StartsWith(all_bad, bad));
  EXPECT_EQ(std::count(bad.begin(), bad.end(), '\n'), result.bad_lines);
}

// What follows the last document that is wanted is not looked at, in its chunk or behind it.
TEST_F(BuildInMemoryTest, NothingBehindTheLastDocumentCounts) {
  Put("/x.jsonl",
      "{\"text\": \"a\"}\n{\"text\": \"nothing\"}\noops\n{\"text\": \"b\"}\n"
      "{\"text\": \"a\"}\noops\n{\"text\": \"nothing\"}\n{\"text\": \"c\"}\noops\n");
  options_.inputs = {"/x.jsonl"};
  for (const size_t chunk_bytes : {size_t{1}, size_t{30}, kChunkBytes}) {
    for (const int64_t documents : {1, 2, 3}) {
      SCOPED_TRACE(absl::StrCat(documents, " documents, chunks of ", chunk_bytes));
      Clean();
      options_.chunk_bytes = chunk_bytes;
      options_.max_documents = documents;
      options_.strict = false;
      const BuildResult result = Build().value();
      EXPECT_EQ(result.files.num_documents, documents);
      EXPECT_EQ(result.bad_lines, documents - 1);
      EXPECT_EQ(result.empty_documents, documents - 1);
      EXPECT_EQ(result.duplicates, documents == 3 ? 1 : 0);
      Clean();
      options_.strict = true;
      EXPECT_EQ(Build().ok(), documents == 1);
    }
  }
}

// Power is lost at any change to the files: what follows goes on from what was durable, and ends with the same bytes.
TEST_P(BuildOfSomeTest, WhateverIsLostTheSameBytesComeOut) {
  options_.max_documents = GetParam();
  ASSERT_TRUE(Build().ok());
  const auto expected = Output();
  std::mt19937 random(11);
  int resumed = 0;
  options_.on_resume = [&](const BuildProgress&) { ++resumed; };
  for (int round = 0; round < 30; ++round) {
    Clean();
    // Lost again and again, until it comes through.
    for (int life = 0;; ++life) {
      ASSERT_LT(life, 200);
      options_.threads = 1 + static_cast<int>(random() % 4);
      options_.chunk_bytes = 1 + random() % 300;
      if (DieAfter(static_cast<int64_t>(random() % 400)) < 0) break;
      EXPECT_FALSE(Exists(&env_, "/out/set.idx") && !Exists(&env_, "/out/set.bin"));
      if (random() % 2 == 0) {
        env_.Crash();
      } else {
        env_.KillProcess();
      }
      // It had come through but for the tidying up.
      if (Exists(&env_, "/out/set.idx") && !Exists(&env_, "/out/set.journal.json")) break;
    }
    std::map<std::string, std::string> found = Output();
    for (const auto& [name, contents] : expected) ASSERT_EQ(found[name], contents) << name;
  }
  EXPECT_GT(resumed, GetParam() == 25 ? 5 : 20);
}

// Of each change to the files from the last document on, over an old dataset and over none. Once everything is written, the same command
// finishes the build without a look at a document; with the journal gone, the dataset is whole.
TEST_F(BuildInMemoryTest, StoppedAtAnyMomentOfTheEndItIsFinished) {
  ASSERT_TRUE(Build().ok());
  const auto expected = Output();
  options_.deduplicate = false;
  Clean();
  ASSERT_TRUE(Build().ok());
  const auto old = Output();
  options_.deduplicate = true;
  options_.journal_interval = absl::Hours(1);
  int finished = 0, of_index = 0;
  for (const bool overwrite : {false, true}) {
    for (const bool crash : {false, true}) {
      for (int64_t changes = 0;; ++changes) {
        SCOPED_TRACE(absl::StrCat(overwrite ? "over an old one, " : "", crash ? "crash" : "kill",
                                  " after change ", changes));
        Clean();
        options_.overwrite = overwrite;
        if (overwrite) {
          ASSERT_TRUE(env_.CreateDirectories("/out").ok());
          for (const auto& [name, contents] : old)
            ASSERT_TRUE(WriteFileAtomically(&env_, "/out/" + name, contents).ok());
        }
        const bool ok = DieAfter(changes) < 0;
        if (crash) {
          env_.Crash();
        } else {
          env_.KillProcess();
        }
        if (ok) break;  // but for the lock's file
        const auto journal = ReadBuildJournal(&env_, "/out/set").value_or(std::nullopt);
        const bool sealed = journal.has_value() && journal->sealed.has_value();
        const std::map<std::string, std::string> left = Output();
        ASSERT_TRUE(sealed || !overwrite || left.contains("set.idx"));
        if (left.contains("set.idx") && !sealed) {
          const auto& whole = left.at("set.idx") == expected.at("set.idx") ? expected : old;
          for (const auto& [name, contents] : whole) ASSERT_EQ(left.at(name), contents) << name;
        }
        std::atomic<int> documents = 0;
        env_.SetFault([&](absl::string_view operation, const std::string& path) {
          if (operation == "read" && absl::StartsWith(path, "/in/")) ++documents;
          return absl::OkStatus();
        });
        const absl::Status status = Build().status();
        env_.SetFault(nullptr);
        if (status.code() == absl::StatusCode::kAlreadyExists) {
          ASSERT_FALSE(overwrite || sealed);
        } else {
          ASSERT_TRUE(status.ok()) << status;
          ASSERT_EQ(documents == 0, sealed);
          finished += sealed ? 1 : 0;
          of_index +=
              sealed && left.contains("set.idx") && left.at("set.idx") == expected.at("set.idx");
        }
        std::map<std::string, std::string> found = Output();
        found.erase("set.inputs.partial");
        found.erase("set.lock");
        ASSERT_EQ(found, expected);
      }
    }
  }
  EXPECT_GT(finished, 20);
  EXPECT_GT(of_index, 4) << "never stopped between PREFIX.idx and the end";
}

// A sealed build is finished only if it is that of the command, and what lies there is what it wrote.
TEST_F(BuildInMemoryTest, AJournalThatOutlivedItsDatasetIsNoBuild) {
  env_.SetFault([](absl::string_view operation, const std::string& path) {
    return operation == "remove" && absl::EndsWith(path, ".journal.json")
               ? absl::UnavailableError("dead")
               : absl::OkStatus();
  });
  ASSERT_FALSE(Build().ok());
  env_.SetFault(nullptr);
  ASSERT_TRUE(Exists(&env_, "/out/set.idx"));
  ASSERT_TRUE(Exists(&env_, "/out/set.journal.json"));
  const std::map<std::string, std::string> before = Output();
  const auto again = [&] {
    Clean();
    ASSERT_TRUE(env_.CreateDirectories("/out").ok());
    for (const auto& [name, contents] : before)
      ASSERT_TRUE(WriteFileAtomically(&env_, "/out/" + name, contents).ok());
  };
  EXPECT_TRUE(Build().ok());
  EXPECT_THAT(Output(), ::testing::SizeIs(5));
  again();
  options_.deduplicate = false;
  EXPECT_EQ(Build().status().code(), absl::StatusCode::kAlreadyExists);
  again();
  options_.overwrite = true;
  EXPECT_EQ(Build().value().duplicates, 0);
  options_.deduplicate = true;
  again();
  ASSERT_TRUE(env_.CorruptByte("/out/set.bin", 3).ok());
  EXPECT_GT(Build().value().duplicates, 0);
  EXPECT_EQ(Output().at("set.bin"), before.at("set.bin"));
  again();
  Put("/in/g.jsonl", "{\"text\": \"another\"}\n");
  ASSERT_TRUE(Build().ok());
  EXPECT_NE(Output().at("set.bin"), before.at("set.bin"));
}

TEST_F(BuildInMemoryTest, ASealedBuildThatWasDamagedIsToldAndCanBeThrownAway) {
  env_.SetFault([](absl::string_view operation, const std::string& path) {
    return operation == "rename" && absl::EndsWith(path, ".idx.partial")
               ? absl::UnavailableError("dead")
               : absl::OkStatus();
  });
  ASSERT_FALSE(Build().ok());
  env_.SetFault(nullptr);
  ASSERT_TRUE(env_.CorruptByte("/out/set.bin", 3).ok());
  EXPECT_EQ(Build().status().code(), absl::StatusCode::kDataLoss);
  options_.deduplicate = false;
  EXPECT_EQ(Build().status().code(), absl::StatusCode::kFailedPrecondition);
  options_.restart = true;
  EXPECT_TRUE(Build().ok());
}

// Thousands of inputs make a manifest that may be larger than the room that is left.
TEST_F(BuildInMemoryTest, NoRoomForTheManifestLeavesTheOldDataset) {
  ASSERT_TRUE(Build().ok());
  const auto old = Output();
  options_.overwrite = true;
  options_.inputs.clear();
  for (int i = 0; i < 1000; ++i) {
    options_.inputs.push_back(absl::StrCat("/in/", i, ".txt"));
    Put(options_.inputs.back(), absl::StrCat(i));
  }
  for (const absl::Duration interval : {absl::ZeroDuration(), absl::InfiniteDuration()}) {
    options_.journal_interval = interval;
    const uint64_t before = env_.UsedBytes();
    int refused = 0;
    for (uint64_t room = 200'000;; room += 2'000) {
      env_.SetCapacity(before + room);
      const absl::Status status = Build().status();
      if (status.ok()) break;
      ASSERT_TRUE(absl::IsResourceExhausted(status)) << status;
      for (const auto& [name, contents] : old) ASSERT_EQ(Output()[name], contents) << name;
      EXPECT_FALSE(Exists(&env_, "/out/set.manifest.json.partial"));
      EXPECT_FALSE(Exists(&env_, "/out/set.journal.json.partial"));
      refused += absl::StrContains(status.message(), ".manifest.json") ? 1 : 0;
    }
    EXPECT_GT(refused, 3);
    env_.SetCapacity(std::nullopt);
    EXPECT_NE(Output()["set.bin"], old.at("set.bin"));
    ASSERT_TRUE(env_.RemoveTree("/out").ok());
    ASSERT_TRUE(env_.CreateDirectories("/out").ok());
    for (const auto& [name, contents] : old)
      ASSERT_TRUE(WriteFileAtomically(&env_, "/out/" + name, contents).ok());
  }
}

TEST_F(BuildInMemoryTest, AFullDiskIsToldAndNothingIsLost) {
  ASSERT_TRUE(Build().ok());
  const auto expected = Output();
  Clean();
  const uint64_t inputs = env_.UsedBytes();
  int refused = 0;
  for (uint64_t room = 500;; room += 3000) {
    env_.SetCapacity(inputs + room);
    const absl::Status status = Build().status();
    if (status.ok()) break;
    ASSERT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("make room and run it again"));
    ASSERT_FALSE(Exists(&env_, "/out/set.idx"));
    ++refused;
  }
  EXPECT_GT(refused, 2);
  EXPECT_EQ(Output(), expected);
}

TEST_F(BuildInMemoryTest, WhatHasChangedSinceAKillIsRefused) {
  ASSERT_TRUE(Build().ok());
  const auto expected = Output();
  Clean();
  ASSERT_GT(DieAfter(300), 0);
  ASSERT_TRUE(Exists(&env_, "/out/set.journal.json"));
  options_.text.text_key = "other";
  EXPECT_THAT(std::string(Build().status().message()),
              HasSubstr("another text_key (`text`, now `other`)"));
  options_.text.text_key = "text";
  // No separator is not that of blank lines, in either order.
  options_.text.document_separator = std::nullopt;
  EXPECT_THAT(std::string(Build().status().message()), HasSubstr("with document_separator ``"));
  options_.text.document_separator = "";
  const std::string first = ReadFile(&env_, "/in/a.jsonl").value();
  std::string changed = first;
  changed[12] = '#';
  Put("/in/a.jsonl", changed);
  const absl::Status status = Build().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/in/a.jsonl"));
  // The same bytes are the same file, whenever they were written.
  Put("/in/a.jsonl", first);
  ASSERT_TRUE(Build().ok());
  EXPECT_EQ(Output(), expected);
}

TEST_F(BuildInMemoryTest, ASeparatorThatCameLaterIsRefused) {
  options_.text.document_separator = std::nullopt;
  ASSERT_GT(DieAfter(300), 0);
  ASSERT_TRUE(Exists(&env_, "/out/set.journal.json"));
  options_.text.document_separator = "";
  EXPECT_THAT(std::string(Build().status().message()),
              HasSubstr("another document_separator (none, now ``)"));
}

// Whose output lies among its inputs goes on all the same.
TEST_F(BuildInMemoryTest, ABuildIntoItsInputFolderGoesOn) {
  options_.output_prefix = "/in/set";
  ASSERT_GT(DieAfter(300), 0);
  ASSERT_TRUE(Exists(&env_, "/in/set.journal.json"));
  EXPECT_EQ(ExpandInputs(&env_, {"/in"}).value(), options_.inputs);
  EXPECT_TRUE(Build().ok());
  EXPECT_EQ(ExpandInputs(&env_, {"/in"}).value(), options_.inputs);
}

TEST_F(BuildInMemoryTest, RestartThrowsTheOldWorkAway) {
  ASSERT_GT(DieAfter(300), 0);
  options_.deduplicate = false;
  EXPECT_EQ(Build().status().code(), absl::StatusCode::kFailedPrecondition);
  options_.restart = true;
  EXPECT_EQ(Build().value().duplicates, 0);
}

TEST_F(BuildInMemoryTest, AnInputThatGrowsWhileItIsReadEndsTheBuild) {
  ASSERT_GT(DieAfter(300), 0);
  options_.on_resume = [this](const BuildProgress&) {  // all inputs have been looked at
    Put("/in/g.jsonl", ReadFile(&env_, "/in/g.jsonl").value() + "{\"text\": \"late\"}\n");
  };
  EXPECT_THAT(std::string(Build().status().message()),
              HasSubstr("build again when nobody writes to it"));
}

TEST_F(BuildInMemoryTest, ABuildThatAnotherOneKeepsOutTakesNothingOfItsAway) {
  ASSERT_GT(DieAfter(300), 0);
  const std::map<std::string, std::string> before = Output();
  ASSERT_TRUE(before.contains("set.journal.json"));
  options_.restart = true;
  {
    const auto lock = env_.Lock("/out/set.lock").value();
    EXPECT_THAT(std::string(Build().status().message()), HasSubstr("another process"));
    EXPECT_EQ(Output(), before);
  }
  EXPECT_TRUE(Build().ok());
}

TEST_F(BuildInMemoryTest, DamageToWhatWasWrittenIsFound) {
  ASSERT_GT(DieAfter(300), 0);
  ASSERT_TRUE(env_.CorruptByte("/out/set.bin.partial", 3).ok());
  const absl::Status status = Build().status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("--restart"));
}

// The error is the first in the order of the documents, whichever thread meets its own first.
TEST_F(BuildInMemoryTest, TheFirstErrorIsTheOneThatIsTold) {
  const std::string packed = ReadFile(&env_, "/in/c.jsonl.gz").value();
  Put("/in/c.jsonl.gz", packed.substr(0, packed.size() - 20));
  Put("/in/g.jsonl", "oops\n");
  for (const int threads : {1, 8}) {
    options_.threads = threads;
    const absl::Status status = Build().status();
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(std::string(status.message()), HasSubstr("/in/c.jsonl.gz: cut off"));
    options_.restart = true;
  }
}

TEST_F(BuildInMemoryTest, LargeRecordsTakeTurnsAndNothingHangs) {
  std::string large =
      "{\"text\": \"" + std::string(ChunkReader::kLargeBytes, 'y') + "\"}\n{\"text\": \"z\"}\n";
  Put("/in/a.jsonl", large);
  Put("/in/e.jsonl", large);
  options_.chunk_bytes = kChunkBytes;
  options_.deduplicate = false;
  options_.threads = 4;
  options_.memory_bytes = 1000;
  options_.journal_interval = absl::Hours(1);
  EXPECT_GT(Build().value().files.num_tokens, 2 * static_cast<int64_t>(ChunkReader::kLargeBytes));
}

// Refuses everything, and counts.
class RefusingFactory : public LossFactory {
 public:
  using LossFactory::LossFactory;
  class Encoder : public RecordEncoder {
   public:
    explicit Encoder(std::atomic<int64_t>* refused) : refused_(*refused) {}
    absl::Status Encode(absl::string_view, EncodedDocument*) override {
      ++refused_;
      return absl::InvalidArgumentError("it is refused");
    }

   private:
    std::atomic<int64_t>& refused_;
  };
  std::unique_ptr<RecordEncoder> NewEncoder() const override {
    return std::make_unique<Encoder>(&refused_);
  }
  int64_t refused() const { return refused_; }

 private:
  mutable std::atomic<int64_t> refused_ = 0;
};

// Bad lines take memory too: readers that met nothing else must wait for a slow writer all the same.
TEST_F(BuildInMemoryTest, MemoryHoldsWhereAllLinesAreBad) {
  constexpr int64_t kLines = 400;
  constexpr size_t kLineBytes = 10'000;
  std::string text;
  for (int64_t i = 0; i < kLines; ++i)
    text += "{\"text\": \"" + std::string(kLineBytes, 'x') + "\"}\n";
  Put("/in/a.jsonl", text);
  options_.inputs = {"/in/a.jsonl"};
  options_.threads = 4;
  options_.chunk_bytes = kLineBytes;
  options_.memory_bytes = 20 * kLineBytes;
  options_.deduplicate = false;
  const RefusingFactory encoders(tokenizer_.get());
  BuildPipeline pipeline(&env_, Clock::Real(), encoders, options_, TokenType::kUint16, 0, {},
                         nullptr);
  int64_t written = 0, most = 0;
  while (true) {
    const std::optional<EncodedChunk> chunk = pipeline.Next(absl::Seconds(1)).value();
    if (!chunk.has_value()) continue;
    if (!chunk->file_xxh3.empty()) break;
    written += static_cast<int64_t>(chunk->bad.size());
    // As slow a writer as it takes for the readers to come as far as they may.
    int64_t refused = -1;
    for (int still = 0; still < 2000 && encoders.refused() < kLines; ++still) {
      if (encoders.refused() != refused) still = 0;
      refused = encoders.refused();
      std::this_thread::yield();
    }
    most = std::max(most, encoders.refused() - written);
  }
  EXPECT_EQ(written, kLines);
  EXPECT_GE(most, 10);
  EXPECT_LE(most, 20 + 2 * options_.threads);  // each thread one chunk of two lines more
}

}  // namespace
}  // namespace mt
