#include "worker/train/rank_main.h"

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "common/clock.h"
#include "common/env.h"
#include "common/log.h"
#include "common/metered_env.h"
#include "common/proto_time.h"
#include "common/spec/data_traits.h"
#include "common/spec/mesh.h"
#include "worker/backend/operations.h"
#include "worker/checkpoint/hugging_face/initial_checkpoint.h"
#include "worker/checkpoint/loader.h"
#include "worker/checkpoint/manifest.h"
#include "worker/checkpoint/writer.h"
#include "worker/comm/groups.h"
#include "worker/comm/nccl_environment.h"
#include "worker/data/sample/dataset_batch_source.h"
#include "worker/model/number_types.h"
#include "worker/train/gemm_peak.h"
#include "worker/train/rank_channel.h"
#include "worker/train/same_arithmetic.h"
#include "worker/train/step_line.h"
#include "worker/train/trainer.h"
#include "worker/train/watched_communicator.h"

namespace mt {
namespace {

constexpr absl::Duration kDefaultStartDeadline = absl::Minutes(5);
constexpr absl::Duration kRankReportInterval = absl::Seconds(1);

// The parts of one rank, in the order in which they come up; destroyed in reverse.
class RankRun {
 public:
  RankRun(v1::RankStart start, RankChannel* channel)
      : start_(std::move(start)),
        spec_(start_.spec()),
        channel_(channel),
        started_(Clock::Real()->Monotonic()) {
    channel_->CountBytes(bytes_moved_);
  }

  absl::Status Run() {
    MT_RETURN_IF_ERROR(Connect());
    MT_RETURN_IF_ERROR(Prepare());
    return Train();
  }
  // After Run has failed, and the daemon knows why: lets go of the peers and ends what this rank has in flight. A checkpoint
  // that is being written is finished; aborts are not waited for, because they may wait for peers on this node, which only
  // this process's end will end.
  void Leave(absl::string_view reason) {
    groups_.Abort(absl::StrCat("rank ", start_.rank(), " failed: ", reason));
    writer_.reset();
  }

  ~RankRun() { channel_->SetDeviceWaiting(nullptr); }

  bool paused() const { return paused_; }
  // The rank that a communicator error blames.
  std::optional<int> blamed() const {
    for (const auto& communicator : watched_) {
      if (communicator->blamed().has_value()) return communicator->blamed();
    }
    return std::nullopt;
  }
  int64_t step() const {
    return trainer_ == nullptr ? start_.restore().step() : trainer_->position().step;
  }

 private:
  absl::Status OpenBackend();
  absl::Status ConfigureDevice(const Backend& backend);
  TensorGroupPlace TensorPlace() const;
  absl::Status Connect();
  absl::Status MeasurePeak();
  absl::Status Prepare();
  absl::Status Restore();
  absl::Status LoadInitial();
  absl::Status Train();
  // The held-out loss after a step that is to be followed by an evaluation.
  absl::StatusOr<std::optional<double>> EvaluateAfter(int64_t step);
  absl::Status Checkpoint();
  absl::StatusOr<std::string> Resolve(const v1::CheckpointFile& file, bool verify_local);
  Communicator* Watch(Communicator* communicator);
  absl::Duration Now() const { return Clock::Real()->Monotonic(); }
  double CommunicationSeconds() const;
  std::string DeviceWaiting() const;

