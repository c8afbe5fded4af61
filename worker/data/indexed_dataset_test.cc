#include "worker/data/indexed_dataset.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/escaping.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/indexed_dataset_writer.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class IndexedDatasetTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/indexed_dataset." + std::to_string(getpid()) + "." +
              ::testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
    prefix_ = folder_ + "/set";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void Put(const std::string& suffix, const std::string& bytes) {
    std::ofstream(prefix_ + suffix, std::ios::binary | std::ios::trunc) << bytes;
  }
  std::string Get(const std::string& suffix) {
    return ReadFile(Env::Real(), prefix_ + suffix).value();
  }
  // Two documents of 3 and 2 tokens.
  void PutGolden() {
    Put(".idx", golden_);
    const int32_t tokens[] = {10, 11, 12, 20, 21};
    Put(".bin", std::string(reinterpret_cast<const char*>(tokens), sizeof(tokens)));
  }
  std::string WithField(size_t offset, uint64_t value, size_t bytes) {
    std::string changed = golden_;
    std::memcpy(changed.data() + offset, &value, bytes);
    return changed;
  }
  absl::Status OpenStatus() { return IndexedDataset::Open(Env::Real(), prefix_).status(); }

  const std::string golden_ = absl::HexStringToBytes(
      "4d4d4944494458000001000000000000000402000000000000000300000000000000030000000200000000000000"
      "000000000c000000000000"
      "00000000000000000001000000000000000200000000000000");
  std::string folder_;
  std::string prefix_;
};

