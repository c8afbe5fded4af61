// mtctl checkpoint import|export: between checkpoints and Hugging Face folders. Both read and write on this machine.
#pragma once

#include <CLI/CLI.hpp>

#include "client/session.h"

namespace mt::client {

void AddHuggingFaceCommands(CLI::App* checkpoint, Session* session);

}  // namespace mt::client
