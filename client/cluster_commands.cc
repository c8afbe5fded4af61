#include "client/cluster_commands.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/bring_up.h"
#include "common/env.h"
#include "common/spec/yaml.h"

namespace mt::client {
namespace {

struct Options {
  std::string state, hostfile, listen, ssh_key, known_hosts, bundle, node, timeout,
      name = "cluster";
  int nodes = 2, slots = 2;
  bool nodes_given = false, slots_given = false;
  bool insecure = false, now = false, purge = false, stop_jobs = false, accept_new_hosts = false;
};

std::string StateOr(const std::string& given, const std::string& name) {
  if (given.empty()) return JoinPath(ConfigDirectory(), name);
  std::error_code error;
  const auto absolute = std::filesystem::absolute(given, error);
  return error ? given : absolute.lexically_normal().string();
}

std::string NodeStateText(v1::NodeState state) {
  const auto* value = v1::NodeState_descriptor()->FindValueByNumber(state);
  return value == nullptr ? "unknown" : EnumToText(*value);
}

std::vector<v1::Node> ToVector(const google::protobuf::RepeatedPtrField<v1::Node>& nodes) {
  return {nodes.begin(), nodes.end()};
}

// What a start prints: where it is, and what to do next.
absl::StatusOr<ExitCode> ReportUp(Session* session, const BringUp& up,
                                  const v1::ListNodesResponse& nodes) {
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  int slots = 0, down = 0;
  for (const v1::Node& node : nodes.nodes()) {
    slots += node.state() == v1::NODE_STATE_READY ? node.slots() : 0;
    down += node.state() == v1::NODE_STATE_READY ? 0 : 1;
  }
  if (session->json()) {
    Json json = {{"context", up.context},
                 {"endpoint", EndpointPath(up.state_directory)},
                 {"address", client->endpoint().address},
                 {"metrics", client->endpoint().metrics},
                 {"log", CoordinatorLog(up.state_directory)},
                 {"slots", slots}};
    json["nodes"] = Json::array();
    for (const v1::Node& node : nodes.nodes()) json["nodes"].push_back(MessageToJson(node));
    session->Print(json);
  } else {
    std::printf("coordinator  %s%s\n", client->endpoint().address.c_str(),
                client->endpoint().tls.empty() ? " (no TLS)" : " (mTLS)");
    if (!client->endpoint().metrics.empty())
      std::printf("metrics      %s\n", client->endpoint().metrics.c_str());
    std::printf("endpoint     %s\n", EndpointPath(up.state_directory).c_str());
    std::printf("log          %s\n", CoordinatorLog(up.state_directory).c_str());
    std::printf("nodes        %d, %d slots\n\n", nodes.nodes_size(), slots);
    NodesTable(ToVector(nodes.nodes()), absl::Now()).Print(session->wide());
    std::fflush(stdout);
  }
  if (down > 0) {
    return WithNext(absl::FailedPreconditionError(
                        absl::StrCat(down, " of ", nodes.nodes_size(),
                                     " nodes did not come up (reasons above); the "
                                     "coordinator runs with the others and tries them again")),
                    "mtctl nodes -o wide");
  }
  Note("next: mtctl submit examples/quickstart.yaml --follow");
  return kExitOk;
}

// By the device files of NVIDIA's driver, /dev/nvidia0 and so on: mtctl itself loads no backend.
int CountGpus() {
  const auto files = Env::Real()->List("/dev");
  if (!files.ok()) return 0;
  return static_cast<int>(std::count_if(files->begin(), files->end(), [](absl::string_view name) {
    int index = 0;
    return absl::ConsumePrefix(&name, "nvidia") && absl::SimpleAtoi(name, &index);
  }));
}

absl::StatusOr<ExitCode> DevUp(Session* session, Options o) {
  // Where there are GPUs, one node has them all and its daemon says how many ranks it holds.
  if (!o.nodes_given && !o.slots_given && CountGpus() > 0) {
    o.nodes = 1;
    o.slots = 0;
  }
  BringUp up{.context = "dev", .state_directory = StateOr(o.state, "dev")};
  up.arguments = {"--listen=127.0.0.1:0", absl::StrCat("--local-nodes=", o.nodes),
                  absl::StrCat("--slots=", o.slots)};
  if (o.insecure) up.arguments.push_back("--insecure");
  MT_ASSIGN_OR_RETURN(const v1::ListNodesResponse nodes, StartCoordinator(session, up));
  // One that was up already keeps its size.
  const int slots = nodes.nodes_size() > 0 ? nodes.nodes(0).slots() : 0;
  if ((o.nodes_given && nodes.nodes_size() != o.nodes) ||
      (o.slots_given && o.slots > 0 && slots != o.slots)) {
    const std::string state = o.state.empty() ? "" : absl::StrCat(" --state ", up.state_directory);
    return WithNext(absl::FailedPreconditionError(
                        absl::StrCat("the cluster in ", up.state_directory, " is up already, with ",
                                     nodes.nodes_size(), " nodes of ", slots,
                                     " slots; it must go down first "
                                     "(running jobs are checkpointed and go on afterwards)")),
                    absl::StrCat("mtctl dev down", state, " && mtctl dev up", state, " --nodes ",
                                 o.nodes, " --slots ", o.slots));
  }
  return ReportUp(session, up, nodes);
}

absl::StatusOr<ExitCode> ClusterUp(Session* session, const Options& o) {
  BringUp up{.context = o.name,
             .state_directory = StateOr(o.state, o.name),
             .timeout = absl::Seconds(300)};
  if (!o.timeout.empty()) {
    MT_ASSIGN_OR_RETURN(up.timeout, ParseSpecDuration(o.timeout));
  }
  if (!Exists(Env::Real(), o.hostfile)) {
    return absl::NotFoundError(absl::StrCat(
        "--hostfile ", o.hostfile, ": no such file; write one line per host: `gpu01 slots=8`"));
  }
  up.arguments = {absl::StrCat("--hostfile=", StateOr(o.hostfile, ""))};
  const auto add = [&](const char* flag, const std::string& value) {
    if (!value.empty()) up.arguments.push_back(absl::StrCat(flag, "=", value));
  };
  add("--listen", o.listen);
  add("--ssh-key", o.ssh_key);
  add("--known-hosts", o.known_hosts);
  add("--bundle", o.bundle);
  if (o.accept_new_hosts) up.arguments.push_back("--accept-new-hosts");
  if (o.insecure) up.arguments.push_back("--insecure");
  MT_ASSIGN_OR_RETURN(const v1::ListNodesResponse nodes, StartCoordinator(session, up));
  return ReportUp(session, up, nodes);
}

absl::StatusOr<ExitCode> Down(Session* session, const Options& o, const std::string& name) {
  const std::string state = StateOr(o.state, name);
  absl::Duration timeout = absl::Seconds(60);
  if (!o.timeout.empty()) {
    MT_ASSIGN_OR_RETURN(timeout, ParseSpecDuration(o.timeout));
  }
  MT_RETURN_IF_ERROR(StopCoordinator(session, name, state, !o.now, timeout));
  if (o.purge) {
    // Only what is plainly a state folder of ours is ever removed.
    if (Exists(Env::Real(), state) && !Exists(Env::Real(), CoordinatorLog(state))) {
      return absl::FailedPreconditionError(absl::StrCat(
          "--purge: ", state, " does not look like a state folder; remove it by hand"));
    }
    MT_RETURN_IF_ERROR(Env::Real()->RemoveTree(state));
  }
  Note(absl::StrCat(name, " is down",
                    o.purge ? ", its state removed" : absl::StrCat("; its state is in ", state)));
  return kExitOk;
}

absl::StatusOr<ExitCode> Status(Session* session) {
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  MT_ASSIGN_OR_RETURN(
      const v1::ClusterStatus status,
      client->Call(client->cluster(), &v1::Cluster::Stub::Status, v1::ClusterStatusRequest()));
  if (session->json()) {
    session->Print(MessageToJson(status));
    return kExitOk;
  }
  const absl::Time now = absl::Now();
  std::map<std::string, int> jobs(status.jobs_by_state().begin(), status.jobs_by_state().end());
  std::printf("coordinator  %s, up %s, version %s, epoch %lld\n",
              client->endpoint().address.c_str(), Age(status.started(), now).c_str(),
              Safe(status.version()).c_str(), static_cast<long long>(status.epoch()));
  if (!status.metrics_address().empty())
    std::printf("metrics      %s\n", Safe(status.metrics_address()).c_str());
  std::printf("slots        %d of %d used\n", status.slots_used(), status.slots());
  std::printf(
      "jobs         %s\n\n",
      jobs.empty() ? "none" : absl::StrJoin(jobs, ", ", [](std::string* out, const auto& entry) {
                                absl::StrAppend(out, entry.second, " ", Safe(entry.first));
                              }).c_str());
  NodesTable(ToVector(status.nodes()), now).Print(session->wide());
  return kExitOk;
}

absl::StatusOr<ExitCode> Nodes(Session* session) {
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  MT_ASSIGN_OR_RETURN(
      const v1::ListNodesResponse nodes,
      client->Call(client->cluster(), &v1::Cluster::Stub::ListNodes, v1::ListNodesRequest()));
  if (session->json()) {
    Json list = Json::array();
    for (const v1::Node& node : nodes.nodes()) list.push_back(MessageToJson(node));
    session->Print(list);
  } else {
    NodesTable(ToVector(nodes.nodes()), absl::Now()).Print(session->wide());
  }
  return kExitOk;
}

absl::StatusOr<ExitCode> Drain(Session* session, const Options& o, bool drain) {
  MT_ASSIGN_OR_RETURN(Client * client, session->client());
  v1::DrainRequest request;
  request.set_node(o.node);
  request.set_stop_jobs(o.stop_jobs);
  const auto node = client->Call(
      client->cluster(), drain ? &v1::Cluster::Stub::Drain : &v1::Cluster::Stub::Undrain, request);
  if (!node.ok()) return WithNext(node.status(), "mtctl nodes");
  if (session->json()) {
    session->Print(MessageToJson(*node));
  } else {
    Note(absl::StrCat(node->name(), " is ", NodeStateText(node->state()),
                      drain && node->jobs_size() > 0
                          ? absl::StrCat("; still there: ", absl::StrJoin(node->jobs(), ", "))
                          : ""));
  }
  return kExitOk;
}

void AddUpAndDown(CLI::App* app, Session* session, Options* o) {
  CLI::App* dev =
      app->add_subcommand("dev", "A cluster of loopback nodes on this machine, without SSH")
          ->require_subcommand(1);
  CLI::App* dev_up = dev->add_subcommand("up", "Start it and wait until it is ready");
  dev_up->add_option("--nodes", o->nodes, "Worker daemons; default 2, or 1 where there are GPUs")
      ->check(CLI::Range(1, 64));
  dev_up
      ->add_option("--slots", o->slots,
                   "Ranks per node; default 2, or one per GPU, which 0 asks for too")
      ->check(CLI::Range(0, 256));
  dev_up->add_option("--state", o->state, "State folder; default ~/.mt/dev")->type_name("DIR");
  dev_up->add_flag("--insecure", o->insecure, "Without TLS");
  AddFormatOption(dev_up, session);
  dev_up->callback([session, o, dev_up] {
    o->nodes_given = dev_up->count("--nodes") > 0;
    o->slots_given = dev_up->count("--slots") > 0;
    session->action = [session, o] { return DevUp(session, *o); };
  });
  CLI::App* dev_down =
      dev->add_subcommand("down", "Stop it; state and checkpoints stay unless --purge");

  CLI::App* cluster =
      app->add_subcommand("cluster", "A cluster of machines reached by SSH")->require_subcommand(1);
  CLI::App* up =
      cluster->add_subcommand("up", "Start the coordinator here and a worker daemon on every host");
  up->add_option("--hostfile", o->hostfile,
                 "One line per host: `gpu01 slots=8` (docs/guide/hostfile.md)")
      ->required()
      ->type_name("FILE");
  up->add_option("--name", o->name, "Context and default state folder ~/.mt/NAME")
      ->capture_default_str();
  up->add_option("--state", o->state, "State folder")->type_name("DIR");
  up->add_option("--listen", o->listen, "Address that workers and clients reach")
      ->type_name("HOST:PORT");
  up->add_option("--ssh-key", o->ssh_key, "Private key for SSH")->type_name("FILE");
  up->add_option("--known-hosts", o->known_hosts, "SSH host keys; default ~/.ssh/known_hosts")
      ->type_name("FILE");
  up->add_option("--bundle", o->bundle, "Worker bundle to copy; default beside mtctl")
      ->type_name("DIR");
  up->add_flag("--accept-new-hosts", o->accept_new_hosts,
               "Remember keys of hosts that are not known yet; changed ones still fail");
  up->add_option("--timeout", o->timeout, "How long to wait for the nodes; default 5m")
      ->type_name("DURATION");
  up->add_flag("--insecure", o->insecure, "Without TLS");
  AddFormatOption(up, session);
  up->callback([session, o] { session->action = [session, o] { return ClusterUp(session, *o); }; });
  CLI::App* status = cluster->add_subcommand("status", "Coordinator, slots, jobs and nodes");
  AddFormatOption(status, session);
  status->callback([session] { session->action = [session] { return Status(session); }; });
  CLI::App* down = cluster->add_subcommand("down", "Stop jobs, workers and the coordinator");
  down->add_option("--name", o->name, "Which, as given to `cluster up`")->capture_default_str();

  for (CLI::App* command : {dev_down, down}) {
    command->add_option("--state", o->state, "State folder")->type_name("DIR");
    command->add_flag("--now", o->now, "Without a checkpoint of the running jobs");
    command->add_flag("--purge", o->purge,
                      "Remove the state folder too, with all jobs and checkpoints in it");
    command->add_option("--timeout", o->timeout, "Then kill; default 60s")->type_name("DURATION");
  }
  dev_down->callback(
      [session, o] { session->action = [session, o] { return Down(session, *o, "dev"); }; });
  down->callback(
      [session, o] { session->action = [session, o] { return Down(session, *o, o->name); }; });
}

// `mtctl nodes` and `mtctl cluster nodes` are one command; so are drain and undrain.
void AddNodeCommands(CLI::App* app, Session* session, Options* o) {
  CLI::App* nodes = app->add_subcommand("nodes", "Nodes, their slots, jobs and data interfaces");
  AddFormatOption(nodes, session);
  nodes->callback([session] { session->action = [session] { return Nodes(session); }; });
  for (const bool drain : {true, false}) {
    CLI::App* command =
        app->add_subcommand(drain ? "drain" : "undrain",
                            drain ? "Place no new ranks on a node" : "Place ranks there again");
    command->add_option("NODE", o->node, "Node name, as `mtctl nodes` shows it")->required();
    if (drain)
      command->add_flag("--stop-jobs", o->stop_jobs,
                        "Move its jobs away now (they restart from their checkpoints)");
    AddFormatOption(command, session);
    command->callback([session, drain, o] {
      session->action = [session, drain, o] { return Drain(session, *o, drain); };
    });
  }
}

// "0: 12.3 of 80.0 GiB, 97%, 61 °C, 431 W; 1: lost", of what the devices tell.
std::string GpusText(const v1::Node& node) {
  return absl::StrJoin(node.devices(), "; ", [](std::string* out, const v1::Device& device) {
    std::vector<std::string> parts;
    if (!device.error().empty()) parts.push_back(absl::StrCat("lost, ", device.error()));
    if (device.has_memory_used_bytes())
      parts.push_back(absl::StrCat(Bytes(device.memory_used_bytes()), " of ",
                                   Bytes(device.memory_total_bytes())));
    if (device.has_utilization())
      parts.push_back(absl::StrFormat("%.0f%%", 100 * device.utilization()));
    if (device.has_temperature_celsius())
      parts.push_back(absl::StrFormat("%.0f °C", device.temperature_celsius()));
    if (device.has_power_watts()) parts.push_back(absl::StrFormat("%.0f W", device.power_watts()));
    absl::StrAppend(out, device.index(), ": ", absl::StrJoin(parts, ", "));
  });
}

}  // namespace

Table NodesTable(const std::vector<v1::Node>& nodes, absl::Time now) {
  Table table({{"NODE"},
               {"STATE"},
               {"SLOTS"},
               {"JOBS"},
               {"ADDRESS", true},
               {"DATA"},
               {"DATA CHOSEN BY", true},
               {"CORES", true, true},
               {"MEMORY", true, true},
               {"DISK FREE", true, true},
               {"BACKENDS", true},
               {"GPUS", true},
               {"HEARTBEAT", false, true},
               {"REASON"}});
  for (const v1::Node& n : nodes) {
    const Colour colour = n.state() == v1::NODE_STATE_READY  ? Colour::kGreen
                          : n.state() == v1::NODE_STATE_DOWN ? Colour::kRed
                                                             : Colour::kYellow;
    table.AddRow(
        {Safe(n.name()), Paint(NodeStateText(n.state()), colour),
         absl::StrCat(n.slots_used(), "/", n.slots()), Safe(absl::StrJoin(n.jobs(), ",")),
         n.address().empty() ? "local" : Safe(absl::StrCat(n.address(), ":", n.ssh_port())),
         n.data_address().empty() ? ""
                                  : Safe(absl::StrCat(n.data_address(), " ", n.data_interface())),
         Safe(n.data_interface_reason()), n.cores() > 0 ? absl::StrCat(n.cores()) : "",
         n.memory_bytes() > 0 ? Bytes(n.memory_bytes()) : "",
         n.disk_free_bytes() > 0 ? Bytes(n.disk_free_bytes()) : "",
         Safe(absl::StrJoin(n.backends(), ", ")), Safe(GpusText(n)), Age(n.last_heartbeat(), now),
         Safe(n.reason())});
  }
  return table;
}

void AddClusterCommands(CLI::App* app, Session* session) {
  static Options o;  // CLI11 keeps references to it
  o = Options();
  AddUpAndDown(app, session, &o);
  AddNodeCommands(app, session, &o);
  AddNodeCommands(app->get_subcommand("cluster"), session, &o);
}

}  // namespace mt::client
