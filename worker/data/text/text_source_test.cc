#include "worker/data/text/text_source.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TextSourceTest : public ::testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }

  // Every document of a file with these contents; ends with the error, if there is one.
  std::vector<std::string> Documents(const std::string& name, const std::string& contents) {
    path_ = ::testing::TempDir() + "/text_source." + std::to_string(getpid()) + name;
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << contents;
    std::vector<std::string> documents;
    auto source = OpenTextSource(Env::Real(), path_, options_, [this](const BadLine& bad) {
                    bad_.push_back(bad);
                    return absl::OkStatus();
                  }).value();
    std::string document;
    while (true) {
      const absl::StatusOr<bool> more = source->Next(&document);
      if (!more.ok()) {
        documents.push_back("error: " + std::string(more.status().message()));
        return documents;
      }
      if (!*more) break;
      documents.push_back(document);
    }
    EXPECT_EQ(source->bytes_read(), contents.size());
    return documents;
  }

  TextSourceOptions options_;
  std::vector<BadLine> bad_;
  std::string path_;
};

TEST_F(TextSourceTest, TextFileIsOneDocument) {
  EXPECT_THAT(Documents(".txt", "one\n\ntwo\r\nthree"), ElementsAre("one\n\ntwo\nthree\n"));
  EXPECT_THAT(Documents(".txt", " \n\n"), ElementsAre());
  EXPECT_THAT(Documents(".txt", ""), ElementsAre());
}

TEST_F(TextSourceTest, SeparatorLinesCutDocuments) {
  options_.document_separator = "";
  EXPECT_THAT(Documents(".txt", "\none\ntwo\n \n\nthree\n\n"),
              ElementsAre("one\ntwo\n", "three\n"));
  options_.document_separator = "<|endoftext|>";
  EXPECT_THAT(Documents(".txt", "one\n\ntwo\n<|endoftext|>\nthree <|endoftext|>\n"),
              ElementsAre("one\n\ntwo\n", "three <|endoftext|>\n"));
}

TEST_F(TextSourceTest, LinesLongerThanTheReadBufferAreWhole) {
  const std::string line(3'000'000, 'x');
  EXPECT_THAT(Documents(".txt", line + "\nend"), ElementsAre(line + "\nend\n"));
}

TEST_F(TextSourceTest, JsonlGivesTheTextOfEveryLine) {
  EXPECT_THAT(Documents(".jsonl", R"({"id": 1, "text": "one\ntwo", "meta": {"text": "inner"}}
{"meta": [{"text": "x"}], "text": "\u4e16"}

{"text": ""}
{"text": "last"})"),
              ElementsAre("one\ntwo", "\u4e16", "last"));
  EXPECT_TRUE(bad_.empty());
  options_.text_key = "id";
  EXPECT_THAT(Documents(".jsonl", R"({"id": "a"})"), ElementsAre("a"));
}

TEST_F(TextSourceTest, BadLinesAreLocatedAndSkipped) {
  EXPECT_THAT(Documents(".jsonl",
                        "{\"text\": \"good\"}\n"
                        "{\"text\": \n"
                        "[1]\n"
                        "{\"text\": 3}\n"
                        "{\"Text\": \"x\"}\n"
                        "{\"text\": \"a\", \"text\": \"b\"}\n"
                        "{\"text\": \"\xff\"}\n"
                        "{\"text\": \"x\"} {}\n"
                        "null\n"
                        "{\"text\": {\"text\": \"x\"}}\n"
                        "{\"text\": \"also good\"}\n"),
              ElementsAre("good", "also good"));
  std::vector<int64_t> lines;
  for (const BadLine& bad : bad_) {
    lines.push_back(bad.line);
    EXPECT_EQ(bad.file, path_);
    EXPECT_FALSE(bad.reason.empty());
  }
  EXPECT_THAT(lines, ElementsAre(2, 3, 4, 5, 6, 7, 8, 9, 10));
  EXPECT_THAT(bad_[2].reason, HasSubstr("\"text\" is a number"));
  EXPECT_THAT(bad_[3].reason, HasSubstr("--text-key"));
}

TEST_F(TextSourceTest, DeepNestingIsNoTrouble) {
  EXPECT_THAT(
      Documents(".jsonl", "{\"a\": " + std::string(2'000'000, '[') + "\n{\"text\": \"x\"}\n"),
      ElementsAre("x"));
  EXPECT_EQ(bad_.size(), 1u);
}

TEST_F(TextSourceTest, DocumentsBeyondTheLimitAreRefused) {
  options_.max_document_bytes = 10;
  EXPECT_THAT(Documents(".txt", "12345\n6789\n"), ElementsAre(HasSubstr("--document-separator")));
  EXPECT_THAT(Documents(".txt", "12345678901\n"),
              ElementsAre(HasSubstr(":1: a line longer than 10")));
}

TEST_F(TextSourceTest, OtherFilesAreRefused) {
  EXPECT_THAT(OpenTextSource(Env::Real(), "x.parquet", {}, nullptr).status().message(),
              HasSubstr(".txt and .jsonl"));
  EXPECT_EQ(OpenTextSource(Env::Real(), "/nowhere/x.txt", {}, nullptr).status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace mt
