// JobManager: what people ask for, the queue, and starts.
#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/dataset/dataset_fingerprint.h"
#include "common/exit_codes.h"
#include "common/proto_time.h"
#include "common/spec/batch_schedule.h"
#include "common/spec/model_differences.h"
#include "coordinator/jobs/job_manager.h"
#include "google/protobuf/util/message_differencer.h"

namespace mt {
namespace {

using store::AttemptRecord;
using store::JobRecord;
using store::RankRecord;

bool HoldsSlots(v1::JobState state) {
  return state == v1::JOB_STATE_STARTING || state == v1::JOB_STATE_RUNNING ||
         state == v1::JOB_STATE_RECOVERING || state == v1::JOB_STATE_PAUSING ||
         state == v1::JOB_STATE_CANCELLING;
}

absl::Status NoSuchJob(const std::string& job_id) {
  return absl::NotFoundError(absl::StrCat("no job \"", job_id, "\"; `mtctl list` shows all"));
}

// FAILED_PRECONDITION if the job's tensors are not the checkpoint's: all that is trained goes on, nothing is thrown away. Else in
// which other traits the models differ; may be empty.
absl::StatusOr<std::string> CompareModels(const v1::JobSpec& spec,
                                          const store::CheckpointRecord& checkpoint) {
  const v1::ModelSpec& model = checkpoint.manifest().spec().model();
  const std::string name = absl::StrCat(checkpoint.job_id(), "@", checkpoint.step());
  if (const auto shapes = ModelDifferences(spec.model(), model, /*shapes_only=*/true);
      !shapes.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "checkpoint.resume_from: ", name, " is of another model: ", absl::StrJoin(shapes, "; "),
        "; give the job the model of that checkpoint"));
  }
  const auto traits = ModelDifferences(spec.model(), model, /*shapes_only=*/false);
  if (traits.empty()) return std::string();
  return absl::StrCat("compared with ", name, ": ", absl::StrJoin(traits, "; "));
}

// The order has as many samples as the steps from the beginning would take.
absl::Status CheckSamplesLeft(const v1::JobSpec& spec, const v1::CheckpointManifest& manifest) {
  const v1::TrainingSpec& training = spec.training();
  const int64_t ordered = SamplesOfSteps(training, training.steps());
  const int64_t wanted =
      SamplesAfter(training, manifest.consumed_samples(), training.steps() - manifest.step());
  if (wanted <= ordered || DatasetPrefixesOf(spec).empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      "checkpoint.resume_from: ", manifest.job_id(), "@", manifest.step(), " has consumed ",
      manifest.consumed_samples(), " samples, and step ", training.steps(), " would end at ",
      wanted, ", but training.steps: ", training.steps(),
      " of this global_batch and batch_rampup order ", ordered,
      " samples of the data; keep the batch that the checkpoint was made with (",
      manifest.spec().training().global_batch(), ")"));
}

// Why the samples of a run that goes on from a checkpoint come in another order than before it; "" if they do not.
std::string DescribeNewOrder(const v1::JobSpec& before, const v1::JobSpec& now) {
  const auto order = [](const v1::JobSpec& spec) {
    const v1::DataSpec& data = spec.data();
    std::string sources;
    for (const v1::DataSource& source : data.train())
      absl::StrAppend(&sources, " ", source.prefix(), " ", source.weight());
    return std::vector<std::pair<std::string, std::string>>{
        {"data.train", sources},
        {"data.split", data.split()},
        {"data.packing", absl::StrCat(data.packing())},
        {"data.sequence_length", absl::StrCat(data.sequence_length())},
        {"data.seed", absl::StrCat(data.has_seed() ? data.seed() : spec.training().seed())},
        {"the number of samples (training.steps, global_batch)",
         absl::StrCat(SamplesOfSteps(spec.training(), spec.training().steps()))}};
  };
  if (DatasetPrefixesOf(now).empty()) return "";
  const auto then = order(before), here = order(now);
  std::vector<std::string> changed;
  for (size_t i = 0; i < here.size(); ++i) {
    if (then[i] != here[i]) changed.push_back(here[i].first);
  }
  if (changed.empty()) return "";
  return absl::StrCat(
      "samples come in another order than before the checkpoint, so some come again and "
      "some never: other than there are ",
      absl::StrJoin(changed, ", "));
}

}  // namespace

