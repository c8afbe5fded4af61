#include "worker/daemon_main.h"

#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <future>
#include <memory>

#include "common/clock.h"
#include "common/dataset/datasets_service.h"
#include "common/env.h"
#include "common/exit_codes.h"
#include "common/grpc_transport.h"
#include "common/log.h"
#include "common/tls/credentials.h"
#include "worker/agent/agent.h"
#include "worker/agent/data_checker.h"
#include "worker/agent/data_interface.h"
#include "worker/agent/dataset_cache.h"
#include "worker/agent/dataset_client.h"
#include "worker/agent/dataset_store.h"
#include "worker/agent/device_monitor.h"
#include "worker/agent/process_host.h"
#include "worker/agent/shards_client.h"
#include "worker/agent/shards_service.h"
#include "worker/backend/backend.h"

namespace mt {
namespace {

constexpr absl::Duration kStopGrace = absl::Seconds(10);

int NumCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
}

class Daemon {
 public:
  explicit Daemon(WorkerCommand command) : command_(std::move(command)) {}

  absl::Status Start();
  // Until it should end; returns why.
  absl::Status Wait();

 private:
  const WorkerCommand command_;
  Env* const env_ = Env::Real();
  std::unique_ptr<FileLock> lock_;
  int signal_fd_ = -1, ended_fd_ = -1;
  absl::Status end_status_;
  std::unique_ptr<DatasetCache> dataset_cache_;
  std::unique_ptr<grpc::Service> shards_, datasets_service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<EventLoop> loop_;  // destroyed after all that posts to it
  std::unique_ptr<EventLoop> datasets_loop_;
  std::unique_ptr<CoordinatorDialer> dialer_;
  std::unique_ptr<RankHost> host_;
  std::unique_ptr<FileFetcher> fetcher_;
  std::unique_ptr<DataChecker> data_checker_;
  std::unique_ptr<DatasetTransport> dataset_transport_;
  std::unique_ptr<DatasetStore> datasets_;
  std::unique_ptr<DeviceMonitor> device_monitor_;
  std::unique_ptr<Agent> agent_;
};

absl::Status Daemon::Start() {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGHUP);  // an SSH session that ends does not end the daemon
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  signal(SIGPIPE, SIG_IGN);
  signal_fd_ = signalfd(-1, &set, SFD_CLOEXEC);
  ended_fd_ = eventfd(0, EFD_CLOEXEC);
  if (signal_fd_ < 0 || ended_fd_ < 0) return absl::InternalError("no descriptor for signals");

  auto lock = env_->Lock(JoinPath(command_.state_folder, "lock"));
  if (absl::IsFailedPrecondition(lock.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("another worker daemon uses the state folder ", command_.state_folder));
  }
  MT_RETURN_IF_ERROR(lock.status());
  lock_ = std::move(*lock);
  const absl::Status pid_written = WriteFileAtomically(
      env_, JoinPath(command_.state_folder, "worker.pid"), absl::StrCat(getpid(), "\n"));
  if (absl::IsResourceExhausted(pid_written)) {  // removing checkpoints is this daemon's work
    MT_LOG(Warning) << "the disk is full; starting all the same: " << pid_written.message();
  } else {
    MT_RETURN_IF_ERROR(pid_written);
  }

  const TlsFiles tls = command_.tls();
  MT_ASSIGN_OR_RETURN(const std::string coordinator,
                      CoordinatorAddress(env_, command_.coordinator));
  const bool is_address = !command_.listen.empty() && command_.interface.empty();
  MT_ASSIGN_OR_RETURN(
      const DataInterface data,
      ChooseDataInterface(is_address ? command_.listen : "", command_.interface, coordinator));
  MT_LOG(Info) << "data interface " << data.interface << ", address " << data.address << ": "
               << data.reason;

