// Staying with a job: its log lines and its changes of state, until it has ended or the user leaves. A coordinator that is
// away is waited for; what was shown before is not shown again, because log chunks are asked for after the last sequence.
#pragma once

#include <string>

#include "client/interrupt.h"
#include "client/session.h"

namespace mt::client {

struct LogOptions {
  int rank = -1;    // -1 = all
  int attempt = 0;  // 0 = newest
  bool follow = false;
  int64_t tail_lines = 0;
  bool prefix = true;  // "[rank 3] " before each line
};

// Streams log lines to stdout. With follow, over restarts of the coordinator until the job has ended. CANCELLED when
// interrupted.
absl::Status StreamLogs(Session* session, const std::string& job_id, const LogOptions& options,
                        Interrupt* interrupt);

// Follows until the job has ended, telling every change of state on stderr; returns the ended job. DEADLINE_EXCEEDED after
// `timeout`, CANCELLED when interrupted.
absl::StatusOr<v1::Job> WaitForEnd(Session* session, const std::string& job_id,
                                   absl::Duration timeout, Interrupt* interrupt, bool tell = true);

// Both at once. Detaching by Ctrl-C is not an error of the job: it says how to come back and returns kExitInterrupted.
absl::StatusOr<ExitCode> FollowJob(Session* session, const std::string& job_id, bool with_logs,
                                   absl::Duration timeout);

// A last line for people on stderr ("job x succeeded after 2m10s, loss 2.31"), and the job's exit code for --wait.
ExitCode ReportEnd(const v1::Job& job);

// "[rank 3] " before every line of `data`; without a prefix the data as they are.
std::string PrefixLines(absl::string_view data, absl::string_view prefix);

}  // namespace mt::client