std::string StateText(v1::JobState state) {
  const std::string prefix = "JOB_STATE_", name = v1::JobState_Name(state);
  return absl::AsciiStrToLower(absl::StartsWith(name, prefix) ? name.substr(prefix.size()) : name);
}

absl::StatusOr<v1::Job> JobManager::Submit(const v1::SubmitRequest& request,
                                           const std::string& submitted_by) {
  if (!request.request_id().empty()) {
    if (const auto known = by_request_.find(request.request_id()); known != by_request_.end()) {
      const JobRecord& job = *Find(known->second);
      if (!google::protobuf::util::MessageDifferencer::Equals(job.job().spec(), request.spec())) {
        return absl::AlreadyExistsError(absl::StrCat("request_id \"", request.request_id(),
                                                     "\" was used for job ", job.job().id(),
                                                     " with another spec; use a new request_id"));
      }
      MT_RETURN_IF_ERROR(ledger_->Flush());
      return Describe(job, true);
    }
  }
  const v1::JobSpec& spec = request.spec();
  MT_ASSIGN_OR_RETURN(const Mesh mesh, Mesh::FromSpec(spec.parallel()));
  int slots = 0;
  for (const std::string& node : nodes_->names()) slots += nodes_->Slots(node);
  if (mesh.world() > slots) {
    return absl::FailedPreconditionError(absl::StrCat(
        "parallel: ", mesh.ToString(), " needs ", mesh.world(), " slots, the cluster has ", slots,
        "; use a smaller layout or add nodes to the hostfile"));
  }
  std::string resume_job, new_order, new_model;
  int64_t resume_step = -1;
  if (!spec.checkpoint().resume_from().empty()) {
    const std::vector<std::string> parts =
        absl::StrSplit(spec.checkpoint().resume_from(), absl::MaxSplits('@', 1));
    if (parts.size() == 2 && (!absl::SimpleAtoi(parts[1], &resume_step) || resume_step < 0)) {
      return absl::InvalidArgumentError(absl::StrCat("checkpoint.resume_from: \"",
                                                     spec.checkpoint().resume_from(),
                                                     "\" is not JOB or JOB@STEP"));
    }
    const auto* checkpoint = parts.size() == 2 ? checkpoints_->Find(parts[0], resume_step)
                                               : checkpoints_->NewestCommitted(parts[0]);
    if (checkpoint == nullptr || checkpoint->state() != store::CheckpointRecord::STATE_COMMITTED) {
      return absl::FailedPreconditionError(absl::StrCat(
          "checkpoint.resume_from: \"", spec.checkpoint().resume_from(),
          "\" names no committed checkpoint; `mtctl checkpoint list ", parts[0], "` shows them"));
    }
    resume_job = parts[0];
    resume_step = checkpoint->step();
    if (resume_step >= spec.training().steps()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "checkpoint.resume_from: ", resume_job, "@", resume_step,
          " has done all of training.steps: ", spec.training().steps(),
          ", which counts from the start of the whole run; set it above ", resume_step));
    }
    MT_ASSIGN_OR_RETURN(new_model, CompareModels(spec, *checkpoint));
    MT_RETURN_IF_ERROR(CheckSamplesLeft(spec, checkpoint->manifest()));
    new_order = DescribeNewOrder(checkpoint->manifest().spec(), spec);
  }
  if (shutting_down_) return absl::UnavailableError("the cluster is going down");

  JobRecord record;
  v1::Job& job = *record.mutable_job();
  do {
    job.set_id(
        absl::StrCat(spec.name().empty() ? "job" : spec.name(), "-", options_.random->Id(5)));
  } while (Find(job.id()) != nullptr);
  *job.mutable_spec() = spec;
  job.set_state(v1::JOB_STATE_QUEUED);
  job.set_reason("submitted");
  SetTime(job.mutable_submitted(), loop_->clock()->Now());
  job.set_last_checkpoint_step(-1);
  job.set_request_id(request.request_id());
  job.set_submitted_by(submitted_by);
  record.set_resume_job_id(resume_job);
  record.set_resume_step(resume_step);
  int64_t order = 0;
  for (const auto& [id, other] : ledger_->state().jobs) order = std::max(order, other.order());
  record.set_order(order + 1);
  if (request.validate_only()) return job;
  const std::string id = job.id();
  MT_RETURN_IF_ERROR(ledger_->Try([&] {
    ledger_->EditJob(id) = record;
    ledger_->AddEvent("job_queued", id, "", 0,
                      absl::StrCat(mesh.ToString(), ", ", spec.training().steps(), " steps"));
    if (!new_order.empty()) ledger_->AddEvent("data_order_changed", id, "", 0, new_order);
    if (!new_model.empty()) ledger_->AddEvent("model_changed", id, "", 0, new_model);
  }));
  if (!request.request_id().empty()) by_request_[request.request_id()] = id;
  schedule_ = true;
  Settle();
  return Describe(*Find(id), true);
}

