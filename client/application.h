// The whole of mtctl but `main`, so that tests run it as users do.
#pragma once

#include "client/session.h"

namespace mt::client {

// All commands under one application. `session` outlives it.
std::unique_ptr<CLI::App> NewApplication(Session* session);

// Parses the line, runs the command, prints errors with the command to try next, returns the exit code.
int RunMtctl(int argc, const char* const* argv);

}  // namespace mt::client
