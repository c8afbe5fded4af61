// mtctl completion bash|zsh|fish: scripts made from the application's own tree, so that they cannot lag behind it.
#pragma once

#include "client/session.h"

namespace mt::client {

void AddCompletionCommand(CLI::App* app, Session* session);
// `shell` is bash, zsh or fish.
std::string CompletionScript(const CLI::App& app, const std::string& shell);

}  // namespace mt::client
