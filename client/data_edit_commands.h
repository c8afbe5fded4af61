// mtctl data merge, split and decode. They work on files here and need no coordinator.
#pragma once

#include "client/session.h"

namespace mt::client {

void AddDataEditCommands(CLI::App* data, Session* session);

}  // namespace mt::client
