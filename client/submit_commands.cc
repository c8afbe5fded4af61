#include "client/submit_commands.h"

#include <cstdio>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "client/follow.h"
#include "client/initial_weights.h"
#include "client/jobs_commands.h"
#include "client/local_programs.h"
#include "common/random.h"
#include "common/spec/defaults.h"
#include "common/spec/model_traits.h"
#include "common/spec/presets.h"
#include "common/spec/validate.h"
#include "common/spec/yaml.h"
#include "worker/data/sample/dataset_batch_source.h"
#include "worker/data/tokenize/tokenizer.h"

namespace mt::client {
namespace {

struct Options {
  std::string file, timeout, peak, memory, request_id;
  std::vector<std::string> overrides;
  bool wait = false, follow = false, validate_only = false, offline = false;
  int slots = 0;
};

// What follows when a spec is refused: the page that tells what would be right.
absl::Status SpecHint(absl::Status status, const std::string& file) {
  if (absl::IsInvalidArgument(status) || absl::IsFailedPrecondition(status))
    return WithNext(std::move(status), absl::StrCat("mtctl plan ", file));
  return status;
}

absl::StatusOr<int64_t> VocabularyOfTokenizer(const std::string& tokenizer) {
  MT_ASSIGN_OR_RETURN(const auto read, NewTokenizer(Env::Real(), tokenizer));
  return read->vocab_size();
}

absl::StatusOr<int32_t> EodOfTokenizer(const std::string& tokenizer) {
  MT_ASSIGN_OR_RETURN(const auto read, NewTokenizer(Env::Real(), tokenizer));
  return read->eod();
}

std::string Absolute(const std::string& path) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(path, error).lexically_normal();
  return error ? path : absolute.string();
}

// hf:models/a as hf:/home/me/models/a.
std::string AbsoluteFolder(const std::string& text) {
  const bool hugging_face = absl::StartsWith(text, "hf:");
  const std::string path = text.substr(hugging_face ? 3 : 0);
  return path.empty() ? text : absl::StrCat(hugging_face ? "hf:" : "", Absolute(path));
}

// The cluster's shape as the flags give it, or as the coordinator tells it; empty if there is none of either.
absl::StatusOr<ClusterShape> FindShape(Session* session, const Options& options,
                                       const v1::JobSpec& spec) {
  ClusterShape shape;
  if (!options.offline) {
    const absl::StatusOr<Client*> client = session->client();
    if (client.ok()) {
      const auto nodes = (*client)->Call((*client)->cluster(), &v1::Cluster::Stub::ListNodes,
                                         v1::ListNodesRequest());
      if (!nodes.ok()) return nodes.status();
      shape = ShapeOf({nodes->nodes().begin(), nodes->nodes().end()}, spec.runtime().backend());
    } else if (!absl::IsUnavailable(client.status()) || !session->connect.endpoint.empty()) {
      return client.status();
    }
  }
  if (options.slots > 0) shape.slots = options.slots;
  if (!options.memory.empty()) {
    // A number with a unit: 16GiB, 512MiB.
    std::string text = options.memory;
    uint64_t bytes = 0;
    const std::string refused = CLI::AsSizeValue(false)(text);
    if (!refused.empty() || !absl::SimpleAtoi(text, &bytes)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--memory ", options.memory, ": expected a size such as 16GiB"));
    }
    shape.memory_per_slot_bytes = static_cast<int64_t>(bytes);
    shape.computes_on_hosts = spec.runtime().backend() == "cpu";
  }
  if (!options.peak.empty()) {
    double peak = 0;
    if (!absl::SimpleAtod(options.peak, &peak) || !(peak > 0) || peak > 1e20) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--peak-flops ", options.peak, ": expected FLOP/s of one slot, such as 1e11"));
    }
    shape.peak_flops_per_slot = peak;
  }
  return shape;
}

