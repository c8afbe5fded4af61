// How a launcher starts a worker daemon, and what the daemon understands: both sides of one command
// line.
//   mt-worker daemon --node NAME --coordinator HOST:PORT|@FILE --state FOLDER [--slots N]
//   [--interface IF]
//                    [--tls FOLDER | --insecure] [--bundle-digest HEX] [--listen HOST] [--data-cache SIZE]
#pragma once

#include <string>
#include <vector>

#include "common/status.h"
#include "common/tls/credentials.h"

namespace mt {

struct WorkerCommand {
  std::string node;
  std::string coordinator;   // host:port, or @FILE: a file holding it, read again at every dial (it
                             // may move)
  std::string state_folder;  // private to this daemon
  int slots = 0;             // 0 = the daemon decides
  std::string interface;     // data interface; empty = the daemon chooses
  std::string tls_folder;    // holds ca.crt, node.crt and node.key; empty = --insecure
  std::string bundle_digest;     // of the bundle it runs from; empty = none
  int64_t data_cache_bytes = 0;  // limit of the cache of datasets; 0 = the daemon decides
  std::string listen;  // address of the Shards service; empty = that of the data interface

  TlsFiles tls() const {
    if (tls_folder.empty()) return {};
    return {tls_folder + "/ca.crt", tls_folder + "/node.crt", tls_folder + "/node.key"};
  }
};

// Arguments after the program's name, beginning with "daemon".
std::vector<std::string> FormatWorkerCommand(const WorkerCommand& command);
// INVALID_ARGUMENT names the flag. `arguments` are those after "daemon".
absl::StatusOr<WorkerCommand> ParseWorkerCommand(const std::vector<std::string>& arguments);

}  // namespace mt
