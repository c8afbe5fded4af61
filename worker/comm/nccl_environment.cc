#include "worker/comm/nccl_environment.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace mt {

bool DevicesAreShared() {
  const char* value = std::getenv(kShareDeviceVariable);
  return value != nullptr && *value != '\0' && std::strcmp(value, "0") != 0;
}

Environment CudaEnvironment() { return {{"CUDA_DEVICE_MAX_CONNECTIONS", "32"}}; }

absl::StatusOr<Environment> NcclEnvironment(
    const NcclPlace& place,
    const std::function<absl::StatusOr<std::string>(const std::string&)>& interface_of) {
  Environment result;
  std::set<std::string> nodes;
  for (const v1::RankSlot& slot : place.rank_table) nodes.insert(slot.node());
  const v1::RankSlot& self = place.rank_table[place.rank];
  if (nodes.size() == 1) {
    result.push_back({"NCCL_SOCKET_IFNAME", "=lo"});
  } else {
    if (self.data_address().empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("node ", self.node(),
                       " has no data address; name its interface with ifname= in the hostfile"));
    }
    MT_ASSIGN_OR_RETURN(const std::string interface, interface_of(self.data_address()));
    result.push_back({"NCCL_SOCKET_IFNAME", absl::StrCat("=", interface)});
    const bool v6 = self.data_address().find(':') != std::string::npos;
    result.push_back({"NCCL_SOCKET_FAMILY", v6 ? "AF_INET6" : "AF_INET"});
  }
  if (place.share_device) {
    result.push_back(
        {"NCCL_HOSTID", absl::StrCat(self.node(), "-rank", place.rank), /*always=*/true});
    result.push_back({"NCCL_P2P_DISABLE", "1"});
    result.push_back({"NCCL_SHM_DISABLE", "1"});
    result.push_back({"NCCL_IB_DISABLE", "1"});
  }
  return result;
}

absl::StatusOr<std::string> InterfaceOf(const std::string& address) {
  in6_addr wanted{};
  const int family = address.find(':') == std::string::npos ? AF_INET : AF_INET6;
  if (inet_pton(family, address.c_str(), &wanted) != 1)
    return absl::InvalidArgumentError(absl::StrCat("\"", address, "\" is no numeric address"));
  const size_t bytes = family == AF_INET ? sizeof(in_addr) : sizeof(in6_addr);
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return absl::InternalError("getifaddrs failed");
  const std::unique_ptr<ifaddrs, decltype(&freeifaddrs)> owner(list, freeifaddrs);
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || entry->ifa_addr->sa_family != family) continue;
    const void* held = family == AF_INET
                           ? static_cast<const void*>(
                                 &reinterpret_cast<const sockaddr_in*>(entry->ifa_addr)->sin_addr)
                           : &reinterpret_cast<const sockaddr_in6*>(entry->ifa_addr)->sin6_addr;
    if (std::memcmp(held, &wanted, bytes) == 0) return std::string(entry->ifa_name);
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no interface of this node has its data address ", address,
                   "; name the right one with ifname= in the hostfile"));
}

std::string SetEnvironment(const Environment& environment) {
  std::vector<std::string> lines;
  for (const auto& [name, value, always] : environment) {
    setenv(name.c_str(), value.c_str(), always ? 1 : 0);
    lines.push_back(absl::StrCat(name, "=", std::getenv(name.c_str())));
  }
  return absl::StrJoin(lines, " ");
}

}  // namespace mt
