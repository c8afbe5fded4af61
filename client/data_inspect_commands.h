// mtctl data inspect and verify. They work on files here and need no coordinator.
#pragma once

#include <string>

#include "client/session.h"

namespace mt::client {

void AddDataInspectCommands(CLI::App* data, Session* session);

// A dataset as people name it, so that `data merge part*.idx` works: the ending of one of its files is taken off.
std::string DatasetPrefix(std::string name);

}  // namespace mt::client
