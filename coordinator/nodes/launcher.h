// How a worker daemon gets onto a node and is started: SSH for a cluster, a child process for
// `mtctl dev up`, a simulated process in tests/simulation. The node table decides when (and when
// again, with back-off).
//
// Contract: calls come from the coordinator's loop and never block it; the work runs elsewhere and
// `done` is posted to the loop, exactly once per Launch. Launch is idempotent: a daemon of this
// cluster that is alive on the node is left alone and the answer is OK (it will connect by itself,
// or is partitioned from us and must not be killed for that). One that ends within a second of its start is an error, with the last
// lines of its log.
#pragma once

#include <functional>
#include <string>

#include "absl/functional/any_invocable.h"
#include "common/status.h"
#include "coordinator/nodes/node_config.h"

namespace mt {

class NodeLauncher {
 public:
  using Done = absl::AnyInvocable<void(absl::Status)>;

  virtual ~NodeLauncher() = default;  // drops what is under way; no `done` runs afterwards
  // Copies the bundle if its digest differs, then starts the daemon. The status names host, step
  // and remedy.
  virtual void Launch(const NodeConfig& node, Done done) = 0;
  // Ends the daemon (and so its ranks) if it runs. Used when it does not answer ShutdownWorker.
  virtual void Stop(const NodeConfig& node, Done done) = 0;
  // For people: which address the node's daemon dials, and where its log is.
  virtual std::string Whereabouts(const NodeConfig& node) const = 0;
};

}  // namespace mt
