// A node's cache and what fills it, against sources in memory, in virtual time, on a disk that fills, rots and crashes.
#include "worker/agent/dataset_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/testing/mem_env.h"
#include "common/testing/sim_event_loop.h"

namespace mt {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr size_t kPiece = 1000;

// Sources by endpoint: "" is the coordinator.
class FakeTransport : public DatasetTransport {
 public:
  struct Source {
    std::map<std::string, std::string> files;  // by digest
    absl::Status trouble;                      // instead of any answer
    size_t breaks_after = SIZE_MAX;            // pieces of one stream
    bool breaks_silently = false;              // its end is not heard of
    std::string gives_instead;                 // bytes that are not those of the digest
  };
  explicit FakeTransport(EventLoop* loop) : loop_(loop) {}
  struct Stream : DatasetStream {
    ~Stream() override { *alive = false; }
    std::shared_ptr<bool> alive = std::make_shared<bool>(true);
  };
  std::unique_ptr<DatasetStream> Read(const std::string& endpoint, const std::string& digest,
                                      int64_t offset,
                                      std::function<void(const v1::FilePiece&)> on_piece,
                                      std::function<void(absl::Status)> on_end) override {
    auto stream = std::make_unique<Stream>();
    asked.emplace_back(endpoint, offset);
    const Source& source = sources[endpoint];
    absl::Status end = source.trouble;
    std::string contents;
    if (end.ok()) {
      const auto file = source.files.find(digest);
      if (file == source.files.end()) {
        end = absl::NotFoundError("not here");
      } else {
        contents = source.gives_instead.empty() ? file->second : source.gives_instead;
      }
    }
    absl::Duration delay = absl::Milliseconds(1);
    size_t pieces = 0;
    for (size_t at = offset; at < contents.size() && end.ok(); at += kPiece) {
      if (pieces++ == source.breaks_after) {
        if (source.breaks_silently) return stream;
        end = absl::UnavailableError("connection reset");
        break;
      }
      v1::FilePiece piece;
      piece.set_offset(static_cast<int64_t>(at));
      piece.set_data(contents.substr(at, kPiece));
      piece.set_total_bytes(static_cast<int64_t>(contents.size()));
      loop_->After(delay, [alive = stream->alive, on_piece, piece] {
        if (*alive) on_piece(piece);
      });
      delay += absl::Milliseconds(1);
    }
    loop_->After(delay, [alive = stream->alive, on_end, end] {
      if (*alive) on_end(end);
    });
    return stream;
  }
  std::map<std::string, Source> sources;
  std::vector<std::pair<std::string, int64_t>> asked;

 private:
  EventLoop* const loop_;
};

class DatasetStoreTest : public ::testing::Test {
 protected:
  DatasetStoreTest() {
    Add("/far/a", "a", 5500);
    Start();
  }
  ~DatasetStoreTest() override { Stop(); }

