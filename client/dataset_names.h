// How people name datasets on the command line.
#pragma once

#include <string>
#include <vector>

#include "common/status.h"

namespace mt::client {

// The ending of one of a dataset's two files is taken off: NAME.idx and NAME.bin mean NAME.
std::string DatasetPrefix(std::string name);

// A prefix to write to, named in any of these ways. INVALID_ARGUMENT: what is left names no file (`o/`, `.bin`).
absl::StatusOr<std::string> OutputPrefix(const std::string& name);

// The datasets that `names` mean, in their order, so that `part*` works, which gives every file of each: NAME.bin, NAME.idx and NAME itself
// mean one dataset, which is taken once, where it is named first; its NAME.loss, NAME.manifest.json, NAME.bad.jsonl and NAME.lock
// beside one of these add nothing. INVALID_ARGUMENT: the same name twice: whether its data is wanted twice is not known.
absl::StatusOr<std::vector<std::string>> DatasetsNamed(const std::vector<std::string>& names);

}  // namespace mt::client
