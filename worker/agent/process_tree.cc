#include "worker/agent/process_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <sstream>
#include <vector>

#include "common/clock.h"

namespace mt {
namespace {

struct ProcessInfo {
  pid_t parent = 0, session = 0;
  char state = '?';
};

std::string ReadProc(pid_t pid, const char* name) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/", name), std::ios::binary);
  std::ostringstream contents;
  contents << in.rdbuf();
  return contents.str();
}

std::map<pid_t, ProcessInfo> ListProcesses() {
  std::map<pid_t, ProcessInfo> processes;
  std::unique_ptr<DIR, int (*)(DIR*)> proc(opendir("/proc"), closedir);
  if (proc == nullptr) return processes;
  while (const dirent* entry = readdir(proc.get())) {
    const pid_t pid = std::atoi(entry->d_name);
    if (pid <= 0) continue;
    const std::string stat = ReadProc(pid, "stat");
    const size_t name_end = stat.rfind(')');  // the name in parentheses may hold anything
    if (name_end == std::string::npos) continue;
    ProcessInfo info;
    pid_t group;
    std::istringstream rest(stat.substr(name_end + 1));
    if (rest >> info.state >> info.parent >> group >> info.session) processes[pid] = info;
  }
  return processes;
}

bool HasTag(pid_t pid, const std::string& wanted) {
  const std::string environment = ReadProc(pid, "environ");
  for (size_t begin = 0; begin < environment.size();) {
    size_t end = environment.find('\0', begin);
    if (end == std::string::npos) end = environment.size();
    if (environment.compare(begin, end - begin, wanted) == 0) return true;
    begin = end + 1;
  }
  return false;
}

}  // namespace

absl::Status KillTree(const std::string& tag, pid_t session, absl::Duration timeout) {
  const std::string wanted = absl::StrCat(kRankTagVariable, "=", tag);
  const pid_t self = getpid();
  const absl::Duration deadline = Clock::Real()->Monotonic() + timeout;
  std::set<pid_t> killed;
  while (true) {
    const auto processes = ListProcesses();
    std::set<pid_t> members;
    for (const auto& [pid, info] : processes) {
      if (pid == self || pid == 1) continue;
      if ((session > 0 && info.session == session) || HasTag(pid, wanted)) members.insert(pid);
    }
    for (bool grew = true;
         grew;) {  // descendants, however they changed their session and environment
      grew = false;
      for (const auto& [pid, info] : processes) {
        if (pid != self && members.contains(info.parent)) grew |= members.insert(pid).second;
      }
    }
    std::vector<pid_t> left;
    std::vector<pollfd> waits;
    for (const pid_t pid : members) {
      const ProcessInfo& info = processes.at(pid);
      killed.insert(pid);
      if (info.state == 'Z' || info.state == 'X') continue;
      left.push_back(pid);
      const int fd = static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
      if (fd < 0) continue;
      syscall(SYS_pidfd_send_signal, fd, SIGKILL, nullptr, 0);
      waits.push_back({fd, POLLIN, 0});
    }
    if (left.empty()) {
      // Orphans came to this process. The session's leader is left for its owner, who wants its
      // status.
      for (const pid_t pid : killed) {
        if (pid != session) waitpid(pid, nullptr, WNOHANG);
      }
      return absl::OkStatus();
    }
    for (auto& wait : waits) {
      const absl::Duration rest = deadline - Clock::Real()->Monotonic();
      poll(&wait, 1, std::max<int>(0, static_cast<int>(absl::ToInt64Milliseconds(rest))));
      close(wait.fd);
    }
    if (Clock::Real()->Monotonic() >= deadline) {
      return absl::DeadlineExceededError(absl::StrCat(left.size(), " processes of ", tag,
                                                      " outlive SIGKILL, first ", left.front()));
    }
  }
}

}  // namespace mt
