// mtctl model list and show: the published models that a job may name. They need no coordinator.
#pragma once

#include "client/session.h"

namespace mt::client {

void AddModelCommands(CLI::App* app, Session* session);

}  // namespace mt::client
