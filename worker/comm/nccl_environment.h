// What NCCL and CUDA are told through the environment before they are loaded: which interface ranks meet over, so that it is
// chosen and reported and not guessed, and, for tests, that ranks may share a device.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "common/status.h"
#include "mt/v1/worker.pb.h"

namespace mt {

// The variable that lets ranks share a device (any value but empty and 0): slot s of a node uses device s modulo the node's
// number of devices. NCCL refuses two ranks on a device unless they look like two hosts, so they get host ids of their own and
// talk over sockets: for correctness tests on one GPU, never for speed.
inline constexpr char kShareDeviceVariable[] = "MT_NCCL_SHARE_DEVICE";
bool DevicesAreShared();

struct NcclPlace {
  int rank = 0;
  std::vector<v1::RankSlot> rank_table;  // the whole job's
  bool share_device = false;
};
struct Setting {
  std::string name, value;
  bool always = false;  // else only if it is not set already
  bool operator==(const Setting&) const = default;
};
using Environment = std::vector<Setting>;
// `interface_of` names the interface that has a numeric address on this machine (InterfaceOf). INVALID_ARGUMENT: a job on
// several nodes whose data address none has, or which has none.
absl::StatusOr<Environment> NcclEnvironment(
    const NcclPlace& place,
    const std::function<absl::StatusOr<std::string>(const std::string&)>& interface_of);

absl::StatusOr<std::string> InterfaceOf(const std::string& address);

// A user's own setting goes first, unless `always`. Call it before the backend is loaded, while no other thread reads
// the environment. Returns "NAME=value" of what holds now, for the log.
std::string SetEnvironment(const Environment& environment);

// For every job: streams that wait must not hold up others behind them in a hardware queue, of which CUDA makes only 8 unless told.
Environment CudaEnvironment();

}  // namespace mt
