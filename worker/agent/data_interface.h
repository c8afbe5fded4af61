// Which address the ranks of this node use among themselves: chosen once, with a reason that people
// can read. The host's own name is never resolved (Debian maps it to 127.0.1.1).
#pragma once

#include <string>

#include "common/status.h"

namespace mt {

struct DataInterface {
  std::string address;    // numeric, without brackets
  std::string interface;  // "eth0"
  std::string reason;  // "ifname=eth0 in the hostfile" | "routes to the coordinator 10.0.0.1" | ...
};

// `address` (numeric) or `ifname` if given, else the interface that routes to `coordinator`
// (host:port, [v6]:port). NOT_FOUND: no such interface or address here (lists what there is);
// UNAVAILABLE: the coordinator's name does not resolve or no route leads there.
absl::StatusOr<DataInterface> ChooseDataInterface(const std::string& address,
                                                  const std::string& ifname,
                                                  const std::string& coordinator);

}  // namespace mt