absl::StatusOr<v1::Job> JobManager::Cancel(const v1::JobActionRequest& request) {
  const JobRecord* job = Find(request.job_id());
  if (job == nullptr) return NoSuchJob(request.job_id());
  const v1::JobState state = job->job().state();
  if (state == v1::JOB_STATE_CANCELLED || (job->wish() == store::WISH_CANCEL && !HasEnded(state))) {
    MT_RETURN_IF_ERROR(ledger_->Flush());
    return Describe(*job, true);
  }
  if (HasEnded(state)) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", request.job_id(), " has ended: ", StateText(state)));
  }
  const bool at_once = state == v1::JOB_STATE_QUEUED || state == v1::JOB_STATE_PAUSED;
  MT_RETURN_IF_ERROR(ledger_->Try([&] {
    JobRecord& edited = ledger_->EditJob(request.job_id());
    edited.set_wish(store::WISH_CANCEL);
    edited.set_resume_at_start(false);
    edited.set_reason_by_user(request.reason());
    if (at_once) {
      End(request.job_id(), v1::JOB_STATE_CANCELLED, kExitInterrupted,
          request.reason().empty() ? "cancelled" : request.reason());
    } else {
      edited.mutable_job()->set_state(v1::JOB_STATE_CANCELLING);
      ledger_->AddEvent("job_cancelling", request.job_id(), "", edited.job().attempt(),
                        request.reason());
    }
  }));
  Touch(request.job_id());
  Settle();
  return Describe(*Find(request.job_id()), true);
}

absl::StatusOr<v1::Job> JobManager::Pause(const v1::JobActionRequest& request) {
  const JobRecord* job = Find(request.job_id());
  if (job == nullptr) return NoSuchJob(request.job_id());
  const v1::JobState state = job->job().state();
  if (HasEnded(state) || job->wish() == store::WISH_CANCEL) {
    return absl::FailedPreconditionError(absl::StrCat(
        "job ", request.job_id(), " has ended or is being cancelled: ", StateText(state)));
  }
  if (job->wish() != store::WISH_PAUSE || job->resume_at_start()) {
    MT_RETURN_IF_ERROR(ledger_->Try([&] {
      JobRecord& edited = ledger_->EditJob(request.job_id());
      edited.set_wish(store::WISH_PAUSE);
      edited.set_resume_at_start(false);
      edited.set_reason_by_user(request.reason());
      if (state == v1::JOB_STATE_QUEUED) {
        SetReason(request.job_id(), v1::JOB_STATE_PAUSED, "paused before it started");
      } else if (state != v1::JOB_STATE_PAUSED) {
        SetReason(request.job_id(), v1::JOB_STATE_PAUSING, "will pause at its next step");
      }
      ledger_->AddEvent("job_pausing", request.job_id(), "", edited.job().attempt(),
                        request.reason());
    }));
    Touch(request.job_id());
    Settle();
  } else {
    MT_RETURN_IF_ERROR(ledger_->Flush());
  }
  return Describe(*Find(request.job_id()), true);
}

