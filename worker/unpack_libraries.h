// In the worker bundle (deploy/bundle.sh) large libraries lie gzipped beside the program, because the bundle is copied to
// every node. The first start on a node unpacks them, before a backend that needs them is looked for.
#pragma once

#include <string>

#include "common/env.h"
#include "common/status.h"

namespace mt {

// For every `<name>.so*.gz` in the program's own folder whose unpacked form is absent: unpacks it under a temporary name,
// checks length and CRC, renames. Any number of processes may do so at once. Outside a bundle there is nothing to do.
// DATA_LOSS: a file is damaged (copy the bundle again); RESOURCE_EXHAUSTED: the disk is full.
absl::Status UnpackLibraries(Env* env);
absl::Status UnpackLibrariesIn(Env* env, const std::string& folder);

}  // namespace mt
