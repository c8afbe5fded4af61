#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/dataset_verifier.h"
#include "worker/data/edit/dataset_copy.h"
#include "worker/data/edit/decode.h"
#include "worker/data/edit/split_plan.h"
#include "worker/data/indexed_dataset_writer.h"
#include "worker/data/sample/sample_index.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const std::string kGolden = std::string(MT_SOURCE_DIR) + "/tests/golden/megatron_dataset/";

struct Document {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> losses;
};

class DatasetEditTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "/dataset_edit." + std::to_string(getpid()) + "." +
              ::testing::UnitTest::GetInstance()->current_test_info()->name() + "/";
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  static std::vector<Document> Documents(size_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::vector<Document> documents(n);
    for (Document& document : documents) {
      for (size_t i = random() % 40; i > 0; --i) {
        document.tokens.push_back(static_cast<int32_t>(random() % 257));
        document.losses.push_back(random() & 1);
      }
    }
    return documents;
  }

  // As a build writes it.
  void Write(const std::string& name, std::span<const Document> documents, bool with_losses,
             const std::string& tokenizer = "byte", TokenType type = TokenType::kUint16) {
    auto writer =
        IndexedDatasetWriter::Create(Env::Real(), folder_ + name, type, with_losses).value();
    for (const Document& document : documents) {
      const auto losses =
          with_losses ? std::span<const uint8_t>(document.losses) : std::span<const uint8_t>();
      ASSERT_TRUE(writer->AddDocument(document.tokens, losses).ok());
    }
    DatasetManifest manifest;
    manifest.files = writer->Seal().value();
    manifest.type = std::string(TokenTypeName(type));
    manifest.tokenizer = tokenizer;
    manifest.tokenizer_digest = tokenizer;
    manifest.vocab_size = 257;
    manifest.inputs = {{.path = name + ".txt", .bytes = 1}};
    manifest.num_inputs = 1;
    ASSERT_TRUE(writer->Commit(&manifest).ok());
  }

  absl::Status Merge(const std::vector<std::string>& prefixes, const std::string& to,
                     bool overwrite = false) {
    std::vector<DatasetSource> sources;
    for (const std::string& prefix : prefixes) {
      MT_ASSIGN_OR_RETURN(DatasetSource source, OpenDatasetSource(Env::Real(), prefix));
      sources.push_back(std::move(source));
    }
    DatasetCopy copy{.prefix = to};
    for (const DatasetSource& source : sources)
      copy.parts.push_back({&source, 0, source.data->num_documents()});
    return CopyDocuments(Env::Real(), {copy}, {.overwrite = overwrite}).status();
  }

  absl::Status Split(const std::string& name, const SplitOptions& options) {
    MT_ASSIGN_OR_RETURN(const DatasetSource source, OpenDatasetSource(Env::Real(), folder_ + name));
    MT_ASSIGN_OR_RETURN(const auto pieces, PlanSplit(*source.data, options));
    std::vector<DatasetCopy> copies;
    for (const SplitPiece& piece : pieces)
      copies.push_back({folder_ + name + "-" + piece.name, {{&source, piece.begin, piece.end}}});
    return CopyDocuments(Env::Real(), copies, {}).status();
  }

  static std::string Bytes(const std::string& path) {
    return ReadFile(Env::Real(), path).value_or("(no " + path + ")");
  }
  void ExpectEqual(const std::string& one, const std::string& other) {
    for (const char* suffix : {".bin", ".idx"})
      EXPECT_EQ(Bytes(one + suffix), Bytes(other + suffix));
    EXPECT_EQ(Exists(Env::Real(), LossPath(one)), Exists(Env::Real(), LossPath(other)));
    if (Exists(Env::Real(), LossPath(one))) {
      EXPECT_EQ(Bytes(LossPath(one)), Bytes(LossPath(other)));
    }
  }

  std::string folder_;
};

