// Starts worker daemons over SSH. docs/spec/bootstrap.md tells the protocol and the layout on the
// node.
//
// Invariants
//  - One constant command reaches the node's shell; everything that comes from the hostfile, the
//  cluster or the user goes
//    through its standard input.
//  - The worker never runs from a bundle whose every byte has not been verified on the node itself.
//  - A daemon is known by pid, start time and boot; no process is ever signalled because of its
//  number alone.
//  - A daemon that runs is left alone, whichever bundle it came from; its certificate and the
//  coordinator's address are
//    renewed under its hands.
#pragma once

#include <memory>
#include <string>

#include "common/event_loop.h"
#include "common/tls/cluster_ca.h"
#include "coordinator/nodes/bundle.h"
#include "coordinator/nodes/launcher.h"
#include "coordinator/nodes/ssh.h"

namespace mt {

struct SshLauncherOptions {
  SshOptions ssh;
  std::string cluster_id;  // [a-z0-9-]: names the cluster's folder on the nodes
  Bundle bundle;
  const ClusterCa* ca = nullptr;  // null = --insecure
  // Where workers reach the coordinator. An empty host means: this side's address of each SSH
  // connection.
  std::string coordinator_host;
  int coordinator_port = 0;
  std::string remote_folder;  // absolute, on the nodes; empty = ~/.mt
  absl::Duration step_timeout = absl::Seconds(60);
  int num_threads = 16;
};

// `loop` and `options.ca` outlive it. Destroy it on the loop; connections under way are cut.
std::unique_ptr<NodeLauncher> NewSshLauncher(EventLoop* loop, SshLauncherOptions options);

}  // namespace mt
