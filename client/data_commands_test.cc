// `mtctl data` as a command line: what it takes, what it refuses and how it says so, and how it goes on after a kill.
#include <pthread.h>

#include <filesystem>
#include <fstream>

#include "client/application.h"
#include "client/dataset_names.h"
#include "client/session.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/data/build/dataset_builder.h"
#include "worker/data/dataset_commit.h"
#include "worker/data/indexed_dataset.h"

namespace mt::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class DataCommandsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "data_commands." + std::to_string(getpid());
    std::filesystem::remove_all(folder_);
    std::filesystem::create_directories(folder_);
    std::filesystem::current_path(folder_);
  }
  void TearDown() override {
    std::filesystem::current_path("/");
    std::filesystem::remove_all(folder_);
  }

  struct Result {
    int code;
    std::string out, err;
  };
  // `mtctl data` with these words.
  Result Data(const std::vector<std::string>& words) {
    std::vector<const char*> argv = {"mtctl", "data"};
    for (const std::string& word : words) argv.push_back(word.c_str());
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code = RunMtctl(static_cast<int>(argv.size()), argv.data());
    std::fflush(stdout);
    return {code, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
  }
  void ExpectRefused(const std::vector<std::string>& words, int code, const std::string& reason) {
    const std::vector<std::string> before = Files();
    const Result result = Data(words);
    EXPECT_EQ(result.code, code) << result.err;
    EXPECT_THAT(result.err, HasSubstr(reason));
    EXPECT_EQ(Files(), before) << "something is left";
  }

  static void Write(const std::string& path, const std::string& text) {
    std::ofstream(path, std::ios::binary) << text;
  }
  static std::string Read(const std::string& path) {
    return ReadFile(Env::Real(), path).value_or("");
  }
  static std::vector<std::string> Files() {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator("."))
      files.push_back(entry.path().string());
    std::sort(files.begin(), files.end());
    return files;
  }
  static int64_t NumDocuments(const std::string& prefix) {
    return IndexedDataset::Open(Env::Real(), prefix).value()->num_documents();
  }

  std::string folder_;
};

TEST_F(DataCommandsTest, MergeTakesEachDatasetOnce) {
  for (const char* name : {"part1", "part2"}) {
    Write("in.jsonl", std::string(R"({"text":"of )") + name + "\"}\nbad\n");
    ASSERT_EQ(Data({"build", "in.jsonl", "--output", name}).code, 0);
  }
  std::vector<std::string> glob = {"merge", "--output", "all"};
  for (const std::string& file : Files())
    if (file.rfind("./part", 0) == 0) glob.push_back(file);
  ASSERT_EQ(glob.size(), 3u + 2 * 4) << "two files, manifest and bad lines of each";
  const Result merged = Data(glob);
  ASSERT_EQ(merged.code, 0) << merged.err;
  EXPECT_EQ(NumDocuments("all"), 2);
  ASSERT_EQ(Data({"merge", "part2.bin", "./part1", "part2", "part1.idx", "--output", "b"}).code, 0);
  EXPECT_EQ(NumDocuments("b"), 2);
  ExpectRefused({"merge", "part1", "part2", "./part1", "--output", "no"}, 5,
                "./part1 is named twice");
  ExpectRefused({"merge", "part1.idx", "part1.idx", "--output", "no"}, 5, "is named twice");
  EXPECT_THAT(*DatasetsNamed({"a.loss", "b"}), ElementsAre("a.loss", "b"));
  EXPECT_THAT(*DatasetsNamed({"a.loss", "a.idx", "a.bin"}), ElementsAre("a"));
}