TEST_F(DatasetEditTest, MergeGivesTheBytesOfMegatronsBuilder) {
  ASSERT_TRUE(
      Merge({kGolden + "first", kGolden + "sentences", kGolden + "second"}, folder_ + "m").ok());
  ExpectEqual(folder_ + "m", kGolden + "merged");
  EXPECT_FALSE(Exists(Env::Real(), DatasetManifestPath(folder_ + "m")));
  for (const std::string name : {"wide", "small", "sentences"}) {
    ASSERT_TRUE(Merge({kGolden + name}, folder_ + name).ok());
    ExpectEqual(folder_ + name, kGolden + name);
  }
}

TEST_F(DatasetEditTest, MergeGivesTheBytesOfABuildOfAll) {
  const std::vector<Document> all = Documents(60, 1);
  const std::span<const Document> documents = all;
  Write("a", documents.first(21), true);
  Write("b", documents.subspan(21, 0), true);
  Write("c", documents.subspan(21), true);
  Write("all", documents, true);
  ASSERT_TRUE(Merge({folder_ + "a", folder_ + "b", folder_ + "c"}, folder_ + "m").ok());
  ExpectEqual(folder_ + "m", folder_ + "all");
  const DatasetReport report = VerifyDataset(Env::Real(), folder_ + "m").value();
  ASSERT_TRUE(report.manifest.has_value());
  EXPECT_EQ(report.manifest->tokenizer, "byte");
  ASSERT_EQ(report.manifest->inputs.size(), 3u);
  EXPECT_EQ(report.manifest->inputs[2].path, "c.txt");
  EXPECT_EQ(report.manifest->num_inputs, 3);
}

TEST_F(DatasetEditTest, WhatHasNoLossesHasThemEverywhere) {
  std::vector<Document> all = Documents(10, 2);
  Write("a", std::span(all).first(5), true);
  Write("b", std::span(all).subspan(5), false);
  for (size_t i = 5; i < 10; ++i) all[i].losses.assign(all[i].losses.size(), 1);
  Write("all", all, true);
  ASSERT_TRUE(Merge({folder_ + "a", folder_ + "b"}, folder_ + "m").ok());
  ExpectEqual(folder_ + "m", folder_ + "all");
}

TEST_F(DatasetEditTest, PiecesAreWhatBuildsOfThemWouldBeAndMergeToTheWhole) {
  const std::vector<Document> all = Documents(9, 3);
  Write("all", all, true);
  for (const SplitOptions& options :
       {SplitOptions{.shares = "60,20,20"}, SplitOptions{.max_documents = 4},
        SplitOptions{.max_bytes = 1}, SplitOptions{.max_bytes = 133},
        SplitOptions{.max_bytes = uint64_t{1} << 40}}) {
    const DatasetSource source = OpenDatasetSource(Env::Real(), folder_ + "all").value();
    const auto pieces = PlanSplit(*source.data, options).value();
    ASSERT_TRUE(Split("all", options).ok());
    std::vector<std::string> prefixes;
    int64_t end = 0;
    for (const SplitPiece& piece : pieces) {
      EXPECT_EQ(piece.begin, end);
      EXPECT_LT(piece.begin, piece.end);
      end = piece.end;
      prefixes.push_back(folder_ + "all-" + piece.name);
      Write("piece", std::span(all).subspan(piece.begin, piece.end - piece.begin), true);
      ExpectEqual(prefixes.back(), folder_ + "piece");
      EXPECT_TRUE(VerifyDataset(Env::Real(), prefixes.back()).ok());
      const uint64_t bytes = Bytes(prefixes.back() + ".bin").size();
      if (options.max_bytes > 0) {
        EXPECT_TRUE(bytes <= options.max_bytes || piece.end - piece.begin == 1) << bytes;
      }
      if (options.max_documents > 0) {
        EXPECT_LE(piece.end - piece.begin, options.max_documents);
      }
    }
    EXPECT_EQ(end, 9);
    ASSERT_TRUE(Merge(prefixes, folder_ + "again", true).ok());
    ExpectEqual(folder_ + "again", folder_ + "all");
    for (const std::string& prefix : prefixes)
      for (const char* suffix : {".bin", ".idx", ".loss", ".manifest.json"})
        std::filesystem::remove(prefix + suffix);
  }
}

