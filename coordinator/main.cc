// mt-coordinator: reads the flags, opens the state, and joins the parts; the parts' own headers
// tell what they do.
#include <fcntl.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <iostream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/synchronization/notification.h"
#include "common/check.h"
#include "common/endpoint_file.h"
#include "common/exit_codes.h"
#include "common/grpc_transport.h"
#include "common/log.h"
#include "coordinator/api/api.h"
#include "coordinator/nodes/hostfile.h"
#include "coordinator/nodes/local_launcher.h"
#include "coordinator/nodes/ssh_launcher.h"
#include "coordinator/own_certificates.h"
#include "coordinator/store/sqlite_store.h"
#include "coordinator/telemetry/telemetry.h"

namespace mt {
namespace {

struct Flags {
  std::string state, endpoint_file, hostfile, listen, advertise,
      metrics_listen = "127.0.0.1:0", bundle, worker, known_hosts, remote_folder;
  std::vector<std::string> ssh_keys;
  int local_nodes = 0, slots = 1, job_log_mib = 1024;
  bool insecure = false, ssh_config = false, accept_new_hosts = false;
};

struct HostPort {
  std::string host;  // without brackets
  int port = 0;
  std::string ToString() const {
    const bool v6 = absl::StrContains(host, ":");
    return absl::StrCat(v6 ? "[" : "", host, v6 ? "]:" : ":", port);
  }
};

absl::StatusOr<HostPort> ParseHostPort(const std::string& text, absl::string_view flag) {
  const size_t colon = text.rfind(':');
  HostPort result;
  if (colon == std::string::npos || !absl::SimpleAtoi(text.substr(colon + 1), &result.port) ||
      result.port < 0 || result.port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is \"", text, "\"; write HOST:PORT, for example 127.0.0.1:7070"));
  }
  result.host = text.substr(0, colon);
  if (result.host.size() > 2 && result.host.front() == '[' && result.host.back() == ']') {
    result.host = result.host.substr(1, result.host.size() - 2);
  }
  if (result.host.empty()) result.host = "0.0.0.0";
  return result;
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || absl::StartsWith(host, "127.");
}
bool IsAny(const std::string& host) { return host == "0.0.0.0" || host == "::"; }

std::string FolderOfThisProgram() {
  char path[4096];
  const ssize_t size = readlink("/proc/self/exe", path, sizeof(path) - 1);
  MT_CHECK(size > 0);
  const std::string program(path, static_cast<size_t>(size));
  return program.substr(0, program.rfind('/'));
}

// SIGTERM and SIGINT write a byte here; so does the Shutdown call.
int stop_pipe[2] = {-1, -1};
void RequestStop(char how) {
  if (write(stop_pipe[1], &how, 1) != 1) _exit(kExitInternal);
}
void OnSignal(int) { RequestStop('s'); }

// The coordinator is made before it is known where it listens, which its launcher must tell the
// workers.
class LateLauncher : public NodeLauncher {
 public:
  void Set(std::unique_ptr<NodeLauncher> inner) { inner_ = std::move(inner); }
  void Launch(const NodeConfig& node, Done done) override { inner_->Launch(node, std::move(done)); }
  void Stop(const NodeConfig& node, Done done) override { inner_->Stop(node, std::move(done)); }
  std::string Whereabouts(const NodeConfig& node) const override {
    return inner_->Whereabouts(node);
  }

 private:
  std::unique_ptr<NodeLauncher> inner_;
};

class Process {
 public:
  explicit Process(Flags flags) : flags_(std::move(flags)) {}
  ~Process();

  // Everything up to serving.
  absl::Status Start();
  // Until it is told to end.
  absl::Status Run();

 private:
  absl::Status ReadHostfile();
  absl::Status ChooseListen();
  absl::Status PrepareTls();
  absl::Status StartServer();
  absl::Status WriteEndpointFile();
  std::unique_ptr<NodeLauncher> MakeLauncher();
  template <typename Body>
  void OnLoop(Body body) {
    absl::Notification done;
    loop_->Post([&] {
      body();
      done.Notify();
    });
    done.WaitForNotification();
  }

