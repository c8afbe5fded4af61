// What comes between StartRanks and the first process: the job's data. Fetched, checked, told, and then waited for: ranks run when
// the coordinator has compared what all nodes told. docs/spec/dataset-distribution.md.
#include <algorithm>

#include "common/exit_codes.h"
#include "common/log.h"
#include "worker/agent/agent.h"

namespace mt {
namespace {

void RewritePrefixes(const std::map<std::string, std::string>& local, v1::DataSpec* data) {
  const auto rewrite = [&](google::protobuf::RepeatedPtrField<v1::DataSource>* sources) {
    for (v1::DataSource& source : *sources) {
      if (const auto it = local.find(source.prefix()); it != local.end())
        source.set_prefix(it->second);
    }
  };
  rewrite(data->mutable_train());
  rewrite(data->mutable_validation());
  rewrite(data->mutable_test());
}

}  // namespace

Agent::Job* Agent::WaitingJob(const std::string& job_id, int32_t generation) {
  const auto it = jobs_.find(job_id);
  const bool waits = it != jobs_.end() && it->second.generation == generation &&
                     it->second.waiting_to_start && !ending_;
  return waits ? &it->second : nullptr;
}

void Agent::PrepareData(Job& job) {
  job.data_asked = loop_->clock()->Monotonic();
  if (job.start.dataset_files().empty()) {
    CheckData(job, {});
    return;
  }
  if (datasets_ == nullptr) {
    RefuseData(job, absl::UnimplementedError("this worker daemon has no cache of datasets"));
    return;
  }
  DatasetRequest request{
      job.start.job_id(),
      job.generation,
      {job.start.dataset_files().begin(), job.start.dataset_files().end()},
      {job.start.dataset_endpoints().begin(), job.start.dataset_endpoints().end()}};
  datasets_->Provide(
      std::move(request), [this, alive = alive_, job_id = job.start.job_id(),
                           generation = job.generation](absl::StatusOr<ProvidedDatasets> provided) {
        Job* job = *alive ? WaitingJob(job_id, generation) : nullptr;
        if (job == nullptr) return;
        if (!provided.ok()) {
          RefuseData(*job, provided.status());
          return;
        }
        RewritePrefixes(provided->local_prefix, job->start.mutable_spec()->mutable_data());
        CheckData(*job, *std::move(provided));
      });
}

void Agent::CheckData(Job& job, ProvidedDatasets provided) {
  v1::JobSpec to_check = job.start.spec();
  // Who goes on from a checkpoint of its own no longer needs what it began with.
  if (job.start.has_restore()) to_check.clear_initial_checkpoint();
  data_checker_->Check(
      to_check, [this, alive = alive_, job_id = job.start.job_id(), generation = job.generation,
                 provided = std::move(provided)](absl::StatusOr<DataFingerprints> fingerprints) {
        Job* job = *alive ? WaitingJob(job_id, generation) : nullptr;
        if (job == nullptr) return;
        if (!fingerprints.ok()) {
          RefuseData(*job, fingerprints.status());
          return;
        }
        ReportData(*job, provided, *fingerprints);
        LaunchIfReady(*job);
      });
}

// Under the prefixes of the spec that people wrote, which are the same on every node.
void Agent::ReportData(Job& job, const ProvidedDatasets& provided,
                       const DataFingerprints& fingerprints) {
  job.data_checked = true;
  std::map<std::string, std::string> original;
  for (const auto& [prefix, local] : provided.local_prefix) original[local] = prefix;
  const auto& table = job.start.rank_table();
  const auto here = [this](const v1::RankSlot& slot) { return slot.node() == options_.node; };
  const auto first = std::find_if(table.begin(), table.end(), here);
  if (first == table.end()) return;
  // Nobody to compare with: neither another node nor the attempt that began with this data.
  job.may_launch = std::all_of(table.begin(), table.end(), here) && !job.start.has_restore();
  v1::WorkerEvent event = NewEvent({job.start.job_id(), job.generation, first->rank()});
  v1::DataChecked& checked = *event.mutable_data_checked();
  for (const auto& [prefix, fingerprint] : fingerprints) {
    const auto it = original.find(prefix);
    (*checked.mutable_fingerprint_of_prefix())[it == original.end() ? prefix : it->second] =
        fingerprint;
  }
  checked.set_bytes_fetched(provided.bytes_fetched);
  checked.set_bytes_from_nodes(provided.bytes_from_nodes);
  checked.set_seconds(absl::ToDoubleSeconds(loop_->clock()->Monotonic() - job.data_asked));
  Emit(std::move(event));
}

// An early one is ignored: the coordinator sends it again when it has heard of this node's data.
absl::Status Agent::LaunchRanks(const v1::LaunchRanks& launch) {
  Job* job = WaitingJob(launch.job_id(), launch.generation());
  if (job == nullptr || !job->data_checked) return absl::OkStatus();
  job->may_launch = true;
  LaunchIfReady(*job);
  return absl::OkStatus();
}

// The job's data is missing or broken as this node sees it, or its disk is: its ranks end before they start.
void Agent::RefuseData(Job& job, const absl::Status& why) {
  job.waiting_to_start = false;
  // Which the next attempt may go round.
  const char* const cause = absl::IsInternal(why) ? "start" : "data";
  for (const auto& slot : job.start.rank_table()) {
    if (slot.node() != options_.node) continue;
    v1::WorkerEvent event = NewEvent({job.start.job_id(), job.generation, slot.rank()});
    auto* exited = event.mutable_rank_exited();
    exited->set_cause(cause);
    exited->set_exit_code(kExitPrecondition);
    exited->set_status_code(absl::StatusCodeToString(why.code()));
    exited->set_message(std::string(why.message()));
    Emit(std::move(event));
  }
  if (absl::Status saved = SaveRecord(); !saved.ok()) {
    MT_LOG(Warning) << "record of running ranks: " << saved.ToString();
  }
  ReleaseData(job.start.job_id(), job.generation);
}

void Agent::ReleaseData(const std::string& job_id, int32_t generation) {
  const bool runs = std::any_of(ranks_.begin(), ranks_.end(), [&](const auto& entry) {
    return entry.first.job_id == job_id && entry.first.generation == generation;
  });
  if (!runs && datasets_ != nullptr && WaitingJob(job_id, generation) == nullptr)
    datasets_->Release(job_id, generation);
}

}  // namespace mt