  void Start(int64_t limit = 100'000) {
    loop_ = std::make_unique<SimEventLoop>(&scheduler_);
    auto cache = DatasetCache::Open(&env_, "/cache", limit);
    ASSERT_TRUE(cache.ok()) << cache.status();
    cache_ = std::move(*cache);
    transport_ = std::make_unique<FakeTransport>(loop_.get());
    transport_->sources[""].files = files_;
    store_ = std::make_unique<DatasetStore>(loop_.get(), loop_.get(), &env_, random_.get(),
                                            transport_.get(), cache_.get());
  }
  void Stop() {
    store_ = nullptr;
    transport_ = nullptr;
    cache_ = nullptr;
    loop_ = nullptr;
  }
  void Run(absl::Duration time = absl::Seconds(1)) { scheduler_.RunUntil(scheduler_.now() + time); }
  void AddFile(const std::string& path, const std::string& contents) {
    v1::DatasetFile file;
    file.set_path(path);
    file.set_bytes(static_cast<int64_t>(contents.size()));
    file.set_xxh3_128(Xxh3Hex(contents));
    files_[file.xxh3_128()] = contents;
    datasets_[path.substr(0, path.rfind('.'))].push_back(file);
  }
  void Add(const std::string& prefix, const std::string& seed, size_t bytes) {
    std::string bin;
    while (bin.size() < bytes) absl::StrAppend(&bin, seed, bin.size(), ";");
    bin.resize(bytes);
    AddFile(prefix + ".bin", bin);
    AddFile(prefix + ".idx", "index of " + seed);
  }
  std::string DigestOf(const std::string& prefix, int file = 0) {
    return datasets_[prefix][file].xxh3_128();
  }
  void Ask(const std::string& job, const std::string& prefix,
           std::vector<std::string> endpoints = {}) {
    store_->Provide({job, 1, datasets_[prefix], std::move(endpoints)},
                    [this, job](absl::StatusOr<ProvidedDatasets> answer) {
                      EXPECT_FALSE(answers_.contains(job));
                      answers_.emplace(job, std::move(answer));
                    });
  }
  std::string LocalPrefix(const std::string& job, const std::string& prefix) {
    const auto it = answers_.find(job);
    if (it == answers_.end() || !it->second.ok()) return "";
    return it->second->local_prefix.at(prefix);
  }
  absl::Status StatusOf(const std::string& job) {
    const auto it = answers_.find(job);
    return it == answers_.end() ? absl::UnknownError("no answer") : it->second.status();
  }
  void ExpectWhole(const std::string& job, const std::string& prefix) {
    const std::string local = LocalPrefix(job, prefix);
    ASSERT_NE(local, "") << StatusOf(job);
    for (const v1::DatasetFile& file : datasets_[prefix]) {
      const auto contents = ReadFile(&env_, local + file.path().substr(prefix.size()));
      ASSERT_TRUE(contents.ok()) << contents.status();
      EXPECT_EQ(*contents, files_[file.xxh3_128()]);
    }
  }