  Flags flags_;
  Env* const env_ = Env::Real();
  std::unique_ptr<EventLoop> loop_;
  std::vector<NodeConfig> nodes_;
  HostPort listen_;
  std::unique_ptr<StateStore> store_;
  std::string cluster_id_;
  std::unique_ptr<ClusterCa> ca_;
  TlsFiles tls_;
  std::unique_ptr<OwnCertificates> own_certificates_;
  Bundle bundle_;
  std::string metrics_address_;
  std::shared_ptr<Telemetry> telemetry_;
  LateLauncher launcher_;
  std::unique_ptr<DatasetDigester> digester_;
  std::unique_ptr<Coordinator> coordinator_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<grpc::Server> server_;
  bool server_started_ = false;
  absl::Status fatal_;  // written on the loop before the stop byte, read after it
};

absl::Status Process::ReadHostfile() {
  if (flags_.hostfile.empty() == (flags_.local_nodes == 0)) {
    return absl::InvalidArgumentError("give either --hostfile FILE or --local-nodes N");
  }
  if (flags_.local_nodes > 0) {
    nodes_ = LocalNodes(flags_.local_nodes, flags_.slots);
    return absl::OkStatus();
  }
  MT_ASSIGN_OR_RETURN(const std::string text, ReadFile(env_, flags_.hostfile));
  MT_ASSIGN_OR_RETURN(nodes_, ParseHostfile(text, flags_.hostfile));
  return absl::OkStatus();
}

// Loopback, unless the hostfile names other machines, which could not reach it there. The port of
// the last start is taken again when it is free, so that workers find the coordinator where it was.
absl::Status Process::ChooseListen() {
  bool remote = false;
  for (const NodeConfig& node : nodes_)
    remote = remote || !(node.address.empty() || IsLoopback(node.address));
  const std::string text = !flags_.listen.empty() ? flags_.listen
                           : remote               ? "0.0.0.0:0"
                                                  : "127.0.0.1:0";
  MT_ASSIGN_OR_RETURN(listen_, ParseHostPort(text, "--listen"));
  if (flags_.insecure && !IsLoopback(listen_.host)) {
    return absl::FailedPreconditionError(
        absl::StrCat("refusing to listen on ", listen_.host,
                     " without TLS: drop --insecure, or listen on 127.0.0.1"));
  }
  if (remote && IsLoopback(listen_.host)) {
    return absl::FailedPreconditionError(
        absl::StrCat("--listen ", text,
                     " is loopback, but the hostfile names other "
                     "machines, which cannot reach it; use --listen 0.0.0.0:PORT"));
  }
  if (listen_.port == 0) {
    const absl::StatusOr<std::string> last =
        ReadFile(env_, JoinPath(flags_.state, "listen-port"), 64);
    if (last.ok()) (void)absl::SimpleAtoi(*last, &listen_.port);
  }
  return absl::OkStatus();
}

absl::Status Process::PrepareTls() {
  if (flags_.insecure) return absl::OkStatus();
  const std::string folder = JoinPath(flags_.state, "tls");
  MT_ASSIGN_OR_RETURN(ca_, ClusterCa::LoadOrCreate(env_, folder));
  const char* user = getenv("USER");
  MT_ASSIGN_OR_RETURN(
      own_certificates_,
      OwnCertificates::Create(
          loop_.get(), env_, ca_.get(), folder,
          user != nullptr && *user != '\0' ? std::string(user).substr(0, 40) : "local"));
  tls_ = {JoinPath(folder, "ca.crt"), JoinPath(folder, "coordinator.crt"),
          JoinPath(folder, "coordinator.key")};
  return absl::OkStatus();
}

