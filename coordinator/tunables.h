// The coordinator's few knobs, with units and reasons.
#pragma once

#include <algorithm>
#include <vector>

#include "absl/time/time.h"

namespace mt {

struct CoordinatorTunables {
  // Workers send a heartbeat this often; grows with the cluster so that the coordinator sees at most 50 per second.
  absl::Duration min_heartbeat_interval = absl::Seconds(2);
  double max_heartbeats_per_second = 50;
  // Heartbeats missed until a node with an open stream is suspect.
  int suspect_after_missed = 3;
  // A suspect node is down (its ranks given up) after this long without contact. Long enough for a restart of the
  // coordinator, a short partition or a reboot of a switch; nothing is done to its jobs before.
  absl::Duration down_after = absl::Seconds(30);
  // A node whose stream closed is launched again after this (a daemon that lives reconnects within about a second).
  absl::Duration relaunch_after = absl::Seconds(3);
  absl::Duration launch_backoff_min = absl::Seconds(2);
  absl::Duration launch_backoff_max = absl::Minutes(1);
  // After a start of the coordinator, known workers get this long to register before anything counts as missing.
  absl::Duration restart_grace = absl::Seconds(30);
  // Changes that nobody waits for (progress, logs) are committed together at most this late.
  absl::Duration group_commit = absl::Milliseconds(20);
  // Before an attempt, after so many attempts in a row without progress (the last one for all more): the first restart is at
  // once, and a network that is away for a minute does not use up the attempts of a run of weeks.
  std::vector<absl::Duration> retry_waits = {absl::ZeroDuration(), absl::Seconds(15),
                                             absl::Minutes(1), absl::Minutes(5)};
  // A full state disk is tried again this often.
  absl::Duration full_disk_retry = absl::Seconds(1);
  // A graceful shutdown waits so long for jobs to write their checkpoints, then ends them anyway.
  absl::Duration pause_grace = absl::Minutes(5);
  // Waiting for workers to end at shutdown.
  absl::Duration shutdown_grace = absl::Seconds(30);

  // Of a node's certificate, as the launchers issue it. A connected node is sent the next one when less than half is left; if it
  // cannot take it (a full disk), again after certificate_retry.
  absl::Duration node_certificate_lifetime = absl::Hours(24 * 7);
  absl::Duration certificate_retry = absl::Hours(1);

  absl::Duration HeartbeatInterval(int nodes) const {
    return std::max(min_heartbeat_interval, absl::Seconds(nodes / max_heartbeats_per_second));
  }
};

}  // namespace mt