  v1::RankStart start_;
  const v1::JobSpec& spec_;
  RankChannel* const channel_;
  const absl::Duration started_;
  // Checkpoints are read and written through it: a slow disk is no hang.
  const std::shared_ptr<std::atomic<int64_t>> bytes_moved_ =
      std::make_shared<std::atomic<int64_t>>();
  MeteredEnv files_{Env::Real(), bytes_moved_};
  std::optional<Mesh> mesh_;
  RankGroups groups_;
  std::vector<std::unique_ptr<WatchedCommunicator>> watched_;
  Communicator* model_group_ = nullptr;
  Communicator* data_group_ = nullptr;
  Operations::Options operations_options_;
  std::unique_ptr<Operations> operations_;
  std::unique_ptr<BatchSource> samples_;
  std::unique_ptr<BatchSource> held_out_;  // null without evaluations, and where samples_ is
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<CheckpointWriter> writer_;
  double peak_flops_ = 0;
  double communicator_seconds_ = 0;
  absl::Duration stall_;
  int64_t last_checkpoint_step_ = -1;
  bool paused_ = false;
};

Communicator* RankRun::Watch(Communicator* communicator) {
  if (communicator == nullptr || communicator->size() == 1) return communicator;
  return watched_.emplace_back(std::make_unique<WatchedCommunicator>(communicator, channel_)).get();
}

double RankRun::CommunicationSeconds() const {
  double seconds = 0;
  for (const auto& communicator : watched_)
    seconds += absl::ToDoubleSeconds(communicator->seconds_spent());
  return seconds;
}

// The oldest collective that a device waits in, so that a hang has a name.
std::string RankRun::DeviceWaiting() const {
  for (const auto& communicator : watched_) {
    const std::string call = communicator->Unfinished();
    if (!call.empty()) return absl::StrCat(call, " in the group ", communicator->name());
  }
  return "";
}

TensorGroupPlace RankRun::TensorPlace() const {
  TensorGroupPlace place{.mesh = &*mesh_, .rank = start_.rank()};
  place.rank_table.assign(start_.rank_table().begin(), start_.rank_table().end());
  return place;
}

// What a backend with a device must know before it is opened.
absl::Status RankRun::ConfigureDevice(const Backend& backend) {
  const int devices = backend.info().device_count;
  operations_options_.device = start_.slot();
  if (DevicesAreShared() && devices > 0) {
    operations_options_.device = start_.slot() % devices;
  } else if (start_.slot() >= devices) {
    return absl::FailedPreconditionError(
        absl::StrCat("slot ", start_.slot(), " of node ", start_.rank_table(start_.rank()).node(),
                     ": backend ", backend.name(), " has ", devices,
                     " devices there, and each slot needs its own; lower slots= in the hostfile"));
  }
  if (mesh_->world() > 1) {
    NcclPlace place{.rank = start_.rank(), .share_device = DevicesAreShared()};
    place.rank_table.assign(start_.rank_table().begin(), start_.rank_table().end());
    MT_ASSIGN_OR_RETURN(const Environment environment, NcclEnvironment(place, InterfaceOf));
    std::printf("rank %d: %s\n", start_.rank(), SetEnvironment(environment).c_str());
  }
  operations_options_.configuration["attention"] = spec_.runtime().attention();
  // Beside the checkpoints, so that whoever resumes from them computes with the same algorithms.
  const std::string& folder = start_.checkpoint_root();
  MT_RETURN_IF_ERROR(Env::Real()->CreateDirectories(folder));
  operations_options_.configuration["gemm_cache"] = GemmCacheOf(TensorPlace(), folder);
  return absl::OkStatus();
}

absl::Status RankRun::OpenBackend() {
  SetEnvironment(CudaEnvironment());
  operations_options_.backend = spec_.runtime().backend();
  operations_options_.overrides = {spec_.runtime().operations().begin(),
                                   spec_.runtime().operations().end()};
  operations_options_.threads = start_.threads();
  MT_ASSIGN_OR_RETURN(const Backend* chosen, ChooseBackend(spec_.runtime().backend()));
  if (!chosen->host_memory()) {
    MT_RETURN_IF_ERROR(ConfigureDevice(*chosen));
  }
  MT_ASSIGN_OR_RETURN(operations_, Operations::Create(operations_options_));
  return absl::OkStatus();
}

absl::Status RankRun::Connect() {
  MT_ASSIGN_OR_RETURN(mesh_, Mesh::FromSpec(spec_.parallel()));
  if (start_.rank_table_size() != mesh_->world() || start_.rank() < 0 ||
      start_.rank() >= mesh_->world()) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", start_.rank(), " of a table of ", start_.rank_table_size(),
                     " in a mesh of ", mesh_->ToString(), " (", mesh_->world(), " ranks)"));
  }
  MT_RETURN_IF_ERROR(OpenBackend());
  channel_->SetPhase("communicator", start_.restore().step());
  const absl::Duration before = Now();
  GroupsOptions options;
  if (!operations_->backend().host_memory()) options.device = &operations_->backend().abi();
  options.mesh = &*mesh_;
  options.rank = start_.rank();
  options.rank_table.assign(start_.rank_table().begin(), start_.rank_table().end());
  if (!spec_.runtime().transport().empty()) options.transport = spec_.runtime().transport();
  options.job_id = start_.job_id();
  options.generation = start_.generation();
  // The daemons' hang deadlines come first, because they name the rank that hangs; this one is the
  // last resort.
  options.timeout = spec_.fault().has_start_deadline() ? ToDuration(spec_.fault().start_deadline())
                                                       : kDefaultStartDeadline;
  options.timeout = std::max(options.timeout, 4 * ToDuration(spec_.fault().min_step_deadline()));
  MT_RETURN_IF_ERROR(BuildGroups(options, channel_, &groups_));
  if (options.device != nullptr) {  // all ranks are known to be there
    MT_RETURN_IF_ERROR(CheckSameArithmetic(TensorPlace(), ArithmeticOf(operations_->backend()),
                                           absl::StrCat(start_.job_id(), "/", start_.generation()),
                                           options.timeout, channel_));
  }
  communicator_seconds_ = absl::ToDoubleSeconds(Now() - before);
  std::printf("rank %d of %s: %s\n", start_.rank(), mesh_->ToString().c_str(),
              groups_.Describe().c_str());
  return absl::OkStatus();
}

