#include "coordinator/nodes/ssh_launcher.h"

#include <fcntl.h>
#include <unistd.h>

#include <map>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "common/check.h"
#include "common/log.h"
#include "common/worker_command.h"
#include "coordinator/nodes/launch_pool.h"

namespace mt {
namespace {

// The only command that is ever run on a node. Its first line of input names the action, the next
// ones are its values; what it answers are lines `mt:<key>=<value>`, so that a banner or a noisy
// profile does no harm. /bin/sh, coreutils, setsid.
//
//   probe    <base> <cluster> <node> <digest>    -> root, incoming (when the bundle must be sent),
//   daemon (pid) install  <base> <digest> <incoming>          verifies what was sent and gives it
//   its name start    <root> <bundle> <arguments...>      takes <root>/incoming/*, then starts the
//   daemon unless it runs -> daemon stop     <root>                              ends the daemon
//   that <root>/daemon.pid describes
constexpr char kCommand[] = R"sh(exec /bin/sh -c '
set -eu
umask 077
fail() { echo "mt:error=$*"; exit 3; }
# Field 22 of stat, behind the name in parentheses, which may hold anything.
started() { s=$(cat "/proc/$1/stat" 2>/dev/null) || return 1; s=${s##*) }; set -- $s; [ "$1" != Z ] || return 1; echo "${20}"; }
boot=$(cat /proc/sys/kernel/random/boot_id)
alive() {
  pid=; start=; when=
  [ -f "$1/daemon.pid" ] || return 1
  read -r pid start when <"$1/daemon.pid" || return 1
  [ "$when" = "$boot" ] || return 1
  [ "$(started "$pid")" = "$start" ]
}
whole() { [ -f "$1/MANIFEST" ] && [ "$(sha256sum <"$1/MANIFEST")" = "$2  -" ] && (cd "$1" && sha256sum -c --status MANIFEST) 2>/dev/null; }
next() { IFS= read -r "$1" || fail "the request is cut short"; }
for tool in sha256sum setsid mkdir mv rm cat chmod; do command -v "$tool" >/dev/null || fail "the program $tool is missing on the node"; done
next action
case $action in
probe)
  next base; next cluster; next node; next digest
  [ -n "$base" ] || base=$HOME/.mt
  root=$base/$cluster/$node
  mkdir -p "$root/incoming" "$root/tls" "$root/state" "$base/bundles" || fail "cannot create folders below $base"
  chmod 700 "$root"
  if alive "$root"; then echo "mt:daemon=$pid"; fi
  rm -rf "$base/bundles/.incoming-$node,"*
  if ! whole "$base/bundles/$digest" "$digest"; then
    incoming=$base/bundles/.incoming-$node,$$
    mkdir "$incoming"
    echo "mt:incoming=$incoming"
  fi
  echo "mt:base=$base"
  echo "mt:root=$root"
  ;;
install)
  next base; next digest; next incoming
  whole "$incoming" "$digest" || fail "what arrived in $incoming differs from what was sent"
  target=$base/bundles/$digest
  if ! whole "$target" "$digest"; then
    if [ -e "$target" ]; then mv "$target" "$incoming.broken"; fi
    mv -T "$incoming" "$target" 2>/dev/null || whole "$target" "$digest" || fail "cannot rename $incoming to $target"
  fi
  rm -rf "$incoming" "$incoming.broken"
  ;;
start)
  next root; next bundle
  for f in ca.crt node.key node.crt; do
    if [ -f "$root/incoming/$f" ]; then chmod 600 "$root/incoming/$f"; mv -f "$root/incoming/$f" "$root/tls/$f"; fi
  done
  mv -f "$root/incoming/coordinator" "$root/coordinator"
  if alive "$root"; then echo "mt:daemon=$pid"; echo mt:done=1; exit 0; fi
  why=$("$bundle/mt-worker" version 2>&1 >/dev/null) || fail "mt-worker does not run on this machine ($(uname -m), $(ldd --version 2>/dev/null | head -n 1)): $why"
  set --
  while IFS= read -r argument; do set -- "$@" "$argument"; done
  cd "$root"
  setsid "$bundle/mt-worker" "$@" </dev/null >>"$root/worker.log" 2>&1 &
  pid=$!
  ended() { fail "mt-worker ended right after its start: $(tail -n 3 "$root/worker.log" | tr "\n" " ")($root/worker.log)"; }
  start=$(started "$pid") || ended
  echo "$pid $start $boot" >"$root/daemon.pid.new"
  mv -f "$root/daemon.pid.new" "$root/daemon.pid"
  n=0
  while [ "$n" -lt 10 ]; do alive "$root" || ended; sleep 0.1; n=$((n + 1)); done
  echo "mt:daemon=$pid"
  ;;
stop)
  next base; next cluster; next node; next grace
  [ -n "$base" ] || base=$HOME/.mt
  root=$base/$cluster/$node
  if alive "$root"; then
    kill -TERM "$pid" || :
    n=0
    while alive "$root" && [ "$n" -lt "$grace" ]; do sleep 0.1; n=$((n + 1)); done
    if alive "$root"; then kill -KILL "$pid" || :; fi
  fi
  rm -f "$root/daemon.pid"
  ;;
