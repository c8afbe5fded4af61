#include "client/bring_up.h"

#include <signal.h>

#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "client/local_programs.h"
#include "common/endpoint_file.h"
#include "common/env.h"

namespace mt::client {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(50);

absl::StatusOr<v1::ListNodesResponse> Nodes(Client* client) {
  return client->Call(client->cluster(), &v1::Cluster::Stub::ListNodes, v1::ListNodesRequest());
}

// Ready, or not coming: a node that is down has said why, but the first try after a restart may still come through, so
// "down" counts only when it lasts.
class Settling {
 public:
  bool Settled(const v1::ListNodesResponse& nodes, absl::Time now) {
    bool down = false;
    for (const v1::Node& node : nodes.nodes()) {
      if (node.state() == v1::NODE_STATE_STARTING || node.state() == v1::NODE_STATE_SUSPECT ||
          node.state() == v1::NODE_STATE_UNSPECIFIED) {
        down_since_ = absl::InfiniteFuture();
        return false;
      }
      down = down || node.state() == v1::NODE_STATE_DOWN;
    }
    if (!down) return nodes.nodes_size() > 0;
    down_since_ = std::min(down_since_, now);
    return now - down_since_ > absl::Seconds(5);
  }

 private:
  absl::Time down_since_ = absl::InfiniteFuture();
};

absl::Status EndedEarly(const std::string& log, uint64_t from, int code) {
  return absl::FailedPreconditionError(absl::StrCat(
      "mt-coordinator ended with code ", code, "; the end of ", log, ":\n", TailOf(log, 15, from)));
}

}  // namespace

std::string EndpointPath(const std::string& state_directory) {
  return JoinPath(state_directory, "endpoint.json");
}
std::string CoordinatorLog(const std::string& state_directory) {
  return JoinPath(state_directory, "coordinator.log");
}

absl::StatusOr<v1::ListNodesResponse> StartCoordinator(Session* session, const BringUp& options) {
  Env* env = Env::Real();
  MT_RETURN_IF_ERROR(env->CreateDirectories(options.state_directory));
  const std::string endpoint = EndpointPath(options.state_directory),
                    log = CoordinatorLog(options.state_directory);
  session->connect.endpoint = endpoint;
  // What an earlier coordinator said is not the reason that this one ended.
  const auto earlier = env->Stat(log);
  const uint64_t log_start = earlier.ok() ? earlier->size_bytes : 0;
  int pid = 0;
  absl::StatusOr<Client*> client = session->Reconnect();
  if (client.ok()) {
    Note(absl::StrCat("already up: ", (*client)->endpoint().address,
                      " (what a start reads, such as a hostfile, is not read again)"));
  } else {
    MT_ASSIGN_OR_RETURN(const std::string program, FindProgram("mt-coordinator"));
    // An endpoint file that nobody answers at is of an earlier life.
    if (Exists(env, endpoint)) MT_RETURN_IF_ERROR(env->RemoveFile(endpoint));
    std::vector<std::string> command = {program, absl::StrCat("--state=", options.state_directory),
                                        absl::StrCat("--endpoint-file=", endpoint)};
    command.insert(command.end(), options.arguments.begin(), options.arguments.end());
    MT_ASSIGN_OR_RETURN(pid, SpawnDaemon(command, log));
  }
  const absl::Time deadline = absl::Now() + options.timeout;
  Settling settling;
  while (true) {
    int code = 0;
    if (pid != 0 && HasExited(pid, &code)) return EndedEarly(log, log_start, code);
    if (client.ok()) {
      const absl::StatusOr<v1::ListNodesResponse> nodes = Nodes(*client);
      if (nodes.ok() && settling.Settled(*nodes, absl::Now())) {
        MT_RETURN_IF_ERROR(SaveContext(options.context, endpoint));
        return nodes;
      }
      if (!nodes.ok() && !absl::IsUnavailable(nodes.status())) return nodes.status();
    } else if (Exists(env, endpoint)) {
      client = session->Reconnect();
    }
    if (absl::Now() > deadline) {
      return WithNext(
          absl::DeadlineExceededError(absl::StrCat(
              "not all nodes came up within ", absl::FormatDuration(options.timeout),
              "; the coordinator goes on trying; the end of ", log, ":\n", TailOf(log, 10))),
          "mtctl nodes");
    }
    std::this_thread::sleep_for(kPoll);
  }
}

absl::Status StopCoordinator(Session* session, const std::string& context,
                             const std::string& state_directory, bool graceful,
                             absl::Duration timeout) {
  Env* env = Env::Real();
  const std::string path = EndpointPath(state_directory);
  const absl::StatusOr<std::string> text = ReadFile(env, path);
  if (absl::IsNotFound(text.status())) {
    Note(absl::StrCat("nothing runs in ", state_directory));
    return absl::OkStatus();
  }
  if (!text.ok()) return text.status();
  MT_ASSIGN_OR_RETURN(const EndpointFile file, ParseEndpointFile(*text, path));
  session->connect.endpoint = path;
  const absl::StatusOr<Client*> client = session->Reconnect();
  if (client.ok()) {
    v1::ShutdownRequest request;
    request.set_graceful(graceful);
    const auto answer =
        (*client)->Call((*client)->cluster(), &v1::Cluster::Stub::Shutdown, request, timeout);
    // It may end before its answer is out.
    if (!answer.ok() && !absl::IsUnavailable(answer.status())) return answer.status();
  } else if (!absl::IsUnavailable(client.status())) {
    return client.status();
  }
  const absl::Time deadline = absl::Now() + timeout;
  bool asked = client.ok();
  while (IsRunning(file.pid, "mt-coordinator")) {
    if (!asked || absl::Now() > deadline) {
      Note(
          absl::StrCat("the coordinator (pid ", file.pid, ") does not answer; ending its process"));
      kill(static_cast<pid_t>(file.pid), asked ? SIGKILL : SIGTERM);
      if (asked && absl::Now() > deadline + absl::Seconds(5)) {
        return absl::InternalError(
            absl::StrCat("the coordinator's process ", file.pid, " cannot be ended"));
      }
      asked = true;
    }
    std::this_thread::sleep_for(kPoll);
  }
  if (Exists(env, path)) MT_RETURN_IF_ERROR(env->RemoveFile(path));
  // Without a current context, the next command says how to start again.
  const std::string current = JoinPath(ConfigDirectory(), "current-context");
  const absl::StatusOr<std::string> name = ReadFile(env, current);
  if (name.ok() && absl::StripAsciiWhitespace(*name) == context) return env->RemoveFile(current);
  return absl::OkStatus();
}

}  // namespace mt::client
