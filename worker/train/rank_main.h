// The rank process: one rank of one generation of a job, from the start message to the last step.
//
// All ranks take a checkpoint and stop at the same step although an order reaches them at different
// moments: after each step the ranks agree by a maximum over all of them on "somebody was asked to
// checkpoint" and "somebody was asked to stop".
#pragma once

namespace mt {

class RankChannel;

// Returns the process's exit code: 0 when all steps are done (or it was paused) and the last
// checkpoint is written; 1 after an error, which the daemon has been told by a Finished message.
// `fd` is the socket to the daemon.
int RankMain(int fd);

}  // namespace mt
