// The real RankHost: every rank is a process, the leader of its own session, started by fork and
// exec of this very program with `rank` as its argument.
//
// Invariants
//  - Nothing that a rank started outlives OnRankExited: the daemon is a child subreaper, so orphans
//  come to it; the tree is found
//    by parent, by session and by a tag in the environment, and killed until none is found.
//  - A daemon that dies takes its ranks along: PR_SET_PDEATHSIG is SIGKILL, and their socket ends.
//  - A rank's environment is made here, not inherited: an allow-list of names and what the launch
//  says; LD_PRELOAD is not on it.
//  - One thread reads all pipes, sockets and process descriptors, and posts to the loop; a rank
//  that writes faster than the
//    loop handles is not read until it does, so memory is bounded.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common/event_loop.h"
#include "worker/agent/rank_host.h"

namespace mt {

struct ProcessHostOptions {
  std::string program = "/proc/self/exe";
  std::vector<std::string> arguments = {"rank"};  // after the program's name
  int last_lines = 40;
  std::string
      scope;  // unique to this daemon on its machine (its state folder): part of its processes' tag
  // NAME=VALUE for every rank, unless the daemon's environment has NAME and a rank inherits it.
  std::vector<std::string> environment;
};

// Calls come on `loop`, which outlives the host. Destruction kills every tree that is left.
absl::StatusOr<std::unique_ptr<RankHost>> NewProcessHost(ProcessHostOptions options,
                                                         EventLoop* loop);

}  // namespace mt
