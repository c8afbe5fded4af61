#include "worker/data/text/text_source.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/match.h"
#include "common/testing/mem_env.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/text/compress.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Skippable(const std::string& note) {
  std::string frame("\x50\x2a\x4d\x18", 4);
  for (int byte = 0; byte < 4; ++byte)
    frame.push_back(static_cast<char>(note.size() >> (8 * byte)));
  return frame + note;
}

class TextSourceTest : public ::testing::Test {
 protected:
  // Every document of a file with these contents; ends with the error, if there is one.
  std::vector<std::string> Documents(const std::string& name, const std::string& contents) {
    path_ = "/in" + name;
    MemEnv env;
    EXPECT_TRUE(WriteFileAtomically(&env, path_, contents).ok());
    std::vector<std::string> documents;
    auto source = TextSource::Open(
                      &env, path_, options_,
                      [this](const BadLine& bad) {
                        bad_.push_back(bad);
                        return absl::OkStatus();
                      },
                      chunk_bytes_)
                      .value();
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
  size_t chunk_bytes_ = kChunkBytes;
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

TEST_F(TextSourceTest, DocumentsBeyondTheLimitAreLocatedAndLeftOut) {
  options_.max_document_bytes = 10;
  options_.document_separator = "--";
  EXPECT_THAT(Documents(".txt", "12345\n6789\n--\n12345\n678\n--\nend\n"),
              ElementsAre("12345\n678\n", "end\n"));
  EXPECT_THAT(Documents(".jsonl", R"({"text": "1234567890"}
{"text": "12345678901"}
{"text": "\u0031", "meta": "beside the text there may be more"})"),
              ElementsAre("1234567890", "1"));
  ASSERT_EQ(bad_.size(), 2u);
  EXPECT_EQ(bad_[0].line, 1);
  EXPECT_THAT(bad_[0].reason, HasSubstr("11 bytes, more than --max-document-bytes 10"));
  EXPECT_EQ(bad_[1].line, 2);
}

// Records that no memory should hold are passed over as they are read; what follows them is not lost.
TEST_F(TextSourceTest, RecordsBeyondAnyLimitArePassedOver) {
  options_.max_document_bytes = 1000;
  const std::string huge(MaxRecordBytes(options_) + (1 << 20), 'x');
  EXPECT_THAT(Documents(".jsonl", "{\"text\": \"a\"}\n" + huge + "\n{\"text\": \"b\"}\n" + huge),
              ElementsAre("a", "b"));
  EXPECT_THAT(Documents(".txt", huge), ElementsAre());
  options_.document_separator = "";
  EXPECT_THAT(Documents(".txt", "a\n\n" + huge + "\nx\n \nb\n"), ElementsAre("a\n", "b\n"));
  std::vector<int64_t> lines;
  for (const BadLine& bad : bad_) lines.push_back(bad.line);
  EXPECT_THAT(lines, ElementsAre(2, 4, 1, 3));
  EXPECT_THAT(bad_[2].reason, HasSubstr("--document-separator"));
}

// Wherever chunks end, the same records come out of a file, at the same lines.
TEST_F(TextSourceTest, ChunksDoNotShow) {
  std::mt19937 random(5);
  const std::vector<std::string> pieces = {"\n",
                                           "\n",
                                           "\r\n",
                                           "--\n",
                                           " \n",
                                           "x",
                                           "{\"text\": \"a\"}\n",
                                           "long line of text ",
                                           "\r",
                                           "{\"text\": \"\\u00e9\"}"};
  for (int round = 0; round < 200; ++round) {
    std::string contents;
    for (int n = random() % 60; n > 0; --n) contents += pieces[random() % pieces.size()];
    for (const absl::string_view separator : {"none", "", "--"}) {
      for (const std::string name : {".txt", ".jsonl"}) {
        options_.document_separator.reset();
        if (separator != "none") options_.document_separator = std::string(separator);
        bad_.clear();
        chunk_bytes_ = kChunkBytes;
        const std::vector<std::string> expected = Documents(name, contents);
        const std::vector<BadLine> expected_bad = bad_;
        for (const size_t chunk_bytes : {1, 2, 7, 50}) {
          chunk_bytes_ = chunk_bytes;
          bad_.clear();
          ASSERT_EQ(Documents(name, contents), expected) << contents;
          ASSERT_EQ(bad_.size(), expected_bad.size());
          for (size_t i = 0; i < bad_.size(); ++i) ASSERT_EQ(bad_[i].line, expected_bad[i].line);
        }
      }
    }
  }
}

TEST_F(TextSourceTest, PackedFilesGiveWhatTheyHold) {
  const std::string one = "{\"text\": \"one\"}\n", two = "{\"text\": \"two\"}\n";
  EXPECT_THAT(Documents(".jsonl.gz", Gzip(one) + Gzip("") + Gzip(two) + std::string(512, '\0')),
              ElementsAre("one", "two"));
  EXPECT_THAT(Documents(".jsonl.zst", Zstd(one) + Skippable("note") + Zstd("") + Zstd(two)),
              ElementsAre("one", "two"));
  EXPECT_THAT(Documents(".txt.zst", Zstd("")), ElementsAre());
  std::string long_text;
  for (uint32_t i = 0; i < 400'000; ++i) long_text += std::to_string(i * 7919 % 65536) + "\n";
  EXPECT_THAT(Documents(".txt.gz", Gzip(long_text)), ElementsAre(long_text));
  EXPECT_THAT(Documents(".txt.zst", Zstd(long_text)), ElementsAre(long_text));
}

// Wherever a packed file is cut, and whichever byte of it is changed, that is told, or nothing is lost.
TEST_F(TextSourceTest, DamageToPackedFilesIsTold) {
  const std::string text = "some text that is worth packing, worth packing\n";
  for (const bool zstd : {false, true}) {
    const std::string name = zstd ? ".txt.zst" : ".txt.gz";
    const std::string packed = zstd ? Zstd(text) : Gzip(text);
    for (size_t size = 0; size < packed.size(); ++size) {
      EXPECT_THAT(Documents(name, packed.substr(0, size)),
                  ElementsAre(HasSubstr("cut off at byte")))
          << size;
    }
    for (size_t at = 0; at < packed.size(); ++at) {
      std::string changed = packed;
      changed[at] ^= 0x10;
      const std::vector<std::string> documents = Documents(name, changed);
      ASSERT_EQ(documents.size(), 1u);
      EXPECT_TRUE(documents[0] == text || absl::StartsWith(documents[0], "error: ")) << at;
    }
    EXPECT_THAT(Documents(name, packed + "more"), ElementsAre(HasSubstr("fetch the file again")));
  }
}

TEST_F(TextSourceTest, UnpackingHasABound) {
  EXPECT_THAT(Documents(".txt.zst", Zstd(std::string(1000, 'x'), 31)),
              ElementsAre(HasSubstr("window of more than 128 MiB")));
}

// simdjson's word counts only where nlohmann's parser would say the same.
TEST(JsonLineTest, AcceptsAndGivesWhatNlohmannDoes) {
  const std::vector<std::string> lines = {
      R"({"text": "a\nb\u0041\ud83d\ude00\/"})",
      R"({"text": "\ud800"})",
      R"({"text": "\ud800\u0041"})",
      R"({"text": "\udc00"})",
      R"({"text": "\u0000"})",
      R"({"te\u0078t": "x"})",
      "{\"text\": \"\xed\xa0\x80\"}",
      "{\"text\": \"\xf4\x90\x80\x80\"}",
      "{\"text\": \"\xc0\x80\"}",
      R"({"text": "x", "n": 123456789012345678901234567890})",
      R"({"text": "x", "n": 1e999})",
      R"({"text": "x", "n": 01})",
      R"({"text": "x", "n": -})",
      R"({"text": "x",})",
      R"({"text": "x"}})",
      "\xef\xbb\xbf{\"text\": \"x\"}",
      "{\"text\": \"tab\there\"}",
      R"({"text": "\x"})",
      R"({"text": "\u12"})",
      "{\"text\": \"x\", \"deep\": " + std::string(3000, '[') + std::string(3000, ']') + "}",
      "{}",
      "\"text\"",
      "nul",
      "{",
      "",
      R"({"text": "x", "a": [1, {"text": "inner"}], "b": {"text": "}"}})",
      R"({"text": null})",
      R"({"a": "text", "text": "b"})"};
  JsonLineParser parser("text");
  for (const std::string& line : lines) {
    std::string padded = line + std::string(kTextPadding, '\0');
    absl::string_view text, raw;
    const std::string reason = parser.Text(absl::string_view(padded).substr(0, line.size()), &text);
    const auto json = nlohmann::json::parse(line, nullptr, false);
    const bool good = json.is_object() && json.contains("text") && json["text"].is_string();
    EXPECT_EQ(reason.empty(), good) << line.substr(0, 60) << ": " << reason;
    if (good) {
      EXPECT_EQ(std::string(text), json["text"].get<std::string>()) << line.substr(0, 60);
    }
    const std::string raw_reason =
        parser.RawValue(absl::string_view(padded).substr(0, line.size()), &raw);
    ASSERT_EQ(raw_reason.empty(), json.is_object() && json.contains("text"))
        << line.substr(0, 60) << ": " << raw_reason;
    if (raw_reason.empty()) {
      EXPECT_EQ(nlohmann::json::parse(raw.begin(), raw.end(), nullptr, false), json["text"]);
    }
  }
}

TEST(JsonLineTest, ANulByteIsAnErrorWhereverItStands) {
  JsonLineParser parser("text");
  for (const std::string& line : {std::string("{\"text\": \"x\"}\0", 14), std::string("\0{}", 3),
                                  std::string("{\"text\": \"\0\"}", 13)}) {
    const std::string padded = line + std::string(kTextPadding, '\0');
    absl::string_view text;
    EXPECT_THAT(parser.Text(absl::string_view(padded).substr(0, line.size()), &text),
                HasSubstr("a NUL byte"));
  }
}

TEST(JsonLineTest, RawValuesAreAsTheyStand) {
  JsonLineParser parser("m");
  for (const std::string value :
       {R"([{"a": "]}\"", "b" : 1.50}, [ ]])", "1e5", R"("x, y")", "null", "{ }"}) {
    const std::string line =
        absl::StrCat(R"({"x": [1, "m"], "m" : )", value, R"( , "z": {"m": 2}})");
    const std::string padded = line + std::string(kTextPadding, '\0');
    absl::string_view raw;
    EXPECT_EQ(parser.RawValue(absl::string_view(padded).substr(0, line.size()), &raw), "");
    EXPECT_EQ(std::string(raw), value);
  }
}