// All ranks measure together; their sum is what the job's FLOPs are compared with.
absl::Status RankRun::MeasurePeak() {
  const mt_dtype dtype = TypesOf(spec_.training().precision()).data;
  int32_t here = 1;
  MT_RETURN_IF_ERROR(model_group_->AllReduceHost(&here, 1, MT_I32, ReduceOp::kMax));
  const absl::StatusOr<double> peak = MeasureGemmPeak(operations_options_, dtype);
  if (!peak.ok()) {
    MT_LOG(Warning) << "matrix product peak: " << peak.status().ToString();
  }
  peak_flops_ = peak.value_or(0);
  MT_RETURN_IF_ERROR(model_group_->AllReduceHost(&peak_flops_, 1, MT_F64, ReduceOp::kSum));
  return data_group_->AllReduceHost(&peak_flops_, 1, MT_F64, ReduceOp::kSum);
}

absl::Status RankRun::Prepare() {
  channel_->SetPhase("load", start_.restore().step());
  const absl::Duration before = Now();
  TrainerOptions options{.spec = spec_, .mesh = *mesh_, .rank = start_.rank()};
  options.groups.tensor = Watch(groups_.tensor.get());
  options.groups.data = data_group_ = Watch(groups_.data.get());
  options.groups.pipeline = Watch(groups_.pipeline.get());
  options.groups.embedding = Watch(groups_.embedding.get());
  options.groups.model = model_group_ = Watch(groups_.model.get());

  channel_->SetDeviceWaiting([this] { return DeviceWaiting(); });
  options.operations = operations_.get();
  if (mesh_->IsFirstStage(start_.rank()) || mesh_->IsLastStage(start_.rank()) ||
      SeesDocuments(spec_.data())) {
    const OpenDataOptions data = {
        .index_cache = start_.index_cache(),
        .prefetch_stride = spec_.training().micro_batch() * mesh_->data()};
    MT_ASSIGN_OR_RETURN(samples_, OpenData(Env::Real(), spec_, DataShare::kTrain, data));
    options.samples = samples_.get();
    if (spec_.training().evaluation().every_steps() > 0) {
      MT_ASSIGN_OR_RETURN(held_out_, OpenData(Env::Real(), spec_, DataShare::kValidation, data));
    }
  }
  MT_ASSIGN_OR_RETURN(trainer_, Trainer::Create(std::move(options)));
  MT_RETURN_IF_ERROR(start_.has_restore()                  ? Restore()
                     : !spec_.initial_checkpoint().empty() ? LoadInitial()
                                                           : trainer_->InitialiseWeights());

  CheckpointWriterOptions writing;
  writing.env = &files_;
  writing.root = start_.checkpoint_root();
  writing.job_id = start_.job_id();
  writing.generation = start_.generation();
  writing.rank = start_.rank();
  writing.world_size = mesh_->world();
  const Backend& backend = operations_->backend();
  if (!backend.host_memory()) {
    writing.device = &backend.abi();
    writing.before_next_update = [this](mt_event copied, mt_event reached) {
      return trainer_->BeforeNextUpdate(copied, reached);
    };
  }
  writing.on_written = [this](const v1::ShardWritten& shard) {
    v1::FromRank message;
    *message.mutable_shard_written() = shard;
    channel_->Send(message);
  };
  writing.on_failed = [this](const v1::CheckpointFailed& failure) {
    MT_LOG(Error) << "checkpoint of step " << failure.step() << ": " << failure.message();
    v1::FromRank message;
    *message.mutable_checkpoint_failed() = failure;
    channel_->Send(message);
  };
  MT_ASSIGN_OR_RETURN(writer_,
                      CheckpointWriter::Create(std::move(writing), trainer_->CheckpointState()));
  MT_RETURN_IF_ERROR(MeasurePeak());

  v1::FromRank message;
  auto* ready = message.mutable_ready();
  for (auto& operation : operations_->Resolved()) *ready->add_operations() = std::move(operation);
  ready->set_communicator_seconds(communicator_seconds_);
  ready->set_load_seconds(absl::ToDoubleSeconds(Now() - before));
  ready->set_start_step(trainer_->position().step);
  channel_->Send(message);
  const TrainerMemory memory = trainer_->memory();
  std::printf(
      "rank %d: backend %s, %d threads; weights %.1f MiB, gradients %.1f MiB, optimizer %.1f MiB, "
      "activations %.1f MiB; "
      "starts at step %lld\n",
      start_.rank(), operations_->backend().name().c_str(), start_.threads(),
      memory.weights / 1048576.0, memory.gradients / 1048576.0, memory.optimizer / 1048576.0,
      memory.activations / 1048576.0, static_cast<long long>(trainer_->position().step));
  int64_t free_bytes = 0, total_bytes = 0;
  if (!backend.host_memory() && backend.abi().memory_info(&free_bytes, &total_bytes) == MT_OK) {
    std::printf("rank %d: device %d, %s: %.1f of %.1f GiB of memory free\n", start_.rank(),
                operations_options_.device, backend.info().name, free_bytes / 1073741824.0,
                total_bytes / 1073741824.0);
  }
  std::fflush(stdout);
  return absl::OkStatus();
}