TEST_F(DatasetEditTest, SplitKeepsSequencesInTheirDocuments) {
  std::filesystem::copy(kGolden + "merged.bin", folder_ + "merged.bin");
  std::filesystem::copy(kGolden + "merged.idx", folder_ + "merged.idx");
  ASSERT_TRUE(Split("merged", {.max_documents = 3}).ok());
  ASSERT_TRUE(Merge({folder_ + "merged-0", folder_ + "merged-1", folder_ + "merged-2",
                     folder_ + "merged-3"},
                    folder_ + "again")
                  .ok());
  ExpectEqual(folder_ + "again", kGolden + "merged");
}

TEST_F(DatasetEditTest, SharesAreCutWhereTrainingCuts) {
  Write("all", Documents(1000, 4), false);
  const auto data = IndexedDataset::Open(Env::Real(), folder_ + "all").value();
  for (const std::string shares : {"969,30,1", "1,1,1", "0.5,0,0.5", "1"}) {
    const auto ranges = SplitSequences(shares, 1000).value();
    const auto pieces = PlanSplit(*data, {.shares = shares}).value();
    size_t at = 0;
    for (const SequenceRange& range : ranges) {
      if (range.begin == range.end) continue;
      EXPECT_EQ(pieces.at(at).begin, range.begin);
      EXPECT_EQ(pieces.at(at).end, range.end);
      ++at;
    }
    EXPECT_EQ(at, pieces.size());
  }
  EXPECT_EQ(PlanSplit(*data, {.shares = "1,0,1"}).value()[1].name, "test");
  EXPECT_THAT(PlanSplit(*data, {.max_documents = 10}).value()[3].name, "03");
  for (const SplitOptions& wrong :
       {SplitOptions{}, SplitOptions{.shares = "1,1", .max_documents = 3},
        SplitOptions{.shares = "one"}, SplitOptions{.shares = "1,1,1,1"},
        SplitOptions{.shares = "1000000,1"}, SplitOptions{.max_documents = 1}}) {
    EXPECT_EQ(PlanSplit(*data, wrong).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_THAT(PlanSplit(*data, {.shares = "1000000,1"}).status().message(),
              HasSubstr("leave none for the share of 1 "));
}

TEST_F(DatasetEditTest, WhatDoesNotFitTogetherIsRefusedAndLeavesNothing) {
  const std::vector<Document> documents = Documents(5, 5);
  Write("a", documents, false);
  Write("other", documents, false, "other.model");
  Write("int32", documents, false, "byte", TokenType::kInt32);
  EXPECT_THAT(Merge({folder_ + "a", folder_ + "other"}, folder_ + "m").message(),
              HasSubstr("with tokenizer other.model"));
  EXPECT_THAT(Merge({folder_ + "a", folder_ + "int32"}, folder_ + "m").message(),
              HasSubstr("int32 has int32 tokens"));
  EXPECT_THAT(Merge({folder_ + "a"},
                    folder_ + "../" +
                        std::filesystem::path(folder_).parent_path().filename().string() + "/a",
                    true)
                  .message(),
              HasSubstr("is an input too"));
  EXPECT_THAT(Merge({}, folder_ + "m").message(), HasSubstr("no datasets"));
  EXPECT_THAT(Merge({folder_ + "a"}, folder_ + "").message(), HasSubstr("is no prefix"));
  EXPECT_EQ(Merge({folder_ + "a"}, folder_ + "other").code(), absl::StatusCode::kAlreadyExists);
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    EXPECT_THAT(entry.path().filename().string(), Not(::testing::StartsWith("m")));
}

TEST_F(DatasetEditTest, ADamagedSourceIsRefusedAndLeavesNothing) {
  Write("a", Documents(50, 6), true);
  std::fstream file(folder_ + "a.bin", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(100);
  file.put('\x01').put('\x01');
  file.close();
  for (const absl::Status& status :
       {Merge({folder_ + "a"}, folder_ + "m"), Split("a", {.max_documents = 20})}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(status.message(), HasSubstr("a.bin: digest "));
  }
  Write("b", Documents(50, 6), true);
  std::string losses = Bytes(folder_ + "b.loss");
  losses[3] = static_cast<char>(losses[3] ^ 1);
  ASSERT_TRUE(WriteFileAtomically(Env::Real(), folder_ + "b.loss", losses).ok());
  EXPECT_THAT(Merge({folder_ + "b"}, folder_ + "m").message(), HasSubstr("b.loss: digest "));
  std::filesystem::remove(folder_ + "b.loss");
  EXPECT_THAT(Merge({folder_ + "b"}, folder_ + "m").message(), HasSubstr("b.loss is missing"));
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder_))
    names.push_back(entry.path().filename().string());
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("a.bin", "a.idx", "a.loss", "a.manifest.json",
                                                     "b.bin", "b.idx", "b.manifest.json"));
}

