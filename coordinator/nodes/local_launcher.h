// Starts worker daemons as processes of this machine, for `mtctl dev up`: the same daemons, flags
// and certificates as over SSH, without it. Each node has a folder `<folder>/<node>` with tls/,
// state/, worker.log and daemon.pid. Daemons outlive the coordinator; its next start finds them by
// pid and start time.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/env.h"
#include "common/event_loop.h"
#include "common/tls/cluster_ca.h"
#include "coordinator/nodes/launcher.h"

namespace mt {

struct LocalLauncherOptions {
  std::string worker;               // path of mt-worker
  std::string folder;               // absolute
  const ClusterCa* ca = nullptr;    // null = --insecure
  std::string coordinator_address;  // host:port
  std::string bundle_digest;        // passed on; may be empty
};

// `num_nodes` nodes dev-1, dev-2, ... of `slots` each.
std::vector<NodeConfig> LocalNodes(int num_nodes, int slots);

// `loop` and `options.ca` outlive it. Destroy it on the loop.
std::unique_ptr<NodeLauncher> NewLocalLauncher(EventLoop* loop, Env* env,
                                               LocalLauncherOptions options);

}  // namespace mt