*) fail "unknown action" ;;
esac
echo mt:done=1
')sh";

constexpr int kStopGraceTenths = 150;  // the daemon's own ranks get ten seconds

class SshLauncher : public NodeLauncher {
 public:
  SshLauncher(EventLoop* loop, SshLauncherOptions options)
      : options_(std::move(options)),
        pool_(std::make_unique<LaunchPool>(loop, options_.num_threads)) {
    MT_CHECK(pipe2(abort_pipe_, O_CLOEXEC) == 0);
  }
  ~SshLauncher() override {
    pool_->Cancel();
    const char byte = 0;
    MT_CHECK(write(abort_pipe_[1], &byte, 1) ==
             1);  // stays readable: every connect in progress ends
    {
      absl::MutexLock lock(&mutex_);
      aborted_ = true;
      for (SshSession* session : sessions_) session->Abort();
    }
    pool_.reset();
    close(abort_pipe_[0]);
    close(abort_pipe_[1]);
  }

  void Launch(const NodeConfig& node, Done done) override {
    pool_->Run(
        node.name, [this, node] { return LaunchNow(node); }, std::move(done));
  }
  void Stop(const NodeConfig& node, Done done) override {
    pool_->Run(
        node.name, [this, node] { return StopNow(node); }, std::move(done));
  }
  std::string Whereabouts(const NodeConfig& node) const override {
    return absl::StrCat(
        "it dials port ", options_.coordinator_port, " of ",
        options_.coordinator_host.empty() ? "this machine" : options_.coordinator_host, "; see ",
        options_.remote_folder.empty() ? "~/.mt" : options_.remote_folder, "/", options_.cluster_id,
        "/", node.name, "/worker.log there");
  }

 private:
  using Answer = std::map<std::string, std::string>;

  // A session that the destructor can cut.
  class Connection {
   public:
    static absl::StatusOr<std::unique_ptr<Connection>> Open(SshLauncher* launcher,
                                                            const NodeConfig& node) {
      MT_ASSIGN_OR_RETURN(auto session, SshSession::Connect(node, launcher->options_.ssh,
                                                            launcher->abort_pipe_[0]));
      absl::MutexLock lock(&launcher->mutex_);
      if (launcher->aborted_) return absl::CancelledError("the coordinator stops");
      launcher->sessions_.insert(session.get());
      return std::unique_ptr<Connection>(new Connection(launcher, std::move(session)));
    }
    ~Connection() {
      absl::MutexLock lock(&launcher_->mutex_);
      launcher_->sessions_.erase(session_.get());
    }
    SshSession* operator->() { return session_.get(); }

   private:
    Connection(SshLauncher* launcher, std::unique_ptr<SshSession> session)
        : launcher_(launcher), session_(std::move(session)) {}
    SshLauncher* const launcher_;
    const std::unique_ptr<SshSession> session_;
  };

