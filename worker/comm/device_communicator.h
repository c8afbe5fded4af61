// A group of ranks with a device each, over the collectives of their backend (mt_collectives; NCCL implements them). What its
// calls promise is in communicator.h under "Order".
//
// A group is one lane (device_lane.h) for collectives and, where there are messages, one link (device_link.h) for each
// direction between two members. The first failure of any of them is the group's: the aborts of all its lanes are begun, so that
// whatever this device still does of them ends. Peers on other nodes may find their connections closed; peers on this one are
// told nothing: they end because whoever hears of the failure (the daemons) ends them. Nothing but the group's destruction
// waits for an abort, which itself may wait for the peers' or until they have ended.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "worker/comm/communicator.h"
#include "worker/comm/device_watch.h"

namespace mt {

struct DeviceGroupOptions {
  std::string name;    // of the group, for messages
  std::string prefix;  // unique to job, generation and group: rendezvous keys begin with it
  int rank = 0, size = 1;
  std::vector<int> ranks;  // global rank of each member, for messages; empty = the member indices
  // For joining, and for each call from when the device has reached it.
  absl::Duration timeout = absl::Minutes(5);
  // Who may send to whom: nobody, neighbours (member i and i + 1), everybody.
  enum class Links { kNone, kNeighbours, kAll } links = Links::kNone;
};

// At least two members. Waits until all have joined. DEADLINE_EXCEEDED and UNAVAILABLE blame the member that did not come, if it
// is known. `*communicator` is set after an error too, to a group that has failed with it: so that the caller can tell of the
// failure before it waits, in destroying that, for what had begun to join.
absl::Status NewDeviceCommunicator(const DeviceGroupOptions& options,
                                   std::shared_ptr<DeviceWatch> watch, Rendezvous* rendezvous,
                                   std::unique_ptr<Communicator>* communicator);

}  // namespace mt