std::unique_ptr<NodeLauncher> Process::MakeLauncher() {
  if (flags_.local_nodes > 0) {
    return NewLocalLauncher(loop_.get(), env_,
                            {.worker = flags_.worker,
                             .folder = JoinPath(flags_.state, "nodes"),
                             .ca = ca_.get(),
                             .coordinator_address = listen_.ToString(),
                             .bundle_digest = ""});
  }
  SshLauncherOptions options;
  options.ssh.known_hosts = flags_.known_hosts;
  options.ssh.identities = flags_.ssh_keys;
  options.ssh.use_config = flags_.ssh_config;
  options.ssh.accept_new_hosts = flags_.accept_new_hosts;
  options.cluster_id = cluster_id_;
  options.bundle = bundle_;
  options.ca = ca_.get();
  options.coordinator_host = !flags_.advertise.empty() ? flags_.advertise
                             : IsAny(listen_.host)     ? ""
                                                       : listen_.host;
  options.coordinator_port = listen_.port;
  options.remote_folder = flags_.remote_folder;
  return NewSshLauncher(loop_.get(), std::move(options));
}

absl::Status Process::StartServer() {
  services_.push_back(NewWorkerControlService(loop_.get(), coordinator_.get()));
  services_.push_back(NewJobsService(loop_.get(), coordinator_.get()));
  services_.push_back(NewClusterService(loop_.get(), coordinator_.get(), [] { RequestStop('c'); }));
  services_.push_back(NewCheckpointsService(loop_.get(), env_, coordinator_.get(), tls_));
  services_.push_back(NewCoordinatorDatasetsService(loop_.get(), env_, coordinator_.get()));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  MT_ASSIGN_OR_RETURN(const auto credentials, NewServerCredentials(env_, tls_));
  const int wanted = listen_.port;
  for (const int port :
       {wanted, flags_.listen.empty() || absl::EndsWith(flags_.listen, ":0") ? 0 : wanted}) {
    grpc::ServerBuilder builder;
    SetServerDefaults(builder);
    listen_.port = port;
    int bound = 0;
    builder.AddListeningPort(listen_.ToString(), credentials, &bound);
    for (const auto& service : services_) builder.RegisterService(service.get());
    server_ = builder.BuildAndStart();
    if (server_ != nullptr && bound != 0) {
      listen_.port = bound;
      break;
    }
    server_.reset();
    if (port == 0) break;
  }
  if (server_ == nullptr) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", listen_.ToString(),
                     "; is the port taken? Choose another by --listen HOST:PORT"));
  }
  for (const char* service : {"mt.v1.Jobs", "mt.v1.Cluster", "mt.v1.Checkpoints",
                              "mt.v1.WorkerControl", "mt.v1.Datasets"}) {
    server_->GetHealthCheckService()->SetServingStatus(service, true);
  }
  return WriteFileAtomically(env_, JoinPath(flags_.state, "listen-port"),
                             absl::StrCat(listen_.port));
}

absl::Status Process::WriteEndpointFile() {
  HostPort reached = listen_;
  if (IsAny(reached.host)) reached.host = "127.0.0.1";
  EndpointFile file;
  file.address = reached.ToString();
  file.insecure = flags_.insecure;
  if (!flags_.insecure) {
    const std::string folder = JoinPath(flags_.state, "tls");
    file.ca = JoinPath(folder, "ca.crt");
    file.certificate = JoinPath(folder, "operator.crt");
    file.key = JoinPath(folder, "operator.key");
  }
  file.metrics = absl::StrCat("http://", metrics_address_, "/metrics");
  file.pid = getpid();
  file.cluster_id = cluster_id_;
  server_started_ = true;
  return WriteFileAtomically(env_, flags_.endpoint_file, FormatEndpointFile(file));
}