absl::StatusOr<v1::Job> JobManager::Resume(const v1::JobActionRequest& request) {
  const JobRecord* job = Find(request.job_id());
  if (job == nullptr) return NoSuchJob(request.job_id());
  const v1::JobState state = job->job().state();
  if (state != v1::JOB_STATE_PAUSED && state != v1::JOB_STATE_PAUSING) {
    return absl::FailedPreconditionError(
        absl::StrCat("job ", request.job_id(), " is not paused but ", StateText(state)));
  }
  MT_RETURN_IF_ERROR(ledger_->Try([&] {
    JobRecord& edited = ledger_->EditJob(request.job_id());
    edited.set_wish(store::WISH_RUN);
    edited.set_resume_at_start(false);
    edited.clear_reason_by_user();
    if (state == v1::JOB_STATE_PAUSED) SetReason(request.job_id(), v1::JOB_STATE_QUEUED, "resumed");
    ledger_->AddEvent("job_resumed", request.job_id(), "", edited.job().attempt(),
                      request.reason());
  }));
  Touch(request.job_id());
  Settle();
  return Describe(*Find(request.job_id()), true);
}

absl::StatusOr<v1::Job> JobManager::Get(const std::string& job_id) const {
  const JobRecord* job = Find(job_id);
  if (job == nullptr) return NoSuchJob(job_id);
  return Describe(*job, true);
}

v1::Job JobManager::Describe(const JobRecord& record, bool with_ranks) const {
  v1::Job job = record.job();
  if (const auto progress = ledger_->state().progress.find(job.id());
      progress != ledger_->state().progress.end()) {
    *job.mutable_progress() = progress->second;
  }
  if (const AttemptRecord* attempt = Attempt(job.id())) {
    if (with_ranks) {
      for (const RankRecord& rank : attempt->ranks()) *job.add_ranks() = rank.placement();
    }
    *job.mutable_operations() = attempt->operations();
  }
  DescribeData(record, job);
  job.set_restarts(std::max(0, job.attempt() - 1));
  if (job.has_started()) {
    const absl::Time end = job.has_ended() ? ToTime(job.ended()) : loop_->clock()->Now();
    const double wall = absl::ToDoubleSeconds(end - ToTime(job.started()));
    if (wall > 0) job.set_goodput(std::clamp(record.productive_seconds() / wall, 0.0, 1.0));
  }
  return job;
}

std::map<std::string, std::pair<int, std::set<std::string>>> JobManager::Usage() const {
  std::map<std::string, std::pair<int, std::set<std::string>>> usage;
  for (const auto& [id, job] : ledger_->state().jobs) {
    const AttemptRecord* attempt = HoldsSlots(job.job().state()) ? Attempt(id) : nullptr;
    if (attempt == nullptr) continue;
    for (const RankRecord& rank : attempt->ranks()) {
      auto& [slots, jobs] = usage[rank.placement().node()];
      ++slots;
      jobs.insert(id);
    }
  }
  return usage;
}

int64_t JobManager::queued() const {
  return std::count_if(
      ledger_->state().jobs.begin(), ledger_->state().jobs.end(),
      [](const auto& entry) { return entry.second.job().state() == v1::JOB_STATE_QUEUED; });
}

const JobManager::Metrics* JobManager::MetricsOf(const std::string& job_id) const {
  const auto it = metrics_.find(job_id);
  return it == metrics_.end() ? nullptr : &it->second;
}

std::vector<FreeNode> JobManager::FreeNodes(const std::string& for_job) const {
  std::map<std::string, std::set<int>> used;
  for (const auto& [id, job] : ledger_->state().jobs) {
    const AttemptRecord* attempt =
        id != for_job && HoldsSlots(job.job().state()) ? Attempt(id) : nullptr;
    if (attempt == nullptr) continue;
    for (const RankRecord& rank : attempt->ranks())
      used[rank.placement().node()].insert(rank.placement().slot());
  }
  std::vector<FreeNode> nodes;
  for (const std::string& name : nodes_->names()) {
    if (!nodes_->IsPlaceable(name)) continue;
    FreeNode& node = nodes.emplace_back();
    node.name = name;
    for (int slot = 0; slot < nodes_->Slots(name); ++slot) {
      if (!used[name].contains(slot)) node.slots.push_back(slot);
    }
  }
  return nodes;
}

bool JobManager::Avoids(const std::string& job_id, const std::string& node) const {
  const auto until = avoided_.find({job_id, node});
  return until != avoided_.end() && loop_->clock()->Monotonic() < until->second;
}

