// mtctl data build.
#pragma once

#include "client/session.h"

namespace mt::client {

void AddDataBuildCommand(CLI::App* data, Session* session);

}  // namespace mt::client