// Weights and data that this machine sees are refused here, before anything is queued. Others are looked at by the nodes, before they
// start a rank.
absl::Status CheckFilesIfHere(const v1::JobSpec& spec) {
  MT_RETURN_IF_ERROR(CheckInitialWeightsIfHere(spec));
  for (const v1::DataSource& source : spec.data().train()) {
    const std::string& prefix = source.prefix();
    if (Exists(Env::Real(), prefix + ".idx") || Exists(Env::Real(), prefix + ".bin")) continue;
    Note(absl::StrCat("data.train ", prefix,
                      " (.bin and .idx) is not on this machine: the nodes will look for it"));
    return absl::OkStatus();
  }
  const absl::Status status = CheckTrainingData(Env::Real(), spec);
  return status.ok() ? status : WithNext(status, "mtctl data verify PREFIX");
}

absl::StatusOr<ExitCode> Plan(Session* session, const Options& options) {
  const absl::StatusOr<v1::JobSpec> spec = LoadSpec(options.file, options.overrides);
  if (!spec.ok()) return spec.status();
  MT_ASSIGN_OR_RETURN(ClusterShape shape, FindShape(session, options, *spec));
  const absl::StatusOr<MachineKernels> kernels = ResolveKernels(*spec);
  if (!kernels.ok() && !absl::IsNotFound(kernels.status())) return kernels.status();
  // The nodes' own peak is known once the job runs; until then this machine's stands for it.
  if (kernels.ok() && shape.peak_flops_per_slot == 0)
    shape.peak_flops_per_slot = kernels->peak_flops;
  MT_ASSIGN_OR_RETURN(const JobPlan plan, PlanJob(*spec, shape));
  if (session->json()) {
    Json json = PlanToJson(*spec, plan);
    if (kernels.ok()) json["kernels"] = kernels->operations;
    session->Print(json);
  } else {
    std::string text = PlanToText(*spec, plan, shape, session->wide());
    if (kernels.ok()) {
      Table table({{"OPERATION"}, {"BACKEND"}, {"KERNEL"}});
      for (const Json& k : kernels->operations) {
        table.AddRow({k.value("operation", ""), k.value("backend", ""), k.value("kernel", "")});
      }
      absl::StrAppend(&text, "\nkernels on this machine, ", Count(shape.peak_flops_per_slot),
                      "FLOP/s per rank\n", table.Render(false));
    }
    std::fwrite(text.data(), 1, text.size(), stdout);
  }
  if (!kernels.ok()) Note(absl::StrCat("kernels not resolved: ", kernels.status().message()));
  MT_RETURN_IF_ERROR(CheckFilesIfHere(*spec));
  const absl::Status fits = CheckFits(*spec, shape);
  if (!fits.ok())
    return WithNext(fits, absl::StrCat("mtctl plan ", options.file, " --set parallel.data=1"));
  if (shape.slots == 0)
    Note("not compared with a cluster: none is configured and --slots is not given");
  Note(absl::StrCat("next: mtctl submit ", options.file, " --follow"));
  return kExitOk;
}

absl::StatusOr<ExitCode> Submit(Session* session, const Options& options) {
  absl::Duration timeout = absl::InfiniteDuration();
  if (!options.timeout.empty()) {
    MT_ASSIGN_OR_RETURN(timeout, ParseSpecDuration(options.timeout));
  }
  const absl::StatusOr<v1::JobSpec> spec = LoadSpec(options.file, options.overrides);
  if (!spec.ok()) return spec.status();
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  MT_RETURN_IF_ERROR(CheckFilesIfHere(*spec));
  v1::SubmitRequest request;
  *request.mutable_spec() = *spec;
  request.set_validate_only(options.validate_only);
  // With the same id a repeated Submit is the same job, so a lost answer is simply asked for again.
  request.set_request_id(options.request_id.empty() ? Random::Real()->Id(20) : options.request_id);
  absl::StatusOr<v1::Job> job = client->Call(client->jobs(), &v1::Jobs::Stub::Submit, request);
  for (int retry = 0; retry < 3 && absl::IsUnavailable(job.status()); ++retry) {
    const absl::StatusOr<Client*> again = session->Reconnect();
    if (!again.ok()) return again.status();
    job = (*again)->Call((*again)->jobs(), &v1::Jobs::Stub::Submit, request);
  }
  if (!job.ok()) return SpecHint(job.status(), options.file);
  if (options.validate_only) {
    Note(absl::StrCat(options.file, " is accepted; nothing was queued"));
    if (session->json()) session->Print(MessageToJson(*job));
    return kExitOk;
  }
  if (session->json()) {
    session->Print(MessageToJson(*job));
  } else if (!options.follow) {
    std::printf("%s\n", job->id().c_str());
  }
  std::fflush(stdout);
  if (options.wait || options.follow) {
    Note(absl::StrCat("submitted ", job->id()));
    return FollowJob(session, job->id(), options.follow, timeout);
  }
  Note(absl::StrCat("next: mtctl logs -f ", job->id()));
  return kExitOk;
}

}  // namespace