std::optional<std::vector<v1::RankPlacement>> JobManager::Place(const std::string& job_id,
                                                                const Mesh& mesh,
                                                                const AttemptRecord* last) {
  const std::vector<FreeNode> free = FreeNodes(job_id);
  const bool same =
      last != nullptr && last->ranks_size() == mesh.world() &&
      Find(job_id)->job().state() == v1::JOB_STATE_RECOVERING &&
      std::all_of(last->ranks().begin(), last->ranks().end(), [&](const RankRecord& rank) {
        const v1::RankPlacement& place = rank.placement();
        return nodes_->IsPlaceable(place.node()) && place.slot() < nodes_->Slots(place.node());
      });
  const auto avoids = [&](const std::string& node) { return Avoids(job_id, node); };
  std::vector<FreeNode> others;
  for (const FreeNode& node : free) {
    if (!avoids(node.name)) others.push_back(node);
  }
  if (same) {
    std::vector<v1::RankPlacement> places;
    bool good = true;
    for (const RankRecord& rank : last->ranks()) {
      places.push_back(rank.placement());
      good = good && !avoids(rank.placement().node());
    }
    if (good) return places;
    if (auto elsewhere = PlaceRanks(mesh, others); elsewhere.has_value()) return elsewhere;
    return places;
  }
  if (others.size() < free.size()) {
    if (auto elsewhere = PlaceRanks(mesh, others); elsewhere.has_value()) return elsewhere;
  }
  return PlaceRanks(mesh, free);
}

bool JobManager::FitsWithoutOthers(const Mesh& mesh) const {
  int slots = 0;
  for (const std::string& name : nodes_->names())
    slots += nodes_->IsPlaceable(name) ? nodes_->Slots(name) : 0;
  return slots >= mesh.world();
}

// Strict order: a job that waits only for busy slots holds back those behind it, so that a large one is never starved by small
// ones. One that waits for nodes or checkpoint files that are away holds nobody back.
void JobManager::Schedule() {
  std::vector<const JobRecord*> queue;
  for (const auto& [id, job] : ledger_->state().jobs) {
    if (job.job().state() == v1::JOB_STATE_QUEUED) queue.push_back(&job);
  }
  std::sort(queue.begin(), queue.end(), [](const JobRecord* a, const JobRecord* b) {
    return std::pair(-a->job().spec().priority(), a->order()) <
           std::pair(-b->job().spec().priority(), b->order());
  });
  std::string ahead;
  for (const JobRecord* job : queue) {
    const std::string id = job->job().id();
    DigestData(*job);  // also of one that still waits for others
    if (PauseIfAllCheckpointsAreBad(id)) continue;
    if (!ahead.empty()) {
      SetReason(id, v1::JOB_STATE_QUEUED,
                absl::StrCat("behind ", ahead, ", which waits for slots"));
      continue;
    }
    const absl::Status wait = TryStart(id);
    if (wait.ok()) continue;
    SetReason(id, v1::JOB_STATE_QUEUED, std::string(wait.message()));
    const auto mesh = Mesh::FromSpec(job->job().spec().parallel());
    if (absl::IsResourceExhausted(wait) && mesh.ok() && FitsWithoutOthers(*mesh)) ahead = id;
  }
}

bool JobManager::PauseIfAllCheckpointsAreBad(const std::string& job_id) {
  const std::string steps = checkpoints_->OnlyBadOnesLeft(job_id);
  if (steps.empty()) return false;
  const std::string why = absl::StrCat(
      "none of its checkpoints could be read (step ", steps, "), and it does not begin again from ",
      "step 0 by itself; bring the nodes or files back, `mtctl checkpoint verify ", job_id,
      "@STEP` uses one again that is found whole, then resume it; or submit it anew");
  ledger_->EditJob(job_id).set_wish(store::WISH_PAUSE);
  SetReason(job_id, v1::JOB_STATE_PAUSED, why);
  ledger_->AddEvent("job_paused", job_id, "", Find(job_id)->job().attempt(), why);
  return true;
}

