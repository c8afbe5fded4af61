// How fast texts become ids: mt_tokenize_bench TOKENIZER [--threads N] [--ids FILE] [--special] FILE.docs...
//
// The files are tests/golden/tokenizers/make_corpus.py's. One pass with fresh encoders, so everything that encoders learn is
// learned within it: run again for another figure. Prints one line of JSON; loading is not in the time. With --ids the ids of
// every document go to FILE (their number as u64, then each as i32), from one thread: what compare.py compares.
#include <time.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/time/clock.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt {
namespace {

struct Options {
  std::string tokenizer, ids;
  int threads = 1;
  SpecialText special = SpecialText::kOrdinary;
  std::vector<std::string> files;
};

absl::StatusOr<Options> Parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--special") {
      options.special = SpecialText::kSpecial;
    } else if (word == "--ids" && i + 1 < argc) {
      options.ids = argv[++i];
    } else if (word == "--threads" && i + 1 < argc) {
      if (!absl::SimpleAtoi(argv[++i], &options.threads) || options.threads < 1)
        return absl::InvalidArgumentError("--threads wants a number from 1 on");
    } else if (options.tokenizer.empty()) {
      options.tokenizer = word;
    } else {
      options.files.push_back(word);
    }
  }
  if (options.files.empty())
    return absl::InvalidArgumentError(
        "usage: mt_tokenize_bench TOKENIZER [--threads N] [--ids FILE] [--special] FILE.docs...");
  return options;
}

absl::StatusOr<std::vector<absl::string_view>> Documents(absl::string_view data,
                                                         absl::string_view name) {
  std::vector<absl::string_view> documents;
  while (!data.empty()) {
    uint64_t bytes = 0;
    if (data.size() >= 8) std::memcpy(&bytes, data.data(), 8);
    if (data.size() < 8 || data.size() - 8 < bytes)
      return absl::InvalidArgumentError(
          absl::StrCat(name, " ends within a document; make_corpus.py writes such files"));
    documents.push_back(data.substr(8, bytes));
    data.remove_prefix(8 + bytes);
  }
  return documents;
}

double ThreadSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

absl::Status Run(const Options& options) {
  MT_ASSIGN_OR_RETURN(const auto tokenizer, NewTokenizer(Env::Real(), options.tokenizer));
  std::vector<std::string> contents;
  for (const std::string& file : options.files) {
    MT_ASSIGN_OR_RETURN(contents.emplace_back(), ReadFile(Env::Real(), file, uint64_t{1} << 34));
  }
  std::vector<absl::string_view> documents;
  size_t bytes = 0;
  for (size_t i = 0; i < contents.size(); ++i) {
    MT_ASSIGN_OR_RETURN(const auto more, Documents(contents[i], options.files[i]));
    documents.insert(documents.end(), more.begin(), more.end());
    for (const absl::string_view document : more) bytes += document.size();
  }
  std::ofstream ids_file;
  if (!options.ids.empty()) ids_file.open(options.ids, std::ios::binary | std::ios::trunc);

  std::atomic<size_t> next = 0, tokens = 0;
  std::vector<absl::Status> statuses(options.threads);
  std::vector<double> seconds(options.threads);
  const auto work = [&](int thread) -> absl::Status {
    const double start = ThreadSeconds();
    const auto encoder = tokenizer->NewEncoder(options.special);
    std::vector<int32_t> ids;
    for (size_t i; (i = next.fetch_add(1)) < documents.size();) {
      ids.clear();
      MT_RETURN_IF_ERROR(encoder->Encode(documents[i], &ids));
      tokens += ids.size();
      if (!ids_file.is_open()) continue;
      const uint64_t n = ids.size();
      ids_file.write(reinterpret_cast<const char*>(&n), sizeof n);
      ids_file.write(reinterpret_cast<const char*>(ids.data()),
                     static_cast<std::streamsize>(4 * n));
    }
    seconds[thread] = ThreadSeconds() - start;
    return absl::OkStatus();
  };
  const int num_threads = ids_file.is_open() ? 1 : options.threads;
  const absl::Time start = absl::Now();
  std::vector<std::thread> threads;
  for (int i = 0; i < num_threads; ++i) {
    threads.emplace_back([&, i] { statuses[i] = work(i); });
  }
  for (std::thread& thread : threads) thread.join();
  const double wall = absl::ToDoubleSeconds(absl::Now() - start);
  for (const absl::Status& status : statuses) MT_RETURN_IF_ERROR(status);
  if (ids_file.is_open() && !ids_file.flush())
    return absl::DataLossError(absl::StrCat("cannot write ", options.ids));
  double processor = 0;
  for (const double thread_seconds : seconds) processor += thread_seconds;
  std::printf(
      "{\"bytes\": %zu, \"documents\": %zu, \"tokens\": %zu, \"threads\": %d, \"seconds\": %.4f, "
      "\"cpu_seconds\": %.4f}\n",
      bytes, documents.size(), tokens.load(), num_threads, wall, processor);
  return absl::OkStatus();
}

}  // namespace
}  // namespace mt

int main(int argc, char** argv) {
  const auto options = mt::Parse(argc, argv);
  const absl::Status status = options.ok() ? mt::Run(*options) : options.status();
  if (status.ok()) return 0;
  std::cerr << "mt_tokenize_bench: " << status.message() << "\n";
  return 1;
}