absl::Status Process::Start() {
  MT_RETURN_IF_ERROR(ReadHostfile());
  MT_RETURN_IF_ERROR(env_->CreateDirectories(flags_.state));
  char* absolute = realpath(flags_.state.c_str(), nullptr);
  if (absolute == nullptr)
    return absl::NotFoundError(absl::StrCat("--state ", flags_.state, " cannot be reached"));
  flags_.state = absolute;
  free(absolute);
  if (flags_.endpoint_file.empty()) flags_.endpoint_file = JoinPath(flags_.state, "endpoint.json");
  const std::string here = FolderOfThisProgram();
  if (flags_.worker.empty()) flags_.worker = JoinPath(here, "mt-worker");
  if (flags_.bundle.empty()) flags_.bundle = JoinPath(here, "../bundle");
  if (flags_.known_hosts.empty()) {
    const char* home = getenv("HOME");
    flags_.known_hosts = JoinPath(home != nullptr ? home : "/root", ".ssh/known_hosts");
  }
  if (flags_.local_nodes == 0) {
    MT_ASSIGN_OR_RETURN(bundle_, LoadBundle(env_, flags_.bundle));
  }
  MT_RETURN_IF_ERROR(ChooseListen());
  // The store's lock keeps a second coordinator out: nothing of the state is written before it is
  // held.
  MT_ASSIGN_OR_RETURN(store_, OpenSqliteStore(env_, flags_.state));
  loop_ = NewThreadEventLoop("coordinator");
  MT_RETURN_IF_ERROR(PrepareTls());
  TelemetryOptions telemetry_options{.version = MT_VERSION, .certificate_expiry = nullptr};
  if (own_certificates_ != nullptr) {
    telemetry_options.certificate_expiry = [own = own_certificates_.get()] {
      return own->expiry();
    };
  }
  telemetry_ = Telemetry::Create(loop_.get(), std::move(telemetry_options));
  MT_ASSIGN_OR_RETURN(metrics_address_, telemetry_->Serve(flags_.metrics_listen));
  CoordinatorOptions options;
  options.loop = loop_.get();
  options.env = env_;
  options.store = store_.get();
  options.launcher = &launcher_;
  digester_ = NewDatasetDigester(loop_.get(), env_);
  options.digester = digester_.get();
  options.nodes = nodes_;
  options.state_directory = flags_.state;
  options.version = MT_VERSION;
  options.bundle_digest = bundle_.digest;
  options.log_limits.job_bytes = static_cast<uint64_t>(flags_.job_log_mib) << 20;
  options.metrics_address = metrics_address_;
  if (ca_ != nullptr) {
    options.issue_certificate =
        [ca = ca_.get()](const std::string& node,
                         absl::Duration lifetime) -> absl::StatusOr<v1::RenewCertificate> {
      MT_ASSIGN_OR_RETURN(CertificateAndKey pair, ca->IssueNode(node, lifetime));
      v1::RenewCertificate next;
      next.set_certificate_pem(std::move(pair.certificate_pem));
      next.set_key_pem(std::move(pair.key_pem));
      return next;
    };
  }
  options.on_fatal = [this](absl::Status status) {
    fatal_ = std::move(status);
    RequestStop('f');
  };
  // In one task, so that a worker that is faster than us is heard after Start.
  absl::Status status;
  OnLoop([&] {
    absl::StatusOr<std::unique_ptr<Coordinator>> coordinator =
        Coordinator::Create(std::move(options));
    status = coordinator.status();
    if (!status.ok()) return;
    coordinator_ = *std::move(coordinator);
    cluster_id_ = coordinator_->ClusterStatus().cluster_id();
    status = StartServer();
    if (!status.ok()) return;
    launcher_.Set(telemetry_->Observe(MakeLauncher()));
    telemetry_->Attach(coordinator_.get());
    coordinator_->Start();
  });
  MT_RETURN_IF_ERROR(status);
  MT_RETURN_IF_ERROR(WriteEndpointFile());
  MT_LOG(Info) << "serving at " << listen_.ToString()
               << (flags_.insecure ? " WITHOUT TLS" : " with mTLS") << ", metrics at http://"
               << metrics_address_ << "/metrics, state in " << flags_.state << ", " << nodes_.size()
               << " nodes";
  return absl::OkStatus();
}

absl::Status Process::Run() {
  char how = 0;
  while (read(stop_pipe[0], &how, 1) < 0 && errno == EINTR) {
  }
  MT_LOG(Info) << (how == 's'
                       ? "stopping: told by a signal; workers go on and wait for the next start"
                   : how == 'c' ? "stopping: the cluster was shut down"
                                : "stopping: the state cannot be written");
  return how == 'f' ? fatal_ : absl::OkStatus();
}