// Starts the next generation if everything that it needs is there; changes nothing otherwise.
absl::Status JobManager::TryStart(const std::string& job_id) {
  if (shutting_down_) return absl::UnavailableError("the cluster is going down");
  const JobRecord& job = *Find(job_id);
  const v1::JobSpec& spec = job.job().spec();
  const AttemptRecord* last = Attempt(job_id);
  MT_ASSIGN_OR_RETURN(const Mesh mesh, Mesh::FromSpec(spec.parallel()));
  MT_RETURN_IF_ERROR(DataIsDigested(job));

  const store::CheckpointRecord* restore = checkpoints_->NewestCommitted(job_id);
  if (restore == nullptr && !job.resume_job_id().empty()) {
    restore = checkpoints_->Find(job.resume_job_id(), job.resume_step());
    if (restore == nullptr || restore->state() != store::CheckpointRecord::STATE_COMMITTED) {
      return absl::UnavailableError(
          absl::StrCat("checkpoint ", job.resume_job_id(), "@", job.resume_step(),
                       " that it resumes from is gone or unreadable; cancel it and submit anew"));
    }
  }
  if (restore != nullptr) MT_RETURN_IF_ERROR(checkpoints_->Sources(*restore).status());

  std::optional<std::vector<v1::RankPlacement>> placement = Place(job_id, mesh, last);
  if (!placement.has_value()) {
    size_t slots = 0;
    for (const FreeNode& node : FreeNodes(job_id)) slots += node.slots.size();
    std::string away;
    for (const std::string& name : nodes_->names()) {
      if (!nodes_->IsPlaceable(name))
        absl::StrAppend(&away, away.empty() ? "; not usable now: " : ", ", name);
      if (away.size() > 200) break;
    }
    return absl::ResourceExhaustedError(absl::StrCat("needs ", mesh.world(), " slots; ", slots,
                                                     slots == 1 ? " is" : " are", " free", away));
  }
  const int64_t restore_step =
      restore == nullptr || restore->job_id() != job_id ? -1 : restore->step();
  if (!checkpoints_->PrepareForAttempt(job_id, restore_step)) {
    return absl::UnavailableError(
        "an unfinished checkpoint is being removed from the shared folder");
  }

  JobRecord& edited = ledger_->EditJob(job_id);
  v1::Job& view = *edited.mutable_job();
  const int generation = view.attempt() + 1;
  view.set_attempt(generation);
  view.set_restarts(generation - 1);
  view.set_state(v1::JOB_STATE_STARTING);
  view.set_reason(restore == nullptr
                      ? "from scratch"
                      : absl::StrCat("from the checkpoint of step ", restore->step()));
  const absl::Time now = loop_->clock()->Now();
  if (!view.has_started()) {
    SetTime(view.mutable_started(), now);
    metrics_[job_id].queue_seconds = absl::ToDoubleSeconds(now - ToTime(view.submitted()));
  }
  AttemptRecord& attempt = ledger_->EditAttempt(job_id, generation);
  attempt.set_job_id(job_id);
  attempt.set_generation(generation);
  SetTime(attempt.mutable_started(), now);
  attempt.set_furthest_at_start(edited.furthest_step());
  attempt.set_committed_at_start(view.last_checkpoint_step());
  if (restore != nullptr) {
    attempt.set_restore_job_id(restore->job_id());
    attempt.set_restore_step(restore->step());
  }
  std::set<std::string> nodes;
  for (v1::RankPlacement& rank : *placement) {
    rank.set_pid(0);
    rank.set_address(nodes_->DataAddress(rank.node()));
    rank.set_interface(nodes_->DataInterface(rank.node()));
    RankRecord& record = *attempt.add_ranks();
    record.set_incarnation(nodes_->Incarnation(rank.node()));
    nodes.insert(rank.node());
    *record.mutable_placement() = std::move(rank);
  }
  if (restore != nullptr && restore->path().empty()) {
    // Its files come to these nodes: retention must know.
    auto* holders = ledger_->EditCheckpoint(restore->job_id(), restore->step()).mutable_holders();
    for (const std::string& node : nodes) {
      if (std::find(holders->begin(), holders->end(), node) == holders->end())
        *holders->Add() = node;
    }
  }
  last_progress_[job_id] = loop_->clock()->Monotonic();
  ledger_->AddEvent("attempt_started", job_id, "", generation,
                    absl::StrCat(mesh.world(), " ranks on ", nodes.size(), " nodes, ",
                                 restore == nullptr ? "from scratch"
                                                    : absl::StrCat("from step ", restore->step(),
                                                                   " of ", restore->job_id())));
  for (const std::string& node : nodes) SendStart(attempt, node);
  Touch(job_id);
  return absl::OkStatus();
}

}  // namespace mt