TEST_F(DataCommandsTest, OptionsWithAListTakeOneValueEach) {
  Write("p.jsonl", R"({"content":"p","title":"P","more":"+"})");
  Write("q.jsonl", R"({"content":"q","title":"Q","more":"+"})");
  Write("list", "p.jsonl\n");
  Result result = Data({"build", "p.jsonl", "--text-key", "content", "q.jsonl", "--output", "a"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(NumDocuments("a"), 2);
  result = Data({"build", "--files-from", "list", "q.jsonl", "--files-from", "list", "--text-key",
                 "content", "--output", "b"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(NumDocuments("b"), 3);
  result = Data({"build", "--text-key", "content,title", "--text-key", "more", "p.jsonl",
                 "--output", "c", "-o", "json"});
  EXPECT_EQ(result.code, 0) << result.err;
  const Json list = Json::parse(result.out);
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(list[0]["prefix"], "c_content_document");
  EXPECT_EQ(list[2]["prefix"], "c_more_document");
  result = Data({"build", "p.jsonl", "--text-key", "content", "--output", "d", "-o", "json"});
  EXPECT_EQ(Json::parse(result.out)["prefix"], "d");
}

TEST_F(DataCommandsTest, OutputsAreNamedAsDatasetsAreEverywhere) {
  Write("in.txt", "text");
  std::filesystem::create_directory("o");
  for (const char* output : {"o/", "o/.bin", ".", "o/..", ""})
    ExpectRefused({"build", "in.txt", "--output", output}, 5, "is no prefix; write FOLDER/NAME");
  ASSERT_EQ(Data({"build", "in.txt", "--output", "corpus.bin"}).code, 0);
  EXPECT_TRUE(Exists(Env::Real(), "corpus.idx"));
  EXPECT_FALSE(Exists(Env::Real(), "corpus.bin.bin"));
  ExpectRefused({"build", "in.txt", "--output", "corpus.idx"}, 5, "corpus.idx exists");
  ExpectRefused({"merge", "corpus", "--output", "o/.idx"}, 5, "is no prefix");
  ExpectRefused({"split", "corpus", "--documents", "1", "--output", "o/"}, 5, "is no prefix");
  ExpectRefused({"build", "in.txt", "--output", "x", "--text-key", "text,text"}, 5,
                "--text-key text is given twice");
  ExpectRefused({"build", "in.txt", "--output", "x", "--text-key", "a/b,text"}, 5,
                "--text-key `a/b` can be no part of a file's name");
}

TEST_F(DataCommandsTest, NumbersOutOfRangeAreRefused) {
  Write("in.txt", "text");
  const auto refused = [&](const char* option, const char* value, const char* reason) {
    ExpectRefused({"build", "in.txt", "--output", "x", option, value}, 2, reason);
  };
  refused("--threads", "60000", "60000 not in range");
  refused("--threads", "-1", "-1 not in range");
  for (const char* size : {"-1", "-1KB", "0", "many", "1e30"}) {
    refused("--memory", size, "is not a size; write bytes, or such as 512MB or 10GiB");
    refused("--max-document-bytes", size, "is not a size");
  }
  ASSERT_EQ(Data({"build", "in.txt", "--output", "x", "--memory", "64MB"}).code, 0);
  ExpectRefused({"split", "x", "--size", "-1"}, 2, "is not a size");
}

// Stacks that no address space holds: the system refuses the first thread.
TEST_F(DataCommandsTest, ThreadsThatDoNotStartAreAnError) {
  Write("in.txt", "text");
  pthread_attr_t usual, huge;
  ASSERT_EQ(pthread_getattr_default_np(&usual), 0);
  ASSERT_EQ(pthread_getattr_default_np(&huge), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&huge, size_t{1} << 50), 0);
  ASSERT_EQ(pthread_setattr_default_np(&huge), 0);
  ExpectRefused({"build", "in.txt", "--output", "x", "--threads", "3"}, 5,
                "thread 1 of 3 cannot be started");
  ASSERT_EQ(pthread_setattr_default_np(&usual), 0);
}

TEST_F(DataCommandsTest, SeparatorsThatNoLineEqualsAreRefused) {
  Write("in.txt", "a\n--\nb");
  for (const char* separator : {"--\n", "\n", "--\r"}) {
    ExpectRefused({"build", "in.txt", "--output", "x", "--document-separator", separator}, 5,
                  "so that no line equals it");
  }
  ASSERT_EQ(Data({"build", "in.txt", "--output", "x", "--document-separator", "--"}).code, 0);
  EXPECT_EQ(NumDocuments("x"), 2);
}

TEST_F(DataCommandsTest, ErrorsTellWhatToDoWithFilesNotWithAClusters) {
  for (const std::vector<std::string>& words :
       std::vector<std::vector<std::string>>{{"build", "absent.txt", "--output", "x"},
                                             {"build", "--output", "x"},
                                             {"inspect", "absent"},
                                             {"verify", "absent"},
                                             {"merge", "absent", "--output", "x"}}) {
    const Result result = Data(words);
    EXPECT_NE(result.code, 0);
    EXPECT_THAT(result.err, HasSubstr("\nnext: "));
    for (const char* of_a_cluster : {"mtctl events", "certificate", "job-spec", "nodes"})
      EXPECT_THAT(result.err, Not(HasSubstr(of_a_cluster)));
  }
  for (const auto& [theirs, ours] : std::vector<std::pair<std::string, std::string>>{
           {"--input", "mtctl data build FILE... --output PREFIX"},
           {"--json-keys", "--text-key"},
           {"--workers", "--threads"},
           {"--tokenizer-model", "--tokenizer"},
           {"--thread", "--threads"}}) {
    const Result result = Data({"build", theirs, "x", "--output-prefix", "x"});
    EXPECT_EQ(result.code, kExitUsage);
    EXPECT_EQ(result.err, "mtctl: mtctl data build: there is no " + theirs +
                              "\nnext: did you mean `" + ours + "`?\n");
  }
}

TEST_F(DataCommandsTest, InspectCountsAllInputs) {
  Write("one.txt", "text");
  std::string list;
  for (int i = 0; i < 10'050; ++i) list += "one.txt\n";
  Write("list", list);
  ASSERT_EQ(Data({"build", "--files-from", "list", "--output", "x"}).code, 0);
  EXPECT_THAT(Data({"inspect", "x"}).out, HasSubstr("10050 files"));
  EXPECT_EQ(Json::parse(Data({"inspect", "x", "-o", "json"}).out)["inputs"], 10'050);
}

// Encodes 2,500 documents, and then no more.
class FailingFactory : public RecordEncoderFactory {
 public:
  explicit FailingFactory(const RecordEncoderFactory& real) : real_(real) {}
  std::unique_ptr<RecordEncoder> NewEncoder() const override {
    class Encoder : public RecordEncoder {
     public:
      explicit Encoder(std::unique_ptr<RecordEncoder> real) : real_(std::move(real)) {}
      absl::Status Encode(absl::string_view record, EncodedDocument* document) override {
        if (left_-- == 0) return absl::UnavailableError("stopped");
        return real_->Encode(record, document);
      }

     private:
      std::unique_ptr<RecordEncoder> real_;
      int left_ = 2'500;
    };
    return std::make_unique<Encoder>(real_.NewEncoder());
  }
  bool wants_json() const override { return real_.wants_json(); }
  bool appends_eod() const override { return real_.appends_eod(); }
  bool makes_loss() const override { return real_.makes_loss(); }
  std::string description() const override { return real_.description(); }
  const Tokenizer& tokenizer() const override { return real_.tokenizer(); }

 private:
  const RecordEncoderFactory& real_;
};

// A build of two keys into x_a_document and x_b_document.
class SeveralKeysTest : public DataCommandsTest {
 protected:
  void SetUp() override {
    DataCommandsTest::SetUp();
    std::string text;
    for (int i = 0; i < 5'000; ++i)
      text += absl::StrCat(R"({"a":"a document )", i, R"(","b":"another )", i, "\"}\n");
    Write("in.jsonl", text);
    command_ = {"build", "in.jsonl", "--text-key", "a,b", "--output", "x"};
  }
  Result Again(const std::vector<std::string>& more = {}) {
    std::vector<std::string> words = command_;
    words.insert(words.end(), more.begin(), more.end());
    return Data(words);
  }
  static void RemoveB() {
    for (const char* suffix : {".bin", ".idx", ".manifest.json", ".lock"})
      std::filesystem::remove(absl::StrCat("x_b_document", suffix));
  }
  // Key b as the command builds it, as far as documents are encoded: leaves what a kill leaves.
  static void StopInB() {
    const auto tokenizer = NewTokenizer(Env::Real(), "byte").value();
    const auto encoders = NewTextEncoderFactory(tokenizer.get(), true).value();
    BuildOptions options;
    options.inputs = {"in.jsonl"};
    options.output_prefix = "x_b_document";
    options.text.text_key = "b";
    options.journal_interval = absl::ZeroDuration();
    options.chunk_bytes = 4096;
    options.threads = 1;
    EXPECT_EQ(BuildDataset(Env::Real(), Clock::Real(), FailingFactory(*encoders), options)
                  .status()
                  .code(),
              absl::StatusCode::kUnavailable);
    EXPECT_TRUE(Exists(Env::Real(), BuildJournalPath("x_b_document")));
  }

  std::vector<std::string> command_;
};

TEST_F(SeveralKeysTest, NothingIsBuiltIfAnOutputIsInTheWay) {
  Write("x_b_document.idx", "something else");
  ExpectRefused(command_, 5, "x_b_document.idx exists");
  std::filesystem::remove("x_b_document.idx");
  Write("x_b_document.bin", "something else");
  ExpectRefused(command_, 5, "x_b_document.bin exists");
  std::filesystem::remove("x_b_document.bin");
  ASSERT_EQ(Data(command_).code, 0);
  ExpectRefused(command_, 5, "x_a_document.idx exists");
  EXPECT_EQ(Again({"--overwrite"}).code, 0);
}

TEST_F(SeveralKeysTest, AKillInTheSecondKeyIsGoneOnWithThere) {
  ASSERT_EQ(Data(command_).code, 0);
  const std::string whole = Read("x_b_document.bin"), index = Read("x_b_document.idx");
  for (const char* overwrite : {"", "--overwrite"}) {
    RemoveB();
    StopInB();
    const auto a_written = std::filesystem::last_write_time("x_a_document.bin");
    std::vector<std::string> more = {"-o", "json"};
    if (*overwrite != '\0') more.emplace_back(overwrite);
    const Result result = Again(more);
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.err, HasSubstr("x_a_document was finished by an earlier run"));
    EXPECT_THAT(result.err, HasSubstr("going on with an interrupted build"));
    EXPECT_EQ(std::filesystem::last_write_time("x_a_document.bin"), a_written);
    EXPECT_EQ(Read("x_b_document.bin"), whole);
    EXPECT_EQ(Read("x_b_document.idx"), index);
    const Json list = Json::parse(result.out);
    ASSERT_EQ(list.size(), 2u);
    EXPECT_EQ(list[0]["documents"], 5'000);
    EXPECT_EQ(list[0]["finished_before"], true);
    EXPECT_FALSE(list[1].contains("finished_before"));
  }
}

// Killed before the second key had a journal.
TEST_F(SeveralKeysTest, AFinishedKeyIsLeftOnlyIfItIsWhatTheCommandMakes) {
  ASSERT_EQ(Data(command_).code, 0);
  const std::string whole = Read("x_b_document.bin");
  RemoveB();
  const std::vector<std::vector<std::string>> others = {
      {"--no-append-eod"},           {"--deduplicate"},         {"--max-document-bytes", "1MB"},
      {"--document-separator", "-"}, {"--max-documents", "10"}, {"--restart"}};
  for (const std::vector<std::string>& more : others) {
    std::vector<std::string> words = command_;
    words.insert(words.end(), more.begin(), more.end());
    ExpectRefused(words, 5, "x_a_document.idx exists");
  }
  std::string changed = Read("in.jsonl");
  changed[9] = 'A';
  std::string before = Read("in.jsonl");
  Write("in.jsonl", changed);
  ExpectRefused(command_, 5, "x_a_document.idx exists");
  Write("in.jsonl", before);
  const std::string bin = Read("x_a_document.bin");
  Write("x_a_document.bin", bin.substr(1));
  ExpectRefused(command_, 5, "x_a_document.idx exists");
  Write("x_a_document.bin", bin);
  const Result result = Data(command_);
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("x_a_document was finished by an earlier run"));
  EXPECT_EQ(Read("x_b_document.bin"), whole);
}

TEST_F(SeveralKeysTest, AFinishedKeyOfTheFirstDocumentsIsKnownToo) {
  for (const char* most : {"10", "5000", "6000"}) {
    std::filesystem::remove("x_a_document.idx");
    std::filesystem::remove("x_a_document.bin");
    RemoveB();
    ASSERT_EQ(Again({"--max-documents", most}).code, 0);
    RemoveB();
    const Result result = Again({"--max-documents", most});
    EXPECT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.err, HasSubstr("x_a_document was finished")) << most;
  }
}

}  // namespace
}  // namespace mt::client