  MT_ASSIGN_OR_RETURN(const auto credentials, NewServerCredentials(env_, tls));
  shards_ = NewShardsService(env_, JoinPath(command_.state_folder, "checkpoints"));
  MT_ASSIGN_OR_RETURN(dataset_cache_,
                      DatasetCache::Open(env_, JoinPath(command_.state_folder, "datasets"),
                                         command_.data_cache_bytes));
  datasets_service_ = NewDatasetsService(
      env_,
      [cache = dataset_cache_.get()](const std::string& digest) -> absl::StatusOr<ServedFile> {
        const std::string path = cache->FindServed(digest);
        if (path.empty()) return absl::NotFoundError("not in the cache of this node");
        return ServedFile{path};
      });
  const std::string listen = command_.listen.empty() ? data.address : command_.listen;
  const std::string host =
      listen.find(':') == std::string::npos ? listen : absl::StrCat("[", listen, "]");
  int port = 0;
  grpc::ServerBuilder builder;
  SetServerDefaults(builder);
  builder.AddListeningPort(absl::StrCat(host, ":0"), credentials, &port);
  builder.RegisterService(shards_.get());
  builder.RegisterService(datasets_service_.get());
  server_ = builder.BuildAndStart();
  if (server_ == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on the data address ", host,
                     ": name another interface with ifname= in the hostfile"));
  }

  AgentOptions options;
  options.node = command_.node;
  options.state_folder = command_.state_folder;
  v1::Register& identity = options.identity;
  identity.set_version(MT_VERSION);
  identity.set_bundle_digest(command_.bundle_digest);
  identity.set_slots(command_.slots > 0 ? command_.slots : std::max(1, CountDevices()));
  identity.set_cores(NumCores());
  identity.set_memory_bytes(static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE));
  identity.set_data_address(data.address);
  identity.set_data_interface(data.interface);
  identity.set_data_interface_reason(data.reason);
  identity.set_shards_endpoint(absl::StrCat(host, ":", port));
  for (const std::string& backend : DescribeBackends()) {
    MT_LOG(Info) << "backend " << backend;
    identity.add_backends(backend);
  }

  if (!tls.empty()) {
    options.renew_certificate = [this](const v1::RenewCertificate& next) {
      return WriteCertificate(env_, command_.tls_folder, "node",
                              {next.certificate_pem(), next.key_pem()});
    };
  }
  if (auto monitor = NewNvmlMonitor(); monitor.ok()) {
    device_monitor_ = std::move(*monitor);
    options.device_monitor = device_monitor_.get();
  } else {
    MT_LOG(Info) << "no figures of GPUs: " << monitor.status().message();
  }

  loop_ = NewThreadEventLoop("agent");
  dialer_ = NewGrpcCoordinatorDialer(loop_.get(), env_, command_.coordinator, tls);
  fetcher_ = NewShardsFetcher(loop_.get(), env_, tls);
  data_checker_ = NewDataChecker(loop_.get(), env_);
  datasets_loop_ = NewThreadEventLoop("datasets");
  dataset_transport_ =
      NewGrpcDatasetTransport(datasets_loop_.get(), env_, command_.coordinator, tls);
  datasets_ =
      std::make_unique<DatasetStore>(datasets_loop_.get(), loop_.get(), env_, Random::Real(),
                                     dataset_transport_.get(), dataset_cache_.get());
  std::promise<absl::Status> done;
  // Ranks are forked on the loop's thread: their parent-death signal is tied to the thread that
  // forks.
  loop_->Post([&] {
    ProcessHostOptions host_options;
    host_options.scope = command_.state_folder;
    // Nodes of one machine are hosts of their own for NCCL too, which refuses one host two ranks on a GPU.
    host_options.environment.push_back(absl::StrCat("NCCL_HOSTID=", command_.node));
    auto process_host = NewProcessHost(host_options, loop_.get());
    if (!process_host.ok()) {
      done.set_value(process_host.status());
      return;
    }
    host_ = std::move(*process_host);
    agent_ = std::make_unique<Agent>(options, loop_.get(), env_, Random::Real(), dialer_.get(),
                                     host_.get(), fetcher_.get(), data_checker_.get(),
                                     datasets_.get(), [this](absl::Status status) {
                                       end_status_ = std::move(status);
                                       const uint64_t one = 1;
                                       (void)!write(ended_fd_, &one, sizeof(one));
                                     });
    done.set_value(agent_->Start());
  });
  return done.get_future().get();
}

absl::Status Daemon::Wait() {
  bool stopping = false;
  while (true) {
    pollfd waits[2] = {{signal_fd_, POLLIN, 0}, {ended_fd_, POLLIN, 0}};
    poll(waits, 2, -1);
    if (waits[1].revents != 0) break;
    if (waits[0].revents == 0) continue;
    signalfd_siginfo info{};
    if (read(signal_fd_, &info, sizeof(info)) != sizeof(info) || info.ssi_signo == SIGHUP) continue;
    const absl::Duration grace =
        stopping ? absl::ZeroDuration() : kStopGrace;  // asked twice: at once
    stopping = true;
    MT_LOG(Info) << "asked to end by " << strsignal(static_cast<int>(info.ssi_signo));
    loop_->Post([this, grace] { agent_->Shutdown(grace, "the worker daemon was asked to end"); });
  }
  // What is destroyed on the loop: all that has callbacks there.
  std::promise<void> done;
  loop_->Post([&] {
    agent_ = nullptr;
    host_ = nullptr;
    done.set_value();
  });
  done.get_future().get();
  std::promise<void> no_datasets;
  datasets_loop_->Post([&] {
    datasets_ = nullptr;
    no_datasets.set_value();
  });
  no_datasets.get_future().get();
  fetcher_ = nullptr;
  data_checker_ = nullptr;
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  (void)env_->RemoveFile(JoinPath(command_.state_folder, "worker.pid"));
  return end_status_;
}

}  // namespace

int DaemonMain(WorkerCommand command) {
  umask(077);
  SetLogTag(absl::StrCat("worker ", command.node));
  if (absl::Status status = Env::Real()->CreateDirectories(command.state_folder); !status.ok()) {
    MT_LOG(Error) << status.message();
    return kExitPrecondition;
  }
  command.state_folder =
      std::filesystem::absolute(command.state_folder).lexically_normal().string();
  Daemon daemon(std::move(command));
  if (absl::Status status = daemon.Start(); !status.ok()) {
    MT_LOG(Error) << status.message();
    return absl::IsFailedPrecondition(status) ? kExitPrecondition : kExitInternal;
  }
  const absl::Status status = daemon.Wait();
  if (!status.ok()) {
    MT_LOG(Error) << status.message();
  }
  return status.ok() ? kExitOk : kExitPrecondition;
}

}  // namespace mt
