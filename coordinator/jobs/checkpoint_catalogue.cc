#include "coordinator/jobs/checkpoint_catalogue.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "common/checkpoint/weights_digest.h"
#include "common/log.h"
#include "common/proto_time.h"

namespace mt {
namespace {

using store::CheckpointRecord;

// So many nodes try to copy a file: where that many fail it is hardly their fault, and a checkpoint with fewer copies is
// better than one that is not committed.
constexpr size_t kTargetsTried = 3;

bool IsUnresolved(CheckpointRecord::State state) {
  return state == CheckpointRecord::STATE_REPLICATING ||
         state == CheckpointRecord::STATE_COMMITTING;
}

bool Contains(const google::protobuf::RepeatedPtrField<std::string>& list,
              const std::string& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

void AddOnce(google::protobuf::RepeatedPtrField<std::string>* list, const std::string& value) {
  if (!Contains(*list, value)) *list->Add() = value;
}

// In a manifest whose files are sorted by name (Complete does that); -1: not there.
int IndexOf(const v1::CheckpointManifest& manifest, const std::string& name) {
  const auto& files = manifest.files();
  const auto it = std::lower_bound(
      files.begin(), files.end(), name,
      [](const v1::CheckpointFile& file, const std::string& n) { return file.name() < n; });
  return it != files.end() && it->name() == name ? static_cast<int>(it - files.begin()) : -1;
}

v1::CheckpointFile* FindFile(v1::CheckpointManifest& manifest, const std::string& name) {
  for (v1::CheckpointFile& file : *manifest.mutable_files()) {
    if (file.name() == name) return &file;
  }
  return nullptr;
}

}  // namespace

void CheckpointCatalogue::Changed(const std::string& job_id) {
  if (on_change_) on_change_(job_id);
}

void CheckpointCatalogue::OnShardWritten(const std::string& node, const v1::WorkerEvent& event) {
  const v1::ShardWritten& shard = event.shard_written();
  const std::string& job_id = event.job_id();
  const auto job = ledger_->state().jobs.find(job_id);
  if (job == ledger_->state().jobs.end()) return;
  const v1::JobSpec& spec = job->second.job().spec();
  const CheckpointRecord* old = Find(job_id, shard.step());
  if (old != nullptr &&
      (old->state() == CheckpointRecord::STATE_COMMITTED || IsUnresolved(old->state())))
    return;
  if (shard.world_size() <= 0 || event.rank() < 0 || event.rank() >= shard.world_size()) {
    MT_LOG(Warning) << "a shard of " << job_id << " claims rank " << event.rank() << " of "
                    << shard.world_size() << ": ignored";
    return;
  }
  CheckpointRecord& record = ledger_->EditCheckpoint(job_id, shard.step());
  if (old == nullptr || record.generation() != event.generation() ||
      record.state() != CheckpointRecord::STATE_COLLECTING) {
    const auto holders = record.holders();
    record.Clear();
    *record.mutable_holders() = holders;  // they may have files of the earlier try
    deleting_at_.erase({job_id, shard.step()});
    record.set_job_id(job_id);
    record.set_step(shard.step());
    record.set_generation(event.generation());
    record.set_world_size(shard.world_size());
    record.set_path(spec.checkpoint().path());
    SetTime(record.mutable_first_shard(), loop_->clock()->Now());
    for (int i = 0; i < shard.world_size(); ++i) record.add_written_by_rank("");
    v1::CheckpointManifest& manifest = *record.mutable_manifest();
    manifest.set_format_version(1);
    manifest.set_job_id(job_id);
    manifest.set_step(shard.step());
    *manifest.mutable_spec() = spec;
    manifest.set_mt_version(version_);
    const auto attempt = ledger_->state().attempts.find({job_id, event.generation()});
    const bool restored =
        attempt != ledger_->state().attempts.end() && !attempt->second.restore_job_id().empty();
    manifest.set_parent_step(restored ? attempt->second.restore_step() : -1);
    slowest_[{job_id, shard.step()}] = {0, 0};
  }
  record.mutable_manifest()->set_consumed_samples(shard.consumed_samples());
  record.mutable_manifest()->set_loss(shard.loss());
  AddOnce(record.mutable_holders(), node);
  auto& [stall, persist] = slowest_[{job_id, shard.step()}];
  stall = std::max(stall, shard.stall_seconds());
  persist = std::max(persist, shard.persist_seconds());

  std::string& written = *record.mutable_written_by_rank(event.rank());
  v1::CheckpointFile* file = FindFile(*record.mutable_manifest(), shard.file().name());
  if (file == nullptr) file = record.mutable_manifest()->add_files();
  *file = shard.file();
  file->clear_nodes();
  if (record.path().empty()) file->add_nodes(node);
  written = shard.file().name().empty() ? "-" : shard.file().name();
  const auto& all = record.written_by_rank();
  if (std::none_of(all.begin(), all.end(), [](const std::string& name) { return name.empty(); }))
    Complete(record);
}

void CheckpointCatalogue::Complete(CheckpointRecord& record) {
  v1::CheckpointManifest& manifest = *record.mutable_manifest();
  // A rank with nothing of its own to store reports an empty name.
  auto* files = manifest.mutable_files();
  files->erase(std::remove_if(files->begin(), files->end(),
                              [](const auto& file) { return file.name().empty(); }),
               files->end());
  std::sort(files->pointer_begin(), files->pointer_end(),
            [](const auto* a, const auto* b) { return a->name() < b->name(); });
  int64_t total = 0;
  for (const v1::CheckpointFile& file : *files) total += file.size_bytes();
  manifest.set_total_bytes(total);
  // Layout-free: equal for equal contents (docs/spec/checkpoint.md).
  if (const absl::StatusOr<std::string> digest = WeightsDigest(manifest); digest.ok()) {
    manifest.set_weights_digest(*digest);
  } else {
    MT_LOG(Warning) << record.job_id() << " step " << record.step()
                    << ": no digest of the contents: " << digest.status().message();
  }
  SetTime(manifest.mutable_created(), loop_->clock()->Now());
  if (const absl::Status whole = CheckCoverage(manifest); !whole.ok()) {
    Fail({record.job_id(), record.step()}, "verify", std::string(whole.message()));
    return;
  }
  record.set_state(record.path().empty() ? CheckpointRecord::STATE_REPLICATING
                                         : CheckpointRecord::STATE_COMMITTING);
  Advance({record.job_id(), record.step()});
}

void CheckpointCatalogue::Advance(const Key& key) {
  const CheckpointRecord* record = Find(key.first, key.second);
  if (record == nullptr) return;
  if (record->state() == CheckpointRecord::STATE_REPLICATING) Replicate(*record);
  if (record->state() == CheckpointRecord::STATE_COMMITTING) SendManifest(*record);
}

int CheckpointCatalogue::Copies(const CheckpointRecord& record) const {
  return 1 + std::max(0, record.manifest().spec().checkpoint().replicas());
}

CheckpointCatalogue::Copying& CheckpointCatalogue::CopyingOf(const CheckpointRecord& record) {
  const auto [it, made] = copying_.try_emplace({record.job_id(), record.step()});
  Copying& copying = it->second;
  if (!made) return copying;
  const auto& files = record.manifest().files();
  copying.files.resize(files.size());
  for (int i = 0; i < files.size(); ++i) copying.open.insert(copying.open.end(), i);
  for (const std::string& failed : record.failed_targets()) {
    const size_t at = failed.find('@');  // no file's name has one
    if (const int index = IndexOf(record.manifest(), failed.substr(0, at)); index >= 0)
      copying.files[index].failed.insert(failed.substr(at + 1));
  }
  return copying;
}

absl::Status CheckpointCatalogue::AdvanceFile(const CheckpointRecord& record, Copying& copying,
                                              size_t index, Requests& requests) {
  ++copy_visits_;
  const v1::CheckpointFile& file = record.manifest().files(static_cast<int>(index));
  Copying::File& state = copying.files[index];
  const int missing = Copies(record) - file.nodes_size();
  copying.given_up.erase(index);
  if (missing <= 0) {
    copying.open.erase(index);
    return absl::OkStatus();
  }
  copying.open.insert(index);
  if (static_cast<int>(state.asked.size()) >= missing) return absl::OkStatus();
  std::vector<std::string> endpoints;
  bool source_may_return = false;
  for (const std::string& holder : file.nodes()) {
    if (nodes_->IsReady(holder)) endpoints.push_back(nodes_->ShardsEndpoint(holder));
    source_may_return |= !nodes_->IsDown(holder);
  }
  // Ring order from the writer: neighbours hold each other's shards, evenly.
  const std::vector<std::string>& ring = nodes_->names();
  const auto writer = ring_position_.find(file.nodes(0));
  const size_t start = writer == ring_position_.end() ? ring.size() : writer->second;
  for (size_t i = 1; i <= ring.size() && !endpoints.empty(); ++i) {
    if (static_cast<int>(state.asked.size()) >= missing || state.failed.size() >= kTargetsTried)
      break;
    const std::string& target = ring[(start + i) % ring.size()];
    if (Contains(file.nodes(), target) || !nodes_->IsReady(target) ||
        state.failed.contains(target) || !state.asked.insert(target).second)
      continue;
    v1::FetchFiles& fetch = requests[target];
    fetch.set_job_id(record.job_id());
    fetch.set_step(record.step());
    *fetch.add_files() = file;
    v1::FileSource& source = *fetch.add_sources();
    source.set_file(file.name());
    source.set_job_id(record.job_id());
    source.set_step(record.step());
    for (const std::string& endpoint : endpoints) source.add_endpoints(endpoint);
  }
  if (!state.asked.empty()) return absl::OkStatus();
  if (endpoints.empty()) {
    if (source_may_return || !nodes_->MayGiveUp()) return absl::OkStatus();
    return absl::UnavailableError(
        absl::StrCat("the node that wrote ", file.name(), " was lost before a copy was made"));
  }
  copying.open.erase(index);  // no node is left that could take another copy
  copying.given_up.insert(index);
  return absl::OkStatus();
}

void CheckpointCatalogue::Replicate(const CheckpointRecord& record) {
  const Key key(record.job_id(), record.step());
  Copying& copying = CopyingOf(record);
  std::vector<size_t> lacking(copying.open.begin(), copying.open.end());
  // A node may have come that can take a copy after all.
  lacking.insert(lacking.end(), copying.given_up.begin(), copying.given_up.end());
  Requests requests;
  for (const size_t index : lacking) {
    if (const absl::Status status = AdvanceFile(record, copying, index, requests); !status.ok()) {
      Fail(key, "node_lost", std::string(status.message()));
      return;
    }
  }
  FinishReplicate(key, std::move(requests));
}

void CheckpointCatalogue::FinishReplicate(const Key& key, Requests requests) {
  for (auto& [target, fetch] : requests) {
    AddOnce(ledger_->EditCheckpoint(key.first, key.second).mutable_holders(), target);
    v1::CoordinatorMessage message;
    *message.mutable_fetch_files() = std::move(fetch);
    nodes_->Send(target, std::move(message));
  }
  const Copying& copying = copying_.at(key);
  if (!copying.open.empty()) return;
  CheckpointRecord& record = ledger_->EditCheckpoint(key.first, key.second);
  if (!copying.given_up.empty()) {
    const size_t first = *copying.given_up.begin();
    const std::set<std::string>& failed = copying.files[first].failed;
    ledger_->AddEvent(
        "checkpoint_degraded", key.first, "", record.generation(),
        absl::StrCat("step ", key.second, " has fewer copies than checkpoint.replicas asks, for ",
                     copying.given_up.size(), " of its ", copying.files.size(),
                     " files: ", record.manifest().files(static_cast<int>(first)).name(),
                     failed.empty()
                         ? std::string(": no other node can take one")
                         : absl::StrCat(" could not be copied to ", absl::StrJoin(failed, ", "),
                                        "; the copy_failed events say why")));
  }
  Commit(record);
}

void CheckpointCatalogue::SendManifest(const CheckpointRecord& record) {
  const Key key(record.job_id(), record.step());
  if (const auto at = manifest_at_.find(key);
      at != manifest_at_.end() && nodes_->IsConnected(at->second))
    return;
  // Rank 0's node if it is there; any other node of the job sees the same folder.
  const auto attempt = ledger_->state().attempts.find({record.job_id(), record.generation()});
  if (attempt == ledger_->state().attempts.end()) return;
  bool may_return = false;
  for (const store::RankRecord& rank : attempt->second.ranks()) {
    const std::string& node = rank.placement().node();
    may_return |= !nodes_->IsDown(node);
    if (!nodes_->IsReady(node)) continue;
    manifest_at_[key] = node;
    v1::CoordinatorMessage message;
    v1::CommitManifest& commit = *message.mutable_commit_manifest();
    commit.set_job_id(record.job_id());
    commit.set_step(record.step());
    commit.set_path(record.path());
    *commit.mutable_manifest() = record.manifest();
    nodes_->Send(node, std::move(message));
    return;
  }
  if (!may_return && nodes_->MayGiveUp())
    Fail(key, "node_lost", "all nodes of the job were lost before its manifest was written");
}

void CheckpointCatalogue::OnManifestCommitted(const std::string& node,
                                              const v1::WorkerEvent& event) {
  const v1::ManifestCommitted& committed = event.manifest_committed();
  const Key key(event.job_id(), committed.step());
  const CheckpointRecord* record = Find(key.first, key.second);
  if (record == nullptr || record->state() != CheckpointRecord::STATE_COMMITTING) return;
  manifest_at_.erase(key);
  if (committed.ok()) {
    Commit(ledger_->EditCheckpoint(key.first, key.second));
  } else {
    Fail(key, committed.reason().empty() ? "io" : committed.reason(),
         absl::StrCat("writing the manifest on ", node, ": ", committed.message()));
  }
}

void CheckpointCatalogue::OnFileFetched(const std::string& node, const v1::WorkerEvent& event) {
  const v1::FileFetched& fetched = event.file_fetched();
  const Key key(event.job_id(), fetched.step());
  const CheckpointRecord* found = Find(key.first, key.second);
  if (found == nullptr || found->state() != CheckpointRecord::STATE_REPLICATING) return;
  CheckpointRecord& record = ledger_->EditCheckpoint(key.first, key.second);
  const int index = IndexOf(record.manifest(), fetched.file());
  if (index < 0) return;
  Copying& copying = CopyingOf(record);
  Copying::File& file = copying.files[index];
  file.asked.erase(node);
  if (fetched.ok()) {
    AddOnce(record.mutable_manifest()->mutable_files(index)->mutable_nodes(), node);
  } else if (file.failed.insert(node).second) {
    record.add_failed_targets(absl::StrCat(fetched.file(), "@", node));
    ledger_->AddEvent(
        "copy_failed", key.first, node, record.generation(),
        absl::StrCat(fetched.file(), " of step ", key.second, ": ", fetched.message()));
  }
  Requests requests;
  if (const absl::Status status = AdvanceFile(record, copying, index, requests); !status.ok()) {
    Fail(key, "node_lost", std::string(status.message()));
    return;
  }
  FinishReplicate(key, std::move(requests));
}

void CheckpointCatalogue::Commit(CheckpointRecord& record) {
  const Key key(record.job_id(), record.step());
  copying_.erase(key);
  record.set_state(CheckpointRecord::STATE_COMMITTED);
  SetTime(record.mutable_committed(), loop_->clock()->Now());
  record.clear_written_by_rank();
  record.clear_failed_targets();
  store::JobRecord& job = ledger_->EditJob(key.first);
  if (key.second > job.job().last_checkpoint_step()) {
    job.mutable_job()->set_last_checkpoint_step(key.second);
    *job.mutable_job()->mutable_last_checkpoint_time() = record.committed();
  }
  Metrics& metrics = metrics_[key.first];
  ++metrics.committed;
  if (const auto slowest = slowest_.extract(key)) {
    metrics.stall_seconds = slowest.mapped().first;
    metrics.persist_seconds = slowest.mapped().second;
  }
  ledger_->AddEvent(
      "checkpoint_committed", key.first, "", record.generation(),
      absl::StrCat("step ", key.second, ", ", record.manifest().total_bytes(), " bytes"));
  if (record.path().empty()) {
    std::set<std::string> holders;
    for (const v1::CheckpointFile& file : record.manifest().files())
      holders.insert(file.nodes().begin(), file.nodes().end());
    v1::CoordinatorMessage message;
    v1::CommitManifest& commit = *message.mutable_commit_manifest();
    commit.set_job_id(key.first);
    commit.set_step(key.second);
    *commit.mutable_manifest() = record.manifest();
    nodes_->SendToAll(holders, std::move(message));
  }
  Retain(key.first);
  Changed(key.first);
}

void CheckpointCatalogue::OnCheckpointFailed(const std::string& node,
                                             const v1::WorkerEvent& event) {
  const std::pair failed(event.generation(), event.checkpoint_failed().step());
  if (std::exchange(metrics_[event.job_id()].newest_failed, failed) == failed) return;
  const CheckpointRecord* record = Find(event.job_id(), event.checkpoint_failed().step());
  const std::string why =
      absl::StrCat("rank ", event.rank(), " on ", node, ": ", event.checkpoint_failed().message());
  if (record == nullptr || record->state() == CheckpointRecord::STATE_COLLECTING) {
    Fail({event.job_id(), event.checkpoint_failed().step()}, event.checkpoint_failed().reason(),
         why);
  }
}

void CheckpointCatalogue::Fail(const Key& key, const std::string& reason, const std::string& why) {
  ++metrics_[key.first].failed_by_reason[reason];
  manifest_at_.erase(key);
  slowest_.erase(key);
  ledger_->AddEvent("checkpoint_failed", key.first, "", 0,
                    absl::StrCat("step ", key.second, ": ", why));
  if (Find(key.first, key.second) != nullptr)
    StartDeleting(ledger_->EditCheckpoint(key.first, key.second), why);
  Changed(key.first);
}

bool CheckpointCatalogue::IsPinned(const Key& key) const {
  for (const auto& [id, job] : ledger_->state().jobs) {
    if (job.resume_job_id() != key.first || job.resume_step() != key.second) continue;
    if (job.job().state() < v1::JOB_STATE_SUCCEEDED && job.job().last_checkpoint_step() < 0)
      return true;
  }
  return false;
}

void CheckpointCatalogue::Retain(const std::string& job_id) {
  const auto job = ledger_->state().jobs.find(job_id);
  if (job == ledger_->state().jobs.end()) return;
  int keep = std::max(1, job->second.job().spec().checkpoint().keep_last());
  std::vector<int64_t> drop;
  bool newer_committed = false;
  const auto& all = ledger_->state().checkpoints;
  for (auto it = std::make_reverse_iterator(all.lower_bound({job_id, INT64_MAX}));
       it != all.rend() && it->first.first == job_id; ++it) {
    const CheckpointRecord& record = it->second;
    if (record.state() == CheckpointRecord::STATE_COMMITTED) {
      if (newer_committed && keep <= 0 && !IsPinned(it->first)) drop.push_back(record.step());
      --keep;
      newer_committed = true;
    } else if (keep <= 0 && IsUnresolved(record.state())) {
      drop.push_back(record.step());  // overtaken: it would be deleted as soon as it were committed
    } else if (newer_committed && record.state() == CheckpointRecord::STATE_COLLECTING) {
      drop.push_back(record.step());
    } else if (keep <= 0 && record.state() == CheckpointRecord::STATE_BAD) {
      drop.push_back(record.step());  // not before: what made it unreadable may pass
    }
  }
  for (const int64_t step : drop)
    StartDeleting(ledger_->EditCheckpoint(job_id, step), "a newer checkpoint is committed");
}

void CheckpointCatalogue::StartDeleting(CheckpointRecord& record, const std::string& why) {
  const Key key(record.job_id(), record.step());
  record.set_state(CheckpointRecord::STATE_DELETING);
  record.set_reason(why);
  // Ranks may have written without having told: every node of the attempt may hold something.
  const auto attempt = ledger_->state().attempts.find({key.first, record.generation()});
  if (record.path().empty() && attempt != ledger_->state().attempts.end()) {
    for (const store::RankRecord& rank : attempt->second.ranks())
      AddOnce(record.mutable_holders(), rank.placement().node());
  }
  if (!record.path().empty()) {  // one folder that all of them see: one of them removes it
    while (record.holders_size() > 1) record.mutable_holders()->RemoveLast();
    if (record.holders_size() == 1 && !nodes_->IsReady(record.holders(0)) &&
        attempt != ledger_->state().attempts.end()) {
      for (const store::RankRecord& rank : attempt->second.ranks()) {
        if (nodes_->IsReady(rank.placement().node()))
          record.set_holders(0, rank.placement().node());
      }
    }
  }
  copying_.erase(key);
  SendDeletes(key, "");
}

void CheckpointCatalogue::SendDeletes(const Key& key, const std::string& only_node) {
  const CheckpointRecord* record = Find(key.first, key.second);
  if (record == nullptr || record->state() != CheckpointRecord::STATE_DELETING) return;
  const std::vector<std::string> holders(record->holders().begin(), record->holders().end());
  for (const std::string& node : holders) {
    if ((!only_node.empty() && node != only_node) || !nodes_->IsConnected(node)) continue;
    if (!deleting_at_[key].insert(node).second) continue;
    v1::CoordinatorMessage message;
    v1::DeleteCheckpoint& command = *message.mutable_delete_checkpoint();
    command.set_job_id(key.first);
    command.set_step(key.second);
    command.set_path(record->path());
    nodes_->Send(node, std::move(message), [this, key, node](absl::Status status) {
      const auto asked = deleting_at_.find(key);
      if (asked == deleting_at_.end() || asked->second.erase(node) == 0) return;
      const CheckpointRecord* record = Find(key.first, key.second);
      if (record == nullptr || record->state() != CheckpointRecord::STATE_DELETING) return;
      if (!status.ok()) {  // tried again when the node registers next
        MT_LOG(Warning) << "removing step " << key.second << " of " << key.first << " on " << node
                        << ": " << status.ToString();
        Changed(key.first);
        return;
      }
      auto* holders = ledger_->EditCheckpoint(key.first, key.second).mutable_holders();
      holders->erase(std::remove(holders->begin(), holders->end(), node), holders->end());
      if (holders->empty()) {
        ledger_->EraseCheckpoint(key.first, key.second);
        deleting_at_.erase(key);
      }
      Changed(key.first);
    });
  }
  if (holders.empty()) ledger_->EraseCheckpoint(key.first, key.second);
}

void CheckpointCatalogue::OnNodeDisconnected(const std::string& node) {
  for (auto& [key, copying] : copying_) {
    for (const size_t index : copying.open) copying.files[index].asked.erase(node);
  }
  for (auto& [key, asked] : deleting_at_) asked.erase(node);
  std::erase_if(manifest_at_, [&](const auto& entry) { return entry.second == node; });
  nodes_changed_ = true;
}

void CheckpointCatalogue::OnNodeSettled(const std::string& node,
                                        const std::vector<v1::HeldCheckpoint>& held) {
  std::vector<Key> deleting;
  for (const auto& [key, record] : ledger_->state().checkpoints) {
    if (record.state() == CheckpointRecord::STATE_DELETING && Contains(record.holders(), node))
      deleting.push_back(key);
  }
  for (const Key& key : deleting) SendDeletes(key, node);
  // What the catalogue does not know is left from a try that was given up while the node was away. But of a job that is not
  // known at all nothing is concluded: the state may be an old one, restored from a backup, and the files all there is.
  std::map<std::string, std::vector<int64_t>> of_unknown_jobs;
  for (const v1::HeldCheckpoint& checkpoint : held) {
    const auto job = ledger_->state().jobs.find(checkpoint.job_id());
    if (Find(checkpoint.job_id(), checkpoint.step()) != nullptr) continue;
    if (job == ledger_->state().jobs.end()) {
      of_unknown_jobs[checkpoint.job_id()].push_back(checkpoint.step());
      continue;
    }
    // The job may be writing this very step: then the next commit of the job cleans up instead.
    if (job->second.job().state() < v1::JOB_STATE_SUCCEEDED &&
        checkpoint.step() > job->second.job().last_checkpoint_step()) {
      continue;
    }
    v1::CoordinatorMessage message;
    message.mutable_delete_checkpoint()->set_job_id(checkpoint.job_id());
    message.mutable_delete_checkpoint()->set_step(checkpoint.step());
    nodes_->Send(node, std::move(message));
  }
  for (const auto& [job_id, steps] : of_unknown_jobs) {
    if (!told_unknown_.emplace(node, job_id).second) continue;
    ledger_->AddEvent(
        "unknown_checkpoints", "", node, 0,
        absl::StrCat("files of job ", job_id, ", of which this coordinator knows nothing, are in ",
                     "the node's store (steps ", absl::StrJoin(steps, ", "),
                     "); they are kept. If nobody needs them, remove the folder of that job from "
                     "the shards folder of the worker's state"));
  }
  nodes_changed_ = true;
}

void CheckpointCatalogue::Settle() {
  if (!std::exchange(nodes_changed_, false)) return;
  // An answer that does not come is asked for again: copying is idempotent, a file that is there is confirmed at once.
  if (const absl::Duration now = loop_->clock()->Monotonic();
      now - asked_again_ > absl::Minutes(2)) {
    asked_again_ = now;
    for (auto& [key, copying] : copying_) {
      for (const size_t index : copying.open) copying.files[index].asked.clear();
    }
    manifest_at_.clear();
  }
  std::vector<Key> waiting;
  for (const auto& [key, record] : ledger_->state().checkpoints) {
    if (IsUnresolved(record.state())) waiting.push_back(key);
  }
  for (const Key& key : waiting) Advance(key);
}

void CheckpointCatalogue::OnAttemptEnded(const std::string& job_id) {
  std::vector<int64_t> incomplete;
  for (auto it = ledger_->state().checkpoints.lower_bound({job_id, INT64_MIN});
       it != ledger_->state().checkpoints.end() && it->first.first == job_id; ++it) {
    if (it->second.state() == CheckpointRecord::STATE_COLLECTING)
      incomplete.push_back(it->first.second);
  }
  for (const int64_t step : incomplete)
    StartDeleting(ledger_->EditCheckpoint(job_id, step),
                  "its attempt ended before all ranks had written");
}

bool CheckpointCatalogue::HasUnresolved(const std::string& job_id) const {
  const auto& all = ledger_->state().checkpoints;
  for (auto it = all.lower_bound({job_id, INT64_MIN}); it != all.end() && it->first.first == job_id;
       ++it) {
    if (IsUnresolved(it->second.state())) return true;
  }
  return false;
}

std::string CheckpointCatalogue::UnresolvedReason(const std::string& job_id) const {
  const auto& all = ledger_->state().checkpoints;
  for (auto it = all.lower_bound({job_id, INT64_MIN}); it != all.end() && it->first.first == job_id;
       ++it) {
    if (it->second.state() == CheckpointRecord::STATE_REPLICATING)
      return absl::StrCat("copying the checkpoint of step ", it->first.second, " to other nodes",
                          CopyWaitedFor(it->second));
    if (it->second.state() == CheckpointRecord::STATE_COMMITTING)
      return absl::StrCat("committing the checkpoint of step ", it->first.second);
  }
  return "";
}

std::string CheckpointCatalogue::CopyWaitedFor(const CheckpointRecord& record) const {
  const auto it = copying_.find({record.job_id(), record.step()});
  if (it == copying_.end() || it->second.open.empty()) return "";
  const size_t index = *it->second.open.begin();
  const v1::CheckpointFile& file = record.manifest().files(static_cast<int>(index));
  const std::set<std::string>& asked = it->second.files[index].asked;
  return absl::StrCat(": ", file.name(), " from ", absl::StrJoin(file.nodes(), ", "),
                      asked.empty() ? ", which is away, or no node that could take it is there"
                                    : absl::StrCat(" to ", absl::StrJoin(asked, ", ")));
}

bool CheckpointCatalogue::PrepareForAttempt(const std::string& job_id, int64_t restore_step) {
  std::vector<int64_t> leftovers;
  for (auto it = ledger_->state().checkpoints.upper_bound({job_id, restore_step});
       it != ledger_->state().checkpoints.end() && it->first.first == job_id; ++it) {
    if (it->second.state() != CheckpointRecord::STATE_DELETING) continue;
    const auto asked = deleting_at_.find(it->first);
    if (!it->second.path().empty() && asked != deleting_at_.end() && !asked->second.empty())
      return false;
    leftovers.push_back(it->first.second);
  }
  // On a node's own store the deletion that was sent is done before the new ranks start there: same stream, in order.
  for (const int64_t step : leftovers) {
    deleting_at_.erase({job_id, step});
    ledger_->EraseCheckpoint(job_id, step);
  }
  return true;
}

const CheckpointRecord* CheckpointCatalogue::Find(const std::string& job_id, int64_t step) const {
  const auto it = ledger_->state().checkpoints.find({job_id, step});
  return it == ledger_->state().checkpoints.end() ? nullptr : &it->second;
}

const CheckpointRecord* CheckpointCatalogue::NewestCommitted(const std::string& job_id) const {
  const CheckpointRecord* newest = nullptr;
  const auto& all = ledger_->state().checkpoints;
  for (auto it = all.lower_bound({job_id, INT64_MIN}); it != all.end() && it->first.first == job_id;
       ++it) {
    if (it->second.state() == CheckpointRecord::STATE_COMMITTED) newest = &it->second;
  }
  return newest;
}

std::vector<const CheckpointRecord*> CheckpointCatalogue::List(const std::string& job_id) const {
  std::vector<const CheckpointRecord*> result;
  const auto& all = ledger_->state().checkpoints;
  for (auto it = all.lower_bound({job_id, INT64_MIN}); it != all.end() && it->first.first == job_id;
       ++it) {
    if (it->second.has_committed()) result.push_back(&it->second);
  }
  std::reverse(result.begin(), result.end());
  return result;
}

absl::StatusOr<std::vector<v1::FileSource>> CheckpointCatalogue::Sources(
    const CheckpointRecord& record) const {
  std::vector<v1::FileSource> sources;
  if (!record.path().empty()) return sources;
  const std::vector<std::string>& known = nodes_->names();
  for (const v1::CheckpointFile& file : record.manifest().files()) {
    v1::FileSource& source = sources.emplace_back();
    source.set_file(file.name());
    source.set_job_id(record.job_id());
    source.set_step(record.step());
    std::string holders;
    for (const std::string& node : file.nodes()) {
      absl::StrAppend(&holders, holders.empty() ? "" : ", ", node);
      if (const std::string endpoint = nodes_->ShardsEndpoint(node);
          nodes_->IsReady(node) && !endpoint.empty()) {
        source.add_endpoints(endpoint);
        source.add_nodes(node);
      } else if (std::find(known.begin(), known.end(), node) != known.end()) {
        source.add_unreachable_nodes(node);  // one that left the hostfile will never be asked
      }
    }
    if (source.endpoints().empty()) {
      return absl::UnavailableError(
          absl::StrCat("waiting for a node with ", file.name(), " of checkpoint step ",
                       record.step(), " (it is on ", holders, ", none of which is connected)"));
    }
  }
  return sources;
}

void CheckpointCatalogue::MarkBad(const std::string& job_id, int64_t step,
                                  const std::string& reason) {
  const CheckpointRecord* found = Find(job_id, step);
  if (found == nullptr || found->state() != CheckpointRecord::STATE_COMMITTED) return;
  CheckpointRecord& record = ledger_->EditCheckpoint(job_id, step);
  record.set_state(CheckpointRecord::STATE_BAD);
  record.set_reason(reason);
  ledger_->AddEvent("checkpoint_bad", job_id, "", record.generation(),
                    absl::StrCat("step ", step, ": ", reason));
  NoteNewest(job_id);
}

void CheckpointCatalogue::MarkGood(const std::string& job_id, int64_t step) {
  const CheckpointRecord* found = Find(job_id, step);
  if (found == nullptr || found->state() != CheckpointRecord::STATE_BAD) return;
  CheckpointRecord& record = ledger_->EditCheckpoint(job_id, step);
  record.set_state(CheckpointRecord::STATE_COMMITTED);
  record.clear_reason();
  ledger_->AddEvent("checkpoint_good", job_id, "", record.generation(),
                    absl::StrCat("step ", step, ": every file has a whole copy again"));
  NoteNewest(job_id);
}

// What people are shown as the newest follows the rows.
void CheckpointCatalogue::NoteNewest(const std::string& job_id) {
  v1::Job& job = *ledger_->EditJob(job_id).mutable_job();
  const CheckpointRecord* newest = NewestCommitted(job_id);
  job.set_last_checkpoint_step(newest == nullptr ? -1 : newest->step());
  if (newest != nullptr) {
    *job.mutable_last_checkpoint_time() = newest->committed();
  } else {
    job.clear_last_checkpoint_time();
  }
  Changed(job_id);
}

std::string CheckpointCatalogue::OnlyBadOnesLeft(const std::string& job_id) const {
  std::string steps;
  const auto& all = ledger_->state().checkpoints;
  for (auto it = all.lower_bound({job_id, INT64_MIN}); it != all.end() && it->first.first == job_id;
       ++it) {
    if (it->second.state() == CheckpointRecord::STATE_COMMITTED) return "";
    if (it->second.state() == CheckpointRecord::STATE_BAD)
      absl::StrAppend(&steps, steps.empty() ? "" : ", ", it->first.second);
  }
  return steps;
}

v1::CheckpointInfo CheckpointCatalogue::Describe(const CheckpointRecord& record) {
  v1::CheckpointInfo info;
  *info.mutable_manifest() = record.manifest();
  info.set_state(
      record.state() == CheckpointRecord::STATE_COMMITTED ? v1::CheckpointInfo::STATE_COMMITTED
      : record.state() == CheckpointRecord::STATE_BAD     ? v1::CheckpointInfo::STATE_BAD
                                                          : v1::CheckpointInfo::STATE_DELETING);
  info.set_reason(record.reason());
  info.set_location(record.path().empty() ? "nodes" : record.path());
  return info;
}

CheckpointCatalogue::Metrics CheckpointCatalogue::MetricsOf(const std::string& job_id) const {
  const auto it = metrics_.find(job_id);
  return it == metrics_.end() ? Metrics() : it->second;
}

}  // namespace mt