// A file that is here and whole is used where it is; otherwise the daemon brings it from a node
// that has it.
absl::StatusOr<std::string> RankRun::Resolve(const v1::CheckpointFile& file, bool verify_local) {
  const v1::CheckpointManifest& manifest = start_.restore();
  MT_ASSIGN_OR_RETURN(
      const std::string path,
      CheckpointFilePath(start_.restore_root(), manifest.job_id(), manifest.step(), file.name()));
  Env* env = &files_;
  if (const auto info = env->Stat(path);
      !verify_local && info.ok() && static_cast<int64_t>(info->size_bytes) == file.size_bytes()) {
    return path;
  }
  if (!manifest.spec().checkpoint().path().empty()) {
    MT_RETURN_IF_ERROR(VerifyOnlyCopy(env, path, file));
    return path;
  }
  if (verify_local) {
    const absl::Status status = VerifyFile(env, path, file);
    if (status.ok()) return path;
    MT_LOG(Warning) << status.ToString() << "; asking for another copy";
  }
  return channel_->FetchFile(file.name());
}

absl::Status RankRun::Restore() {
  const v1::CheckpointManifest& manifest = start_.restore();
  LoadOptions options;
  options.env = &files_;
  const Backend& backend = operations_->backend();
  if (!backend.host_memory()) options.device = &backend.abi();
  const std::vector<TensorBox> targets = trainer_->LoadTargets();
  absl::Status status = LoadCheckpoint(
      manifest, targets,
      [this](const v1::CheckpointFile& file) { return Resolve(file, /*verify_local=*/false); },
      options);
  if (absl::IsDataLoss(status)) {  // a damaged copy here: another node's may be whole
    status = LoadCheckpoint(
        manifest, targets,
        [this](const v1::CheckpointFile& file) { return Resolve(file, /*verify_local=*/true); },
        options);
  }
  MT_RETURN_IF_ERROR(Annotate(
      status, absl::StrCat("restore of ", manifest.job_id(), " at step ", manifest.step())));
  last_checkpoint_step_ = manifest.job_id() == start_.job_id() ? manifest.step() : -1;
  return trainer_->FinishLoad({manifest.step(), manifest.consumed_samples(), manifest.loss()});
}

