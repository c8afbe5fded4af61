#include "coordinator/nodes/testing/test_sshd.h"

#include <arpa/inet.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/check.h"

namespace mt {
namespace {

constexpr char kSshd[] = "/usr/sbin/sshd";

void Shell(const std::string& command) { MT_CHECK(system(command.c_str()) == 0) << command; }
std::string Read(const std::string& path) {
  std::ifstream file(path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

}  // namespace

std::string TestSshd::WhyNot() {
  if (geteuid() != 0) return "needs root";
  if (access(kSshd, X_OK) != 0) return "needs openssh-server";
  return "";
}

TestSshd::TestSshd(std::string folder) : folder_(std::move(folder)) {
  mkdir("/run/sshd", 0755);  // sshd's privilege separation wants it
  Shell("ssh-keygen -q -t ed25519 -N '' -f " + folder_ + "/host_key");
  MakeKey("user_key");
  Shell("cp " + user_key() + ".pub " + folder_ + "/authorized_keys");
  std::ofstream(folder_ + "/sshd_config")
      << "HostKey " << folder_ << "/host_key\n"
      << "AuthorizedKeysFile " << folder_ << "/authorized_keys\n"
      << "StrictModes no\nUsePAM no\nPasswordAuthentication no\n"
      << "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n";
  listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  MT_CHECK(bind(listener_, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
           listen(listener_, 64) == 0);
  MT_CHECK(getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) == 0);
  port_ = ntohs(address.sin_port);
  const std::string key = Read(folder_ + "/host_key.pub");
  std::ofstream(known_hosts()) << "[127.0.0.1]:" << port_ << " " << key;
  thread_ = std::thread([this] { Accept(); });
}

TestSshd::~TestSshd() {
  shutdown(listener_, SHUT_RDWR);
  thread_.join();
  close(listener_);
  for (const pid_t process : frozen_) kill(process, SIGCONT);  // those of children_ are below
  for (const pid_t child : children_) {
    kill(child, SIGKILL);  // ours and not yet reaped, so the number is still its own
    waitpid(child, nullptr, 0);
  }
}

void TestSshd::Accept() {
  for (;;) {
    const int connection = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (connection < 0) return;
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, connection, 0);
    posix_spawn_file_actions_adddup2(&actions, connection, 1);
    const std::string config = folder_ + "/sshd_config", log = folder_ + "/sshd.log";
    const char* const argv[] = {kSshd, "-i", "-f", config.c_str(), "-E", log.c_str(), nullptr};
    pid_t child = 0;
    const std::lock_guard<std::mutex> lock(mutex_);
    const int error =
        posix_spawn(&child, kSshd, &actions, nullptr, const_cast<char* const*>(argv), environ);
    posix_spawn_file_actions_destroy(&actions);
    close(connection);
    MT_CHECK(error == 0);
    children_.insert(child);
    ++num_connections_;
  }
}

void TestSshd::Freeze() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<pid_t> found(children_.begin(), children_.end());
  while (!found.empty()) {
    const pid_t process = found.back();
    found.pop_back();
    if (kill(process, SIGSTOP) != 0) continue;
    frozen_.insert(process);
    std::ifstream children(absl::StrCat("/proc/", process, "/task/", process, "/children"));
    for (pid_t child; children >> child;) found.push_back(child);
  }
}

int TestSshd::num_connections() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return num_connections_;
}

NodeConfig TestSshd::node(const std::string& name) const {
  NodeConfig node;
  node.name = name;
  node.address = "127.0.0.1";
  node.port = port_;
  node.slots = 2;
  return node;
}

SshOptions TestSshd::options() const {
  SshOptions options;
  options.known_hosts = known_hosts();
  options.identities = {user_key()};
  options.use_agent = false;
  return options;
}

std::string TestSshd::MakeKey(const std::string& name) const {
  Shell("ssh-keygen -q -t ed25519 -N '' -f " + folder_ + "/" + name);
  return folder_ + "/" + name;
}

void TestSshd::ChangeHostKey() {
  Shell("rm " + folder_ + "/host_key*");
  MakeKey("host_key");
}

}  // namespace mt
