// A file as the pieces of a stream, for the services that give files to other processes.
#pragma once

#include <functional>
#include <string>

#include "common/env.h"
#include "common/status.h"
#include "mt/v1/worker.pb.h"

namespace mt {

// Gives the file at `path` from `offset` on to `write`, at most 1 MiB at a time, at least one piece (of an empty rest, an empty one).
// `name` is what messages call it. OUT_OF_RANGE: offset past the end. DATA_LOSS: I/O error, or it became shorter. CANCELLED: `write`
// answered false. Blocks as `write` does; thread-safe.
absl::Status WritePieces(Env* env, const std::string& path, const std::string& name, int64_t offset,
                         const std::function<bool(const v1::FilePiece&)>& write);

}  // namespace mt