// Step 0 with weights from elsewhere: each rank reads the boxes that it holds.
absl::Status RankRun::LoadInitial() {
  const Backend& backend = operations_->backend();
  MT_RETURN_IF_ERROR(LoadInitialCheckpoint(&files_, spec_, trainer_->LoadTargets(),
                                           backend.host_memory() ? nullptr : &backend.abi()));
  return trainer_->FinishLoad({});
}

absl::Status RankRun::Checkpoint() {
  const TrainingPosition& position = trainer_->position();
  if (position.step == last_checkpoint_step_) return absl::OkStatus();
  channel_->SetPhase("checkpoint", position.step);
  MT_ASSIGN_OR_RETURN(const double seconds, writer_->Snapshot(position));
  stall_ += absl::Seconds(seconds);
  last_checkpoint_step_ = position.step;
  return absl::OkStatus();
}

absl::StatusOr<std::optional<double>> RankRun::EvaluateAfter(int64_t step) {
  const v1::EvaluationSpec& evaluation = spec_.training().evaluation();
  const int64_t every = evaluation.every_steps(), batches = evaluation.batches();
  if (every <= 0 || (step % every != 0 && step != spec_.training().steps())) return std::nullopt;
  HeldOutLoss all;
  for (int64_t batch = 0; batch < batches; ++batch) {
    // Each batch is a sign of life of its own.
    channel_->SetPhase(absl::StrCat("evaluate ", batch + 1, " of ", batches), step);
    MT_ASSIGN_OR_RETURN(
        const HeldOutLoss loss,
        trainer_->Evaluate(held_out_.get(), batch * spec_.training().global_batch()));
    all += loss;
  }
  return all.mean();
}