absl::StatusOr<v1::JobSpec> LoadSpec(const std::string& path,
                                     const std::vector<std::string>& overrides) {
  absl::StatusOr<v1::JobSpec> spec = ReadJobSpec(Env::Real(), path, overrides);
  if (!spec.ok()) return WithNext(spec.status(), "see docs/guide/job-spec.md and examples/");
  v1::DataSpec* data = spec->mutable_data();
  for (auto* sources : {data->mutable_train(), data->mutable_validation(), data->mutable_test()}) {
    for (v1::DataSource& source : *sources)
      if (!source.prefix().empty()) source.set_prefix(Absolute(source.prefix()));
  }
  if (!data->tokenizer().empty() && data->tokenizer() != "byte")
    data->set_tokenizer(Absolute(data->tokenizer()));
  if (!spec->checkpoint().path().empty())
    spec->mutable_checkpoint()->set_path(Absolute(spec->checkpoint().path()));
  spec->set_initial_checkpoint(AbsoluteFolder(spec->initial_checkpoint()));
  if (v1::ModelSpec* model = spec->mutable_model(); IsFolderPreset(model->preset()))
    model->set_preset(AbsoluteFolder(model->preset()));
  const auto model_of = [is_written = spec->model().layers() > 0](const std::string& folder) {
    return ModelOfFolder(folder, is_written);
  };
  absl::Status status = FillDefaults(
      &*spec,
      {.vocabulary_of = VocabularyOfTokenizer, .eod_of = EodOfTokenizer, .model_of = model_of});
  if (status.ok()) status = ValidateSpec(*spec);
  if (status.ok()) status = CheckTokenizerIfHere(*spec);
  if (!status.ok()) return WithNext(Annotate(status, path), "see docs/guide/job-spec.md");
  for (const std::string& note : SpecNotes(*spec)) Note(absl::StrCat(path, ": ", note));
  return spec;
}

namespace {

// What CUDA, its libraries and NCCL take of a device beside what the plan counts.
int64_t DeviceReserve(int64_t total) { return std::min(int64_t{3} << 30, total / 8); }

// 0 is not known.
void TakeSmaller(int64_t bytes, int64_t* smallest) {
  if (bytes > 0 && (*smallest == 0 || bytes < *smallest)) *smallest = bytes;
}

// Of the devices that a job would run on; 0 if there are none, or they do not tell.
int64_t DeviceMemoryPerSlot(const v1::Node& node, absl::string_view backend) {
  if (backend.empty() || backend == "auto" || backend == "cuda") {
    int64_t smallest = 0;
    for (const v1::Device& device : node.devices()) {
      TakeSmaller(device.memory_total_bytes(), &smallest);
    }
    const int64_t sharing = node.devices_size() == 0
                                ? 1
                                : (node.slots() + node.devices_size() - 1) / node.devices_size();
    if (smallest > 0) return (smallest - DeviceReserve(smallest)) / sharing;
  }
  return 0;
}

}  // namespace

ClusterShape ShapeOf(const std::vector<v1::Node>& nodes, absl::string_view backend) {
  ClusterShape shape;
  int64_t devices = 0;
  for (const v1::Node& node : nodes) {
    // A node that is away may come back; one that is drained will not take ranks.
    if (node.state() == v1::NODE_STATE_DRAINING || node.slots() <= 0) continue;
    shape.slots += node.slots();
    const int64_t device = DeviceMemoryPerSlot(node, backend);
    TakeSmaller(device, &devices);
    TakeSmaller(node.memory_bytes() / node.slots(), &shape.host_memory_per_slot_bytes);
  }
  shape.computes_on_hosts = devices == 0;
  shape.memory_per_slot_bytes = devices > 0 ? devices : shape.host_memory_per_slot_bytes;
  return shape;
}