// The manifest is what is written last.
TEST_F(DatasetEditTest, AManifestThatCannotBeWrittenLeavesTheOldDataset) {
  Write("a", Documents(50, 6), true);
  Write("old", Documents(20, 7), false);
  const DatasetReport before = VerifyDataset(Env::Real(), folder_ + "old").value();
  std::filesystem::create_directory(folder_ + "old.manifest.json.partial");  // in its way
  EXPECT_FALSE(Merge({folder_ + "a"}, folder_ + "old", true).ok());
  EXPECT_EQ(VerifyDataset(Env::Real(), folder_ + "old").value().num_tokens, before.num_tokens);
  std::filesystem::remove(folder_ + "old.manifest.json.partial");
  EXPECT_TRUE(Merge({folder_ + "a"}, folder_ + "old", true).ok());
  EXPECT_NE(VerifyDataset(Env::Real(), folder_ + "old").value().num_tokens, before.num_tokens);
}

TEST_F(DatasetEditTest, AnInterruptedBuildIsNotWrittenOver) {
  Write("a", Documents(50, 6), false);
  std::ofstream(folder_ + "half.journal.json") << "{}";
  std::ofstream(folder_ + "half.bin.partial") << "hours of work";
  EXPECT_THAT(std::string(Merge({folder_ + "a"}, folder_ + "half", true).message()),
              HasSubstr("half.journal.json: a build of this dataset was interrupted"));
  EXPECT_EQ(Bytes(folder_ + "half.bin.partial"), "hours of work");
  EXPECT_FALSE(std::filesystem::exists(folder_ + "half.lock"));
}

TEST_F(DatasetEditTest, VerifyReadsLossesToo) {
  const std::vector<Document> documents = {{{1, 2, 256}, {0, 1, 1}}, {{}, {}}, {{7, 8}, {0, 1}}};
  Write("a", documents, true);
  const DatasetReport report = VerifyDataset(Env::Real(), folder_ + "a").value();
  EXPECT_EQ(report.tokens_with_loss, 3);
  EXPECT_EQ(report.documents_of_length[0], 1);
  EXPECT_EQ(report.documents_of_length[2], 2);
  EXPECT_EQ(ScanDataset(Env::Real(), folder_ + "a", 256).value().documents_with_eod, 1);
  const std::string right = Bytes(LossPath(folder_ + "a"));
  const auto verified = [&](char flipped) {
    const std::string wrong(1, static_cast<char>(right[0] ^ flipped));
    EXPECT_TRUE(WriteFileAtomically(Env::Real(), LossPath(folder_ + "a"), wrong).ok());
    return VerifyDataset(Env::Real(), folder_ + "a").status();
  };
  EXPECT_THAT(verified(1).message(), HasSubstr(".loss has digest"));
  EXPECT_THAT(verified(0x20).message(), HasSubstr("bits behind the last token, number 4"));
  EXPECT_TRUE(verified(0).ok());
  std::filesystem::remove(LossPath(folder_ + "a"));
  EXPECT_THAT(VerifyDataset(Env::Real(), folder_ + "a").status().message(),
              HasSubstr("a.loss is missing"));
}