absl::Status RankRun::Train() {
  const int64_t steps = spec_.training().steps();
  const int64_t every = spec_.checkpoint().every_steps();
  const int64_t log_every = std::max(1, spec_.runtime().log_every());
  const MeshCoordinates at = mesh_->CoordinatesOf(start_.rank());
  const bool reports = at.tensor == 0 && at.data == 0 && mesh_->IsLastStage(start_.rank());
  StepReporter reporter(spec_, peak_flops_, trainer_->position().step, started_);
  absl::Duration last_rank_report = absl::ZeroDuration();
  double communication_before = CommunicationSeconds();
  int64_t reported_step = trainer_->position().step;

  while (trainer_->position().step < steps) {
    channel_->SetPhase("step", trainer_->position().step);
    const absl::Duration before = Now();
    // What any rank was told all of them hear, with the step's other sums.
    MT_ASSIGN_OR_RETURN(const StepResult result,
                        trainer_->Step({.checkpoint = channel_->checkpoint_wanted(),
                                        .stop = channel_->stop_wanted()}));
    const absl::Duration step_time = Now() - before;
    const bool checkpoint = result.votes.checkpoint, stop = result.votes.stop;
    if (checkpoint) channel_->ForgetCheckpointWanted();
    MT_ASSIGN_OR_RETURN(const std::optional<double> held_out_loss, EvaluateAfter(result.step));
    if (reports) {
      v1::StepReport report =
          reporter.Report(result, trainer_->position().consumed_samples, step_time, stall_, Now());
      stall_ = absl::ZeroDuration();
      if (held_out_loss.has_value()) {
        report.mutable_progress()->set_validation_loss(*held_out_loss);
        report.mutable_progress()->set_validation_step(result.step);
      }
      if (held_out_loss.has_value() || result.step % log_every == 0 || result.step == steps ||
          stop) {
        std::printf("%s\n", StepReporter::Line(report.progress(), reporter.goodput()).c_str());
        std::fflush(stdout);
        v1::FromRank message;
        *message.mutable_step_report() = std::move(report);
        channel_->Send(message);
      }
    }
    if (const absl::Duration now = Now();
        now - last_rank_report >= kRankReportInterval || result.step == steps) {
      v1::FromRank message;
      auto* report = message.mutable_rank_report();
      report->set_step(result.step);
      report->set_step_seconds(absl::ToDoubleSeconds(step_time));
      const double communication = CommunicationSeconds();
      report->set_communication_seconds(
          (communication - communication_before) /
          static_cast<double>(std::max<int64_t>(1, result.step - reported_step)));
      communication_before = communication;
      reported_step = result.step;
      channel_->Send(message);
      last_rank_report = now;
    }
    if (checkpoint || stop || (every > 0 && result.step % every == 0))
      MT_RETURN_IF_ERROR(Checkpoint());
    if (stop && result.step < steps) {
      paused_ = true;
      break;
    }
  }
  MT_RETURN_IF_ERROR(Checkpoint());  // the final one always
  channel_->SetPhase("finish", trainer_->position().step);
  MT_RETURN_IF_ERROR(Annotate(writer_->Wait(), "last checkpoint"));
  return absl::OkStatus();
}

}  // namespace

int RankMain(int fd) {
  RankChannel channel(fd);
  absl::StatusOr<v1::RankStart> start = channel.ReceiveStart();
  if (!start.ok()) {
    MT_LOG(Error) << start.status().message();
    return 1;
  }
  SetLogTag(absl::StrCat("rank ", start->rank()));
  channel.StartReading([&channel](int signal) {
    if (signal != 0) {
      v1::FromRank message;
      message.mutable_finished()->set_status_code("CANCELLED");
      message.mutable_finished()->set_message("stopped by SIGTERM");
      channel.Send(message);
    }
    // Not exit(): other threads are in the middle of a step. What a checkpoint leaves half-written
    // has a temporary name.
    _exit(signal != 0 ? 128 + signal : 1);
  });
  channel.SetPhase("start", start->restore().step());
  RankRun run(std::move(*start), &channel);
  const absl::Status status = run.Run();
  v1::FromRank message;
  auto* finished = message.mutable_finished();
  finished->set_ok(status.ok());
  finished->set_paused(status.ok() && run.paused());
  finished->set_step(run.step());
  if (!status.ok()) {
    finished->set_status_code(absl::StatusCodeToString(status.code()));
    finished->set_message(std::string(status.message()));
    if (const std::optional<int> blamed = run.blamed(); blamed.has_value())
      finished->set_blame_rank(absl::StrCat(*blamed));
    std::fflush(stdout);
    MT_LOG(Error) << absl::StatusCodeToString(status.code()) << ": " << status.message();
  }
  // First of all that a failed rank does: nothing below may hold up what the daemon is told.
  channel.Send(message);
  if (status.ok()) return 0;
  run.Leave(status.message());
  std::fflush(stdout);
  _exit(1);  // not return: other threads may be inside aborts
}

}  // namespace mt
