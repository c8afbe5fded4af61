// mtctl data: build, inspect, verify, merge, split, decode. They work on files here and need no coordinator.
#pragma once

#include "client/session.h"

namespace mt::client {

void AddDataCommands(CLI::App* app, Session* session);

}  // namespace mt::client