TEST(InputFilesTest, FoldersGiveTheirTextFilesInOrder) {
  MemEnv env;
  ASSERT_TRUE(env.CreateDirectories("/d/b").ok());
  for (const std::string path : {"/d/z.txt", "/d/b/2.jsonl.zst", "/d/b/10.json", "/d/.hidden.txt",
                                 "/d/x.parquet", "/d/set.manifest.json", "/d/set.bad.jsonl",
                                 "/d/set.journal.json", "/d/a.txt.gz", "/list"}) {
    ASSERT_TRUE(
        WriteFileAtomically(&env, path, "\xEF\xBB\xBF/d/z.txt\r\n \t\n/d/a.txt.gz \t\r\n").ok());
  }
  EXPECT_THAT(
      ExpandInputs(&env, {"/d/z.txt", "/d"}).value(),
      ElementsAre("/d/z.txt", "/d/a.txt.gz", "/d/b/10.json", "/d/b/2.jsonl.zst", "/d/z.txt"));
  EXPECT_THAT(ReadInputList(&env, "/list").value(), ElementsAre("/d/z.txt", "/d/a.txt.gz"));
  EXPECT_THAT(ExpandInputs(&env, {"/d/x.parquet"}).status().message(),
              HasSubstr(".txt and .jsonl"));
  EXPECT_EQ(ExpandInputs(&env, {"/nowhere"}).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(env.CreateDirectories("/empty").ok());
  EXPECT_THAT(ExpandInputs(&env, {"/empty"}).status().message(), HasSubstr("no .txt or .jsonl"));
}

TEST_F(TextSourceTest, PipesAndBrokenLinksAreNamed) {
  const std::filesystem::path folder =
      ::testing::TempDir() + "/text_source." + std::to_string(getpid());
  std::filesystem::create_directories(folder / "inner");
  std::ofstream(folder / "a.txt") << "text";
  std::filesystem::create_symlink("a.txt", folder / "b.txt");
  std::filesystem::create_symlink("inner", folder / "c.txt");
  EXPECT_THAT(ExpandInputs(Env::Real(), {folder}).value(),
              ElementsAre(folder / "a.txt", folder / "b.txt"));
  const std::string pipe = folder / "inner/x.jsonl";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& input : {folder.string(), pipe}) {
    const absl::Status status = ExpandInputs(Env::Real(), {input}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(status.message(), HasSubstr(pipe + ": a pipe"));
  }
  std::filesystem::remove(pipe);
  const std::string link = folder / "d.jsonl";
  std::filesystem::create_symlink("nowhere", link);
  for (const std::string& input : {folder.string(), link}) {
    const absl::Status status = ExpandInputs(Env::Real(), {input}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(status.message(), HasSubstr(link + ": a link to a file that is not there"));
  }
  std::filesystem::remove_all(folder);
}

TEST_F(TextSourceTest, OtherFilesAreRefused) {
  EXPECT_THAT(TextSource::Open(Env::Real(), "x.parquet", {}, nullptr).status().message(),
              HasSubstr(".txt and .jsonl"));
  EXPECT_EQ(TextSource::Open(Env::Real(), "/nowhere/x.txt", {}, nullptr).status().code(),
            absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace mt
