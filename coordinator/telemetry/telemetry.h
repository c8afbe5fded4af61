// /metrics: the names of docs/spec/metrics.md and no other `mt_` name; docs and dashboards are
// compared with it by a test.
//
// Counters and histograms are fed by what changes (job watcher, launches); everything else is read
// from the coordinator at each scrape. A scrape runs on the exposer's thread and asks the loop;
// when the loop does not answer within two seconds the scrape gets what the one before got, so a
// busy coordinator is slow to be seen but never blocked.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/event_loop.h"
#include "coordinator/coordinator.h"
#include "coordinator/nodes/launcher.h"

namespace mt {

struct TelemetryOptions {
  std::string version;
  std::function<absl::Time()> certificate_expiry;  // called on the loop; null = without TLS
};

class Telemetry {
 public:
  // `loop` outlives it.
  static std::shared_ptr<Telemetry> Create(EventLoop* loop, TelemetryOptions options);
  virtual ~Telemetry() = default;

  // A launcher that measures `inner`. It is used in place of it, and is destroyed before this
  // object.
  virtual std::unique_ptr<NodeLauncher> Observe(std::unique_ptr<NodeLauncher> inner) = 0;
  // Begins to follow the coordinator. On the loop, once.
  virtual void Attach(Coordinator* coordinator) = 0;
  // Forgets it, before it is destroyed. On the loop.
  virtual void Detach() = 0;
  // Serves /metrics at host:port (port 0 = any). Returns the address. UNAVAILABLE: it cannot listen
  // there.
  virtual absl::StatusOr<std::string> Serve(const std::string& address) = 0;
  // What a scrape gets, in Prometheus' text format.
  virtual std::string Scrape() = 0;
};

}  // namespace mt