  SimScheduler scheduler_;
  MemEnv env_;
  std::unique_ptr<Random> random_ = NewSeededRandom(3);
  std::map<std::string, std::string> files_;  // all there are, by digest
  std::map<std::string, std::vector<v1::DatasetFile>> datasets_;
  std::unique_ptr<SimEventLoop> loop_;
  std::unique_ptr<DatasetCache> cache_;
  std::unique_ptr<FakeTransport> transport_;
  std::unique_ptr<DatasetStore> store_;
  std::map<std::string, absl::StatusOr<ProvidedDatasets>> answers_;
};

TEST_F(DatasetStoreTest, FilesComeFromNodesFirstAndAreWhole) {
  transport_->sources["n2:1"].files = files_;
  Ask("j", "/far/a", {"n1:1", "n2:1"});
  Run();
  ExpectWhole("j", "/far/a");
  EXPECT_EQ(answers_.at("j")->bytes_fetched, answers_.at("j")->bytes_from_nodes);
  EXPECT_GT(answers_.at("j")->bytes_fetched, 5500);
  for (const auto& [endpoint, offset] : transport_->asked) EXPECT_NE(endpoint, "");
}

TEST_F(DatasetStoreTest, WhatIsInTheCacheIsNotFetchedAgainAlsoByAnotherName) {
  Ask("j", "/far/a");
  Run();
  transport_->asked.clear();
  for (v1::DatasetFile file : datasets_["/far/a"]) {
    file.set_path("/other/name" + file.path().substr(6));
    datasets_["/other/name"].push_back(file);
  }
  Ask("k", "/other/name");
  Run();
  EXPECT_THAT(transport_->asked, IsEmpty());
  EXPECT_EQ(LocalPrefix("k", "/other/name"), LocalPrefix("j", "/far/a"));
}

TEST_F(DatasetStoreTest, ABrokenStreamGoesOnWhereItStopped) {
  transport_->sources[""].breaks_after = 2;
  Ask("j", "/far/a");
  Run(absl::Minutes(1));
  ExpectWhole("j", "/far/a");
  EXPECT_EQ(answers_.at("j")->bytes_fetched,
            static_cast<int64_t>(5500 + files_[DigestOf("/far/a", 1)].size()))
      << "nothing came twice";
}

TEST_F(DatasetStoreTest, ADaemonThatDiedGoesOnBehindItsPart) {
  transport_->sources[""].breaks_after = 3;
  Ask("j", "/far/a");
  Run(absl::Milliseconds(100));
  ASSERT_FALSE(answers_.contains("j"));
  Stop();
  env_.KillProcess();
  Start();
  Ask("j", "/far/a");
  Run();
  ExpectWhole("j", "/far/a");
  EXPECT_EQ(transport_->asked.back().second % kPiece, 0);
  EXPECT_LT(answers_.at("j")->bytes_fetched, 5500);
}

TEST_F(DatasetStoreTest, PowerLossLeavesNothingThatIsTakenForWhole) {
  Ask("j", "/far/a");
  for (int i = 0; i < 40; ++i) {  // at every moment of the fetch
    Run(absl::Milliseconds(0.5));
    Stop();
    answers_.clear();
    env_.Crash();
    Start();
    Ask("j", "/far/a");
  }
  Run(absl::Seconds(30));
  ExpectWhole("j", "/far/a");
}

TEST_F(DatasetStoreTest, AwayIsWaitedForAndSaid) {
  transport_->sources[""].trouble = absl::UnavailableError("connection refused");
  Ask("j", "/far/a");
  Run(absl::Minutes(30));
  EXPECT_FALSE(answers_.contains("j"));
  ASSERT_EQ(store_->Progress().size(), 1u);
  EXPECT_THAT(store_->Progress()[0].waits_for(), HasSubstr("the coordinator: connection refused"));
  EXPECT_LT(transport_->asked.size(), 600u) << "with back-off";
  transport_->sources[""].trouble = absl::OkStatus();
  Run(absl::Seconds(30));
  ExpectWhole("j", "/far/a");
  EXPECT_THAT(store_->Progress(), IsEmpty());
}

TEST_F(DatasetStoreTest, AWrongDigestIsFetchedOnceMoreThenAnError) {
  transport_->sources[""].gives_instead = std::string(5500, 'x');
  AddFile("/far/w.bin", std::string(5500, 'y'));
  AddFile("/far/w.idx", std::string(5500, 'z'));
  transport_->sources[""].files = files_;
  Ask("j", "/far/w");
  Run(absl::Minutes(1));
  EXPECT_TRUE(absl::IsDataLoss(StatusOf("j"))) << StatusOf("j");
  EXPECT_THAT(std::string(StatusOf("j").message()), HasSubstr("Submit the job again"));
  transport_->sources[""].gives_instead.clear();
  answers_.clear();
  Ask("j", "/far/w");
  Run(absl::Minutes(1));
  ExpectWhole("j", "/far/w");
}

TEST_F(DatasetStoreTest, AfterAWrongDigestOfANodeTheCoordinatorIsAsked) {
  AddFile("/far/w.bin", std::string(5500, 'y'));
  AddFile("/far/w.idx", std::string(5500, 'z'));
  transport_->sources[""].files = files_;
  for (const char* node : {"n1:1", "n2:1"}) {
    transport_->sources[node].files = files_;
    transport_->sources[node].gives_instead = std::string(5500, 'x');
  }
  Ask("j", "/far/w", {"n1:1", "n2:1"});
  Run(absl::Minutes(1));
  ExpectWhole("j", "/far/w");
}

TEST_F(DatasetStoreTest, ANodeThatIsBusyMayHaveWhatTheCoordinatorHasNoMore) {
  transport_->sources[""].trouble = absl::DataLossError("/far/a.bin: No such file");
  transport_->sources["n1:1"].files = files_;
  transport_->sources["n1:1"].trouble = absl::ResourceExhaustedError("gives files to 4 already");
  Ask("j", "/far/a", {"n1:1"});
  Run(absl::Minutes(5));
  EXPECT_FALSE(answers_.contains("j"));
  transport_->sources["n1:1"].trouble = absl::OkStatus();
  Run(absl::Seconds(30));
  ExpectWhole("j", "/far/a");
}

TEST_F(DatasetStoreTest, ASourceThatFallsSilentIsLeftForTheNext) {
  transport_->sources["n1:1"].files = files_;
  transport_->sources["n1:1"].breaks_after = 2;
  transport_->sources["n1:1"].breaks_silently = true;
  Ask("j", "/far/a", {"n1:1"});
  Run(absl::Minutes(3));
  ExpectWhole("j", "/far/a");
}

TEST_F(DatasetStoreTest, WhatIsTouchedWhileTheRestComesIsLookedAtAgain) {
  Ask("j", "/far/a");
  for (int i = 0; i < 1000 && transport_->asked.size() < 2; ++i) Run(absl::Milliseconds(1));
  ASSERT_EQ(transport_->asked.size(), 2u) << "one file is whole, the other on its way";
  int removed = 0;
  const std::vector<std::string> keys = env_.List("/cache").value();
  for (const std::string& key : keys) {
    for (const char* name : {"data.bin", "data.idx"})
      removed += env_.RemoveFile(absl::StrCat("/cache/", key, "/", name)).ok();
  }
  ASSERT_EQ(removed, 1);
  Run(absl::Minutes(1));
  ExpectWhole("j", "/far/a");
}

TEST_F(DatasetStoreTest, AFileThatIsGoneAtTheCoordinatorIsAnErrorUnlessANodeHasIt) {
  transport_->sources[""].trouble = absl::DataLossError("/far/a.bin: No such file");
  transport_->sources["n1:1"].files = files_;
  Ask("j", "/far/a", {"n1:1"});
  Ask("k", "/far/a");
  Run();
  ExpectWhole("j", "/far/a");
  Add("/far/b", "b", 2000);
  Ask("l", "/far/b", {"n1:1"});
  Run();
  EXPECT_TRUE(absl::IsDataLoss(StatusOf("l")));
  EXPECT_THAT(std::string(StatusOf("l").message()), HasSubstr("/far/a.bin: No such file"));
}

TEST_F(DatasetStoreTest, AChangedFileOfTheCacheIsFetchedAgain) {
  Ask("j", "/far/a");
  Run();
  const std::string path = LocalPrefix("j", "/far/a") + ".bin";
  store_->Release("j", 1);
  Run();
  std::string damaged = *ReadFile(&env_, path);
  damaged[77] ^= 1;
  ASSERT_TRUE(WriteFileAtomically(&env_, path, damaged).ok());
  EXPECT_EQ(cache_->FindServed(DigestOf("/far/a")), "") << "nor given to others";
  answers_.clear();
  Ask("j", "/far/a");
  Run();
  ExpectWhole("j", "/far/a");
  EXPECT_EQ(cache_->FindServed(DigestOf("/far/a")), path);
}

TEST_F(DatasetStoreTest, WithoutItsRecordAWholeFileIsDigestedNotFetched) {
  Ask("j", "/far/a");
  Run();
  const std::string local = LocalPrefix("j", "/far/a");
  Stop();
  ASSERT_TRUE(env_.RemoveFile(local.substr(0, local.rfind('/')) + "/record").ok());
  answers_.clear();
  Start();
  EXPECT_EQ(cache_->FindServed(DigestOf("/far/a")), "");
  Ask("j", "/far/a");
  Run();
  ExpectWhole("j", "/far/a");
  EXPECT_THAT(transport_->asked, IsEmpty());
}

TEST_F(DatasetStoreTest, TheLeastRecentlyUsedGoesAndWhatIsUsedStays) {
  for (const char* name : {"b", "c", "d"}) Add(absl::StrCat("/far/", name), name, 5000);
  Stop();
  Start(16'500);  // three of them
  for (const char* name : {"a", "b", "c"}) {
    Ask(name, absl::StrCat("/far/", name));
    Run();
    ExpectWhole(name, absl::StrCat("/far/", name));
  }
  store_->Release("b", 1);
  Run(absl::Seconds(5));
  store_->Release("c", 1);
  Run();
  Ask("d", "/far/d");
  Run();
  ExpectWhole("d", "/far/d");
  EXPECT_NE(cache_->FindServed(DigestOf("/far/a")), "") << "in use, though the oldest";
  EXPECT_EQ(cache_->FindServed(DigestOf("/far/b")), "");
  EXPECT_NE(cache_->FindServed(DigestOf("/far/c")), "");
  EXPECT_LE(store_->CachedBytes(), 16'500);
}

TEST_F(DatasetStoreTest, MoreThanTheCacheMayHoldIsAnError) {
  Stop();
  Start(5000);
  Ask("j", "/far/a");
  Run();
  EXPECT_TRUE(absl::IsFailedPrecondition(StatusOf("j")));
  EXPECT_THAT(
      std::string(StatusOf("j").message()),
      HasSubstr("has 5510 bytes, the cache of datasets of this node may have 5000 bytes; raise "
                "data_cache="));
}

TEST_F(DatasetStoreTest, WhatIsWholeInTheCacheIsUsedUnderASmallerLimit) {
  Ask("j", "/far/a");
  Run();
  ExpectWhole("j", "/far/a");
  Stop();
  answers_.clear();
  Start(5000);
  Ask("j", "/far/a");
  Run();
  ExpectWhole("j", "/far/a");
}

TEST_F(DatasetStoreTest, HalfOfTheDiskStaysWhatItWasWhenOthersFillIt) {
  Stop();
  env_.SetCapacity(env_.UsedBytes() + 20'000);
  Start(0);
  const int64_t limit = cache_->limit_bytes();
  EXPECT_NEAR(limit, 10'000, 100);
  Stop();
  env_.SetCapacity(env_.UsedBytes() + 12'000);
  Start(0);
  EXPECT_EQ(cache_->limit_bytes(), limit);
  Stop();
  env_.SetCapacity(env_.UsedBytes() + 40'000);
  Start(0);
  EXPECT_NEAR(cache_->limit_bytes(), 20'000, 100);
}

TEST_F(DatasetStoreTest, RoomThatOthersHoldIsWaitedForAndSaid) {
  Add("/far/b", "b", 5000);
  Stop();
  Start(8000);
  Ask("j", "/far/a");
  Run();
  Ask("k", "/far/b");
  Run(absl::Minutes(1));
  EXPECT_FALSE(answers_.contains("k"));
  ASSERT_EQ(store_->Progress().size(), 1u);
  EXPECT_THAT(store_->Progress()[0].waits_for(), HasSubstr("jobs that run here hold"));
  store_->Release("j", 1);
  Run();
  ExpectWhole("k", "/far/b");
}

TEST_F(DatasetStoreTest, AFullDiskIsWaitedForAndSaid) {
  env_.SetCapacity(env_.UsedBytes() + 3000);
  Ask("j", "/far/a");
  Run();
  ASSERT_EQ(store_->Progress().size(), 1u);
  EXPECT_THAT(store_->Progress()[0].waits_for(),
              HasSubstr("the disk of /cache has 3000 bytes free"));
  env_.SetCapacity(std::nullopt);
  Run(absl::Seconds(10));
  ExpectWhole("j", "/far/a");
}

TEST_F(DatasetStoreTest, ADiskThatFillsMeanwhileKeepsThePart) {
  Ask("j", "/far/a");
  Run(absl::Milliseconds(3));
  env_.SetCapacity(env_.UsedBytes() + 500);
  Run(absl::Minutes(1));
  ASSERT_EQ(store_->Progress().size(), 1u);
  EXPECT_THAT(store_->Progress()[0].waits_for(), HasSubstr("No space left"));
  env_.SetCapacity(std::nullopt);
  Run(absl::Seconds(30));
  ExpectWhole("j", "/far/a");
}

TEST_F(DatasetStoreTest, ReleaseEndsAFetchWithoutAWordAndTwoJobsShareOne) {
  Ask("j", "/far/a");
  Ask("k", "/far/a");
  Run(absl::Milliseconds(3));
  store_->Release("j", 1);
  Run();
  EXPECT_FALSE(answers_.contains("j"));
  ExpectWhole("k", "/far/a");
  EXPECT_EQ(transport_->asked.size(), 2u) << "each file once";
  Add("/far/b", "b", 9000);
  transport_->sources[""].files = files_;
  Ask("l", "/far/b");
  Run(absl::Milliseconds(3));
  store_->Release("l", 1);
  Run();
  EXPECT_FALSE(answers_.contains("l"));
  EXPECT_THAT(store_->Progress(), IsEmpty());
}

TEST_F(DatasetStoreTest, NamesAndDigestsThatAreNoneAreRefused) {
  datasets_["/x"] = datasets_["/far/a"];
  datasets_["/x"][0].set_path("/far/a.sh");
  Ask("j", "/x");
  datasets_["/y"] = {datasets_["/far/a"][0]};
  Ask("k", "/y");
  datasets_["/z"] = datasets_["/far/a"];
  datasets_["/z"][1].set_xxh3_128("../../etc");
  Ask("l", "/z");
  Run();
  for (const char* job : {"j", "k", "l"})
    EXPECT_TRUE(absl::IsInvalidArgument(StatusOf(job))) << job;
}

}  // namespace
}  // namespace mt
