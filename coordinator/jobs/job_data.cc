// JobManager: the job's data before its ranks run. docs/spec/dataset-distribution.md.
#include <algorithm>

#include "absl/strings/str_join.h"
#include "common/dataset/dataset_fingerprint.h"
#include "common/exit_codes.h"
#include "common/proto_time.h"
#include "coordinator/jobs/job_manager.h"

namespace mt {
namespace {

// Nodes that a node is told of: enough to find one that is not busy, few enough to ask them all.
constexpr size_t kMaxSources = 16;

using store::AttemptRecord;
using store::JobRecord;
using store::RankRecord;

using Fingerprints = std::map<std::string, std::string>;

// Why the data of `node` is not that of `others`; empty if it is.
std::string DescribeMismatch(const std::string& node, const Fingerprints& here,
                             const std::vector<std::string>& others, const Fingerprints& there) {
  for (const auto& [prefix, fingerprint] : there) {
    const auto it = here.find(prefix);
    const std::string own = it == here.end() ? "" : it->second;
    if (own == fingerprint) continue;
    return absl::StrCat("the data ", prefix, " on node ", node, " is not that of ",
                        absl::StrJoin(others, ", "), ": ", DifferenceOf(prefix, own, fingerprint),
                        "; copy the same files to every node, or set data.distribute: true");
  }
  return "";
}

}  // namespace

void JobManager::OnDataChecked(const AttemptRecord& attempt, const std::string& node,
                               const v1::DataChecked& checked) {
  data_metrics_.bytes_from_nodes += checked.bytes_from_nodes();
  data_metrics_.bytes_from_coordinator += checked.bytes_fetched() - checked.bytes_from_nodes();
  AttemptRecord& edited = ledger_->EditAttempt(attempt.job_id(), attempt.generation());
  (*edited.mutable_data_of_node())[node] = checked;
  // A daemon that was started again tells anew, and is to be compared (and launched) anew.
  edited.set_data_agreed(false);
}

// Lets ranks run when all nodes have told and it is the same; ends those of the nodes that differ from the most.
void JobManager::CompareData(const AttemptRecord& attempt) {
  std::map<Fingerprints, std::vector<std::string>> nodes_by_data;
  for (const std::string& node : NodesOf(attempt)) {
    const auto told = attempt.data_of_node().find(node);
    if (told == attempt.data_of_node().end()) return;
    const auto& prints = told->second.fingerprint_of_prefix();
    nodes_by_data[Fingerprints(prints.begin(), prints.end())].push_back(node);
  }
  const std::string& id = attempt.job_id();
  if (nodes_by_data.size() == 1) {
    if (const std::string change = DescribeChange(attempt); !change.empty()) {
      RefuseData(attempt, nodes_by_data.begin()->second,
                 [&](const std::string&) { return change; });
      return;
    }
    ledger_->EditAttempt(id, attempt.generation()).set_data_agreed(true);
    int64_t fetched = 0, from_nodes = 0;
    for (const auto& [node, told] : attempt.data_of_node()) {
      fetched += told.bytes_fetched();
      from_nodes += told.bytes_from_nodes();
    }
    if (!Find(id)->dataset_files().empty()) {
      ledger_->AddEvent(
          "data_ready", id, "", attempt.generation(),
          absl::StrCat(attempt.data_of_node_size(), " nodes have the job's data; ", fetched,
                       " bytes were fetched, ", from_nodes, " of them from other nodes"));
    }
    for (const std::string& node : NodesOf(attempt)) SendLaunch(attempt, node);
    return;
  }
  // The most nodes are right, of equally many those with rank 0.
  const std::string first = attempt.ranks(0).placement().node();
  const auto right = std::max_element(
      nodes_by_data.begin(), nodes_by_data.end(), [&](const auto& a, const auto& b) {
        const auto weight = [&](const std::vector<std::string>& nodes) {
          return std::pair(nodes.size(), std::count(nodes.begin(), nodes.end(), first));
        };
        return weight(a.second) < weight(b.second);
      });
  for (const auto& [data, nodes] : nodes_by_data) {
    if (data == right->first) continue;
    RefuseData(attempt, nodes, [&, &data = data](const std::string& node) {
      return DescribeMismatch(node, data, right->second, right->first);
    });
  }
}

// consumed_samples means a place in the order of the data that the job began with.
std::string JobManager::DescribeChange(const AttemptRecord& attempt) const {
  if (attempt.restore_job_id() != attempt.job_id()) return "";
  const AttemptRecord* before = nullptr;
  for (int generation = attempt.generation() - 1; generation > 0; --generation) {
    const auto it = ledger_->state().attempts.find({attempt.job_id(), generation});
    if (it == ledger_->state().attempts.end() || !it->second.data_agreed()) continue;
    before = &it->second;
    break;
  }
  if (before == nullptr) return "";
  const auto& now = attempt.data_of_node().begin()->second.fingerprint_of_prefix();
  for (const auto& [prefix, then] :
       before->data_of_node().begin()->second.fingerprint_of_prefix()) {
    const auto it = now.find(prefix);
    const std::string here = it == now.end() ? "" : it->second;
    if (here == then) continue;
    return absl::StrCat(
        "the data ", prefix, " has changed since attempt ", before->generation(),
        " of this job: ", DifferenceOf(prefix, here, then),
        " (there: in that attempt). The samples "
        "behind the checkpoint are others now: bring the old files back, or mean to go on with the "
        "new ones; then submit the job again with checkpoint.resume_from: ",
        attempt.job_id());
  }
  return "";
}

void JobManager::RefuseData(const AttemptRecord& attempt, const std::vector<std::string>& nodes,
                            const std::function<std::string(const std::string& node)>& why) {
  for (int i = 0; i < attempt.ranks_size(); ++i) {
    const std::string& node = attempt.ranks(i).placement().node();
    if (attempt.ranks(i).state() != RankRecord::STATE_ASSIGNED ||
        std::find(nodes.begin(), nodes.end(), node) == nodes.end())
      continue;
    RankRecord& edited =
        *ledger_->EditAttempt(attempt.job_id(), attempt.generation()).mutable_ranks(i);
    edited.set_state(RankRecord::STATE_EXITED);
    edited.mutable_exit()->set_cause("data");
    edited.mutable_exit()->set_exit_code(kExitPrecondition);
    edited.mutable_exit()->set_status_code("FAILED_PRECONDITION");
    edited.mutable_exit()->set_message(why(node));
    SetTime(edited.mutable_exit_time(), loop_->clock()->Now());
  }
}

void JobManager::DigestData(const JobRecord& job) {
  const std::string& id = job.job().id();
  const std::vector<std::string> prefixes = DatasetPrefixesOf(job.job().spec());
  if (options_.digester == nullptr || !job.job().spec().data().distribute() || prefixes.empty() ||
      !job.dataset_files().empty() || digesting_.contains(id))
    return;
  digesting_[id].work = options_.digester->Digest(
      prefixes,
      [this, alive = alive_, id](int64_t digested, int64_t total) {
        const auto digesting = *alive ? digesting_.find(id) : digesting_.end();
        if (!*alive || digesting == digesting_.end()) return;
        digesting->second.done_bytes = digested;
        digesting->second.total_bytes = total;
        Touch(id);
        Settle();
      },
      [this, alive = alive_, id](absl::StatusOr<std::vector<v1::DatasetFile>> files) {
        if (!*alive) return;
        digesting_.erase(id);
        const JobRecord* job = Find(id);
        if (job == nullptr || HasEnded(job->job().state())) return;
        if (files.ok()) {
          int64_t bytes = 0;
          for (const v1::DatasetFile& file : *files) bytes += file.bytes();
          ledger_->EditJob(id).mutable_dataset_files()->Assign(files->begin(), files->end());
          ledger_->AddEvent("data_digested", id, "", job->job().attempt(),
                            absl::StrCat(files->size(), " files, ", bytes, " bytes"));
        } else {
          End(id, v1::JOB_STATE_FAILED, kExitPrecondition, std::string(files.status().message()));
        }
        schedule_ = true;
        Settle();
      });
}

absl::Status JobManager::DataIsDigested(const JobRecord& job) const {
  const v1::JobSpec& spec = job.job().spec();
  if (!spec.data().distribute() || !job.dataset_files().empty() || DatasetPrefixesOf(spec).empty())
    return absl::OkStatus();
  const auto progress = digesting_.find(job.job().id());
  const int64_t total = progress == digesting_.end() ? 0 : progress->second.total_bytes;
  return absl::UnavailableError(total == 0 ? "its data is being digested"
                                           : absl::StrCat("its data is being digested: ",
                                                          100 * progress->second.done_bytes / total,
                                                          " % of ", total, " bytes"));
}

absl::StatusOr<v1::DatasetFile> JobManager::FindDatasetFile(const std::string& digest) const {
  for (const auto& [id, job] : ledger_->state().jobs) {
    if (HasEnded(job.job().state())) continue;
    for (const v1::DatasetFile& file : job.dataset_files()) {
      if (file.xxh3_128() == digest) return file;
    }
  }
  return absl::NotFoundError(
      absl::StrCat("no job that has not ended distributes a file with digest ", digest));
}

// Who may have files of it: nodes of this attempt and of the one before, a few of them if they are many.
void JobManager::AddDatasets(const AttemptRecord& attempt, const std::string& node,
                             v1::StartRanks& start) const {
  const JobRecord& job = *Find(attempt.job_id());
  if (job.dataset_files().empty()) return;
  *start.mutable_dataset_files() = job.dataset_files();
  std::set<std::string> nodes = NodesOf(attempt);
  const auto before = ledger_->state().attempts.find({attempt.job_id(), attempt.generation() - 1});
  if (before != ledger_->state().attempts.end()) nodes.merge(NodesOf(before->second));
  nodes.erase(node);
  std::vector<std::string> names(nodes.begin(), nodes.end());
  for (size_t i = names.size(); i > 1; --i)
    std::swap(names[i - 1], names[options_.random->Next() % i]);
  for (const std::string& name : names) {
    const std::string endpoint = nodes_->ShardsEndpoint(name);
    if (endpoint.empty()) continue;
    start.add_dataset_endpoints(endpoint);
    if (start.dataset_endpoints_size() == kMaxSources) break;
  }
}

// What is only known now and not worth a row: how far digests and fetches are.
void JobManager::DescribeData(const JobRecord& record, v1::Job& job) const {
  const AttemptRecord* attempt = Attempt(job.id());
  if (const auto digest = digesting_.find(job.id()); digest != digesting_.end()) {
    job.mutable_data()->set_digested_bytes(digest->second.done_bytes);
    job.mutable_data()->set_total_bytes(digest->second.total_bytes);
    return;
  }
  if (job.state() != v1::JOB_STATE_STARTING || attempt == nullptr || attempt->has_ended() ||
      attempt->stopping() || attempt->data_agreed())
    return;
  if (record.dataset_files().empty()) {
    std::vector<std::string> waited_for;
    for (const std::string& name : NodesOf(*attempt))
      if (!attempt->data_of_node().contains(name)) waited_for.push_back(name);
    constexpr size_t kNamed = 3;
    if (waited_for.empty()) return;
    const size_t more = waited_for.size() - std::min(kNamed, waited_for.size());
    waited_for.resize(waited_for.size() - more);
    job.set_reason(absl::StrCat("waits for ", absl::StrJoin(waited_for, ", "),
                                more > 0 ? absl::StrCat(" and ", more, " more") : "",
                                " to look at its data"));
    return;
  }
  v1::DataPreparation& data = *job.mutable_data();
  for (const v1::DatasetFile& file : record.dataset_files())
    data.set_total_bytes(data.total_bytes() + file.bytes());
  data.set_digested_bytes(data.total_bytes());
  const v1::DataPreparation::OfNode* slowest = nullptr;
  int ready = 0;
  for (const std::string& name : NodesOf(*attempt)) {
    v1::DataPreparation::OfNode& node = *data.add_nodes();
    node.set_node(name);
    node.set_bytes_total(data.total_bytes());
    node.set_ready(attempt->data_of_node().contains(name));
    if (node.ready()) {
      node.set_bytes_done(data.total_bytes());
      ++ready;
      continue;
    }
    if (const auto fetch = nodes_->DataFetchOf(name, job.id(), attempt->generation())) {
      node.set_bytes_done(fetch->bytes_done());
      node.set_waits_for(fetch->waits_for());
    }
    if (slowest == nullptr || node.bytes_done() < slowest->bytes_done()) slowest = &node;
  }
  if (slowest == nullptr) return;
  job.set_reason(absl::StrCat(
      ready, " of ", data.nodes_size(), " nodes have its data; ", slowest->node(), " has ",
      data.total_bytes() == 0 ? 100 : 100 * slowest->bytes_done() / data.total_bytes(), " % of ",
      data.total_bytes(), " bytes",
      slowest->waits_for().empty() ? "" : absl::StrCat(" and waits: ", slowest->waits_for())));
}

void JobManager::SendLaunch(const AttemptRecord& attempt, const std::string& node) {
  v1::CoordinatorMessage message;
  message.mutable_launch_ranks()->set_job_id(attempt.job_id());
  message.mutable_launch_ranks()->set_generation(attempt.generation());
  asked_to_pause_.erase({attempt.job_id(), attempt.generation(), node});  // as in SendStart
  nodes_->Send(node, std::move(message));
}

}  // namespace mt
