// One SSH connection to one host, for the bootstrap: run a fixed command with data on its standard
// input, and write files.
//
// Trust: the host key must be in the given known_hosts file. An unknown key fails with its
// fingerprint and the command that accepts it; a changed one always fails. Nothing is ever written
// to that file, no password is asked, no agent is forwarded, and the user's ssh_config is not read
// unless asked.
//
// Not thread-safe, except Abort. All errors name the host and the step: UNAVAILABLE (no route,
// refused, no answer in time), FAILED_PRECONDITION (host key), PERMISSION_DENIED (no key of ours is
// accepted), DEADLINE_EXCEEDED (also of a host that stopped answering: the session is of no use
// then), INTERNAL.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/status.h"
#include "coordinator/nodes/node_config.h"

namespace mt {

struct SshOptions {
  std::string known_hosts;  // path; may be absent, then every key is unknown
  std::vector<std::string>
      identities;  // private key files, tried in order; empty = ~/.ssh/id_{ed25519,ecdsa,rsa}
  bool use_agent = true;  // also keys of the agent at SSH_AUTH_SOCK
  bool accept_new_hosts =
      false;  // append unknown keys to known_hosts instead of failing; changed ones still fail
  bool use_config = false;  // read ~/.ssh/config and /etc/ssh/ssh_config
  absl::Duration connect_timeout = absl::Seconds(10);
  // A host that has not answered one request, or taken one piece of a file, for so long is given up. It need not be off: a
  // server that stands still keeps its connections, and its kernel goes on acknowledging.
  absl::Duration answer_timeout = absl::Minutes(1);
};

class SshSession {
 public:
  struct Output {
    int exit_status = -1;
    std::string out;  // at most 1 MiB is kept of each
    std::string err;
  };

  // Connects, checks the host's key, authenticates. `abort_fd`, when not -1, ends the attempt when
  // it becomes readable.
  static absl::StatusOr<std::unique_ptr<SshSession>> Connect(const NodeConfig& node,
                                                             const SshOptions& options,
                                                             int abort_fd = -1);
  virtual ~SshSession() = default;

  // Runs `command` (a constant of this program: it reaches the remote user's shell) and gives it
  // `input`.
  virtual absl::StatusOr<Output> Run(const std::string& command, absl::string_view input,
                                     absl::Duration timeout) = 0;
  // Creates or truncates the file and writes it, in pieces of 32 KiB. Folders must exist.
  virtual absl::Status WriteFile(const std::string& remote_path, absl::string_view contents,
                                 int mode) = 0;
  virtual absl::Status UploadFile(const std::string& local_path, const std::string& remote_path,
                                  int mode) = 0;
  // This side's address of the connection: what the host can reach us by.
  virtual std::string LocalAddress() const = 0;
  // From any thread: pending and later calls fail soon.
  virtual void Abort() = 0;
};

}  // namespace mt
