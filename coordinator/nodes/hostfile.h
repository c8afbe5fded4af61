// The hostfile: which machines make the cluster. One line names one host, or a bracket range of
// hosts:
//
//   line  = [user@]host[:slots] {key=value}          # comment
//   host  = name | name with ranges | IPv4 | [IPv6]   e.g. gpu[001-064,080]  10.0.0.7  [fd00::7]
//   key   = slots | max_slots | addr | user | port | ifname | data_cache | type | rack
//
// It is what DeepSpeed (`host slots=N`), Open MPI (`host slots=N max_slots=M`), MPICH (`host:N`),
// FlagScale (`type=`), Slurm and pdsh (ranges) write, as far as they do not contradict each other.
// `addr=` says how SSH reaches a host whose name does not resolve; `type` and `rack` are checked
// and otherwise without effect. Without a number of slots the worker's own report is taken. `data_cache=200G` limits
// what a node keeps of distributed datasets. Order
// is kept: it is the order of ranks.
//
// Whatever could be read in two ways is refused, with line, column and what to write instead: a
// host or an address that appears twice, an unknown or repeated key, names that are not RFC 1123.
// Nothing of the file ever reaches a shell.
#pragma once

#include <vector>

#include "absl/strings/string_view.h"
#include "common/status.h"
#include "coordinator/nodes/node_config.h"

namespace mt {

// Errors are INVALID_ARGUMENT, beginning with `<file_name>:<line>:<column>: `.
absl::StatusOr<std::vector<NodeConfig>> ParseHostfile(absl::string_view contents,
                                                      absl::string_view file_name);

}  // namespace mt