class DecodeTest : public DatasetEditTest {
 protected:
  absl::StatusOr<DecodeCounts> Decode(const std::string& prefix, DecodeOptions options) {
    out_.clear();
    MT_ASSIGN_OR_RETURN(const auto data, IndexedDataset::Open(Env::Real(), prefix));
    if (options.end == 0) options.end = data->num_documents();
    return DecodeDocuments(*data, tokenizer_.get(), options, [&](absl::string_view piece) {
      absl::StrAppend(&out_, piece);
      return absl::OkStatus();
    });
  }
  std::string out_;
  std::unique_ptr<Tokenizer> tokenizer_ = NewTokenizer(Env::Real(), "byte").value();
};

TEST_F(DecodeTest, DocumentsOfMegatronAreText) {
  const DecodeCounts counts = Decode(kGolden + "small", {}).value();
  EXPECT_EQ(counts.documents, 3);
  EXPECT_EQ(counts.tokens, 56);
  EXPECT_EQ(out_,
            "{\"text\":\"The quick brown fox\"}\n{\"text\":\"jumps over\"}\n"
            "{\"text\":\"the lazy dog.\\nAnd again.\"}\n");
  ASSERT_TRUE(
      Decode(kGolden + "small", {.begin = 1, .form = DecodeForm::kText, .separator = "--"}).ok());
  EXPECT_EQ(out_, "jumps over\n--\nthe lazy dog.\nAnd again.\n");
  ASSERT_TRUE(Decode(kGolden + "small", {.end = 1, .text_key = "content"}).ok());
  EXPECT_EQ(out_, "{\"content\":\"The quick brown fox\"}\n");
}

TEST_F(DecodeTest, SequencesOfADocumentAreOneLine) {
  ASSERT_TRUE(Decode(kGolden + "sentences", {.form = DecodeForm::kIds}).ok());
  std::vector<int> lengths;
  for (absl::string_view line : {absl::string_view(out_)}) {
    std::string rest(line);
    for (size_t at; (at = rest.find('\n')) != std::string::npos; rest = rest.substr(at + 1))
      lengths.push_back(1 + static_cast<int>(std::count(rest.begin(), rest.begin() + at, ' ')));
  }
  EXPECT_THAT(lengths, ElementsAre(6, 1, 9));
}

TEST_F(DecodeTest, BytesThatAreNotUtf8AreCounted) {
  Write("a", std::vector<Document>{{{'a', 0xff, 'b'}, {}}, {{'c'}, {}}}, false);
  const DecodeCounts counts = Decode(folder_ + "a", {}).value();
  EXPECT_EQ(counts.not_utf8, 1);
  EXPECT_EQ(out_,
            "{\"text\":\"a\xEF\xBF\xBD"
            "b\"}\n{\"text\":\"c\"}\n");
  ASSERT_TRUE(Decode(folder_ + "a", {.form = DecodeForm::kText}).ok());
  EXPECT_EQ(out_,
            "a\xff"
            "b\nc\n");
}

TEST_F(DecodeTest, ErrorsNameTheDocument) {
  EXPECT_THAT(Decode(kGolden + "first", {}).status().message(), HasSubstr("first: document 0: "));
  const absl::Status status = Decode(kGolden + "small", {.begin = 2, .end = 4}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(status.message(), HasSubstr("documents 2:4 do not exist; it has 3"));
}

}  // namespace
}  // namespace mt