std::string PlanToText(const v1::JobSpec& spec, const JobPlan& plan, const ClusterShape& shape,
                       bool every_rank) {
  const std::string active =
      HasExperts(spec.model())
          ? absl::StrCat(" (", Count(static_cast<double>(plan.active_parameters)),
                         " active for a token)")
          : "";
  std::string out = absl::StrFormat(
      "%s: %s parameters%s on %d ranks, %s%s%s, %s\n", spec.name(),
      Count(static_cast<double>(plan.parameters)), active, plan.ranks.size(),
      Layout(spec.parallel()), spec.parallel().sequence() ? ", sequence parallel" : "",
      spec.parallel().zero() > 0 ? absl::StrCat(", ZeRO-", spec.parallel().zero()) : "",
      EnumToText(*v1::TrainingSpec::Precision_descriptor()->FindValueByNumber(
          spec.training().precision())));
  absl::StrAppendFormat(
      &out, "step: %d sequences of %d tokens = %s tokens, %sFLOP; %d micro-batches per replica",
      spec.training().global_batch(), spec.data().sequence_length(),
      Count(static_cast<double>(plan.tokens_per_step)), Count(plan.flops_per_step),
      plan.micro_batches);
  if (spec.parallel().pipeline() > 1)
    absl::StrAppend(&out, ", pipeline bubble ", Percent(plan.bubble));
  if (const v1::BatchRampup& rampup = spec.training().batch_rampup(); rampup.start() > 0) {
    absl::StrAppendFormat(&out, "; ramp-up from %d sequences by %d over %d", rampup.start(),
                          rampup.increment(), rampup.samples());
  }
  if (plan.step_seconds > 0) absl::StrAppend(&out, ", at least ", Number(plan.step_seconds), " s");
  absl::StrAppendFormat(&out, "\nrun: %d steps, %s tokens, %sFLOP%s\n\n", spec.training().steps(),
                        Count(static_cast<double>(plan.tokens_per_step) * plan.whole_steps),
                        Count(plan.flops_per_step * plan.whole_steps),
                        plan.step_seconds > 0
                            ? absl::StrCat(", at least ", Seconds(absl::Seconds(plan.step_seconds *
                                                                                plan.whole_steps)))
                            : "");
  Table table({{"RANK", false, true},
               {"TP", false, true},
               {"DP", false, true},
               {"PP", false, true},
               {"BLOCKS"},
               {"PARAMETERS", false, true},
               {"WEIGHTS", false, true},
               {"GRADIENTS", false, true},
               {"OPTIMIZER", false, true},
               {"ACTIVATIONS", false, true},
               {"WORKSPACE", false, true},
               {"TOTAL", false, true},
               {"SNAPSHOT", false, true}});
  constexpr size_t kShownRanks = 16;
  const bool shortened = !every_rank && plan.ranks.size() > kShownRanks;
  for (const RankPlan& r : plan.ranks) {
    // Of a large job, one rank of each stage: the others hold the same.
    if (shortened && (r.at.tensor != 0 || r.at.data != 0)) continue;
    table.AddRow({absl::StrCat(r.rank), absl::StrCat(r.at.tensor), absl::StrCat(r.at.data),
                  absl::StrCat(r.at.pipeline),
                  absl::StrCat(r.layers.first, "..", r.layers.last - 1),
                  Count(static_cast<double>(r.parameters)), Bytes(r.bytes.weights),
                  Bytes(r.bytes.gradients), Bytes(r.bytes.optimizer), Bytes(r.bytes.activations),
                  Bytes(r.bytes.workspace), Bytes(r.bytes.Total()), Bytes(r.bytes.snapshot)});
  }
  absl::StrAppend(&out, table.Render(true));
  if (shortened) absl::StrAppend(&out, "(one rank of each stage; all with -o wide)\n");
  absl::StrAppend(&out, "largest rank: ", Bytes(plan.largest_rank_bytes));
  if (shape.memory_per_slot_bytes > 0)
    absl::StrAppend(&out, " of ", Bytes(shape.memory_per_slot_bytes),
                    shape.computes_on_hosts ? " per slot, snapshot included" : " per slot");
  if (shape.slots > 0)
    absl::StrAppend(&out, "; ", plan.ranks.size(), " of ", shape.slots, " slots");
  return out + "\n";
}

