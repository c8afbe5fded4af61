// One line of the hostfile, resolved: what the coordinator knows about a node before it has ever spoken.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace mt {

struct NodeConfig {
  std::string name;  // unique in the cluster; the worker's certificate is for it
  std::string
      address;  // how SSH reaches it: host name, IPv4 or IPv6 without brackets; empty = a local process
  int port = 22;          // SSH
  std::string user;       // SSH; empty = the coordinator's user
  int slots = 0;          // ranks it can hold; 0 = what the worker reports when it registers
  std::string interface;  // `ifname=`: data interface; empty = chosen by the worker
  int64_t data_cache_bytes =
      0;         // `data_cache=`: limit of its cache of datasets; 0 = chosen by the worker
  int line = 0;  // of the hostfile, for messages; 0 = not from a file
};

}  // namespace mt
