// mtctl list, status, describe, cancel, pause, resume, wait, logs, events.
#pragma once

#include "client/session.h"

namespace mt::client {

void AddJobsCommands(CLI::App* app, Session* session);
Table JobsTable(const std::vector<v1::Job>& jobs, absl::Time now);
// What `describe` prints in tables: everything there is to know about a job, for people.
std::string DescribeJob(const v1::Job& job, absl::Time now);

}  // namespace mt::client