Json PlanToJson(const v1::JobSpec& spec, const JobPlan& plan) {
  Json json;
  json["name"] = spec.name();
  json["layout"] = MessageToJson(spec.parallel());
  json["parameters"] = plan.parameters;
  json["active_parameters"] = plan.active_parameters;
  json["world_size"] = plan.ranks.size();
  json["tokens_per_step"] = plan.tokens_per_step;
  json["flops_per_step"] = plan.flops_per_step;
  json["micro_batches"] = plan.micro_batches;
  json["pipeline_bubble"] = plan.bubble;
  if (plan.step_seconds > 0) json["step_seconds_at_peak"] = plan.step_seconds;
  json["largest_rank_bytes"] = plan.largest_rank_bytes;
  json["ranks"] = Json::array();
  for (const RankPlan& r : plan.ranks) {
    json["ranks"].push_back({{"rank", r.rank},
                             {"tensor", r.at.tensor},
                             {"data", r.at.data},
                             {"pipeline", r.at.pipeline},
                             {"first_block", r.layers.first},
                             {"end_block", r.layers.last},
                             {"parameters", r.parameters},
                             {"bytes",
                              {{"weights", r.bytes.weights},
                               {"gradients", r.bytes.gradients},
                               {"optimizer", r.bytes.optimizer},
                               {"activations", r.bytes.activations},
                               {"workspace", r.bytes.workspace},
                               {"total", r.bytes.Total()},
                               {"snapshot", r.bytes.snapshot}}}});
  }
  json["spec"] = MessageToJson(spec);
  return json;
}

void AddSubmitCommands(CLI::App* app, Session* session) {
  static Options o;  // CLI11 keeps references to it
  o = Options();
  const auto with_spec = [&](const std::string& name, const std::string& help) {
    CLI::App* command = app->add_subcommand(name, help);
    command->add_option("FILE", o.file, "Job spec (docs/guide/job-spec.md)")->required();
    command->add_option("--set", o.overrides, "Override a key: training.steps=100 (repeatable)")
        ->type_name("KEY=VALUE")
        ->take_all()
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    AddFormatOption(command, session);
    return command;
  };
  CLI::App* plan =
      with_spec("plan", "Parameters, memory per rank and layout of a job, before it is queued");
  plan->add_option("--slots", o.slots, "Plan for this many slots instead of the cluster's")
      ->check(CLI::PositiveNumber);
  plan->add_option("--memory", o.memory, "Memory of one slot, e.g. 16GiB")->type_name("SIZE");
  plan->add_option("--peak-flops", o.peak,
                   "FLOP/s that one slot's matrix products reach, for the step time")
      ->type_name("FLOPS");
  plan->add_flag("--offline", o.offline, "Do not ask the coordinator");
  plan->callback([session] { session->action = [session] { return Plan(session, o); }; });

  CLI::App* submit = with_spec("submit", "Queue a job");
  submit->add_flag("--wait", o.wait, "Stay until it has ended; exit 0 if it succeeded, 8 if not");
  submit->add_flag("--follow", o.follow, "The same, showing its log lines");
  submit->add_flag("--validate-only", o.validate_only,
                   "Let the coordinator check it and queue nothing");
  submit
      ->add_option("--timeout", o.timeout,
                   "With --wait or --follow: leave after this long, e.g. 30m (exit 7)")
      ->type_name("DURATION");
  submit
      ->add_option("--request-id", o.request_id,
                   "Submitting again with the same id gives the same job")
      ->type_name("ID");
  submit->callback([session] { session->action = [session] { return Submit(session, o); }; });
}

}  // namespace mt::client
