#include "worker/agent/data_interface.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/str_join.h"

namespace mt {
namespace {

struct LocalAddress {
  std::string interface, address;
  bool is_ipv6 = false;
};

std::string Numeric(const sockaddr* address) {
  char text[NI_MAXHOST] = "";
  const socklen_t size =
      address->sa_family == AF_INET6 ? sizeof(sockaddr_in6) : sizeof(sockaddr_in);
  if (getnameinfo(address, size, text, sizeof(text), nullptr, 0, NI_NUMERICHOST) != 0) return "";
  return text;
}

std::vector<LocalAddress> LocalAddresses() {
  std::vector<LocalAddress> addresses;
  ifaddrs* list = nullptr;
  if (getifaddrs(&list) != 0) return addresses;
  const std::unique_ptr<ifaddrs, void (*)(ifaddrs*)> owner(list, freeifaddrs);
  for (const ifaddrs* entry = list; entry != nullptr; entry = entry->ifa_next) {
    if (entry->ifa_addr == nullptr || !(entry->ifa_flags & IFF_UP)) continue;
    const int family = entry->ifa_addr->sa_family;
    if (family != AF_INET && family != AF_INET6) continue;
    const std::string text = Numeric(entry->ifa_addr);
    if (text.find('%') != std::string::npos) continue;  // link-local: means nothing to other hosts
    addresses.push_back({entry->ifa_name, text, family == AF_INET6});
  }
  return addresses;
}

std::string Describe(const std::vector<LocalAddress>& addresses) {
  return absl::StrJoin(addresses, ", ", [](std::string* out, const LocalAddress& at) {
    absl::StrAppend(out, at.interface, " ", at.address);
  });
}

}  // namespace

absl::StatusOr<DataInterface> ChooseDataInterface(const std::string& address,
                                                  const std::string& ifname,
                                                  const std::string& coordinator) {
  const std::vector<LocalAddress> local = LocalAddresses();
  if (!address.empty()) {
    for (const auto& at : local) {
      if (at.address == address) return DataInterface{address, at.interface, "data address given"};
    }
    in_addr parsed;
    if (inet_pton(AF_INET, address.c_str(), &parsed) == 1 && (ntohl(parsed.s_addr) >> 24) == 127) {
      return DataInterface{address, "lo", "data address given (loopback)"};  // all of 127/8 is here
    }
    return absl::NotFoundError(absl::StrCat("no interface of this host has the data address ",
                                            address, "; there are: ", Describe(local)));
  }
  if (!ifname.empty()) {
    for (const bool want_ipv6 : {false, true}) {
      for (const auto& at : local) {
        if (at.interface == ifname && at.is_ipv6 == want_ipv6)
          return DataInterface{at.address, ifname, absl::StrCat("ifname=", ifname)};
      }
    }
    return absl::NotFoundError(
        absl::StrCat("interface ", ifname,
                     " is not up or has no address on this host; there are: ", Describe(local)));
  }

  const size_t colon = coordinator.rfind(':');
  if (colon == std::string::npos)
    return absl::InvalidArgumentError(
        absl::StrCat("coordinator \"", coordinator, "\" is not host:port"));
  std::string host = coordinator.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']')
    host = host.substr(1, host.size() - 2);
  addrinfo hints{};
  hints.ai_socktype = SOCK_DGRAM;
  addrinfo* found = nullptr;
  if (const int error =
          getaddrinfo(host.c_str(), coordinator.substr(colon + 1).c_str(), &hints, &found);
      error != 0) {
    return absl::UnavailableError(absl::StrCat("the coordinator's host ", host,
                                               " does not resolve here: ", gai_strerror(error),
                                               "; give its address instead"));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> owner(found, freeaddrinfo);
  for (const addrinfo* target = found; target != nullptr; target = target->ai_next) {
    const int fd = socket(target->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    sockaddr_storage own{};
    socklen_t size = sizeof(own);
    // Connecting a datagram socket sends nothing; it only asks the routing table.
    const bool ok = connect(fd, target->ai_addr, target->ai_addrlen) == 0 &&
                    getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) == 0;
    close(fd);
    if (!ok) continue;
    const std::string mine = Numeric(reinterpret_cast<sockaddr*>(&own));
    for (const auto& at : local) {
      if (at.address == mine) {
        return DataInterface{
            mine, at.interface,
            absl::StrCat("routes to the coordinator at ", Numeric(target->ai_addr))};
      }
    }
    return DataInterface{mine, "lo",
                         absl::StrCat("routes to the coordinator at ", Numeric(target->ai_addr))};
  }
  return absl::UnavailableError(absl::StrCat("no route leads to the coordinator ", coordinator,
                                             ": ", std::strerror(errno),
                                             "; name the interface with ifname= in the hostfile"));
}

}  // namespace mt