TEST_F(IndexedDatasetTest, ReadsMegatronsBytes) {
  ASSERT_EQ(golden_.size(), 82u);
  PutGolden();
  const auto dataset = IndexedDataset::Open(Env::Real(), prefix_).value();
  EXPECT_EQ(dataset->type(), TokenType::kInt32);
  EXPECT_EQ(dataset->num_sequences(), 2);
  EXPECT_EQ(dataset->num_documents(), 2);
  EXPECT_EQ(dataset->num_tokens(), 5);
  EXPECT_EQ(dataset->Length(0), 3);
  EXPECT_EQ(dataset->DocumentStart(2), 2);
  std::vector<int32_t> tokens(2);
  ASSERT_TRUE(dataset->Read(0, 1, tokens).ok());
  EXPECT_THAT(tokens, ElementsAre(11, 12));
  EXPECT_EQ(dataset->Read(0, 2, tokens).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(dataset->Read(2, 0, tokens).code(), absl::StatusCode::kOutOfRange);
}

TEST_F(IndexedDatasetTest, WritesMegatronsBytes) {
  auto writer = IndexedDatasetWriter::Create(Env::Real(), prefix_, TokenType::kInt32).value();
  ASSERT_TRUE(writer->AddDocument(std::vector<int32_t>{10, 11, 12}).ok());
  ASSERT_TRUE(writer->AddDocument(std::vector<int32_t>{20, 21}).ok());
  const IndexedDatasetSummary summary = writer->Seal().value();
  ASSERT_TRUE(writer->Commit().ok());
  writer.reset();
  EXPECT_EQ(Get(".idx"), golden_);
  EXPECT_EQ(summary.idx_xxh3, Xxh3Hex(golden_));
  EXPECT_EQ(summary.bin_xxh3, Xxh3Hex(Get(".bin")));
  EXPECT_THAT(Env::Real()->List(folder_).value(), ElementsAre("set.bin", "set.idx"))
      << "nothing is left behind";
}

TEST_F(IndexedDatasetTest, NothingPassesForWholeBeforeCommit) {
  auto writer = IndexedDatasetWriter::Create(Env::Real(), prefix_, TokenType::kUint16).value();
  ASSERT_TRUE(writer->AddDocument(std::vector<int32_t>{1, 2}).ok());
  EXPECT_EQ(OpenStatus().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(writer->Seal().ok());
  EXPECT_EQ(OpenStatus().code(), absl::StatusCode::kNotFound);
  writer.reset();
  EXPECT_THAT(Env::Real()->List(folder_).value(), ElementsAre());
}

TEST_F(IndexedDatasetTest, OneWriterAtATime) {
  auto writer = IndexedDatasetWriter::Create(Env::Real(), prefix_, TokenType::kUint16).value();
  const absl::Status second =
      IndexedDatasetWriter::Create(Env::Real(), prefix_, TokenType::kUint16).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(Exists(Env::Real(), prefix_ + ".bin.partial"))
      << "the second must not remove the first's files";
}

TEST_F(IndexedDatasetTest, IdsThatDoNotFitAreRefused) {
  auto writer = IndexedDatasetWriter::Create(Env::Real(), prefix_, TokenType::kUint16).value();
  EXPECT_THAT(writer->AddDocument(std::vector<int32_t>{65536}).message(),
              HasSubstr("65536 does not fit uint16"));
}

TEST_F(IndexedDatasetTest, EveryTruncationIsRefused) {
  for (size_t size = 0; size < golden_.size(); ++size) {
    PutGolden();
    Put(".idx", golden_.substr(0, size));
    EXPECT_FALSE(OpenStatus().ok()) << size;
  }
  PutGolden();
  Put(".bin", Get(".bin").substr(0, 19));
  EXPECT_EQ(OpenStatus().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(OpenStatus().message(), HasSubstr("19 bytes"));
}

TEST_F(IndexedDatasetTest, EveryWrongFieldIsNamed) {
  struct Case {
    size_t offset;
    uint64_t value;
    size_t bytes;
    const char* named;
  };
  const Case cases[] = {
      {0, 'X', 1, "magic"},
      {9, 2, 8, "version: 2"},
      {17, 0, 1, "token type: code 0"},
      {17, 7, 1, "floating point"},
      {17, 8, 1, "pointer of sequence 1: 12, but the sequence before ends at 6"},
      {18, ~uint64_t{0}, 8, "counts"},
      {18, 1, 8, "bytes after its last document entry"},
      {26, ~uint64_t{0}, 8, "counts"},
      {26, 0, 8, "bytes after its last document entry"},
      {34, 0xffffffffu, 4, "length of sequence 0: -1"},
      {38, 3, 4, "belongs to another .idx"},
      {38, 1, 4, "describes 16"},
      {42, 4, 8, "pointer of sequence 0: 4"},
      {50, ~uint64_t{0}, 8, "pointer of sequence 1: -1"},
      {58, 1, 8, "document entry 0: 1"},
      {66, 3, 8, "document entry 1: 3"},
      {74, 1, 8, "last document entry: 1"},
  };
  for (const Case& wrong : cases) {
    PutGolden();
    Put(".idx", WithField(wrong.offset, wrong.value, wrong.bytes));
    EXPECT_THAT(OpenStatus().message(), HasSubstr(wrong.named));
    EXPECT_THAT(OpenStatus().message(), HasSubstr(prefix_));
  }
}

TEST_F(IndexedDatasetTest, MissingFilesAndForeignKindsAreNamed) {
  EXPECT_THAT(OpenStatus().message(), HasSubstr("mtctl data build"));
  PutGolden();
  std::filesystem::remove(prefix_ + ".bin");
  EXPECT_EQ(OpenStatus().code(), absl::StatusCode::kNotFound);
  PutGolden();
  Put(".idx", golden_ + std::string(2, '\0'));
  EXPECT_THAT(OpenStatus().message(), HasSubstr("multimodal"));
  std::filesystem::remove(prefix_ + ".idx");
  std::filesystem::create_directory(prefix_ + ".idx");
  EXPECT_THAT(OpenStatus().message(), HasSubstr("not a regular file"));
}

TEST_F(IndexedDatasetTest, NegativeIdsAreRefusedWhenRead) {
  PutGolden();
  const int32_t tokens[] = {10, 11, -5, 20, 21};
  Put(".bin", std::string(reinterpret_cast<const char*>(tokens), sizeof(tokens)));
  const auto dataset = IndexedDataset::Open(Env::Real(), prefix_).value();
  std::vector<int32_t> out(3);
  EXPECT_EQ(dataset->Read(0, 0, out).code(), absl::StatusCode::kDataLoss);
  out.resize(2);
  EXPECT_TRUE(dataset->Read(0, 0, out).ok());
}

TEST_F(IndexedDatasetTest, FileCutDuringTheRunIsAnError) {
  PutGolden();
  const auto dataset = IndexedDataset::Open(Env::Real(), prefix_).value();
  std::filesystem::resize_file(prefix_ + ".bin", 14);
  std::vector<int32_t> out(2);
  EXPECT_THAT(dataset->Read(1, 0, out).message(), HasSubstr("ends at byte 14"));
}

TEST_F(IndexedDatasetTest, EveryWidthIsRead) {
  const auto write = [&](TokenType type, auto example) {
    using Word = decltype(example);
    const Word tokens[] = {1, 2, 127};
    std::string index = golden_.substr(0, 34);
    index[17] = static_cast<char>(type);
    index[18] = 1;
    index[26] = 2;
    const auto put = [&](auto value) {
      index.append(reinterpret_cast<const char*>(&value), sizeof(value));
    };
    put(int32_t{3});
    for (const int64_t value : {0, 0, 1}) put(value);
    Put(".idx", index);
    Put(".bin", std::string(reinterpret_cast<const char*>(tokens), sizeof(tokens)));
    const auto dataset = IndexedDataset::Open(Env::Real(), prefix_).value();
    std::vector<int32_t> out(3);
    EXPECT_TRUE(dataset->Read(0, 0, out).ok());
    EXPECT_THAT(out, ElementsAre(1, 2, 127));
  };
  write(TokenType::kUint8, uint8_t{});
  write(TokenType::kInt8, int8_t{});
  write(TokenType::kInt16, int16_t{});
  write(TokenType::kUint16, uint16_t{});
  write(TokenType::kInt32, int32_t{});
  write(TokenType::kInt64, int64_t{});
}

}  // namespace
}  // namespace mt