// From the outside in: no new calls, then no launches, then the logic, then what it stands on.
Process::~Process() {
  if (server_ != nullptr) {
    server_->GetHealthCheckService()->SetServingStatus(false);
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
    server_->Wait();
    server_.reset();
  }
  if (loop_ != nullptr) {
    OnLoop([&] {
      launcher_.Set(nullptr);
      telemetry_->Detach();
      coordinator_.reset();
      digester_.reset();
    });
  }
  services_.clear();
  telemetry_.reset();
  if (loop_ != nullptr) OnLoop([&] { own_certificates_.reset(); });
  loop_.reset();
  // Ours only: a later start may have written it again.
  if (server_started_) {
    const absl::StatusOr<std::string> text = ReadFile(env_, flags_.endpoint_file, 1 << 16);
    const absl::StatusOr<EndpointFile> file = text.ok()
                                                  ? ParseEndpointFile(*text, flags_.endpoint_file)
                                                  : absl::StatusOr<EndpointFile>(text.status());
    if (file.ok() && file->pid == getpid()) (void)env_->RemoveFile(flags_.endpoint_file);
  }
}

int ExitCodeFor(const absl::Status& status) {
  if (status.ok()) return kExitOk;
  std::cerr << "mt-coordinator: " << status.message() << "\n";
  switch (status.code()) {
    case absl::StatusCode::kNotFound:
      return kExitNotFound;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
      return kExitPrecondition;
    case absl::StatusCode::kPermissionDenied:
      return kExitAuth;
    case absl::StatusCode::kUnavailable:
      return kExitUnavailable;
    default:
      return kExitInternal;
  }
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app(
      "mt-coordinator: the one process that decides. Usually started by mtctl dev up or mtctl "
      "cluster up.");
  app.set_version_flag("--version", MT_VERSION);
  app.add_option("--state", flags.state, "State folder; one coordinator at a time")->required();
  app.add_option("--endpoint-file", flags.endpoint_file,
                 "Where to write how clients reach it; default <state>/endpoint.json");
  app.add_option("--hostfile", flags.hostfile, "Machines of the cluster, reached by SSH");
  app.add_option("--local-nodes", flags.local_nodes,
                 "Instead: this many worker daemons on this machine")
      ->check(CLI::Range(1, 64));
  app.add_option("--slots", flags.slots, "Ranks per local node; 0: one per GPU, or one")
      ->check(CLI::Range(0, 256));
  app.add_option(
      "--listen", flags.listen,
      "HOST:PORT; default 127.0.0.1, or every interface if the hostfile names other machines");
  app.add_option("--advertise", flags.advertise,
                 "Host by which workers reach it; default: as the SSH connection sees it");
  app.add_option("--metrics-listen", flags.metrics_listen, "HOST:PORT of /metrics")
      ->capture_default_str();
  app.add_option("--job-log-mib", flags.job_log_mib,
                 "How much is kept of each job's log; its oldest lines go first")
      ->check(CLI::Range(64, 1 << 20))
      ->capture_default_str();
  app.add_option("--bundle", flags.bundle,
                 "Worker bundle; default ../bundle beside this program's folder");
  app.add_option("--worker", flags.worker,
                 "mt-worker for local nodes; default beside this program");
  app.add_option("--ssh-key,--identity", flags.ssh_keys,
                 "Private keys for SSH, in order; default ~/.ssh/id_*; the agent's come after");
  app.add_option("--known-hosts", flags.known_hosts, "SSH host keys; default ~/.ssh/known_hosts");
  app.add_option("--remote-folder", flags.remote_folder,
                 "Absolute folder on the nodes; default ~/.mt");
  app.add_flag("--ssh-config", flags.ssh_config, "Read ssh_config files");
  app.add_flag("--accept-new-hosts", flags.accept_new_hosts,
               "Remember keys of hosts that are not known yet; changed ones still fail");
  app.add_flag("--insecure", flags.insecure, "Without TLS; loopback only");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  SetLogTag("coordinator");
  MT_CHECK(pipe2(stop_pipe, O_CLOEXEC) == 0);
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigaction(SIGTERM, &action, nullptr);
  sigaction(SIGINT, &action, nullptr);
  signal(SIGPIPE, SIG_IGN);
  umask(077);
  Process process(std::move(flags));
  absl::Status status = process.Start();
  if (status.ok()) status = process.Run();
  return ExitCodeFor(status);
}

}  // namespace
}  // namespace mt

int main(int argc, char** argv) { return mt::Main(argc, argv); }
