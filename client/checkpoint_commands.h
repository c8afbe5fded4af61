// mtctl checkpoint list|show|verify|pull, and mtctl generate, which pulls what it needs.
#pragma once

#include "client/session.h"

namespace mt::client {

void AddCheckpointCommands(CLI::App* app, Session* session);

// "JOB" or "JOB@STEP".
absl::StatusOr<v1::CheckpointRef> ParseCheckpoint(const std::string& text);

// Writes a checkpoint under `root` as <root>/<job>/step-NNNNNNNN/, every file checked against the manifest's size and digest
// before the manifest makes it exist; what is there and right is not fetched again, and a stream that breaks goes on where it
// was. Returns its folder. DATA_LOSS names the file.
absl::StatusOr<std::string> PullCheckpoint(Session* session, const v1::CheckpointRef& checkpoint,
                                           const std::string& root);

}  // namespace mt::client
