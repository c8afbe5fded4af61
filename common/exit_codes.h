// Exit codes of mtctl and of jobs (Job.exit_code), documented in docs/guide/mtctl.md.
#pragma once

namespace mt {

enum ExitCode : int {
  kExitOk = 0,
  kExitInternal = 1,
  kExitUsage = 2,
  kExitNotFound = 3,
  kExitAuth = 4,
  kExitPrecondition = 5,  // conflict, or input that does not validate
  kExitUnavailable = 6,   // no coordinator there
  kExitDeadline = 7,
  kExitJobFailed = 8,
  kExitNoProgress =
      93,  // a job's exit code: stopped after attempts without progress; do not requeue
  kExitInterrupted = 130,
};

}  // namespace mt
