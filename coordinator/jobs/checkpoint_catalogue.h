// The checkpoints: from the first shard to the commit, and from retention to the last deleted file.
//
//   COLLECTING --all ranks wrote--> REPLICATING --every file has its copies--> COMMITTED --retention--> DELETING --> gone
//                             \---> COMMITTING  --manifest in the shared folder--/      \--unreadable--> BAD
//
// Invariants
//  - Only shards of the job's present generation count, and a checkpoint is made of one generation's shards alone.
//  - The COMMITTED row is the commit point; before it nothing restores from the checkpoint, after it no file of it is removed
//    until a newer one is committed. A BAD one is kept until keep_last newer ones are.
//  - What is not complete when its generation has ended will never be; its files are removed, or overwritten when the job comes
//    by the same step again.
// Commands that were lost with a stream are issued again from the rows when the node has settled.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/nodes/node_table.h"
#include "coordinator/store/ledger.h"
#include "mt/v1/checkpoints.pb.h"

namespace mt {

class CheckpointCatalogue {
 public:
  struct Metrics {
    int64_t committed = 0;
    std::map<std::string, int64_t> failed_by_reason;
    // Attempt and step: every rank of a failed checkpoint tells, and it counts once.
    std::pair<int32_t, int64_t> newest_failed{0, -1};
    double stall_seconds = 0, persist_seconds = 0;  // newest; slowest rank
  };

  CheckpointCatalogue(EventLoop* loop, Ledger* ledger, NodeTable* nodes, std::string version)
      : loop_(loop), ledger_(ledger), nodes_(nodes), version_(std::move(version)) {
    for (const std::string& name : nodes_->names())
      ring_position_.emplace(name, ring_position_.size());
  }
  // Called with a job whose checkpoints changed in a way that its state may depend on.
  void SetOnChange(std::function<void(const std::string& job_id)> on_change) {
    on_change_ = std::move(on_change);
  }

  // Worker events; the caller has checked the generation of ShardWritten and CheckpointFailed.
  void OnShardWritten(const std::string& node, const v1::WorkerEvent& event);
  void OnCheckpointFailed(const std::string& node, const v1::WorkerEvent& event);
  void OnFileFetched(const std::string& node, const v1::WorkerEvent& event);
  void OnManifestCommitted(const std::string& node, const v1::WorkerEvent& event);

  void OnNodeSettled(const std::string& node, const std::vector<v1::HeldCheckpoint>& held);
  void OnNodeDisconnected(const std::string& node);
  void OnNodeChanged() { nodes_changed_ = true; }
  // Advances what waits for nodes; after each message.
  void Settle();

  // The job's ranks are all gone: what is incomplete goes.
  void OnAttemptEnded(const std::string& job_id);
  // Complete, not yet committed: its fate is still open.
  bool HasUnresolved(const std::string& job_id) const;
  std::string UnresolvedReason(const std::string& job_id) const;
  // Before a new attempt writes steps after `restore_step`: leftovers there no longer wait to be deleted. False: a deletion in
  // a shared folder is under way and could hit what the attempt will write; ask again when the catalogue changes.
  bool PrepareForAttempt(const std::string& job_id, int64_t restore_step);

  const store::CheckpointRecord* NewestCommitted(const std::string& job_id) const;
  const store::CheckpointRecord* Find(const std::string& job_id, int64_t step) const;
  std::vector<const store::CheckpointRecord*> List(
      const std::string& job_id) const;  // newest first; without unfinished ones
  // Endpoints of each file, and who else holds it but cannot be asked now; UNAVAILABLE names the first file that nobody reachable holds.
  absl::StatusOr<std::vector<v1::FileSource>> Sources(const store::CheckpointRecord& record) const;
  void MarkBad(const std::string& job_id, int64_t step, const std::string& reason);
  // A bad one was found whole.
  void MarkGood(const std::string& job_id, int64_t step);
  // The steps of the job's bad checkpoints if it has no other ones, else "".
  std::string OnlyBadOnesLeft(const std::string& job_id) const;
  static v1::CheckpointInfo Describe(const store::CheckpointRecord& record);
  Metrics MetricsOf(const std::string& job_id) const;
  // How often a file was looked at to see whether it has its copies: what the copying costs this process.
  int64_t copy_visits() const { return copy_visits_; }

 private:
  using Key = std::pair<std::string, int64_t>;
  // The copies of one checkpoint that are being made. Derived from its row, and made again from it after a restart.
  // Invariant: a file is in `open`, in `given_up`, or has all its copies; the checkpoint is committed when none is open. An
  // event about one file looks at that file alone: with a pass over all of them the work would grow with their square.
  struct Copying {
    struct File {
      std::set<std::string> asked;   // nodes that were told to fetch it, on their present streams
      std::set<std::string> failed;  // nodes that tried and could not
    };
    std::vector<File> files;          // in the manifest's order, which is by name
    std::set<size_t> open, given_up;  // by index
  };
  using Requests = std::map<std::string, v1::FetchFiles>;  // by target
  void Complete(store::CheckpointRecord& record);
  void Advance(const Key& key);
  Copying& CopyingOf(const store::CheckpointRecord& record);
  // Looks at every file that lacks a copy.
  void Replicate(const store::CheckpointRecord& record);
  // Looks at one, and adds what has to be asked of whom. Not OK: its only copies are lost for good.
  absl::Status AdvanceFile(const store::CheckpointRecord& record, Copying& copying, size_t index,
                           Requests& requests);
  // Sends the requests and commits if no file is open.
  void FinishReplicate(const Key& key, Requests requests);
  void SendManifest(const store::CheckpointRecord& record);
  void Commit(store::CheckpointRecord& record);
  // ": shard-r3 from n1 to n2", of the first file that has not got its copies.
  std::string CopyWaitedFor(const store::CheckpointRecord& record) const;
  // `reason`: disk_full | permission | io | verify | node_lost, for the metric; `why` is for people.
  void Fail(const Key& key, const std::string& reason, const std::string& why);
  void Retain(const std::string& job_id);
  void NoteNewest(const std::string& job_id);
  void StartDeleting(store::CheckpointRecord& record, const std::string& why);
  void SendDeletes(const Key& key, const std::string& only_node);
  bool IsPinned(const Key& key) const;
  int Copies(const store::CheckpointRecord& record) const;
  void Changed(const std::string& job_id);

  EventLoop* const loop_;
  Ledger* const ledger_;
  NodeTable* const nodes_;
  const std::string version_;
  std::function<void(const std::string&)> on_change_;
  // Not durable: what has been asked of whom on its present stream.
  std::map<Key, Copying> copying_;
  std::map<Key, std::string> manifest_at_;  // node that writes the shared manifest
  std::map<Key, std::set<std::string>> deleting_at_;
  std::map<std::string, Metrics> metrics_;
  std::map<Key, std::pair<double, double>> slowest_;  // stall, persist of the unfinished one
  std::map<std::string, size_t> ring_position_;       // of each node in hostfile order
  std::set<std::pair<std::string, std::string>> told_unknown_;  // node and job, in an event
  bool nodes_changed_ = false;
  absl::Duration asked_again_;
  int64_t copy_visits_ = 0;
};

}  // namespace mt
