// mtctl data inspect and verify. They work on files here and need no coordinator.
#pragma once

#include "client/session.h"

namespace mt::client {

void AddDataInspectCommands(CLI::App* data, Session* session);

}  // namespace mt::client
