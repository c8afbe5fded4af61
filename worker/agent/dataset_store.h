// Brings distributed datasets into the node's cache: one file at a time, from other nodes before the coordinator, resumed behind
// what came before, taken for whole only when its digest is right. docs/spec/dataset-distribution.md.
//
// Lives on an EventLoop of its own, so that digesting and writing hold up nobody; what is called on the agent's loop only posts.
//
// Invariants
//  - A source that is away or busy is asked again, with back-off, for ever, and so is a full disk: only more data than the cache may
//    hold, a file that neither the coordinator nor a node has, a digest that is wrong of what the coordinator gave too, and a disk
//    that fails end a request.
//  - What has come of a file stays when its reading ends, however it ends, unless its digest is wrong.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "common/event_loop.h"
#include "common/hash.h"
#include "common/random.h"
#include "worker/agent/dataset_cache.h"
#include "worker/agent/dataset_provider.h"
#include "worker/agent/dataset_transport.h"

namespace mt {

class DatasetStore : public DatasetProvider {
 public:
  // `agent_loop` is where Provide's answers run; it may be `loop`. Everything outlives the store, which is destroyed on `loop`.
  DatasetStore(EventLoop* loop, EventLoop* agent_loop, Env* env, Random* random,
               DatasetTransport* transport, DatasetCache* cache);
  ~DatasetStore() override;

  void Provide(DatasetRequest request,
               std::function<void(absl::StatusOr<ProvidedDatasets>)> done) override;
  void Release(const std::string& job_id, int32_t generation) override;
  std::vector<v1::DataFetch> Progress() const override;
  int64_t CachedBytes() const override;
  int64_t LimitBytes() const override { return cache_->limit_bytes(); }

 private:
  using User = DatasetCache::User;
  struct Attempt {
    std::map<std::string, std::string> key_of_prefix;
    std::map<std::string, DatasetContents> datasets;
    std::vector<std::string> endpoints;
    std::function<void(absl::StatusOr<ProvidedDatasets>)> done;
    bool admitted = false;  // the cache holds room for it
    std::string waits_for;  // else
    int64_t bytes_fetched = 0, bytes_from_nodes = 0;
  };
  // One file that some attempt waits for.
  struct Wanted {
    std::string key;
    CachedFile file;
    absl::Duration not_before;  // monotonic: it waits for its sources
    absl::Duration back_off;
    int wrong_digests = 0;
    std::string waits_for;
  };
  // The file that is being brought.
  struct Transfer {
    Wanted want;
    bool is_part = false;  // of what is digested now: the .part, else the file under its final name
    std::unique_ptr<RandomAccessFile> reading;
    std::unique_ptr<WritableFile> writing;
    std::unique_ptr<Xxh3Stream> digest;
    int64_t offset = 0;  // digested so far
    std::vector<std::string> sources;
    size_t source = 0;
    bool moved = false;          // something came in this round of sources
    bool gone_for_good = false;  // the coordinator says that it has no such file, or another one
    bool busy = false;           // a node that may have it had no time
    std::string trouble;
    std::unique_ptr<DatasetStream> stream;
  };

  void Begin(const User& user, DatasetRequest request,
             std::function<void(absl::StatusOr<ProvidedDatasets>)> done);
  void End(const User& user);
  void Admit();
  void Enqueue(const Attempt& attempt);
  void Next();  // takes up the next wanted file, if none is being brought
  void Look(Transfer& transfer);
  void DigestSome();
  void OnDigested();
  void Ask();
  void OnPiece(const v1::FilePiece& piece);
  void OnEnd(absl::Status status);
  void Finish();
  void Whole();
  void Postpone(std::string why);
  void Trouble(const absl::Status& status);  // of this disk
  void Drop();
  void DropStream();
  void ExpectPiece();  // soon, or its stream ends
  void Fail(std::string key, const absl::Status& why);
  void Answer(const User& user, absl::StatusOr<ProvidedDatasets> answer);
  void AnswerWhoIsReady();
  bool IsWanted(const std::string& key) const;
  std::string PartOf(const Wanted& want) const {
    return cache_->PathOf(want.key, want.file.suffix) + ".part";
  }
  void Publish();  // the snapshot for Progress

  EventLoop* const loop_;
  EventLoop* const agent_loop_;
  Env* const env_;
  Random* const random_;
  DatasetTransport* const transport_;
  DatasetCache* const cache_;
  std::map<User, Attempt> attempts_;  // that wait
  std::deque<Wanted> queue_;
  std::unique_ptr<Transfer> transfer_;
  uint64_t turn_ = 0;  // of transfer_: a posted step of an older one does nothing
  EventLoop::TimerId timer_ = 0, admit_timer_ = 0, silence_timer_ = 0;
  mutable std::mutex mutex_;
  std::vector<v1::DataFetch> progress_;                         // guarded by mutex_
  int64_t cached_bytes_ = 0;                                    // guarded by mutex_
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for tasks that outlive the store
};

}  // namespace mt
