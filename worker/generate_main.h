// mt-worker generate: text from a checkpoint's folder, on this machine, in one process. `mtctl generate` runs it.
#pragma once

#include <string>
#include <vector>

namespace mt {

// Prints prompt and text to stdout; returns an exit code of common/exit_codes.h after saying why on stderr.
//   --checkpoint=FOLDER --prompt=TEXT [--max-tokens=N] [--temperature=T] [--top-k=K] [--top-p=P] [--seed=S] [--backend=NAME]
int GenerateMain(const std::vector<std::string>& arguments);

}  // namespace mt
