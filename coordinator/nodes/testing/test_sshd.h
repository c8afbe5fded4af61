// An OpenSSH server on loopback with keys of its own, for tests: we listen, and every connection gets its own `sshd -i`, so
// there is nothing to wait for and nothing left behind.
#pragma once

#include <sys/types.h>

#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "coordinator/nodes/ssh.h"

namespace mt {

class TestSshd {
 public:
  explicit TestSshd(std::string folder);  // existing, empty
  ~TestSshd();

  // Why tests cannot run here (no sshd, not root); empty if they can.
  static std::string WhyNot();

  NodeConfig node(const std::string& name = "host1") const;
  SshOptions options() const;  // knows the host, and offers the key that the host accepts
  std::string known_hosts() const { return folder_ + "/known_hosts"; }
  std::string user_key() const { return folder_ + "/user_key"; }
  // A key that the host does not accept.
  std::string MakeKey(const std::string& name) const;
  // From now on the host shows another key.
  void ChangeHostKey();
  // Every server process of the connections so far stands still from now on (SIGSTOP); their sockets stay open.
  void Freeze();
  int port() const { return port_; }
  int num_connections() const;

 private:
  void Accept();

  const std::string folder_;
  int listener_ = -1;
  int port_ = 0;
  mutable std::mutex mutex_;
  std::set<pid_t> children_, frozen_;
  int num_connections_ = 0;
  std::thread thread_;
};

}  // namespace mt