  absl::StatusOr<Answer> Ask(Connection& connection, const NodeConfig& node,
                             const std::vector<std::string>& lines) {
    std::string input;
    for (const std::string& line : lines) {
      MT_CHECK(!absl::StrContains(line, "\n"));
      absl::StrAppend(&input, line, "\n");
    }
    MT_ASSIGN_OR_RETURN(const SshSession::Output output,
                        connection->Run(kCommand, input, options_.step_timeout));
    Answer answer;
    for (absl::string_view line : absl::StrSplit(output.out, '\n')) {
      if (!absl::ConsumePrefix(&line, "mt:")) continue;
      const std::vector<std::string> pair = absl::StrSplit(line, absl::MaxSplits('=', 1));
      if (pair.size() == 2) answer[pair[0]] = pair[1];
    }
    if (const auto error = answer.find("error"); error != answer.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat(node.name, ": ", lines[0], ": ", error->second));
    }
    if (output.exit_status != 0 || answer.find("done") == answer.end()) {
      return absl::InternalError(
          absl::StrCat(node.name, ": the bootstrap's step \"", lines[0], "\" ended with status ",
                       output.exit_status, ": ",
                       absl::StripAsciiWhitespace(output.err.empty() ? output.out : output.err)));
    }
    return answer;
  }

  absl::Status LaunchNow(const NodeConfig& node) {
    MT_ASSIGN_OR_RETURN(const std::unique_ptr<Connection> connection, Connection::Open(this, node));
    MT_ASSIGN_OR_RETURN(Answer probe, Ask(*connection, node,
                                          {"probe", options_.remote_folder, options_.cluster_id,
                                           node.name, options_.bundle.digest}));
    if (const auto incoming = probe.find("incoming"); incoming != probe.end()) {
      MT_RETURN_IF_ERROR(SendBundle(*connection, node, probe["base"], incoming->second));
    }
    const std::string root = probe["root"];
    WorkerCommand command;
    command.node = node.name;
    command.coordinator = absl::StrCat("@", root, "/coordinator");
    command.state_folder = root + "/state";
    command.slots = node.slots;
    command.data_cache_bytes = node.data_cache_bytes;
    command.interface = node.interface;
    command.bundle_digest = options_.bundle.digest;
    if (options_.ca != nullptr) {
      command.tls_folder = root + "/tls";
      MT_ASSIGN_OR_RETURN(const CertificateAndKey pair, options_.ca->IssueNode(node.name));
      MT_RETURN_IF_ERROR((*connection)->WriteFile(root + "/incoming/node.key", pair.key_pem, 0600));
      MT_RETURN_IF_ERROR(
          (*connection)->WriteFile(root + "/incoming/node.crt", pair.certificate_pem, 0600));
      MT_RETURN_IF_ERROR(
          (*connection)
              ->WriteFile(root + "/incoming/ca.crt", options_.ca->certificate_pem(), 0600));
    }
    const std::string host = options_.coordinator_host.empty() ? (*connection)->LocalAddress()
                                                               : options_.coordinator_host;
    const bool is_v6 = absl::StrContains(host, ":");
    MT_RETURN_IF_ERROR((*connection)
                           ->WriteFile(root + "/incoming/coordinator",
                                       absl::StrCat(is_v6 ? "[" : "", host, is_v6 ? "]:" : ":",
                                                    options_.coordinator_port, "\n"),
                                       0600));
    std::vector<std::string> lines = {
        "start", root, absl::StrCat(probe["base"], "/bundles/", options_.bundle.digest)};
    for (std::string& argument : FormatWorkerCommand(command)) lines.push_back(std::move(argument));
    MT_ASSIGN_OR_RETURN(Answer started, Ask(*connection, node, lines));
    MT_LOG(Info) << node.name << ": worker daemon is process " << started["daemon"] << " in "
                 << root << (probe.count("daemon") != 0 ? " (it ran already)" : "");
    return absl::OkStatus();
  }

  absl::Status SendBundle(Connection& connection, const NodeConfig& node, const std::string& base,
                          const std::string& incoming) {
    MT_LOG(Info) << node.name << ": sending worker bundle " << options_.bundle.digest.substr(0, 12);
    for (const std::string& file : options_.bundle.files) {
      MT_RETURN_IF_ERROR(connection->UploadFile(JoinPath(options_.bundle.folder, file),
                                                absl::StrCat(incoming, "/", file), 0700));
    }
    MT_RETURN_IF_ERROR(connection->UploadFile(JoinPath(options_.bundle.folder, "MANIFEST"),
                                              incoming + "/MANIFEST", 0600));
    return Ask(connection, node, {"install", base, options_.bundle.digest, incoming}).status();
  }

  absl::Status StopNow(const NodeConfig& node) {
    MT_ASSIGN_OR_RETURN(const std::unique_ptr<Connection> connection, Connection::Open(this, node));
    return Ask(*connection, node,
               {"stop", options_.remote_folder, options_.cluster_id, node.name,
                absl::StrCat(kStopGraceTenths)})
        .status();
  }

  const SshLauncherOptions options_;
  int abort_pipe_[2] = {-1, -1};
  absl::Mutex mutex_;
  bool aborted_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<SshSession*> sessions_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<LaunchPool> pool_;  // last: its threads use the rest
};

}  // namespace

std::unique_ptr<NodeLauncher> NewSshLauncher(EventLoop* loop, SshLauncherOptions options) {
  return std::make_unique<SshLauncher>(loop, std::move(options));
}

}  // namespace mt
