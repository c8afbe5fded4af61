// mt-worker evaluate: the loss of a checkpoint or a Hugging Face folder on data that it was not trained on, on this machine, in
// one process. `mtctl evaluate` runs it.
#pragma once

#include <string>
#include <vector>

namespace mt {

// Prints the result to stdout; returns an exit code of common/exit_codes.h after saying why on stderr.
//   --checkpoint=FOLDER|hf:FOLDER [--data=PREFIX] [--batches=N] [--sequence-length=T] [--backend=NAME] [--json=1]
// Without --data, what the checkpoint's job holds out. A batch is as long and as large as the job's, for hf: 8 sequences.
int EvaluateMain(const std::vector<std::string>& arguments);

}  // namespace mt
